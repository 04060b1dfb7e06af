"""What a file claims is checked before a decoder believes it: lengths, and a PNG's checksums."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from helpers.album import encoded, photo

from mambair_cli.errors import BadImage
from mambair_cli.images import encode, structure
from mambair_cli.images.decode import Frame, Picture, read_picture
from mambair_cli.images.encode import Encoding
from mambair_cli.images.formats import FORMATS

GIGABYTES = 3 << 30
HUGE = (1 << 31) - 1
MEMORY = 150 << 20  # bytes that reading a small picture may take


def deep_png() -> bytes:
    stream = BytesIO()
    pixels = np.asarray(photo()).astype(np.uint16) * 257
    encode.write(Picture((Frame(pixels),)), stream, FORMATS["PNG"], Encoding())
    return stream.getvalue()


def png_with(name: bytes, before: bytes) -> bytes:
    """A PNG that ends, at chunk `before`, in the head of a chunk that claims two gigabytes."""
    data = encoded(photo(), "PNG")
    return data[: data.index(before) - 4] + struct.pack(">I", HUGE) + name


def tiff_with(tag: int) -> bytes:
    """A TIFF in which the values of a tag claim to be gigabytes."""
    data = encoded(photo(), "TIFF")
    start = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[start : start + 2], "little")
    entries = {data[at : at + 2]: data[at : at + 12] for at in range(start + 2, start + 2 + 12 * count, 12)}
    entries[struct.pack("<H", tag)] = struct.pack("<HHII", tag, 1, 2_900_000_000, 0)
    directory = (
        struct.pack("<H", len(entries)) + b"".join(sorted(entries.values(), key=lambda e: e[1::-1])) + bytes(4)
    )
    data += bytes(len(data) % 2)
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + directory


def bmp_with_a_long_header() -> bytes:
    data = encoded(photo(), "BMP")
    return data[:14] + struct.pack("<I", GIGABYTES - 100) + data[18:]


def webp_of(size: int) -> bytes:
    data = encoded(photo(), "WEBP")
    return data[:4] + struct.pack("<I", size - 8) + data[8:]


SPARSE: dict[str, Callable[[], bytes]] = {
    "deep.png": deep_png,
    "plain.webp": lambda: encoded(photo(), "WEBP"),
    "plain.avif": lambda: encoded(photo(), "AVIF"),
    "text.png": lambda: png_with(b"tEXt", b"IDAT"),
    "exif_behind.png": lambda: png_with(b"eXIf", b"IEND"),
    "pixels_behind.png": lambda: png_with(b"IDAT", b"IEND"),
    "profile.tif": lambda: tiff_with(34675),
    "strips.tif": lambda: tiff_with(279),
    "header.bmp": bmp_with_a_long_header,
    "riff.webp": lambda: webp_of(GIGABYTES),
    "box.avif": lambda: encoded(photo(), "AVIF") + struct.pack(">I4s", HUGE, b"mdat"),
}
READ = """
import resource, sys
from pathlib import Path
from mambair_cli.errors import BadImage
from mambair_cli.images.decode import read_picture
read_picture(Path(sys.argv[1]))  # all that is imported on the way
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
for name in sys.argv[2:]:
    try:
        print(name, read_picture(Path(name)).size)
    except BadImage as error:
        print(name, error.message)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, file=sys.stderr)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs sparse files, and memory measured as Linux does")
def test_a_small_file_never_takes_the_memory_that_it_claims(tmp_path: Path) -> None:
    for name, make in SPARSE.items():
        with (tmp_path / name).open("wb") as file:
            file.write(make())
            file.truncate(GIGABYTES)
    (tmp_path / "small.png").write_bytes(deep_png())
    names = [str(tmp_path / name) for name in ("small.png", *SPARSE)]
    ended = subprocess.run([sys.executable, "-c", READ, *names], capture_output=True, text=True, check=True)
    told = dict(line.removeprefix(f"{tmp_path}/").split(" ", 1) for line in ended.stdout.splitlines())
    assert max(map(int, ended.stderr.split())) < MEMORY, ended.stderr
    assert [name for name, text in told.items() if text == "(61, 47)"] == ["deep.png", "plain.webp", "plain.avif"]
    assert told["text.png"] == "its tEXt chunk claims 2,147,483,647 bytes"
    assert told["pixels_behind.png"].endswith("bytes for 61x47 pixels: made to fill the memory, or damaged")
    assert told["profile.tif"] == "its tag 34675 claims 2,900,000,000 values"
    assert told["box.avif"].startswith("2,147,48")


@pytest.mark.parametrize("form", ["WEBP", "AVIF", "TIFF", "BMP", "PNG"])
@pytest.mark.parametrize("several", [False, True])
def test_long_files_of_real_pictures_pass(form: str, several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As files of more than 64 MB are looked at, only smaller."""
    monkeypatch.setattr(structure, "LARGEST_PART", 900)
    more = {"save_all": True, "append_images": [photo()] * 2} if several and form != "BMP" else {}
    data = encoded(photo(), form, **more)
    assert len(data) > 900
    assert np.array_equal(read_picture(data).frames[0].pixels.shape, (47, 61, 3))


# --- checksums ----------------------------------------------------------------------------------------------------


def idat(data: bytes) -> tuple[int, int]:
    """Where the first chunk of pixels begins and ends."""
    start = data.index(b"IDAT") + 4
    return start, start + int.from_bytes(data[start - 8 : start - 4], "big")


def test_no_damaged_png_is_restored_without_a_word() -> None:
    """One wrong byte in the pixels or their checksum: refused, or the very picture with a warning."""
    sound = encoded(photo(), "PNG")
    pixels, rng = read_picture(sound).frames[0].pixels, random.Random(7)
    start, end = idat(sound)
    refused = 0
    for place in [*rng.sample(range(start, end), 150), end, end + 3]:
        data = bytearray(sound)
        data[place] ^= 1 << rng.randrange(8)
        try:
            picture = read_picture(bytes(data))
        except BadImage as error:
            refused += "damaged: its pixels fail their checksum" in error.message
        else:
            assert "damaged: a checksum is wrong, though the pixels are whole" in picture.warnings
            assert np.array_equal(picture.frames[0].pixels, pixels)
    assert refused == 150


def test_a_damaged_animation_is_refused() -> None:
    data = bytearray(encoded(photo(), "PNG", save_all=True, append_images=[photo().rotate(90, expand=False)]))
    data[data.index(b"fdAT") + 40] ^= 1
    with pytest.raises(BadImage, match="damaged"):
        read_picture(bytes(data))


@pytest.mark.skipif(sys.platform != "linux", reason="needs memory measured as Linux does")
def test_a_png_whose_pixels_swell_is_no_proof_of_health() -> None:
    """A wrong checksum before data that unpacks to gigabytes: given up after what the picture needs."""
    import resource

    packed = zlib.compress(bytes(300 << 20), 9)
    head = encoded(photo(), "PNG")
    head = head[: head.index(b"IDAT") - 4]
    data = head + struct.pack(">I4s", len(packed), b"IDAT") + packed + b"oops" + struct.pack(">I4s", 0, b"IEND")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadImage, match="damaged"):
        read_picture(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY >> 10
