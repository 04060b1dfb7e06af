"""Downloads against a server that misbehaves: the target is the right file, or it is not there."""

from __future__ import annotations

import random
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest
import requests
from helpers.downloads import BODY, PAGES, SHA256, server, waits  # noqa: F401 -- fixtures
from helpers.server import (
    Handler,
    Server,
    Step,
    cut,
    good,
    hang_up,
    page,
    raw,
    redirect,
    slowly,
    stall,
    status,
    trickle,
    unsized,
    whole,
)

from mambair_cli.errors import BadCheckpoint, Unavailable
from mambair_cli.models import answers
from mambair_cli.models import download as module
from mambair_cli.models.download import download


def ranges(server: Server) -> list[str | None]:
    return [headers.get("Range") for _, headers in server.requests]


def test_download_moves_a_verified_file_into_place(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "new" / "weights.pth"
    assert download([server.put("/w", BODY)], target, sha256=SHA256, bytes=len(BODY)) == target
    assert target.read_bytes() == BODY
    assert [path.name for path in target.parent.iterdir() if not path.name.startswith(".")] == ["weights.pth"]
    download([server.url("/w")], target, sha256=SHA256)
    assert len(server.requests) == 1, "what is there is not fetched again"


@pytest.mark.parametrize("known", [True, False], ids=["hash known", "hash unknown"])
def test_truncated_download_is_resumed(server: Server, tmp_path: Path, known: bool) -> None:
    url = server.put("/w", BODY, cut(100_000))
    target = download([url], tmp_path / "w", sha256=SHA256 if known else None)
    assert target.read_bytes() == BODY
    assert ranges(server) == [None, "bytes=100000-"]


def test_a_later_run_resumes_what_an_earlier_one_left(server: Server, tmp_path: Path) -> None:
    url = server.put("/w", BODY, cut(200_000), status(404))
    with pytest.raises(Unavailable, match="HTTP 404"):
        download([url], tmp_path / "w")
    assert not (tmp_path / "w").exists()
    assert download([url], tmp_path / "w").read_bytes() == BODY
    assert ranges(server)[-1] == "bytes=200000-"


def test_a_part_of_an_older_file_is_not_continued(server: Server, tmp_path: Path) -> None:
    server.put("/w", b"x" * len(BODY), cut(200_000), status(404))
    with pytest.raises(Unavailable):
        download([server.url("/w")], tmp_path / "w")
    url = server.put("/w", BODY)
    assert download([url], tmp_path / "w").read_bytes() == BODY


def test_a_part_without_validator_is_continued_only_under_a_known_hash(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.part").write_bytes(b"stale" * 10)
    assert download([server.put("/w", BODY)], tmp_path / "w").read_bytes() == BODY
    assert ranges(server) == [None]
    (tmp_path / "v.part").write_bytes(b"stale" * 10)
    assert download([server.url("/w")], tmp_path / "v", sha256=SHA256).read_bytes() == BODY
    assert ranges(server) == [None, "bytes=50-", None], "the mixture is thrown away and fetched anew"


def test_a_part_of_one_mirror_is_not_continued_from_another(server: Server, tmp_path: Path) -> None:
    first = server.put("/w", b"x" * len(BODY), cut(100_000, ETag='"1"'), *[status(404)] * 2)
    second = server.put("/v", BODY, cut(200_000, ETag='"1"'), *[same_tag] * 2)
    assert download([first, second], tmp_path / "w").read_bytes() == BODY
    assert ranges(server)[-2:] == [None, "bytes=200000-"]


def same_tag(handler, body: bytes) -> None:
    start = int(handler.headers.get("Range", "bytes=0-")[6:-1])
    span = f"bytes {start}-{len(body) - 1}/{len(body)}"
    handler.answer(206 if start else 200, body[start:], ETag='"1"', Content_Range=span)


def test_a_weak_validator_proves_nothing(server: Server, tmp_path: Path) -> None:
    date = "Sat, 01 Jan 2022 00:00:00 GMT"
    weak = cut(100_000, ETag='W/"weak"')
    assert download([server.put("/w", BODY, weak, whole)], tmp_path / "w").read_bytes() == BODY
    assert ranges(server) == [None, None]
    dated = cut(100_000, ETag='W/"weak"', Last_Modified=date)
    assert download([server.put("/w", BODY, dated, whole)], tmp_path / "v").read_bytes() == BODY
    assert server.requests[-1][1]["If-Range"] == date


def test_encryption_is_not_given_up_on_the_way(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get, plain = requests.Session.get, server.put("/w", BODY)
    monkeypatch.setattr(requests.Session, "get", lambda self, _, **more: get(self, plain, **more))
    with pytest.raises(Unavailable, match="unencrypted"):
        download(["https://example.org/w"], tmp_path / "w", sha256=SHA256)


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    url = server.put("/w", BODY, cut(100_000), whole)
    assert download([url], tmp_path / "w").read_bytes() == BODY


def test_416_starts_over(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.part").write_bytes(b"x" * (len(BODY) + 5))
    url = server.put("/w", BODY)
    assert download([url], tmp_path / "w", sha256=SHA256).read_bytes() == BODY
    assert ranges(server) == [f"bytes={len(BODY) + 5}-", None]


def test_416_for_ever_gives_up(server: Server, tmp_path: Path) -> None:
    url = server.put("/w", BODY, *[status(416)] * 9)
    with pytest.raises(Unavailable, match="does not fit"):
        download([url], tmp_path / "w")
    assert len(server.requests) == answers.TRIES


def test_wrong_range_is_noticed(server: Server, tmp_path: Path) -> None:
    def shifted(handler, body: bytes) -> None:
        handler.answer(206, body[7:], Content_Range=f"bytes 7-{len(body) - 1}/{len(body)}")

    url = server.put("/w", BODY, cut(100_000), shifted)
    assert download([url], tmp_path / "w").read_bytes() == BODY


@pytest.mark.parametrize("step", [good, whole, unsized], ids=lambda step: step.__name__)
def test_wrong_hash_is_refused(server: Server, tmp_path: Path, step: Step) -> None:
    url = server.put("/w", BODY[:-1] + b"\0", step)
    with pytest.raises(Unavailable, match="sha256 is .* not " + SHA256) as error:
        download([url], tmp_path / "w", sha256=SHA256)
    assert url in error.value.hint
    assert str(tmp_path / "w") in error.value.hint
    assert error.value.exit_code == 3
    assert not list(tmp_path.glob("w*"))


@pytest.mark.parametrize("body", [BODY[:-1], BODY + b"\0"], ids=["short", "long"])
@pytest.mark.parametrize("step", [good, unsized], ids=lambda step: step.__name__)
def test_wrong_size_is_refused(server: Server, tmp_path: Path, body: bytes, step: Step) -> None:
    with pytest.raises(Unavailable, match="bytes"):
        download([server.put("/w", body, *[step] * 9)], tmp_path / "w", bytes=len(BODY))
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("step", PAGES.values(), ids=PAGES)
def test_a_web_page_is_no_file(server: Server, tmp_path: Path, step: Step) -> None:
    with pytest.raises(Unavailable, match="a web page came instead"):
        download([server.put("/w", BODY, *[step] * 9)], tmp_path / "w")
    assert not list(tmp_path.glob("w*"))


def test_check_can_refuse(server: Server, tmp_path: Path) -> None:
    def check(file: Path) -> None:
        raise BadCheckpoint("it holds no weights")

    with pytest.raises(Unavailable, match="it holds no weights"):
        download([server.put("/w", BODY)], tmp_path / "w", check=check)
    assert not list(tmp_path.glob("w*"))


def test_google_drive_asks_for_a_confirmation(server: Server, tmp_path: Path) -> None:
    server.put("/download", BODY)
    form = """<!DOCTYPE html><p>Google Drive can't scan this file for viruses.</p>
        <form id="download-form" action="/download" method="get"><input type="submit" value="Download anyway"/>
        <input type="hidden" name="id" value="1x&amp;y"><input type="hidden" name="confirm" value="t">
        <input type="hidden" name="uuid" value="5-6"></form>"""
    url = server.put("/uc", BODY, page(form))
    assert download([url + "?id=1"], tmp_path / "w", sha256=SHA256).read_bytes() == BODY
    assert server.requests[-1][0] == "/download?id=1x%26y&confirm=t&uuid=5-6"


def test_google_drive_quota_leads_to_the_mirror(server: Server, tmp_path: Path) -> None:
    drive = server.put("/uc", BODY, page("<title>Google Drive - Quota exceeded</title>"))
    assert download([drive, server.put("/mirror", BODY)], tmp_path / "w", sha256=SHA256).read_bytes() == BODY
    server.put("/uc", BODY, page("<title>Google Drive - Quota exceeded</title>"))
    with pytest.raises(Unavailable, match="quota"):
        download([drive], tmp_path / "v")


@pytest.mark.parametrize("step", [stall(100_000), trickle], ids=["silent", "trickling"])
def test_stalled_server_is_left_and_resumed(server: Server, tmp_path: Path, step: Step) -> None:
    url = server.put("/w", BODY, step)
    assert download([url], tmp_path / "w", timeout=0.3).read_bytes() == BODY
    assert ranges(server)[0] is None
    assert ranges(server)[-1] is not None, "what had come is kept"


def test_stalled_for_ever_gives_up(server: Server, tmp_path: Path) -> None:
    url = server.put("/w", BODY, *[stall(10)] * 9)
    with pytest.raises(Unavailable, match="fell silent"):
        download([url], tmp_path / "w", timeout=0.1)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("code", [429, 500, 503])
def test_busy_server_is_asked_again_later(server: Server, tmp_path: Path, waits: list[float], code: int) -> None:
    url = server.put("/w", BODY, status(code), hang_up, status(code))
    assert download([url], tmp_path / "w").read_bytes() == BODY
    assert waits == [1, 2, 4]


def test_retry_after_is_honoured_and_said(
    server: Server, tmp_path: Path, waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    soon = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=30), usegmt=True)
    script = [status(429, Retry_After=after) for after in ("7", soon, "nonsense")]
    assert download([server.put("/w", BODY, *script)], tmp_path / "w").read_bytes() == BODY
    assert waits[0] == 7
    assert 0 < waits[1] <= 30
    assert waits[2:] == [4]
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said[0] == "w: HTTP 429 Too Many Requests; trying again in 7 s"
    assert len(said) == 3


@pytest.mark.parametrize("after", ["3600", "9" * 5000, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_server_that_wants_too_much_patience_is_left(
    server: Server, tmp_path: Path, waits: list[float], after: str
) -> None:
    busy = server.put("/busy", BODY, *[status(429, Retry_After=after)] * 9)
    assert download([busy, server.put("/w", BODY)], tmp_path / "w").read_bytes() == BODY
    with pytest.raises(Unavailable, match="HTTP 429 Too Many Requests; it asks to come back in"):
        download([busy], tmp_path / "v")
    assert waits == []
    assert len(server.requests) == 3


NONSENSE = {
    "location without end": redirect("http://[::1"),
    "location not UTF-8": raw(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\xff\r\nContent-Length: 0\r\n\r\n"),
    "location of a kind that is not asked": redirect("file:///etc/passwd"),
    "location with a port that is none": redirect("http://127.0.0.1:99999/"),
    "form without address": page('<form id="download-form" action="http://[bad">'),
    "form elsewhere": page('<form id="download-form" action="javascript:alert(1)">'),
    "endless length": raw(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nabc"),
    "length of letters": raw(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nabc"),
    "endless range": raw(b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-3/" + b"9" * 5000 + b"\r\n\r\nabc"),
    "more than the disk": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999999\r\n\r\nabc"),
    "no status": raw(b"\xff\xfe\r\n\r\n"),
    "status of letters": raw(b"HTTP/1.1 abc\r\n\r\n"),
    "chunks of letters": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabc"),
    "headers for ever": raw(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000),
    "status that a terminal would obey": raw(b"HTTP/1.1 404 \x1b[2Jgone\r\nContent-Length: 0\r\n\r\n"),
}


@pytest.mark.parametrize("step", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_leads_to_the_next_mirror(server: Server, tmp_path: Path, step: Step) -> None:
    mad = server.put("/mad", BODY, *[step] * 9)
    assert download([mad, server.put("/w", BODY)], tmp_path / "w").read_bytes() == BODY
    server.put("/mad", BODY, *[step] * 9)
    with pytest.raises(Unavailable) as error:
        download([mad], tmp_path / "v")
    assert error.value.exit_code == 3
    assert error.value.message.replace("\n", "").isprintable()
    assert not (tmp_path / "v").exists()


def test_an_address_that_is_none_leads_to_the_next(server: Server, tmp_path: Path) -> None:
    urls = ["http://[::1", "", "http://", "https://\x00/", "http://a b/", "{}", server.put("/w", BODY)]
    assert download(urls, tmp_path / "w").read_bytes() == BODY


ENDLESS = {
    "status line": slowly(b"", b"H"),
    "a header": slowly(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "a page": slowly(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n", b"<"),
    "the length of a chunk": slowly(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
    "the trailer": slowly(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n", b"A: b\r\n"),
}


@pytest.mark.parametrize("step", ENDLESS.values(), ids=ENDLESS)
def test_every_phase_has_a_deadline(
    server: Server, tmp_path: Path, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then starts every socket's time-out anew."""
    monkeypatch.setattr(answers, "CONNECT_TIMEOUT", 0.2)
    slow = server.put("/slow", BODY, *[step] * 9)
    with pytest.raises(Unavailable, match=r"\(5 times\)"):
        download([slow], tmp_path / "w", timeout=0.2)
    server.put("/slow", BODY, step)
    assert download([slow], tmp_path / "w", timeout=0.2).read_bytes() == BODY


def changed(**headers: object) -> Step:
    """The rest of another file than the first part was of: ranges are honoured, If-Range is not."""

    def step(handler: Handler, body: bytes) -> None:
        start = int(handler.headers.get("Range", "bytes=0-")[6:-1])
        span = f"bytes {start}-{len(body) - 1}/{len(body)}"
        handler.answer(206 if start else 200, body[start:], Content_Range=span, **headers)

    return step


OLD, NEW = "Sat, 01 Jan 2022 00:00:00 GMT", "Sun, 02 Jan 2022 00:00:00 GMT"


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"ETag": '"1"'}, {"ETag": '"2"'}),
        ({"ETag": '"1"'}, {"ETag": 'W/"1"'}),
        ({"ETag": '"1"'}, {}),
        ({"ETag": '"1"'}, {"Last_Modified": OLD}),
        ({"ETag": "", "Last_Modified": OLD}, {"Last_Modified": NEW}),
    ],
)
@pytest.mark.parametrize("later", [False, True], ids=["at once", "by a later run"])
def test_ranges_of_two_versions_are_never_combined(
    server: Server, tmp_path: Path, first: dict[str, str], then: dict[str, str], later: bool
) -> None:
    old = status(200, b"x" * 100_000, **({"Content_Length": len(BODY)} | first))
    url = server.put("/w", BODY, old, *[status(404)] * later, *[changed(**then)] * 3)
    if later:
        with pytest.raises(Unavailable):
            download([url], tmp_path / "w")
    assert download([url], tmp_path / "w").read_bytes() == BODY
    assert "bytes=100000-" in ranges(server), "the rest was asked for, and refused"


def test_a_date_of_this_very_second_proves_nothing(server: Server, tmp_path: Path) -> None:
    now = format_datetime(datetime.now(timezone.utc), usegmt=True)
    fresh = cut(100_000, ETag="", Last_Modified=now, Date=now)
    assert download([server.put("/w", BODY, fresh, whole)], tmp_path / "w").read_bytes() == BODY
    assert ranges(server) == [None, None]


def test_no_more_comes_than_could_be_wanted(server: Server, tmp_path: Path) -> None:
    for step in (good, unsized):
        with pytest.raises(Unavailable, match=r"more than 1,000"):
            download([server.put("/w", BODY, step)], tmp_path / "w", most=1000)
        assert not list(tmp_path.glob("w*"))


def test_tries_start_anew_while_it_gets_on(server: Server, tmp_path: Path) -> None:
    body = random.Random(1).randbytes(12 * module.PROGRESS)

    def next_piece(handler, body: bytes) -> None:
        start = int(handler.headers.get("Range", "bytes=0-")[6:-1])
        piece = body[start : start + module.PROGRESS]
        span = f"bytes {start}-{len(body) - 1}/{len(body)}"
        code = 206 if start else 200
        handler.answer(code, piece, Content_Length=len(body) - start, Content_Range=span, ETag=f'"{hash(body)}"')

    url = server.put("/w", body, *[next_piece] * 11)
    assert download([url], tmp_path / "w").read_bytes() == body
