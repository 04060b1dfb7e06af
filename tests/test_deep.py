"""16 bits a sample: in a plain install by Pillow and tifffile; rare compressions with the extra."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers.album import encoded
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from mambair_cli.errors import BadImage
from mambair_cli.images import deep, encode
from mambair_cli.images.decode import Frame, Picture, read_picture, split
from mambair_cli.images.encode import Encoding
from mambair_cli.images.formats import FORMATS

RNG = np.random.default_rng(1)
COLOUR_TYPES = {2: 4, 3: 2, 4: 6}


def samples(channels: int, side: int = 9) -> np.ndarray:
    """Noise: every byte of every sample matters."""
    return RNG.integers(0, 65536, (side, side + 2, channels)).astype(np.uint16)


def stacked(picture: Picture) -> np.ndarray:
    frame = picture.frames[0]
    return frame.pixels if frame.alpha is None else np.dstack((frame.pixels, frame.alpha))


def written(pixels: np.ndarray, form: str) -> bytes:
    stream = BytesIO()
    encode.write(Picture((split(pixels),)), stream, FORMATS[form], Encoding())
    return stream.getvalue()


def png(pixels: np.ndarray, interlaced: bool = False, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG as simple as can be: no row is filtered."""
    height, width, channels = pixels.shape
    head = struct.pack(">IIBBBBB", width, height, 16, COLOUR_TYPES[channels], 0, 0, interlaced)
    passes = adam7(pixels) if interlaced else [pixels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for part in passes if part.size for row in part)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


def adam7(pixels: np.ndarray) -> Iterator[np.ndarray]:
    for y, x, down, right in (
        *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)),
        *((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)),
    ):
        yield pixels[y::down, x::right]


@pytest.mark.parametrize("channels", COLOUR_TYPES)
@pytest.mark.parametrize("interlaced", [False, True])
def test_every_bit_of_a_png_is_read(channels: int, interlaced: bool) -> None:
    pixels = samples(channels)
    assert np.array_equal(stacked(read_picture(png(pixels, interlaced))), pixels)


def test_the_transparent_colour_of_a_png_is_transparent() -> None:
    pixels = samples(3)
    picture = read_picture(png(pixels, False, (b"tRNS", pixels[2, 3].astype(">u2").tobytes())))
    alpha = np.full(pixels.shape[:2], 65535)
    alpha[2, 3] = 0
    assert np.array_equal(picture.frames[0].alpha, alpha)


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("layout", ["contig", "separate"])
@pytest.mark.parametrize("predictor", [False, True])
def test_every_bit_of_a_tiff_is_read(
    channels: int, compression: str | None, order: str, layout: str, predictor: bool
) -> None:
    if compression is None and predictor:
        pytest.skip("nothing to predict for")
    pytest.importorskip("imagecodecs", reason="tifffile writes LZW with it")
    pages = [samples(channels), samples(channels)]
    stream = BytesIO()
    with tifffile.TiffWriter(stream, byteorder=order) as tiff:
        for page in pages:
            tiff.write(
                page if layout == "contig" else np.moveaxis(page, -1, 0),
                photometric="rgb" if channels > 2 else "minisblack",
                planarconfig=layout,
                extrasamples=None if channels == 3 else ["unassalpha"],
                compression=compression,
                predictor=predictor,
                metadata=None,
            )
    picture = read_picture(stream.getvalue())
    assert len(picture.frames) == 2
    for frame, page in zip(picture.frames, pages, strict=True):
        assert np.array_equal(stacked(Picture((frame,))), page)


@given(pixels=arrays.arrays(np.uint16, st.tuples(st.integers(1, 5), st.integers(1, 5), st.sampled_from([2, 3, 4]))))
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_what_is_written_is_read_again(form: str, pixels: np.ndarray) -> None:
    assert np.array_equal(stacked(read_picture(written(pixels, form))), pixels)


def test_others_read_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    png_decode = pytest.importorskip("imagecodecs", reason="needs the extra `deep`").png_decode
    monkeypatch.setattr(deep, "_STRIP_ROWS", 4)  # several of them
    for channels in COLOUR_TYPES:
        pixels = samples(channels, 11)
        assert np.array_equal(png_decode(written(pixels, "PNG")), pixels)


# --- without the extra ----------------------------------------------------------------------------------------------

PLAIN = "import sys; sys.modules['imagecodecs'] = None\n"
CONVERT = """
from pathlib import Path
from mambair_cli.errors import BadImage
from mambair_cli.images import encode
from mambair_cli.images.decode import read_picture
from mambair_cli.images.formats import FORMATS
for pair in ("a.png TIFF", "a.tiff PNG", "floats.tif TIFF", "odd.tif PNG", "a.tiff JPEG"):
    name, form = pair.split()
    try:
        picture = read_picture(Path(name))
        with open(f"{name}.{form}", "w+b") as file:
            print(encode.write(picture, file, FORMATS[form], encode.Encoding()))
    except BadImage as error:
        print(str(error).replace("\\n", " | "))
"""


def test_the_plain_install_reads_and_writes_what_scanners_make(tmp_path: Path) -> None:
    pixels = samples(3, 64)
    (tmp_path / "a.png").write_bytes(written(pixels, "PNG"))
    (tmp_path / "a.tiff").write_bytes(written(pixels, "TIFF"))
    tifffile.imwrite(tmp_path / "floats.tif", pixels / np.float32(65535), photometric="rgb")
    pytest.importorskip("imagecodecs", reason="tifffile writes LZW with it")
    planes = np.moveaxis(pixels, -1, 0)
    tifffile.imwrite(tmp_path / "odd.tif", planes, photometric="rgb", planarconfig="separate", compression="lzw")
    command = [sys.executable, "-c", PLAIN + CONVERT]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
    assert told[:3] == ["()", "()", "()"]
    assert "LZW" in told[3]
    assert "mambair[deep]" in told[3]
    assert told[4] == "('JPEG holds 8 bits a sample: the 16 of the input are rounded',)"
    for name in ("a.png.TIFF", "a.tiff.PNG"):
        assert np.array_equal(stacked(read_picture(tmp_path / name)), pixels)


def test_a_small_tiff_that_unpacks_to_gigabytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the plain install does it; the extra's codecs stop by themselves."""
    monkeypatch.setattr(deep, "find_spec", lambda name: None)
    monkeypatch.setattr(deep, "LARGEST_PART", 1000)
    stream = BytesIO()
    tifffile.imwrite(stream, np.zeros((8, 8, 3), np.float32), photometric="rgb", compression="zlib")
    data = stream.getvalue()
    assert read_picture(data).size == (8, 8)
    bomb = zlib.compress(bytes(1_000_000))
    with tifffile.TiffFile(BytesIO(data)) as tiff:
        page = tiff.pages[0]
        place, entry = page.dataoffsets[0], page.tags["StripByteCounts"].valueoffset
    swollen = bytearray(data[:place] + bomb)
    swollen[entry : entry + 4] = len(bomb).to_bytes(4, "little")
    with pytest.raises(BadImage, match="unpack to more than its pixels"):
        read_picture(bytes(swollen))


@pytest.mark.parametrize("size", [20, 150, 5000])
@pytest.mark.parametrize("extra", [True, False])
def test_truncated_tiffs_are_not_told_to_install_anything(
    size: int, extra: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not extra:
        monkeypatch.setattr(deep, "find_spec", lambda name: None)
    for image in (Image.new("RGB", (60, 50)), Image.new("L", (100, 100)), Image.new("RGBA", (60, 50))):
        for compression in (None, "tiff_lzw", "tiff_deflate"):
            data = encoded(image, "TIFF", compression=compression)
            for part in (data[: min(size, len(data) - 10)], data[: len(data) // 2]):
                with pytest.raises(BadImage) as refusal:
                    read_picture(part)
                assert "truncated" in refusal.value.message
                assert "mambair[" not in refusal.value.hint


def test_an_animation_of_16_bits_says_what_is_left_out() -> None:
    control = (b"acTL", struct.pack(">II", 2, 0))
    frame = (b"fcTL", struct.pack(">IIIIIHHBB", 0, 11, 9, 0, 0, 1, 10, 0, 0))
    picture = read_picture(png(samples(3), False, control, frame))
    assert picture.warnings == ("a 16-bit animation: only its first picture is kept",)
    assert isinstance(picture.frames[0], Frame)
