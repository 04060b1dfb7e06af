"""Streams that can be read only once, as files."""

from __future__ import annotations

from io import BytesIO
from tempfile import TemporaryFile
from typing import IO

from mambair_cli.errors import BadImage

_IN_MEMORY = 64_000_000  # bytes; more goes to a temporary file
_PIECE = 1 << 20


def held(stream: IO[bytes], most: int, head: bytes = b"") -> IO[bytes]:
    """What a stream gives, after the bytes `head`, as a file to seek in: in memory if it is short, else on the disk.

    Raises BadImage for more than `most` bytes.
    """
    first = head + stream.read(min(_IN_MEMORY, most + 1))
    if len(first) < len(head) + _IN_MEMORY and len(first) <= most:
        return BytesIO(first)
    file = TemporaryFile()  # noqa: SIM115 -- closed by who asked for it
    piece, count = first, 0
    while piece and count <= most:
        count += file.write(piece)
        piece = stream.read(_PIECE)
    if count > most:
        file.close()
        raise BadImage(f"more than {most:,} bytes: no picture of the allowed size is as long", "See --max-pixels.")
    file.seek(0)
    return file
