"""Damaged and made-up files: each is a BadImage, or a picture that can be written. The same examples in every run."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from io import BytesIO

import numpy as np
import pytest
from helpers.album import IPTC, XMP, encoded, exif, frames, photo, png_text, wide_gamut
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import PngImagePlugin

from mambair_cli.errors import BadImage
from mambair_cli.images import deep, encode
from mambair_cli.images.decode import Frame, Picture, read_picture
from mambair_cli.images.encode import Encoding
from mambair_cli.images.formats import FORMATS

MOST_PIXELS = 300_000
EXAMPLES = int(os.environ.get("HYPOTHESIS_MAX_EXAMPLES", "50"))  # per test: seconds in the suite, more for a night
bounded = settings(
    derandomize=True, database=None, deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck)
)


def carried() -> dict[str, object]:
    return {"exif": exif(6), "icc_profile": wide_gamut(), "dpi": (72, 72)}


def sixteen_bits(form: str) -> bytes:
    stream = BytesIO()
    picture = Picture((Frame(np.asarray(photo()).astype(np.uint16) * 257),))
    encode.write(picture, stream, FORMATS[form], Encoding())
    return stream.getvalue()


def several(form: str) -> bytes:
    first, *others = frames()
    return encoded(first, form, save_all=True, append_images=others)


SEEDS: dict[str, Callable[[], bytes]] = {
    "png": lambda: encoded(photo(), "PNG", pnginfo=png_text(), **carried()),
    "jpeg": lambda: encoded(photo(), "JPEG", xmp=XMP, comment=b"wall", **carried()),
    "tiff": lambda: encoded(photo(), "TIFF", **carried()),
    "webp": lambda: encoded(photo(), "WEBP", xmp=XMP, **carried()),
    "avif": lambda: encoded(photo(), "AVIF", xmp=XMP, **carried()),
    "bmp": lambda: encoded(photo(), "BMP"),
    "gif": lambda: several("GIF"),
    "moving png": lambda: several("PNG"),
    "moving webp": lambda: several("WEBP"),
    "lzw": lambda: encoded(photo(), "TIFF", compression="tiff_lzw"),
    "mpo": lambda: several("MPO"),
    "deep png": lambda: sixteen_bits("PNG"),
    "deep tiff": lambda: sixteen_bits("TIFF"),
}
NUMBERS = st.sampled_from([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]) | st.integers(0, 2**32 - 1)
DAMAGES = st.one_of(
    st.tuples(st.just("bytes"), st.floats(0, 1), st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("insert"), st.floats(0, 1), st.binary(min_size=1, max_size=80)),
    st.tuples(st.just("delete"), st.floats(0, 1), st.integers(1, 200)),
    st.tuples(st.just("<I"), st.floats(0, 1), NUMBERS),
    st.tuples(st.just(">I"), st.floats(0, 1), NUMBERS),
)


@cache
def seed(name: str) -> bytes:
    return SEEDS[name]()


def damaged(data: bytes, damages: list[tuple[str, float, object]]) -> bytes:
    result = bytearray(data)
    for kind, where, what in damages:
        place = int(where * (len(result) - 1)) if result else 0
        if isinstance(what, bytes):
            result[place : place + (len(what) if kind == "bytes" else 0)] = what
        elif kind == "delete":
            del result[place : place + int(str(what))]
        else:
            number = struct.pack(kind, what)
            result[place : place + 4] = number
    return bytes(result)


def survives(data: bytes) -> Picture | None:
    """The picture, if it is one: every frame whole, and written in every format that can hold it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of oddities
        try:
            picture = read_picture(data, MOST_PIXELS)
        except BadImage:
            return None
        for frame in picture.frames:
            assert frame.pixels.ndim == 3
            assert frame.pixels.size
            assert frame.alpha is None or frame.alpha.shape == frame.pixels.shape[:2]
        for form in (FORMATS[name] for name in ("PNG", "JPEG", "TIFF", "WEBP")):
            with suppress(BadImage):
                encode.check(form, picture.size, len(picture.frames))
                encode.write(picture, BytesIO(), form, Encoding())
    return picture


@pytest.mark.parametrize("name", SEEDS)
def test_seeds_are_sound(name: str) -> None:
    assert survives(seed(name))


@pytest.mark.parametrize("name", SEEDS)
@bounded
@given(damages=st.lists(DAMAGES, min_size=1, max_size=4))
def test_damaged_files_are_refused_or_read(name: str, damages: list[tuple[str, float, object]]) -> None:
    survives(damaged(seed(name), damages))


# --- what is around the pixels: however broken, it costs only itself ----------------------------------------------

BLOBS = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda damages: damaged(exif(3).tobytes(), damages), st.lists(DAMAGES, max_size=4)),
    st.builds(lambda damages: damaged(wide_gamut(), damages), st.lists(DAMAGES, max_size=4)),
    st.builds(lambda damages: damaged(XMP, damages), st.lists(DAMAGES, max_size=4)),
    st.builds(lambda damages: damaged(IPTC, damages), st.lists(DAMAGES, max_size=4)),
)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("what", ["exif", "icc_profile", "xmp"])
@bounded
@given(blob=BLOBS)
def test_broken_metadata_never_costs_the_picture(form: str, what: str, blob: bytes) -> None:
    with suppress(ValueError, OSError, SyntaxError):  # what cannot even be written is no file
        options = {what: blob} if what != "xmp" or form != "PNG" else {}
        data = encoded(photo(), form, **options, **({"lossless": True} if form == "WEBP" else {}))
        picture = survives(data)
        assert picture is not None
        assert sorted(picture.size) == [47, 61]


@bounded
@given(
    chunks=st.lists(
        st.tuples(
            st.sampled_from(
                [*(b"eXIf iCCP tEXt zTXt iTXt gAMA cHRM sRGB cICP pHYs tRNS bKGD acTL fcTL quUx PLTE".split())]
            ),
            BLOBS,
        ),
        max_size=3,
    )
)
def test_chunks_of_a_png(chunks: list[tuple[bytes, bytes]]) -> None:
    """Sound checksums around anything."""
    plain = seed("deep png")
    start = plain.index(b"IDAT") - 4
    survives(plain[:start] + b"".join(deep._chunk(*chunk) for chunk in chunks) + plain[start:])


@bounded
@given(
    tags=st.lists(
        st.tuples(st.sampled_from(range(254, 350)) | st.integers(0, 65535), st.integers(0, 20), NUMBERS, NUMBERS),
        min_size=1,
        max_size=4,
    )
)
@pytest.mark.parametrize("name", ["tiff", "lzw", "deep tiff"])
def test_tags_of_a_tiff(name: str, tags: list[tuple[int, int, int, int]]) -> None:
    data = seed(name)
    start = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[start : start + 2], "little")
    entries = {data[at : at + 2]: data[at : at + 12] for at in range(start + 2, start + 2 + 12 * count, 12)}
    for tag, kind, values, value in tags:
        entries[struct.pack("<H", tag)] = struct.pack("<HHII", tag, kind, values, value)
    in_order = sorted(entries.values(), key=lambda entry: entry[1::-1])
    body = data + bytes(len(data) % 2)
    directory = struct.pack("<H", len(entries)) + b"".join(in_order) + bytes(4)
    survives(body[:4] + struct.pack("<I", len(body)) + body[8:] + directory)


def test_a_png_of_many_texts_is_read() -> None:
    text = PngImagePlugin.PngInfo()
    for number in range(2000):
        text.add_text("Comment", str(number))
    assert survives(encoded(photo(), "PNG", pnginfo=text))
