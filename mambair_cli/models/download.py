"""One file from the network: verified, resumed, retried, locked, and moved into place whole or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

from mambair_cli import console
from mambair_cli.errors import MambairError, Unavailable, UsageError
from mambair_cli.models import answers
from mambair_cli.models.answers import Listener, PassingError, RefusedError, WrongFileError

if TYPE_CHECKING:
    from requests import Response, Session

log = logging.getLogger("mambair")

PROGRESS = 1 << 20  # bytes between two failures, after which their count starts anew
BACKOFF = 1.0  # seconds, doubled each time
SLOWEST = 1024  # bytes per second over the time-out: slower is stalled
CHUNK = 1 << 18
YES, NO = {"1", "true", "t", "yes", "y", "on"}, {"", "0", "false", "f", "no", "n", "off"}  # as --offline's variable


def download(
    urls: Sequence[str],
    target: Path,
    *,
    sha256: str | None = None,
    bytes: int | None = None,
    most: int | None = None,
    bar: bool = True,
    offline: bool = False,
    check: Callable[[Path], object] | None = None,
    timeout: float = 30.0,
) -> Path:
    """Fetch `target` from the first of `urls` that has it, unless it is there already.

    The file grows as `target`.part and takes its name only after its size, its `sha256` and `check` (which raises
    MambairError on a file that is not what it should be) agree. A part is resumed, also by a later run, where the
    server proves that it is still the same file or the hash will. Of several processes one downloads.

    `bytes`: its size; where that is unknown, no more than `most` are taken. `timeout`: seconds without an answer, of
    silence, or of less than 1 KiB/s, after which the connection is dropped and tried again, which is logged.
    `bar`: the console may draw one. Raises Unavailable; its hint says where to put the file.
    """
    by_hand = "\n".join(["Fetch it by hand from", *(f"  {url}" for url in urls), "and put it at", f"  {target}"])
    try:
        if target.exists():
            return _agreed(target, sha256)
        if offline or is_offline():
            raise Unavailable(f"{target.name} is not on this machine, and the network is switched off.", by_hand)
        target.parent.mkdir(parents=True, exist_ok=True)
        with only_process(target):
            if target.exists():
                return _agreed(target, sha256)
            wanted = _Wanted(target.name, sha256, bytes, bytes or most, check, timeout, bar)
            reasons = _try_all(urls, target, wanted)
    except OSError as error:
        raise Unavailable(
            f"Cannot write {target}: {error.strerror or error}.",
            "Make room or choose another folder: MAMBAIR_CACHE is where weights go, MAMBAIR_DATA data sets.",
        ) from error
    if reasons:
        raise Unavailable("\n".join([f"Could not download {target.name}.", *reasons]), by_hand)
    return target


def is_offline() -> bool:
    """Whether the environment forbids the network. Raises UsageError where MAMBAIR_OFFLINE is neither yes nor no."""
    word = os.environ.get("MAMBAIR_OFFLINE", "").strip().lower()
    if word not in YES | NO:
        raise UsageError(f"MAMBAIR_OFFLINE={word} is neither yes nor no.", "Set it to 1 or 0.")
    return word in YES


def sha256_of(file: Path) -> str:
    """Hexadecimal SHA-256 of a file of any size."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def only_process(target: Path) -> Iterator[None]:
    """One process at a time works on `target`; the lock goes with the process that holds it, however that ends."""
    from filelock import FileLock, Timeout

    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("Waiting for another process that is at work on %s", target.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


# ------------------------------------------------------------------------------------------- one file, many tries


@dataclass(frozen=True)
class _Wanted:
    """What the caller asked for, beside the addresses."""

    name: str
    sha256: str | None
    bytes: int | None
    most: int | None
    check: Callable[[Path], object] | None
    timeout: float
    bar: bool

    @property
    def hash_known(self) -> bool:
        return self.sha256 is not None


class _Part:
    """The unfinished file, with a note on which version of which address it is a part of."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(target.name + ".part")
        self.note = target.with_name(target.name + ".part.json")
        self.joined = False  # it came in several pieces

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def begin(self, url: str, headers: Mapping[str, str]) -> None:
        self.note.write_text(json.dumps({"url": url, "validator": answers.strong_validator(headers)}))

    def validator(self, url: str) -> str | None:
        """What the address has to answer with to be of the same version; None where nobody knows."""
        try:
            note = json.loads(self.note.read_text())
            validator = note["validator"] if note["url"] == url else None
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None
        fit = isinstance(validator, str) and validator.isascii() and validator.isprintable()
        return validator if fit else None  # it will be a header

    def range_headers(self, url: str, hash_known: bool) -> dict[str, str]:
        """What to ask for to get the rest; nothing where old and new bytes could be of different files."""
        if not self.size():
            return {}
        if validator := self.validator(url):
            return {"Range": f"bytes={self.size()}-", "If-Range": validator}
        return {"Range": f"bytes={self.size()}-"} if hash_known else {}

    def is_continued(self, url: str, headers: Mapping[str, str], hash_known: bool) -> bool:
        """Whether a range may be put after it: the server says that both are of one version, or the hash will."""
        validator = self.validator(url)
        if validator is None:
            return hash_known or not self.size()
        dated = not validator.startswith('"')  # a date need not be repeated (RFC 9110, 15.3.7), a tag must be
        return (
            headers.get("Last-Modified" if dated else "ETag", validator if dated or hash_known else "") == validator
        )


def _try_all(urls: Sequence[str], target: Path, wanted: _Wanted) -> list[str]:
    """Put the file in place and return nothing, or return why no address would do."""
    import requests

    part = _Part(target)
    reasons = []
    with requests.Session() as session:
        session.headers.update({"User-Agent": "mambair", "Accept-Encoding": "identity"})
        for url in urls:
            anew = False
            while True:
                try:
                    _transfer(session, url, part, wanted)
                    _verify(part.path, wanted)
                    os.replace(part.path, target)
                    part.discard()
                    return []
                except WrongFileError as why:
                    part.discard()
                    if part.joined and not anew:
                        anew = True
                        continue  # old and new bytes may be of different files: once more, from the start
                    reasons.append(f"{answers.host(url)}: {why}")
                    break
                except RefusedError as why:
                    reasons.append(f"{answers.host(url)}: {why}")
                    break
    return reasons


def _transfer(session: Session, url: str, part: _Part, wanted: _Wanted) -> None:
    """Fetch until the part is whole, through broken connections and busy servers."""
    failures = 0
    while True:
        before = part.size()
        try:
            return _attempt(session, url, part, wanted)
        except PassingError as why:
            failures = 1 if part.size() >= before + PROGRESS else failures + 1
            if failures >= why.tries:
                raise RefusedError(f"{why} ({failures} times)") from why
            wait = BACKOFF * 2 ** (failures - 1) if why.after is None else why.after
            log.warning("%s: %s; trying again in %.0f s", wanted.name, why, wait)
            time.sleep(wait)


def _attempt(session: Session, url: str, part: _Part, wanted: _Wanted) -> None:
    """One connection: append to the part what comes, or start it anew."""
    import requests
    from urllib3.exceptions import HTTPError, NewConnectionError, SSLError

    headers = part.range_headers(url, wanted.hash_known)
    listener = Listener(answers.CONNECT_TIMEOUT + wanted.timeout)
    response = None
    try:
        response = listener.ask(lambda: answers.answer(session, url, headers, wanted.timeout))
        total = _agreed_size(response, url, part, wanted)
        _append(response, listener, url, part, total, wanted)
    except (requests.RequestException, HTTPError, HTTPException, ValueError) as error:
        if isinstance(error, ValueError | requests.TooManyRedirects):  # ValueError: not a URL that can be asked
            raise RefusedError(answers.told(str(error))) from error
        reason = getattr(error.args[0], "reason", None) if error.args else None
        if isinstance(error, requests.ConnectTimeout) or isinstance(reason, NewConnectionError | SSLError):
            raise PassingError("no connection", tries=2) from error
        raise PassingError("the connection broke or fell silent") from error
    finally:
        listener.leave(response.close if response is not None else lambda: None)


def _agreed_size(response: Response, url: str, part: _Part, wanted: _Wanted) -> int | None:
    """Bytes of the whole file, where anybody knows. Throws the part away where the answer does not go on with it."""
    try:
        if response.status_code == 416:
            raise PassingError("the part on disk does not fit the file")
        total = answers.size_announced(response, part.size())
        if response.status_code == 206 and not part.is_continued(url, response.headers, wanted.hash_known):
            raise PassingError("the file has changed since its first part came", after=0)
    except PassingError:
        part.discard()
        raise
    if wanted.bytes and total and total != wanted.bytes:
        raise WrongFileError(f"it offers {total:,} bytes, not {wanted.bytes:,}")
    if wanted.most and total and total > wanted.most:
        raise WrongFileError(f"it offers {total:,} bytes, more than {wanted.most:,}, which would be plenty")
    return total or wanted.bytes


def _append(
    response: Response, listener: Listener, url: str, part: _Part, total: int | None, wanted: _Wanted
) -> None:
    have = part.size() if response.status_code == 206 else 0
    if total and total - have > shutil.disk_usage(part.path.parent).free:
        raise RefusedError(
            f"no room: {(total - have) / 1e6:,.0f} MB do not fit into {part.path.parent}; "
            "MAMBAIR_CACHE or MAMBAIR_DATA name another folder"
        )
    part.joined = have > 0
    if not have:
        part.begin(url, response.headers)
    shown = console.voice.download(wanted.name, total, have) if wanted.bar else nullcontext(lambda count: None)
    with shown as advance, part.path.open("ab" if have else "wb") as file:
        for chunk in _chunks(response, listener, wanted.timeout):
            if not have and _is_page(chunk):
                raise WrongFileError(answers.NOT_A_FILE)
            file.write(chunk)
            have += len(chunk)
            advance(len(chunk))
            if (limit := total or wanted.most) and have > limit:
                raise WrongFileError(f"more than {limit:,} bytes came")
        file.flush()
        os.fsync(file.fileno())
    if total and have < total:
        raise PassingError(f"the connection broke after {have:,} of {total:,} bytes")


def _chunks(response: Response, listener: Listener, timeout: float) -> Iterator[bytes]:
    """The body as it arrives. A server that trickles never lets a socket time out, so speed is watched too."""
    read = getattr(response.raw, "read1", response.raw.read)  # read1: urllib3 >= 2.2; read waits for a whole chunk
    start, got = time.monotonic(), 0
    while chunk := listener.ask(lambda: read(CHUNK)):
        yield chunk
        got += len(chunk)
        if time.monotonic() - start > timeout:
            if got < SLOWEST * timeout:
                raise PassingError("the server stalled")
            start, got = time.monotonic(), 0


def _verify(file: Path, wanted: _Wanted) -> None:
    if wanted.sha256 and (digest := sha256_of(file)) != wanted.sha256:
        raise WrongFileError(f"the sha256 is {digest}, not {wanted.sha256}")
    if wanted.check:
        try:
            wanted.check(file)
        except MambairError as error:
            raise WrongFileError(error.message) from error


def _is_page(start: bytes) -> bool:
    return start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html"))


# ---------------------------------------------------------------------------------------------------- surroundings


def _agreed(file: Path, sha256: str | None) -> Path:
    if sha256 and (digest := sha256_of(file)) != sha256:
        raise Unavailable(
            f"{file} is not the right file: its sha256 is {digest}, not {sha256}.", "Delete it and run this again."
        )
    return file
