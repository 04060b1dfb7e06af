"""The temporary files of one server: uploads and results, in a private folder that ends with it."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

_PREFIX = "mambair-serve-"
_LOCK = "lock"
_YOUNG = 60.0  # seconds within which a folder may not have its lock yet


class Spool:
    """A private folder with a bound. Files have names of chance; those of clients never reach the disk."""

    def __init__(self, most: int) -> None:
        sweep()
        self.most, self.used = most, 0
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = FileLock(self.folder / _LOCK)
        self._lock.acquire()

    def new(self, suffix: str = "") -> Path:
        """The name of a file that is not there yet."""
        return self.folder / f"{secrets.token_hex(16)}{suffix}"

    def take(self, count: int) -> bool:
        """Whether there is room for so many bytes more; if so, they are counted."""
        fits = self.used + count <= self.most
        self.used += count if fits else 0
        return fits

    def count(self, file: Path) -> None:
        """Count a file that was written without asking."""
        with suppress(OSError):
            self.used += file.stat().st_size

    def remove(self, file: Path | None) -> None:
        """A file and its bytes, if it is there."""
        if file is not None:
            with suppress(OSError):
                size = file.stat().st_size
                file.unlink()
                self.used = max(self.used - size, 0)

    def close(self) -> None:
        self._lock.release()
        shutil.rmtree(self.folder, ignore_errors=True)


def sweep() -> None:
    """Remove the folders of servers that were killed: those of this user whose lock nobody holds."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            state = folder.lstat()
            foreign = hasattr(os, "getuid") and state.st_uid != os.getuid()
            if foreign or folder.is_symlink() or time.time() - state.st_mtime < _YOUNG:
                continue
            with suppress(Timeout), FileLock(folder / _LOCK, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
