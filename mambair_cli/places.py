"""Files in stores (s3://, gs://, az://, https://, memory://, ...) through fsspec, imported once one is named."""

from __future__ import annotations

import errno
import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import IO, Any, TypeVar
from urllib.parse import unquote, urlsplit

from mambair_cli.errors import AlreadyThere, BadImage, MambairError, UsageError
from mambair_cli.streams import held

T = TypeVar("T")
log = logging.getLogger("mambair")

TRIES, PAUSE = 4, 0.5  # of reading; seconds before the second try, doubled before each further one
_URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_FILE = "file"
_WEB = ("http", "https")
# What installs the file system of a protocol, where it is not part of fsspec.
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs"}
# How its file system is told of what kind a file is; others guess it, or do without.
_KINDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "s3": lambda kind: {"ContentType": kind},
    **dict.fromkeys(("gs", "gcs"), lambda kind: {"content_type": kind}),
    **dict.fromkeys(("az", "abfs", "abfss"), lambda kind: {"content_settings": {"content_type": kind}}),
}
# What trying again does not help.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, BadImage, ImportError, ValueError)


def protocol_of(name: str) -> str | None:
    """The protocol of a URL; None of a local name."""
    match = _URL.match(name)
    return match[1].lower() if match else None


def is_elsewhere(name: str) -> bool:
    """Whether a name is that of a file in a store."""
    return protocol_of(name) not in (None, _FILE)


def localised(name: str) -> str:
    """`file://` URLs as local names; other names as they are."""
    return unquote(urlsplit(name).path) if protocol_of(name) == _FILE else name


@dataclass(frozen=True)
class Place:
    """A file in a store, by its URL. Parts of its name are those of pathlib."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def protocol(self) -> str:
        return protocol_of(self.url) or ""

    @property
    def name(self) -> str:
        if self.protocol in _WEB:
            return PurePosixPath(unquote(urlsplit(self.url).path)).name
        return self.url.rsplit("/", 1)[-1]

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def below(self, relative: PurePosixPath) -> Place:
        """The file of that name in this folder."""
        return Place(f"{self.url.rstrip('/')}/{relative}")

    def check(self) -> Place:
        """Itself, if there is a file system for it. Raises UsageError that says what to install."""
        _store(self.url)
        return self

    def exists(self) -> bool:
        """Raises MambairError where that cannot be known."""
        fs, path = _store(self.url)
        try:
            return bool(_patiently(lambda: fs.exists(path)))
        except Exception as error:
            raise MambairError(f"{self.url} cannot be reached: {_why(error)}") from error

    def modified(self) -> float | None:
        """When it was written, in seconds since 1970; None where the store does not say."""
        fs, path = _store(self.url)
        try:
            return float(fs.modified(path).timestamp())
        except (NotImplementedError, AttributeError, OSError, KeyError):
            return None

    def read(self, most: int) -> IO[bytes]:
        """All of it, to be read from its beginning. Raises BadImage, also for more than `most` bytes."""
        fs, path = _store(self.url)

        def whole() -> IO[bytes]:
            with fs.open(path, "rb") as stream:
                return held(stream, most)

        try:
            return _patiently(whole)
        except BadImage:
            raise
        except FileNotFoundError as error:
            raise BadImage(
                f"cannot be read: {_why(error.__cause__)}" if error.__cause__ else "no such file"
            ) from error
        except Exception as error:  # each file system has errors of its own
            raise BadImage(f"cannot be read: {_why(error)}") from error

    def write(self, data: bytes, kind: str, exclusive: bool) -> None:
        """Make the file, of a MIME type, whole or not at all.

        `exclusive`: only if there is none; else raises AlreadyThere. Raises MambairError where it cannot be written.
        """
        fs, path = _store(self.url)
        options = _KINDS[self.protocol](kind) if self.protocol in _KINDS else {}
        try:
            if exclusive and not self._create(fs, path, data, options):
                _say_once(f"{self.protocol}:// cannot create files exclusively: of two runs at once both may write")
                if self.exists():
                    raise AlreadyThere(f"{self.url} is there already")
                exclusive = False
            if not exclusive:
                fs.pipe_file(path, data, **options)
        except MambairError:
            raise
        except FileExistsError as error:
            raise AlreadyThere(f"{self.url} is there already") from error
        except Exception as error:
            raise MambairError(f"cannot write {self.url}: {_why(error)}") from error

    def _create(self, fs: Any, path: str, data: bytes, options: dict[str, Any]) -> bool:
        """Write a new file; False where the store does not know how. Raises FileExistsError."""
        try:
            fs.pipe_file(path, data, mode="create", **options)
        except (NotImplementedError, TypeError):
            return False
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
                return False
            raise
        return True


def listing(folder: Place, recursive: bool) -> Iterator[tuple[str, Place]]:
    """The files of a folder, each with its name below it, one folder after the other.

    Names that begin with a dot are left out, those of folders too. Nothing is held but the names of folders, where
    the store gives its list in pages (S3), else one folder's list. Raises MambairError where it cannot be listed.
    """
    fs, root = _store(folder.url)
    root, base = root.rstrip("/"), folder.url.rstrip("/")
    pending = [""]
    while pending:
        here, deeper = pending.pop(), []
        for path, is_folder in _entries(fs, f"{root}/{here}".rstrip("/")):
            if not path.startswith(f"{root}/{here}"):
                continue  # a web page's link to elsewhere; what stands for the folder itself
            name = path.removeprefix(f"{root}/{here}").rstrip("/")
            if name.startswith(".") or (not name and not is_folder):
                continue
            if is_folder and name:
                deeper.append(f"{here}{name}/")
            else:  # a folder without a name (a//b.png) is given as it is: nobody can search it, nobody may forget it
                yield here + name, Place(f"{base}/{here}{name}")
        if recursive:
            pending += reversed(deeper)


def matching(pattern: Place) -> list[Place]:
    """What a pattern with *, ? or [ matches, in order, without hidden files. Raises MambairError."""
    fs, path = _store(pattern.url)
    try:
        found = [Place(str(fs.unstrip_protocol(name))) for name in sorted(fs.glob(path))]
        return [place for place in found if not place.name.startswith(".")]
    except Exception as error:
        raise MambairError(f"{pattern.url} cannot be listed: {_why(error)}") from error


def _entries(fs: Any, path: str) -> Iterator[tuple[str, bool]]:
    """What a folder holds: path, whether it is a folder."""
    try:
        if hasattr(fs, "_iterdir") and hasattr(fs, "split_path"):  # s3fs: page by page, in order
            yield from _paged(fs, path)
        else:
            infos = _patiently(lambda: fs.ls(path, detail=True))
            for info in sorted(infos, key=lambda info: str(info["name"])):
                yield str(info["name"]), info["type"] == "directory"
    except FileNotFoundError as error:
        raise MambairError("no such folder") from error
    except Exception as error:
        raise MambairError(f"cannot be listed: {_why(error)}") from error


def _paged(fs: Any, path: str) -> Iterator[tuple[str, bool]]:
    from fsspec.asyn import sync

    bucket, key, _ = fs.split_path(path)
    pages = fs._iterdir(bucket, prefix=f"{key.rstrip('/')}/" if key else "")
    while True:
        try:
            info = sync(fs.loop, pages.__anext__)
        except StopAsyncIteration:
            return
        yield str(info["name"]), info["type"] == "directory"


@lru_cache(maxsize=256)
def _filesystem(protocol: str, root: str) -> Any:
    try:
        import fsspec
    except ImportError as error:
        raise UsageError(f"{protocol}:// needs fsspec", "pip install 'mambair[cloud]'") from error
    try:
        # Others write meanwhile: what was listed before says nothing.
        return fsspec.core.url_to_fs(root, use_listings_cache=False)[0]
    except ImportError as error:
        package = _PACKAGES.get(protocol, "'mambair[cloud]'")
        raise UsageError(f"{protocol}:// cannot be opened: {_why(error)}", f"pip install {package}") from error
    except ValueError as error:
        raise UsageError(f"{protocol}:// is no store that can be opened: {_why(error)}") from error


def _store(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. Raises UsageError."""
    scheme, rest = url.split("://", 1)
    fs = _filesystem(scheme.lower(), f"{scheme}://{rest.split('/', 1)[0]}")
    return fs, str(fs._strip_protocol(url))


def _patiently(work: Callable[[], T]) -> T:
    """The result of `work`, tried again with growing pauses where that may help."""
    for attempt in range(TRIES):
        try:
            return work()
        except Exception as error:
            if attempt + 1 == TRIES or _is_final(error):
                raise
            log.debug("trying again after %s", _why(error))
            time.sleep(PAUSE * 2**attempt * random.uniform(0.7, 1.3))  # not all workers at once
    raise AssertionError


def _is_final(error: Exception) -> bool:
    """Whether trying again cannot help."""
    status = getattr(error, "status", None)  # of HTTP
    if isinstance(status, int):
        return 400 <= status < 500 and status not in (408, 429)
    if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
        return _is_final(error.__cause__)  # what fsspec makes of every failure of a web server
    return isinstance(error, _FINAL)


def _why(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@lru_cache(maxsize=64)
def _say_once(text: str) -> None:
    log.warning(text)
