"""`mambair serve` among strangers: who is answered, what never happens, and that nobody takes it from the others."""

from __future__ import annotations

import gc
import random
import re
import resource
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from helpers.serving import TOKEN, Served, png, serving, until
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from mambair_cli.models import checkpoints
from mambair_cli.serve import deadlines, uploads
from mambair_cli.serve.guard import POLICY, Rules
from mambair_cli.serve.jobs import Jobs
from mambair_cli.serve.limits import Limits
from mambair_cli.serve.names import disposition, harmless
from mambair_cli.serve.spool import Spool, sweep

POST = "POST /api/restore?task=derain HTTP/1.1\nHost: localhost\n"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(Limits(upload=50_000, pixels=10_000)) as served:
        yield served


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads that announce 1000 bytes may be silent for half a second; ours have time on a busy machine."""
    really = uploads._write

    async def write(request: Request, jobs: Jobs, file: Path) -> int:
        if request.headers["content-length"] == "1000":
            jobs = cast(Jobs, SimpleNamespace(limits=replace(jobs.limits, silence=0.5), make_room=jobs.make_room))
        return await really(request, jobs, file)

    monkeypatch.setattr(uploads, "_write", write)


# --- who is answered ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "10.0.0.1"])
def test_a_name_that_leads_here_is_not_ours(served: Served, host: str) -> None:
    """DNS rebinding: the attacker's page has the attacker's name, whatever address that has by now."""
    for path in ("/", "/api/tasks", "/healthz"):
        assert served.get(path, headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1:80", "localhost", "LOCALHOST:7868", "[::1]:7868"])
def test_our_own_names_are_ours(served: Served, host: str) -> None:
    assert served.get("/healthz", headers={"Host": host}).status_code == 200


def test_rules_beyond_this_machine() -> None:
    rules = Rules(frozenset({"localhost", "box.lan"}), False, TOKEN)
    assert all(map(rules.host_is_ours, ("192.168.0.7:7868", "box.lan", "Box.lan.:80", "[fe80::1]:1")))
    assert not any(map(rules.host_is_ours, ("evil.example", "", "box.lan:x", "192.168.0.7.evil.example")))


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_pages_of_other_sites_may_do_nothing(served: Served, headers: dict[str, str]) -> None:
    assert served.post("/api/restore?task=derain", png(), headers=headers).status_code == 403
    assert served.get("/api/models", headers=headers).status_code == 403
    assert "access-control-allow-origin" not in served.get("/healthz", headers=headers).headers
    own = {"Origin": served.url, "Sec-Fetch-Site": "same-origin"}
    assert served.post("/api/restore?task=derain", png(), headers=own).status_code == 200


def test_the_token_is_asked_for() -> None:
    with serving(rules=Rules(loopback=False, token=TOKEN)) as served:
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": "Bearer"}):
            for path in ("/api/tasks", "/api/models", "/api/openapi.json", "/api/jobs/x"):
                answer = served.get(path, headers=header)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Bearer realm="mambair"')
            assert served.post("/api/restore?task=derain", png(), headers=header).status_code == 401
        assert served.get(f"/api/tasks?token={TOKEN}").status_code == 401  # addresses are written into logs
        assert served.get("/api/tasks", headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200
        assert served.get("/healthz").status_code == served.get("/").status_code == 200


def test_every_answer_is_signed(served: Served) -> None:
    """No script but ours, no string that becomes code, no frame, no other site: also where it fails."""
    for answer in (served.get("/"), served.get("/api/none"), served.get("/healthz", headers={"Host": "x"})):
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in answer.headers
    assert "unsafe" not in POLICY
    page = served.get("/").text
    assert not re.search(r"<script(?![^>]* src=)|<style| on\w+=| style=|https?://", page)
    scripts = "".join(served.get(f"/static/{name}.js").text for name in ("app", "slider", "zip"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval|new Function|https?://", scripts)


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml",
        "/static/../api.py",
        "/static/%2e%2e/api.py",
        "/static/..%2f..%2f__init__.py",
        "/static/",
        "/static//etc/passwd",
        "/etc/passwd",
        "/api/jobs/../../etc/passwd",
        "/api/jobs/%2e%2e%2flock/result",
        "/api/jobs/lock/result",
        "//etc/passwd",
        "/static/app.css%00.png",
    ],
)
def test_nothing_of_the_file_system_is_reachable(served: Served, path: str) -> None:
    with served.send(f"GET {path} HTTP/1.1\nHost: localhost\nConnection: close\n\n") as connection:
        assert read(connection).split(b" ", 2)[1] == b"404"


# --- names ----------------------------------------------------------------------------------------------------

NAMES = st.text(st.characters() | st.sampled_from('/\\.:\x1b\u202e"<>%\n ;'), max_size=300)


@given(
    name=NAMES | st.sampled_from(["../../x.png", "C:\\a\\con.png", "..", ".bashrc", "a/b/\n.jpg", "x" * 400 + ".png"])
)
@settings(max_examples=150, deadline=None)
def test_no_name_leaves_its_folder_or_steers_a_terminal(name: str) -> None:
    clean = harmless(name)
    assert not re.search(r'[/\\:*?"<>|\x00-\x1f\x7f-\x9f\u202a-\u202e]', clean)
    assert not clean.startswith(".")
    assert len(clean.encode()) < 230
    assert harmless(clean) == clean
    header = disposition(clean or "x")
    assert re.fullmatch(r"attachment; filename=\"[\x20-\x7e]*\"; filename\*=UTF-8''[\w.~%-]*", header, re.ASCII)


def test_results_have_harmless_names(served: Served) -> None:
    answer = served.post(
        "/api/restore?task=derain", png(), params={"name": '../../<b>"x\r\nSet-Cookie: a=b\u202e.png'}
    )
    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers
    assert "/" not in answer.headers["content-disposition"].split("''")[1]
    kept = {"a photo.jpg": "a photo.jpg", "caf\u00e9.png": "caf\u00e9.png", "-x.png": "-x.png", "con.png": "_con.png"}
    assert {name: harmless(name) for name in kept} == kept


# --- bounds ---------------------------------------------------------------------------------------------------


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that claims many pixels."""
    body = png()
    head = side.to_bytes(4, "big") * 2 + body[24:29]
    return body[:16] + head + zlib.crc32(b"IHDR" + head).to_bytes(4, "big") + body[33:]


def test_pixels_are_counted_before_they_are_decoded(served: Served) -> None:
    answer = served.post("/api/restore?task=derain", bomb(30_000))
    assert answer.status_code == 422
    assert "more than 10,000 pixels" in answer.text


def test_bytes_are_counted_as_announced_and_as_they_come(served: Served) -> None:
    assert served.post("/api/restore?task=derain", bytes(60_000)).status_code == 413
    answer = served.http.post(served.url + "/api/restore?task=derain", data=iter([bytes(30_000)] * 3), timeout=60)
    assert answer.status_code == 413
    assert (
        served.post("/api/restore?task=derain", b"--x", headers={"Content-Type": "multipart/form-data"}).status_code
        == 415
    )
    assert served.server.spool.used == 0


@pytest.mark.usefixtures("hurried")
def test_slow_and_half_requests_end_and_block_nobody(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty slow heads, thirty uploads that stop, thirty that hang up: a client among them does not notice."""
    monkeypatch.setattr(deadlines, "HEADERS", 2.0)
    heads = [served.send("GET / HTTP/1.1\nHost: local") for _ in range(30)]
    halves = [served.send(POST + "Content-Length: 1000\n\n", png()[:50]) for _ in range(30)]
    for _ in range(30):
        served.send(POST + "Content-Length: 1000\n\n", png()[:50]).close()
    assert served.post("/api/restore?task=derain", png()).status_code == 200
    for connection in heads:
        assert read(connection) == b""  # closed without a word
    for connection in halves:
        assert b" 408 " in read(connection)[:20]
        connection.close()
    until(lambda: [file.name for file in served.server.spool.folder.iterdir()] == ["lock"])
    assert served.server.spool.used == 0


@pytest.mark.usefixtures("hurried")
def test_a_slow_trickle_ends_too(served: Served) -> None:
    """Never silent for long, yet far below the speed that is asked for."""
    connection = served.send(POST + "Content-Length: 1000\n\n")
    ended = threading.Event()

    def trickle() -> None:
        while not ended.wait(0.1):
            try:
                connection.sendall(b"x")
            except OSError:
                return

    sender = threading.Thread(target=trickle)
    sender.start()
    assert b" 408 " in read(connection)[:20]
    ended.set()
    sender.join()
    connection.close()


def test_what_killed_servers_left_is_swept(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    living = Spool(1000)
    dead, other = tmp_path / "mambair-serve-dead", tmp_path / "mine"
    for folder in (dead, other):
        folder.mkdir()
        (folder / "picture").write_bytes(b"x")
    monkeypatch.setattr("mambair_cli.serve.spool._YOUNG", -1.0)
    sweep()
    assert sorted(tmp_path.iterdir()) == sorted([living.folder, other])
    assert living.folder.stat().st_mode & 0o77 == 0
    living.close()


# --- many -----------------------------------------------------------------------------------------------------


def test_two_hundred_requests_of_sixteen_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is lost or mixed up, none waits while later ones pass it, memory stays, one network serves all."""
    loaded, really = [], checkpoints.load_network
    monkeypatch.setattr(checkpoints, "load_network", lambda *a, **k: (loaded.append(a), really(*a, **k))[1])
    with serving(Limits(queue=20)) as served:
        pictures = {seed: png(seed=seed) for seed in range(8)}
        wanted = {seed: served.post("/api/restore?task=derain", body).content for seed, body in pictures.items()}
        gc.collect()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        asked: list[float] = []
        answered: list[float] = []

        def one(number: int) -> None:
            asked.append(began := time.monotonic())
            answer = served.post("/api/restore?task=derain", pictures[number % 8])
            assert answer.status_code == 200
            assert answer.content == wanted[number % 8]
            answered.append(began)

        with ThreadPoolExecutor(16) as clients:
            list(clients.map(one, range(200)))
        passed = [sum(other > began for other in answered[:place]) for place, began in enumerate(answered)]
        assert len(answered) == 200
        assert max(passed) <= 2 * 16
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # kilobytes
        assert served.server.jobs.counts() == {"waiting": 0, "running": 0}
        assert len(loaded) == 1
        until(lambda: served.server.spool.used == 0)


def test_three_hundred_odd_requests_break_nothing(served: Served) -> None:
    """Bodies, headers and paths at random: every answer is a proper one, none is the server's fault."""
    rng = random.Random(0)
    statuses = set()
    for _ in range(300):
        with served.send("", odd_request(rng)) as connection:
            answer = read(connection)
        if answer:
            statuses.add(int(answer.split(b" ", 2)[1]))
    assert statuses <= {200, 202, 304, 400, 401, 403, 404, 405, 408, 409, 413, 415, 416, 421, 422, 431, 503}
    assert len(statuses) >= 5
    assert served.post("/api/restore?task=derain", png()).status_code == 200


def odd_request(rng: random.Random) -> bytes:
    body = bytearray(rng.choice([png(), b"GIF89a", b"\xff\xd8\xff\xe1", b"II*\0" + bytes(40), b"RIFF....WEBP", b""]))
    for _ in range(rng.randrange(8)):
        if body:
            body[rng.randrange(len(body))] = rng.randrange(256)
    junk = bytes(rng.randrange(256) for _ in range(rng.randrange(12)))
    method = rng.choice([b"POST", b"POST", b"POST", b"GET", b"PUT", b"DELETE", b"OPTIONS", b"HEAD", junk])
    path = rng.choice([b"/api/restore", b"/api/jobs", b"/api/jobs/x/result", b"/", b"/static/app.js", b"/" + junk])
    keys = ["task", "scale", "sigma", "quality", "name", "format", "model", "width", "session", "compressed"]
    values = ["upscale", "denoise", "derain", "2", "-1", "1e99", "nan", "%00", "%ff", "true", ""]
    query = "&".join(f"{rng.choice(keys)}={rng.choice(values)}" for _ in range(rng.randrange(5)))
    task = rng.choice(["task=derain&", "task=upscale&scale=2&", ""])
    headers = rng.choice(
        [
            b"",
            b"Content-Type: image/png\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Content-Length: -5\r\n",
            b"Content-Length: 99999999999\r\n",
            b"Range: bytes=5-2\r\n",
            b"Expect: 100-continue\r\n",
            b"X: " + junk.replace(b"\n", b"") + b"\r\n",
            b"Origin: " + junk + b"\r\n",
            b"Host: twice\r\n",
            b"Authorization: Bearer \xff\r\n",
            b"Upgrade: websocket\r\nConnection: upgrade\r\n",
            b"A: " + b"x" * 70_000 + b"\r\n",
        ]
    )
    length = b"" if b"Length" in headers or b"Transfer" in headers else b"Content-Length: %d\r\n" % len(body)
    start = method + b" " + path + b"?" + (task + query).encode() + b" HTTP/1.1\r\nHost: localhost\r\n"
    return start + headers + length + b"Connection: close\r\n\r\n" + bytes(body)


def read(connection: socket.socket) -> bytes:
    """All that comes until the end of the connection."""
    pieces = []
    try:
        while piece := connection.recv(65536):
            pieces.append(piece)
    except ConnectionError:
        pass
    return b"".join(pieces)
