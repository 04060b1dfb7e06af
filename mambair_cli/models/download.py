"""One file from the network: verified, resumed, retried, locked, and moved into place whole or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urljoin, urlsplit

from mambair_cli.errors import MambairError, Unavailable, UsageError

if TYPE_CHECKING:
    from requests import Response, Session

log = logging.getLogger("mambair")

TRIES = 5  # in a row, at one address, without getting on by PROGRESS
PROGRESS = 1 << 20  # bytes
BACKOFF = 1.0  # seconds, doubled each time
LONGEST_WAIT = 60.0  # seconds, also where a server's Retry-After asks for more
CONNECT_TIMEOUT = 5.0  # seconds
SLOWEST = 1024  # bytes per second over the time-out: slower is stalled
CHUNK = 1 << 18
NOT_A_FILE = "a web page came instead of the file"
YES, NO = {"1", "true", "t", "yes", "y", "on"}, {"", "0", "false", "f", "no", "n", "off"}  # as --offline's variable
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


def download(
    urls: Sequence[str],
    target: Path,
    *,
    sha256: str | None = None,
    bytes: int | None = None,
    progress: bool = True,
    offline: bool = False,
    check: Callable[[Path], object] | None = None,
    timeout: float = 30.0,
) -> Path:
    """Fetch `target` from the first of `urls` that has it, unless it is there already.

    The file grows as `target`.part and takes its name only after its size, its `sha256` and `check` (which raises
    MambairError on a file that is not what it should be) agree. A part is resumed, also by a later run, where the
    server can tell that it is still the same file or the hash will. Of several processes one downloads.

    `timeout`: seconds of silence, or of less than 1 KiB/s, after which the connection is dropped and tried again.
    `progress`: a bar on stderr, where that is a terminal. Raises Unavailable; its hint says where to put the file.
    """
    by_hand = "\n".join(["Fetch it by hand from", *(f"  {url}" for url in urls), "and put it at", f"  {target}"])
    try:
        if target.exists():
            return _agreed(target, sha256)
        if offline or is_offline():
            raise Unavailable(f"{target.name} is not on this machine, and the network is switched off.", by_hand)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _only_process(target):
            if target.exists():
                return _agreed(target, sha256)
            wanted = _Wanted(target.name, sha256, bytes, check, timeout, _bar_fits() if progress else False)
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


# ------------------------------------------------------------------------------------------- one file, many tries


@dataclass(frozen=True)
class _Wanted:
    """What the caller asked for, beside the addresses."""

    name: str
    sha256: str | None
    bytes: int | None
    check: Callable[[Path], object] | None
    timeout: float
    bar: bool


class _RefusedError(Exception):
    """This address will not do."""


class _WrongFileError(_RefusedError):
    """What came is not the file."""


class _PassingError(Exception):
    """It may work a moment later."""

    def __init__(self, why: str, *, after: float | None = None, tries: int = TRIES) -> None:
        super().__init__(why)
        self.after = after
        self.tries = tries


class _Part:
    """The unfinished file, with a note on which version of which address it is a part of."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(target.name + ".part")
        self.note = target.with_name(target.name + ".part.json")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def begin(self, url: str, headers: Mapping[str, str]) -> None:
        etag = headers.get("ETag", "")
        validator = headers.get("Last-Modified") if etag.startswith("W/") or not etag else etag
        self.note.write_text(json.dumps({"url": url, "validator": validator}))

    def range_headers(self, url: str, hash_known: bool) -> dict[str, str]:
        """What to ask for to get the rest; nothing where old and new bytes could be of different files."""
        if not self.size():
            return {}
        try:
            note = json.loads(self.note.read_text())
            validator = note["validator"] if note["url"] == url else None
        except (OSError, ValueError, LookupError, TypeError):
            validator = None
        if validator:
            return {"Range": f"bytes={self.size()}-", "If-Range": validator}
        return {"Range": f"bytes={self.size()}-"} if hash_known else {}


def _try_all(urls: Sequence[str], target: Path, wanted: _Wanted) -> list[str]:
    """Put the file in place and return nothing, or return why no address would do."""
    import requests

    part = _Part(target)
    reasons = []
    with requests.Session() as session:
        session.headers.update({"User-Agent": "mambair", "Accept-Encoding": "identity"})
        for url in urls:
            while True:
                resumed = part.size() > 0
                try:
                    _transfer(session, url, part, wanted)
                    _verify(part.path, wanted)
                    os.replace(part.path, target)
                    part.discard()
                    return []
                except _WrongFileError as why:
                    part.discard()
                    if resumed:
                        continue  # old and new bytes may be of different files: once more, from the start
                    reasons.append(f"{urlsplit(url).netloc}: {why}")
                    break
                except _RefusedError as why:
                    reasons.append(f"{urlsplit(url).netloc}: {why}")
                    break
    return reasons


def _transfer(session: Session, url: str, part: _Part, wanted: _Wanted) -> None:
    """Fetch until the part is whole, through broken connections and busy servers."""
    failures = 0
    while True:
        before = part.size()
        try:
            return _attempt(session, url, part, wanted)
        except _PassingError as why:
            failures = 1 if part.size() >= before + PROGRESS else failures + 1
            if failures >= why.tries:
                raise _RefusedError(f"{why} ({failures} times)") from why
            wait = min(BACKOFF * 2 ** (failures - 1) if why.after is None else why.after, LONGEST_WAIT)
            log.info("%s: %s; trying again in %.0f s", wanted.name, why, wait)
            time.sleep(wait)


def _attempt(session: Session, url: str, part: _Part, wanted: _Wanted) -> None:
    """One connection: append to the part what comes, or start it anew."""
    import requests
    from urllib3.exceptions import HTTPError, NewConnectionError, SSLError

    headers = part.range_headers(url, wanted.sha256 is not None)
    try:
        with _open(session, url, headers, wanted.timeout) as response:
            if response.status_code == 416:
                part.discard()
                raise _PassingError("the part on disk does not fit the file")
            total = _total(response, part)
            if wanted.bytes and total and total != wanted.bytes:
                raise _WrongFileError(f"it offers {total:,} bytes, not {wanted.bytes:,}")
            _append(response, url, part, total or wanted.bytes, wanted)
    except (requests.RequestException, HTTPError) as error:
        if isinstance(error, ValueError | requests.TooManyRedirects):  # ValueError: not a URL that can be asked
            raise _RefusedError(str(error)) from error
        reason = getattr(error.args[0], "reason", None) if error.args else None
        if isinstance(error, requests.ConnectTimeout) or isinstance(reason, NewConnectionError | SSLError):
            raise _PassingError("no connection", tries=2) from error
        raise _PassingError("the connection broke or fell silent") from error


def _append(response: Response, url: str, part: _Part, total: int | None, wanted: _Wanted) -> None:
    from tqdm import tqdm

    have = part.size() if response.status_code == 206 else 0
    if total and total - have > shutil.disk_usage(part.path.parent).free:
        raise Unavailable(
            f"No room for {wanted.name}: {(total - have) / 1e6:,.0f} MB do not fit into {part.path.parent}.",
            "Make room or choose another folder with MAMBAIR_CACHE or MAMBAIR_DATA.",
        )
    if not have:
        part.begin(url, response.headers)
    bar = tqdm(
        total=total,
        initial=have,
        desc=wanted.name,
        unit="B",
        unit_scale=True,
        leave=False,
        disable=not wanted.bar,
        file=sys.stderr,
    )
    with bar, part.path.open("ab" if have else "wb") as file:
        for chunk in _chunks(response, wanted.timeout):
            if not have and _is_page(chunk):
                raise _WrongFileError(NOT_A_FILE)
            file.write(chunk)
            have += len(chunk)
            bar.update(len(chunk))
            if total and have > total:
                raise _WrongFileError(f"more than the {total:,} bytes announced came")
        file.flush()
        os.fsync(file.fileno())
    if total and have < total:
        raise _PassingError(f"the connection broke after {have:,} of {total:,} bytes")


def _chunks(response: Response, timeout: float) -> Iterator[bytes]:
    """The body as it arrives. A server that trickles never lets a socket time out, so speed is watched too."""
    read = getattr(response.raw, "read1", response.raw.read)  # read1: urllib3 >= 2.2; read waits for a whole chunk
    start, got = time.monotonic(), 0
    while chunk := read(CHUNK):
        yield chunk
        got += len(chunk)
        if time.monotonic() - start > timeout:
            if got < SLOWEST * timeout:
                raise _PassingError("the server stalled")
            start, got = time.monotonic(), 0


def _verify(file: Path, wanted: _Wanted) -> None:
    if wanted.sha256 and (digest := sha256_of(file)) != wanted.sha256:
        raise _WrongFileError(f"the sha256 is {digest}, not {wanted.sha256}")
    if wanted.check:
        try:
            wanted.check(file)
        except MambairError as error:
            raise _WrongFileError(error.message) from error


# ------------------------------------------------------------------------------------------------------- answers


def _open(session: Session, url: str, headers: Mapping[str, str], timeout: float) -> Response:
    """The answer that carries the file; Google Drive's page that asks for a confirmation is answered on the way."""
    for _ in range(2):
        response = session.get(url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT, timeout))
        status = response.status_code
        if status in TRANSIENT:
            raise _PassingError(
                f"HTTP {status} {response.reason}", after=_retry_after(response.headers.get("Retry-After"))
            )
        if status not in (200, 206, 416):
            raise _RefusedError(f"HTTP {status} {response.reason}")
        if url.startswith("https:") and response.url.startswith("http:"):
            raise _RefusedError("it leads to an unencrypted address")
        if status == 416 or not response.headers.get("Content-Type", "").lower().startswith("text/html"):
            return response
        page = response.raw.read(1 << 20).decode("utf-8", "replace")
        response.close()
        form = _ConfirmForm(page)
        if not form.action:
            break
        url = urljoin(response.url, form.action) + "?" + urlencode(form.fields)
    busy = "quota" in page.lower() or "too many users" in page.lower()
    raise _WrongFileError(
        "the daily quota of this file is used up" if busy else "a web page came instead of the file"
    )


class _ConfirmForm(HTMLParser):
    """Google Drive's "cannot scan this file for viruses": a form whose hidden fields make the real address."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        got = dict(attrs)
        if tag == "form" and got.get("id") == "download-form":
            self.action = got.get("action")
        elif tag == "input" and self.action and got.get("type") == "hidden":
            self.fields[got.get("name") or ""] = got.get("value") or ""


def _total(response: Response, part: _Part) -> int | None:
    """Size of the whole file, where the server says so; the range it sent must start where the part ends."""
    if response.status_code == 206:
        span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        if span.partition("-")[0] != str(part.size()):
            part.discard()
            raise _PassingError("the server sent another range than asked for")
        return int(total) if total.isdecimal() else None
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, from either form of the header (RFC 9110, 10.2.3)."""
    if value is None or value.strip().isdecimal():
        return float(value) if value else None
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _is_page(start: bytes) -> bool:
    return start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html"))


# ---------------------------------------------------------------------------------------------------- surroundings


@contextmanager
def _only_process(target: Path) -> Iterator[None]:
    """One process at a time works on `target`; the lock goes with the process that holds it, however that ends."""
    from filelock import FileLock, Timeout

    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("Waiting for another process that is fetching %s", target.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _agreed(file: Path, sha256: str | None) -> Path:
    if sha256 and (digest := sha256_of(file)) != sha256:
        raise Unavailable(
            f"{file} is not the right file: its sha256 is {digest}, not {sha256}.", "Delete it and run this again."
        )
    return file


def _bar_fits() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
