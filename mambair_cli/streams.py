"""stdin and stdout, which may be closed or full, and what else can be read only once."""

from __future__ import annotations

import errno
import os
import sys
from io import BytesIO
from tempfile import TemporaryFile
from typing import IO

from mambair_cli.errors import BadImage, MambairError

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


def read_stdin() -> bytes:
    """All of stdin. Raises MambairError where it is closed or fails."""
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise MambairError(f"stdin cannot be read: {_why(error)}") from error


def stdout_is_terminal() -> bool:
    """Also while rich draws a bar and stands in for stdout, which then says that it is none."""
    try:
        return os.isatty(sys.stdout.fileno())
    except (OSError, ValueError):  # no file at all, as in tests and notebooks
        return False


def write_stdout(data: bytes | memoryview) -> None:
    """Bytes to stdout, at once. Raises MambairError where it is full or closed; what follows goes nowhere then.

    BrokenPipeError passes: who closed a pipe has seen enough.
    """
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the rest is tried again at the exit
        raise MambairError(f"stdout cannot be written: {_why(error)}") from error


def _why(error: OSError) -> str:
    return "it is closed" if error.errno == errno.EBADF else error.strerror or str(error)
