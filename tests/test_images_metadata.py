"""What belongs to a picture in its file: colours of a PNG, segments of a JPEG."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from helpers.album import IPTC, encoded, photo, wide_gamut
from PIL import PngImagePlugin

from mambair_cli.images import encode
from mambair_cli.images.decode import Frame, Picture, read_picture
from mambair_cli.images.encode import Encoding
from mambair_cli.images.formats import FORMATS


def written(picture: Picture, form: str, **encoding: object) -> tuple[bytes, tuple[str, ...]]:
    stream = BytesIO()
    notes = encode.write(picture, stream, FORMATS[form], Encoding(**encoding))
    return stream.getvalue(), notes


# --- what a PNG's colours mean ----------------------------------------------------------------------------------

LINEAR = (b"gAMA", (100_000).to_bytes(4, "big"))
BT2020_PQ = (b"cICP", bytes((9, 16, 0, 1)))
PLAIN = [(b"sRGB", b"\0"), (b"gAMA", (45_455).to_bytes(4, "big"))]


def coloured(*chunks: tuple[bytes, bytes], **options: object) -> bytes:
    """The photo as a PNG with these chunks."""
    info = PngImagePlugin.PngInfo()
    for name, data in chunks:
        info.add(name, data)
    return encoded(photo(), "PNG", pnginfo=info, **options)


@pytest.mark.parametrize("chunks", [[LINEAR], [BT2020_PQ, LINEAR], PLAIN, []])
@pytest.mark.parametrize("strip", [False, True])
def test_a_png_keeps_what_its_colours_mean(chunks: list[tuple[bytes, bytes]], strip: bool) -> None:
    data, notes = written(read_picture(coloured(*chunks)), "PNG", strip_metadata=strip)
    assert notes == ()
    assert dict(read_picture(data).metadata.png_colour) == dict(chunks)


def test_a_deep_png_keeps_what_its_colours_mean() -> None:
    pytest.importorskip("imagecodecs")
    picture = read_picture(coloured(LINEAR))
    wide = tuple(Frame(frame.pixels.astype(np.uint16) * 257) for frame in picture.frames)
    data, _ = written(replace(picture, frames=wide), "PNG")
    assert read_picture(data).metadata.png_colour == (LINEAR,)


@pytest.mark.parametrize(
    ("chunks", "icc", "lost"),
    [
        ([LINEAR], b"", "gAMA"),
        ([BT2020_PQ], b"", "cICP"),
        ([BT2020_PQ], wide_gamut(), "cICP"),  # goes before the profile
        ([LINEAR], wide_gamut(), None),
        (PLAIN, b"", None),
        ([(b"cICP", bytes((1, 13, 0, 1))), LINEAR], b"", None),
    ],
)
def test_other_formats_say_when_they_change_the_colours(
    chunks: list[tuple[bytes, bytes]], icc: bytes, lost: str | None
) -> None:
    _, notes = written(read_picture(coloured(*chunks, **({"icc_profile": icc} if icc else {}))), "JPEG")
    assert notes == ((f"JPEG cannot carry it: the colour space of the PNG ({lost}) is dropped",) if lost else ())


# --- JPEG's segments --------------------------------------------------------------------------------------------


def segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(data) + 2).to_bytes(2, "big") + data


def resource(number: int, data: bytes, name: bytes = b"\0\0") -> bytes:
    padding = b"\0" * (len(data) % 2)
    return b"8BIM" + number.to_bytes(2, "big") + name + len(data).to_bytes(4, "big") + data + padding


@pytest.mark.parametrize("number", [1033, 1036])
@pytest.mark.parametrize("size", [5, 101, 100_000])  # a long one goes on in a second segment
def test_photoshops_thumbnail_of_the_unrestored_picture_goes(number: int, size: int) -> None:
    before, after = resource(1028, b"wall", b"\x03abc"), resource(1061, b"digest!")
    stream = before + resource(number, b"t" * size) + after
    app13 = [segment(0xED, b"Photoshop 3.0\0" + stream[i : i + 65_000]) for i in range(0, len(stream), 65_000)]
    data, notes = written(read_picture(encoded(photo(), "JPEG", extra=b"".join(app13))), "JPEG")
    assert notes == ()
    assert read_picture(data).metadata.iptc == segment(0xED, b"Photoshop 3.0\0" + before + after)


def test_photoshops_resources_without_a_thumbnail_stay_as_they_are() -> None:
    odd = segment(0xED, IPTC) + segment(0xED, b"Photoshop 3.0\0" + b"8BIM cut") + segment(0xED, b"Adobe_CM\0\2")
    data, _ = written(read_picture(encoded(photo(), "JPEG", extra=odd)), "JPEG")
    assert odd in data


GUID = b"0123456789ABCDEF0123456789ABCDEF"


@pytest.mark.parametrize(
    "pointer",
    [
        b'<rdf:Description xmpNote:HasExtendedXMP="' + GUID + b'" dc:title="wall"/>',
        b'<rdf:Description dc:title="wall"><xmpNote:HasExtendedXMP>'
        + GUID
        + b"</xmpNote:HasExtendedXMP></rdf:Description>",
    ],
)
def test_long_xmp_goes_along_whole_or_without_a_loose_end(pointer: bytes) -> None:
    head = b"http://ns.adobe.com/xmp/extension/\0" + GUID + (66_000).to_bytes(4, "big")
    more = b"".join(segment(0xE1, head + at.to_bytes(4, "big") + b"x" * 33_000) for at in (0, 33_000))
    picture = read_picture(encoded(photo(), "JPEG", xmp=b"<x>" + pointer + b"</x>", extra=more))
    data, notes = written(picture, "JPEG")
    assert notes == ()
    assert data.index(pointer) < data.index(more)
    again = read_picture(data).metadata
    assert (again.xmp, again.xmp_extension) == (picture.metadata.xmp, more)
    for form in ("PNG", "WEBP", "TIFF"):
        data, notes = written(picture, form)
        assert notes == (f"{form} cannot carry it: the part of XMP beyond 64 kB is dropped",)
        xmp = read_picture(data).metadata.xmp
        assert GUID not in xmp
        assert b'dc:title="wall"' in xmp
