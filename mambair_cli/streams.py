"""stdin and stdout, which may be closed, and whatever else can be read only once."""

from __future__ import annotations

import os
import sys
from io import BytesIO
from tempfile import TemporaryFile
from typing import IO, TextIO

from mambair_cli.errors import BadImage, UsageError

_IN_MEMORY = 64_000_000  # bytes; more goes to a temporary file
_PIECE = 1 << 20


def hold_closed() -> None:
    """Keep the numbers 0 to 2 busy where the caller closed them (`<&-`), so that no file that is opened gets them.

    To be called once, before anything is opened.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether it is one; a closed stream is none."""
    return stream is not None and not stream.closed and stream.isatty()


def stdin() -> IO[bytes]:
    """Raises UsageError where it is closed."""
    if sys.stdin is None or sys.stdin.closed:
        raise UsageError("stdin is closed", "Name a file, or send something through a pipe.")
    return sys.stdin.buffer


def write_stdout(data: bytes | memoryview) -> None:
    """All of it, now. Raises OSError, also where stdout is closed."""
    if sys.stdout is None or sys.stdout.closed:
        raise OSError("stdout is closed")
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


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
