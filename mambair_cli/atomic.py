"""Files that appear whole or not at all, and what killed runs left of theirs."""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import socket
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from mambair_cli.errors import AlreadyThere, MambairError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_STALE_SECONDS = 24 * 3600.0
_TEMPORARY = re.compile(r"^\.mambair-(?P<host>[0-9a-f]{8})-\d+-\d+\.part$")
_host = f"{zlib.crc32(socket.gethostname().encode()):08x}"
_CAN_RENAME_OPEN = os.name == "posix"
_unfinished: set[str] = set()
_swept: set[Path] = set()  # folders
_lock = threading.Lock()
_closed = False
_log = logging.getLogger("mambair")


class DiskFullError(MambairError):
    """No room for a result; whatever comes next will not fit either."""


@contextmanager
def atomic_write(target: Path, exclusive: bool = False) -> Iterator[IO[bytes]]:
    """A binary file that becomes `target`, flushed to the disk, once the block ends without an error.

    `exclusive`: only if nothing of that name is there by then; else raises AlreadyThere.

    Nothing is left behind otherwise; what killed runs left in the folder is removed when it is first written to. The
    permissions are those of any new file. Raises MambairError where the folder or the file cannot be written,
    DiskFullError where there is no room.
    """
    temporary = ""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep_once(target.parent)
        with _open_new(target.parent) as file:
            temporary = file.name
            yield file
            file.flush()
            os.fsync(file.fileno())
            if _CAN_RENAME_OPEN:
                _finish(temporary, target, exclusive)
        if not _CAN_RENAME_OPEN:
            _finish(temporary, target, exclusive)
    except OSError as error:
        kind = DiskFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else MambairError
        raise kind(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        with _lock:
            _unfinished.discard(temporary)
        with suppress(OSError):
            os.unlink(temporary)


def _open_new(folder: Path) -> IO[bytes]:
    """A new file, locked for as long as it is open: that is how others know that its writer lives."""
    with _lock:
        if _closed:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        while True:
            # At random: processes in different containers may share host name and number. And never a name twice:
            # who found the last one dead may be about to unlink it.
            name = str(folder / f".mambair-{_host}-{os.getpid()}-{secrets.randbits(60)}.part")
            file = open(name, "x+b")  # noqa: SIM115 -- with the permissions of any new file; tempfile's is private
            if _hold(file.fileno()) is not False and _is_still(name, file.fileno()):
                _unfinished.add(name)
                return file
            file.close()  # swept away between its making and its locking
            with suppress(OSError):
                os.unlink(name)


def _hold(number: int) -> bool | None:
    """Lock an open file against other processes, in whichever container or, on most network file systems, machine.

    None: there are no locks, on Windows or on this file system.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_still(path: str, number: int) -> bool:
    """Whether the open file is the one of this name."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(number))
    except FileNotFoundError:
        return False


def _finish(temporary: str, target: Path, exclusive: bool) -> None:
    with _lock:
        if _closed:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        (_place if exclusive else os.replace)(temporary, target)
    if os.name == "posix":  # the new name, too, has to survive a power cut
        try:
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:  # a folder that may be written but not read: the file is there all the same
            _log.debug("%s is written, its folder cannot be flushed: %s", target, error.strerror)


def _place(temporary: str, target: Path) -> None:
    """Give the file its name if that is free. Raises AlreadyThere."""
    try:
        os.link(temporary, target)  # unlike renaming, this never replaces
    except OSError:
        if os.path.exists(target):
            raise AlreadyThere(f"{target} is there already") from None
        # A link to nowhere; or a file system without links (FAT), where two at one moment are not told apart.
        os.replace(temporary, target)


def abandon() -> None:
    """Remove every unfinished file and let no other be begun: the process is about to end."""
    global _closed
    with _lock:
        _closed = True
        for temporary in _unfinished:
            with suppress(OSError):
                os.unlink(temporary)


def _sweep_once(folder: Path) -> None:
    with _lock:
        if folder in _swept:
            return
        _swept.add(folder)
    sweep([folder])


def sweep(folders: Iterable[Path]) -> None:
    """Remove the temporary files that killed runs left in these folders, and nothing else."""
    for folder in folders:
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                match = _TEMPORARY.match(entry.name)
                if match and entry.is_file(follow_symlinks=False):
                    with suppress(OSError):
                        _remove_dead(entry, match["host"])


def _remove_dead(entry: os.DirEntry[str], host: str) -> None:
    """Remove a temporary file whose writer is gone.

    A living writer holds a lock on it. Where there are no locks, or where they may be each machine's own (another
    host's file, on a network file system), it has to be a day old as well.
    """
    old = time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_SECONDS
    if fcntl is None:
        if old:
            os.unlink(entry.path)
        return
    number = os.open(entry.path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        held = _hold(number)
        if (held or (held is None and old)) and (old or host == _host) and _is_still(entry.path, number):
            os.unlink(entry.path)
    finally:
        os.close(number)
