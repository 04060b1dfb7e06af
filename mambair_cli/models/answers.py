"""What servers answer: the file, a page in its place, a call for patience, or nonsense; and how long to listen."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlencode, urljoin, urlsplit

if TYPE_CHECKING:
    from requests import Response, Session

T = TypeVar("T")

TRIES = 5  # in a row, at one address, without getting on
LONGEST_WAIT = 60.0  # seconds: a server that asks for more is left
CONNECT_TIMEOUT = 5.0  # seconds
PAGE = 1 << 16  # bytes read of a page that came in the place of a file
NOT_A_FILE = "a web page came instead of the file"
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


class RefusedError(Exception):
    """This address will not do."""


class WrongFileError(RefusedError):
    """What came is not the file."""


class PassingError(Exception):
    """It may work a moment later."""

    def __init__(self, why: str, *, after: float | None = None, tries: int = TRIES) -> None:
        super().__init__(why)
        self.after = after
        self.tries = tries


class Listener:
    """A thread that waits for the server in our place, so that the wait ends in time.

    No socket's time-out does that: a byte a second, in a header or between the pieces of a body, starts it anew each
    time. A thread that hears nothing is left behind; it ends with its connection, or with the process.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._questions: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._answers: SimpleQueue[tuple[object, BaseException | None]] = SimpleQueue()
        Thread(target=self._listen, daemon=True).start()

    def ask(self, question: Callable[[], T]) -> T:
        """What `question` returns or raises. Raises PassingError where that takes too long."""
        self._questions.put(question)
        try:
            answer, error = self._answers.get(timeout=self._seconds)
        except Empty:
            raise PassingError("the server stalled") from None
        if error:
            raise error
        return answer  # type: ignore[return-value]

    def leave(self, farewell: Callable[[], object]) -> None:
        """Do `farewell` and end as soon as the last question is answered, without waiting for that."""
        self._questions.put(farewell)
        self._questions.put(None)

    def _listen(self) -> None:
        while question := self._questions.get():
            try:
                self._answers.put((question(), None))
            except BaseException as error:
                self._answers.put((None, error))


def answer(session: Session, url: str, headers: Mapping[str, str], timeout: float) -> Response:
    """The answer that carries the file; Google Drive's page that asks for a confirmation is answered on the way.

    Raises RefusedError, PassingError, and what `requests` raises; ValueError for addresses that are none.
    """
    asked, encrypted = url, url.startswith("https:")
    for _ in range(2):
        response = session.get(asked, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT, timeout))
        status = response.status_code
        if status in TRANSIENT:
            raise _patience(response)
        if status not in (200, 206, 416):
            raise RefusedError(told(f"HTTP {status} {response.reason}"))
        if encrypted and any(hop.url.startswith("http:") for hop in (*response.history, response)):
            raise RefusedError("it leads to an unencrypted address")
        if status == 416 or not response.headers.get("Content-Type", "").lower().startswith("text/html"):
            return response
        page = response.raw.read(PAGE).decode("utf-8", "replace")
        response.close()
        form = _ConfirmForm(page)
        if not form.action:
            break
        asked = urljoin(response.url, form.action) + "?" + urlencode(form.fields)
    busy = "quota" in page.lower() or "too many users" in page.lower()
    raise WrongFileError("the daily quota of this file is used up" if busy else NOT_A_FILE)


def size_announced(response: Response, have: int) -> int | None:
    """Size of the whole file, where the server says so. Raises PassingError for another range than from `have` on."""
    if response.status_code == 206:
        span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        if span.partition("-")[0] != str(have):
            raise PassingError("the server sent another range than asked for")
        return None if total == "*" else _number("Content-Range", total)
    length = response.headers.get("Content-Length")
    return None if length is None else _number("Content-Length", length)


def strong_validator(headers: Mapping[str, str]) -> str | None:
    """What tells one version of a file from any other (RFC 9110, 8.8): a strong ETag, or a date that is strong.

    A date is where the file was a second old at least when it was sent: it could have changed within that second.
    """
    if (etag := headers.get("ETag", "")) and not etag.startswith("W/"):
        return etag
    changed, sent = (_date(headers.get(name)) for name in ("Last-Modified", "Date"))
    return headers["Last-Modified"] if changed and sent and sent - changed >= 1 else None


def host(url: str) -> str:
    """The server's name, for messages."""
    try:
        return told(urlsplit(url).netloc or url)
    except ValueError:
        return told(url)


def told(text: str) -> str:
    """A server's words in a line of a message: short, and nothing that a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text[:200])


def _number(header: str, text: str) -> int:
    if not re.fullmatch(r"\s*[0-9]{1,15}\s*", text):
        raise RefusedError(told(f"its {header} makes no sense: {text[:30]}"))
    return int(text)


def _patience(response: Response) -> PassingError | RefusedError:
    why = told(f"HTTP {response.status_code} {response.reason}")
    after = _retry_after(response.headers.get("Retry-After"))
    if after is not None and after > LONGEST_WAIT:
        return RefusedError(f"{why}; it asks to come back in {after:,.0f} s")
    return PassingError(why, after=after)


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, from either form of the header (RFC 9110, 10.2.3)."""
    if value and re.fullmatch(r"\s*[0-9]+\s*", value):
        return float(value)
    date = _date(value)
    return None if date is None else max(0.0, date - time.time())


def _date(value: str | None) -> float | None:
    """Seconds since 1970 of an HTTP date; None for anything else."""
    try:
        return parsedate_to_datetime(value).timestamp() if value else None
    except (ValueError, TypeError, IndexError, OverflowError, OSError):
        return None


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
