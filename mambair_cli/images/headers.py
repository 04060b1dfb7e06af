"""Small facts from the headers of files, of which Pillow does not tell."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from typing import IO

import numpy as np
from PIL import Image

from mambair_cli.images.color import Array


def peek(file: IO[bytes], start: int, count: int) -> bytes:
    """So many bytes from there, and the file as it was."""
    place = file.tell()
    file.seek(start)
    data = file.read(count)
    file.seek(place)
    return data


def is_lossless_webp(file: IO[bytes]) -> bool:
    """Whether the first picture in the RIFF container is a VP8L one."""
    start = 12
    while len(head := peek(file, start, 8)) == 8:
        if head[:4] in (b"VP8L", b"VP8 "):
            return head[:4] == b"VP8L"
        size = int.from_bytes(head[4:], "little")
        start += 24 if head[:4] == b"ANMF" else 8 + size + size % 2  # a frame's chunks lie inside its own
    return False


def avif_bits(file: IO[bytes]) -> int:
    """Bits per channel from the first `pixi` property box; 8 if there is none."""
    _, found, rest = peek(file, 0, 65536).partition(b"pixi")
    return rest[5] if found and len(rest) > 5 else 8


def jpeg_quality(table: list[int]) -> int:
    """The libjpeg quality (1 to 100) whose luminance table is nearest to this one."""
    distances = [np.abs(standard - np.sort(table)).sum() for standard in _standard_tables()]
    return int(np.argmin(distances)) + 1


@lru_cache(maxsize=1)
def _standard_tables() -> list[Array]:
    tables = []
    for quality in range(1, 101):
        stream = BytesIO()
        Image.new("L", (8, 8)).save(stream, "JPEG", quality=quality)
        with Image.open(stream) as image:
            tables.append(np.sort(image.quantization[0]))  # type: ignore[attr-defined]
    return tables
