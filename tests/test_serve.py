"""`mambair serve` for scripts: pictures in, pictures out, exactly as on the command line."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests
from helpers.album import photo
from helpers.commands import mambair
from helpers.serving import Gate, Served, png, serving, until
from PIL import Image

from mambair_cli import tasks
from mambair_cli.cli.forms import form_of
from mambair_cli.errors import UsageError
from mambair_cli.restoring import tiling
from mambair_cli.serve.limits import Limits
from mambair_cli.task import Degradation, Level, Task


@pytest.fixture(scope="module")
def served() -> Any:
    with serving() as served:
        yield served


def jpeg(quality: int = 60) -> bytes:
    """A photograph with an orientation, a camera's name, and a profile's worth of metadata."""
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112], exif[0x0110] = 6, "a camera"
    photo().save(stream, "JPEG", quality=quality, exif=exif, dpi=(300, 300))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("query", "name", "body"),
    [
        ("task=upscale&scale=2", "a picture.jpg", jpeg()),
        ("task=upscale&long-edge=100&format=webp&strip-metadata=true", "photo.png", png(40, 30)),
        ("task=decompress&quality=30&output-quality=95", "-x.jpg", jpeg(30)),
        ("task=denoise&sigma=auto&model=tiny-denoise&format=png", "", png(40, 30)),
    ],
)
def test_the_bytes_are_those_of_the_command_that_is_told(
    served: Served, tmp_path: Path, monkeypatch: Any, capsysbinary: Any, query: str, name: str, body: bytes
) -> None:
    """Command and result are compared by running the command as it is told."""
    answer = served.post(f"/api/jobs?{query}&name={name}", body)
    assert answer.status_code == 202, answer.text
    *_, last = served.events(f"/api/jobs/{answer.json()['id']}/events")
    assert last["state"] == "done", last
    result = served.get(f"/api/jobs/{last['id']}/result")
    at_once = served.post(f"/api/restore?{query}&name={name}", body)
    assert at_once.content == result.content
    assert result.headers["content-type"] == last["result"]["type"]
    record = json.loads(at_once.headers["mambair-record"])
    assert (record["model"], record["output"]) == (last["result"]["record"]["model"], last["result"]["name"])

    program, *arguments = shlex.split(last["command"])
    assert program == "mambair"
    monkeypatch.chdir(tmp_path)
    if name:
        Path(name).write_bytes(body)
    outcome = mambair(*arguments, stdin=b"" if name else body, capture=capsysbinary)
    assert outcome.status == 0, outcome.err
    made = Path(last["result"]["name"]).read_bytes() if name else outcome.out
    assert made == result.content
    assert served.http.delete(served.url + f"/api/jobs/{last['id']}").status_code == 204
    assert served.get(f"/api/jobs/{last['id']}").status_code == 404


def test_tiles_are_told_and_the_command_names_their_size(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Automatic tiles follow the free memory: the command to copy must not."""
    monkeypatch.setitem(tiling.LARGEST_AUTOMATIC, "cpu", 64)
    job = served.post("/api/jobs?task=derain&name=a.png", png(150, 70)).json()["id"]
    told = list(served.events(f"/api/jobs/{job}/events"))
    counts = [tuple(job["tiles"]) for job in told]
    assert counts == sorted(counts)
    assert counts[-1][0] == counts[-1][1] > 1
    assert told[-1]["command"] == "mambair derain --device cpu --tile 64 a.png"


@pytest.mark.parametrize(
    ("query", "body", "status", "says"),
    [
        ("task=upscale&scale=0.5", png(), 400, "a scale of 0.5 enlarges nothing"),
        ("task=upscale&scale=x", png(), 400, "Invalid value for"),
        ("task=upscale&scal=2", png(), 400, "Did you mean scale?"),
        ("task=upscale&scale=2&scale=4", png(), 400, "twice"),
        ("task=upscale&model=../secret.pth", png(), 400, "There is no model"),
        ("task=upscale&weights=/etc/passwd", png(), 400, "no option 'weights'"),
        ("task=upscale&output=/tmp/x", png(), 400, "no option 'output'"),
        ("task=paint", png(), 400, "Which task?"),
        ("", png(), 400, "Which task?"),
        ("task=deblur", png(), 409, "No bundled model"),
        ("task=upscale", b"", 400, "no picture"),
        ("task=upscale", b"no picture at all", 422, "not a picture"),
        ("task=upscale", pickle.dumps({"weights": print}), 422, "not a picture"),
        ("task=upscale", png()[:60], 422, ""),
        ("task=upscale&format=jpg&long-edge=70000", png(80, 1), 422, "JPEG holds 65535 pixels"),
        ("task=upscale&scale=1e99", png(), 422, "would come out"),
        ("task=derain&scale=2", png(), 400, "no option 'scale'"),
    ],
)
def test_failures_are_the_messages_of_the_command_line(
    served: Served, query: str, body: bytes, status: int, says: str
) -> None:
    answer = served.post(f"/api/restore?{query}", body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    told = answer.json()
    assert told["status"] == status
    assert says in told["detail"] + " " + told.get("hint", "")


def test_what_there_is(served: Served) -> None:
    assert served.get("/healthz").json() == {"status": "ok"}
    models = {model["name"]: model for model in served.get("/api/models").json()["models"]}
    assert models["tiny-x4"]["here"]
    offered = {task["task"]: task for task in served.get("/api/tasks").json()["tasks"]}
    assert offered["upscale"]["title"] == "Enlarge"
    assert "tiny-x4" in next(field for field in offered["upscale"]["fields"] if field["name"] == "model")["words"]
    assert "mambair models import" in offered["deblur"]["problem"]
    for path in ("/", "/static/app.js", "/static/slider.js", "/static/app.css", "/static/icon.svg"):
        first = served.get(path)
        assert first.status_code == 200
        again = served.get(path, headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_the_description_has_every_route_and_every_option(served: Served) -> None:
    told = served.get("/api/openapi.json").json()
    routes = {route.path: route.methods - {"HEAD"} for route in served.server.config.app.app.routes}
    described = {
        path: {verb.upper() for verb in verbs if verb != "parameters"} for path, verbs in told["paths"].items()
    }
    assert described == {path: verbs for path, verbs in routes.items() if path.startswith(("/api", "/healthz"))}
    named = {parameter["name"] for parameter in told["paths"]["/api/restore"]["post"]["parameters"]}
    fields = {field.name for task in tasks.TASKS.values() for field in form_of(task).fields}
    assert named == fields | {"task", "name"}


def test_an_option_of_a_record_becomes_a_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of `serve` names a task or an option: a new record has its form."""
    glow = Level("glow", "g", "glow", 1, 9, "How much.", 3, lambda has, wanted: (0, 0), words=("full",))
    task = Task("dim", "Dim lights.\n\nMore.", "dim", "rgb", (Degradation("glow", "glow", level=glow),), level=glow)
    monkeypatch.setitem(tasks.TASKS, "dim", task)
    form = form_of(task)
    assert (form.title, form.sentence) == ("Dim", "Dim lights.")
    field = form.fields[0]
    assert (field.name, field.words, field.low, field.high, field.free) == ("glow", ("full",), 1, 9, True)
    with pytest.raises(UsageError, match="--glow 10 makes no sense"):
        form.ask({"glow": "10"})


def test_a_page_that_goes_away_ends_its_work_and_one_that_comes_back_does_not(monkeypatch: Any) -> None:
    gate = Gate(monkeypatch)
    with serving(Limits(grace=1.5)) as served:
        stays, leaves = (served.post(f"/api/jobs?task=upscale&session={name}", png()).json() for name in "ab")
        told = served.events("/api/sessions/a/events")
        assert next(told)["id"] == stays["id"]
        until(lambda: served.get(f"/api/jobs/{leaves['id']}").status_code == 404)
        assert served.get(f"/api/jobs/{stays['id']}").json()["state"] == "running"
        told.close()  # goes away, and comes back in time
        told = served.events("/api/sessions/a/events")
        assert next(told)["state"] == "running"
        gate.open.set()
        until(lambda: served.get(f"/api/jobs/{stays['id']}").json()["state"] == "done")
        told.close()


def test_a_client_that_hangs_up_cancels_its_work(monkeypatch: Any) -> None:
    gate = Gate(monkeypatch)
    with serving() as served:
        body = png()
        client = served.send(
            f"POST /api/restore?task=upscale HTTP/1.1\nHost: localhost\nContent-Length: {len(body)}\n\n", body
        )
        assert gate.came.acquire(timeout=60)
        client.close()
        until(lambda: served.server.jobs.counts() == {"waiting": 0, "running": 0})
        until(lambda: [file.name for file in served.server.spool.folder.iterdir()] == ["lock"])
        assert served.server.spool.used == 0
        job = served.post("/api/jobs?task=upscale", body).json()
        assert gate.came.acquire(timeout=60)
        served.http.delete(f"{served.url}/api/jobs/{job['id']}")
        until(lambda: [file.name for file in served.server.spool.folder.iterdir()] == ["lock"])


def test_clients_take_turns_and_the_queue_has_a_bound(monkeypatch: Any) -> None:
    gate = Gate(monkeypatch)
    with serving(Limits(queue=6)) as served:
        served.post("/api/jobs?task=derain", png())
        assert gate.came.acquire(timeout=60)
        sent = [("many", 4), ("few", 1), ("some", 1)]
        jobs = [
            served.post(f"/api/jobs?task=derain&session={name}", png()).json()["id"]
            for name, count in sent
            for _ in range(count)
        ]
        ahead = [served.get(f"/api/jobs/{job}").json()["ahead"] for job in jobs]
        assert ahead == [0, 3, 4, 5, 1, 2]  # first of each client, then the rest of the first
        answer = served.post("/api/restore?task=derain", png())
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        gate.open.set()
        until(lambda: served.get(f"/api/jobs/{jobs[3]}").json()["state"] == "done")
        assert served.post("/api/restore?task=derain", png()).status_code == 200


def test_a_full_disk_is_told(monkeypatch: Any) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with serving() as served:
        monkeypatch.setattr("mambair_cli.serve.worker.encode.write", full)
        answer = served.post("/api/restore?task=derain", png())
        assert (answer.status_code, answer.json()["detail"]) == (
            422,
            "cannot write the result: No space left on device",
        )
        monkeypatch.setattr("mambair_cli.serve.uploads._write", full)
        assert served.post("/api/restore?task=derain", png()).status_code == 507
        until(lambda: served.server.spool.used == 0)


def test_two_devices_share_the_queue(monkeypatch: Any) -> None:
    gate = Gate(monkeypatch)
    with serving(devices=2) as served:
        jobs = [served.post("/api/jobs?task=derain", png(seed=seed)).json()["id"] for seed in range(3)]
        assert gate.came.acquire(timeout=60)
        assert gate.came.acquire(timeout=60)
        assert [served.get(f"/api/jobs/{job}").json()["state"] for job in jobs] == ["running", "running", "waiting"]
        gate.open.set()
        until(lambda: all(served.get(f"/api/jobs/{job}").json()["state"] == "done" for job in jobs))


def test_old_results_make_way(served: Served) -> None:
    body = png(64, 64)
    with serving(Limits(folder=40_000)) as small:
        for _ in range(3):
            assert small.post("/api/restore?task=derain", body).status_code == 200
        jobs = [small.post("/api/jobs?task=derain", body).json()["id"] for _ in range(3)]
        until(lambda: small.get(f"/api/jobs/{jobs[-1]}").json()["state"] == "done")
        assert small.get(f"/api/jobs/{jobs[0]}").status_code == 404
    with serving(Limits(kept=0.1)) as short:
        job = short.post("/api/jobs?task=derain", body).json()["id"]
        until(lambda: short.get(f"/api/jobs/{job}").status_code == 404)


def test_the_command_line_serves_and_ends(tmp_path: Path) -> None:
    """In a process of its own: the address on stdout, the status and an empty folder after an interrupt."""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "mambair_cli", "serve", "--port", "0", "--host", "0.0.0.0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)
    url, token = process.stdout.readline().strip().split("/#token=")
    port = url.rpartition(":")[2]
    with requests.Session() as http:
        http.trust_env = False
        base = f"http://127.0.0.1:{port}"
        assert until(lambda: _status(http, base + "/healthz")) == 200
        assert http.get(base + "/api/tasks", timeout=60).status_code == 401
        assert http.get(base + "/api/tasks", timeout=60, headers={"Authorization": f"Bearer {token}"}).ok
    assert len(list(tmp_path.iterdir())) == 1
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert "Traceback" not in process.stderr.read()
    assert list(tmp_path.iterdir()) == []


def _status(http: Any, url: str) -> int:
    try:
        return int(http.get(url, timeout=5).status_code)
    except OSError:
        return 0


def test_what_is_wrong_is_said_before_anything_listens(monkeypatch: Any, capsysbinary: Any, served: Served) -> None:
    taken = mambair("serve", "--port", served.port, capture=capsysbinary)
    assert (taken.status, taken.out) == (1, b"")
    assert f"cannot listen at 127.0.0.1, port {served.port}" in taken.err
    assert mambair("serve", "--port", 0, "--device", "cuda:77", capture=capsysbinary).status == 2
    assert "too easy to guess" in mambair("serve", "--token", "1234", capture=capsysbinary).err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    missing = mambair("serve", capture=capsysbinary)
    assert missing.status == 2
    assert "pip install 'mambair[web]'" in missing.err


def test_the_base_install_imports_neither() -> None:
    code = "import sys; import mambair_cli.cli.app; print({'starlette', 'uvicorn', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
