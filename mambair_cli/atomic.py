"""Files that appear whole or not at all, and what killed runs left of theirs."""

from __future__ import annotations

import errno
import itertools
import os
import re
import socket
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from mambair_cli.errors import MambairError

_STALE_SECONDS = 24 * 3600.0
_TEMPORARY = re.compile(r"^\.mambair-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-\d+\.part$")
_host = f"{zlib.crc32(socket.gethostname().encode()):08x}"
_numbers = itertools.count()
_unfinished: set[str] = set()
_lock = threading.Lock()
_closed = False


class DiskFullError(MambairError):
    """No room for a result; whatever comes next will not fit either."""


@contextmanager
def atomic_write(target: Path) -> Iterator[IO[bytes]]:
    """A binary file that becomes `target`, flushed to the disk, once the block ends without an error.

    Nothing is left behind otherwise. The permissions are those of any new file. Raises MambairError where
    the folder or the file cannot be written, DiskFullError where there is no room.
    """
    temporary = ""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = str(target.parent / f".mambair-{_host}-{os.getpid()}-{next(_numbers)}.part")
        with _open_new(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _finish(temporary, target)
    except OSError as error:
        kind = DiskFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else MambairError
        raise kind(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        with _lock:
            _unfinished.discard(temporary)
        with suppress(OSError):
            os.unlink(temporary)


def _open_new(temporary: str) -> IO[bytes]:
    with _lock:
        if _closed:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        file = open(temporary, "x+b")  # noqa: SIM115 -- with the permissions of any new file; tempfile's is private
        _unfinished.add(temporary)
    return file


def _finish(temporary: str, target: Path) -> None:
    with _lock:
        if _closed:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        os.replace(temporary, target)
    if os.name == "posix":  # the new name, too, has to survive a power cut
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def abandon() -> None:
    """Remove every unfinished file and let no other be begun: the process is about to end."""
    global _closed
    with _lock:
        _closed = True
        for temporary in _unfinished:
            with suppress(OSError):
                os.unlink(temporary)


def sweep(folders: Iterable[Path]) -> None:
    """Remove the temporary files that killed runs left in these folders, and nothing else."""
    for folder in folders:
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                match = _TEMPORARY.match(entry.name)
                if match and _is_stale(entry, match["host"], int(match["pid"])):
                    os.unlink(entry.path)


def _is_stale(entry: os.DirEntry[str], host: str, pid: int) -> bool:
    """Its writer is gone; where that cannot be known, it is a day old."""
    if host == _host and os.name == "posix":
        if pid == os.getpid():  # a container's processes often have the same number run after run
            return entry.path not in _unfinished
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
    return time.time() - entry.stat().st_mtime > _STALE_SECONDS
