"""Where a download comes from and goes to: mirrors, folders, other processes, no network."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import typer
from helpers.downloads import BODY, PAGES, SHA256, server, waits  # noqa: F401 -- fixtures
from helpers.server import (
    Server,
    Step,
    cut,
    good,
    hang_up,
    redirect,
    status,
    unsized,
    whole,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from mambair_cli.cli.options import Offline
from mambair_cli.errors import MambairError, Unavailable
from mambair_cli.models import download as module
from mambair_cli.models.download import download, sha256_of


def test_mirrors_are_tried_in_order_and_reasons_told(server: Server, tmp_path: Path) -> None:
    gone, moved = server.url("/gone"), server.put("/moved", BODY, redirect("/w"))
    server.put("/w", BODY)
    assert download([gone, moved], tmp_path / "w").read_bytes() == BODY
    with pytest.raises(Unavailable) as error:
        download([gone, "ftp://example.org/w", "http://127.0.0.1:9/w"], tmp_path / "v")
    for part in ("HTTP 404", "example.org", "127.0.0.1:9: no connection (2 times)"):
        assert part in error.value.message


def test_offline_says_what_to_put_where(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, target = server.put("/w", BODY), tmp_path / "cache" / "weights.pth"
    monkeypatch.setenv("MAMBAIR_OFFLINE", "1")
    with pytest.raises(Unavailable) as error:
        download([url], target)
    assert "weights.pth" in error.value.message
    assert url in error.value.hint
    assert str(target) in error.value.hint
    monkeypatch.setenv("MAMBAIR_OFFLINE", "0")
    with pytest.raises(Unavailable):
        download([url], target, offline=True)
    assert not server.requests
    assert download([url], target).read_bytes() == BODY


@pytest.mark.parametrize(("word", "code"), [("1", 3), ("On", 3), ("banana", 2), ("off", 0), ("", 0)])
def test_one_rule_reads_the_variable(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, code: int
) -> None:
    monkeypatch.setenv("MAMBAIR_OFFLINE", word)
    if code:
        with pytest.raises(MambairError) as error:
            download([server.put("/w", BODY)], tmp_path / "w")
        assert error.value.exit_code == code
    else:
        download([server.put("/w", BODY)], tmp_path / "w")

    option = typer.Typer()
    option.command()(cli)
    result = CliRunner().invoke(option)
    assert (result.exit_code, result.stdout) == (2, "") if code == 2 else (0, f"{code == 3}\n")


def cli(offline: Offline = False) -> None:
    """What every command makes of the same variable."""
    print(offline)


def test_a_wrong_file_in_place_is_reported_not_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"mine")
    with pytest.raises(Unavailable, match="not the right file"):
        download([server.put("/w", BODY)], tmp_path / "w", sha256=SHA256)
    assert (tmp_path / "w").read_bytes() == b"mine"


def test_full_disk_is_told_before_it_is_full(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shutil import _ntuple_diskusage as usage

    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(10, 10, 1000))
    with pytest.raises(Unavailable, match=r"no room: .* MAMBAIR_CACHE"):
        download([server.put("/w", BODY)], tmp_path / "w")


def test_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="Cannot write"):
        download([server.put("/w", BODY)], tmp_path / "file" / "w")


def test_two_processes_fetch_once(server: Server, tmp_path: Path) -> None:
    begun, released = threading.Event(), threading.Event()

    def when_released(handler, body: bytes) -> None:
        begun.set()
        released.wait(30)
        good(handler, body)

    url = server.put("/w", BODY, when_released)
    code = (
        "import pathlib, mambair_cli.models.download as d;"
        f"d.download([{url!r}], pathlib.Path({str(tmp_path / 'w')!r}), sha256={SHA256!r})"
    )
    first = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert begun.wait(30)
    second = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert "Waiting for another process" in second.stderr.readline()
    released.set()
    assert [first.wait(30), second.wait(30)] == [0, 0]
    assert (tmp_path / "w").read_bytes() == BODY
    assert len(server.requests) == 1


STEPS = [good, whole, unsized, hang_up, cut(1), cut(150_000), cut(299_999), status(503), status(416), status(404)]
STEPS += [*PAGES.values(), cut(150_000, ETag='W/"weak"')]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=st.lists(st.sampled_from(STEPS), max_size=8), known=st.booleans(), stale=st.booleans())
def test_whatever_the_server_does_the_target_is_right_or_absent(
    server: Server, tmp_path: Path, script: list[Step], known: bool, stale: bool
) -> None:
    target = tmp_path / "w"
    target.unlink(missing_ok=True)
    if stale:
        (tmp_path / "w.part").write_bytes(b"stale" * 1000)
        (tmp_path / "w.part.json").write_text(json.dumps({"url": server.url("/w"), "validator": '"old"'}))
    url = server.put("/w", BODY, *script)
    try:
        download([url], target, sha256=SHA256 if known else None)
    except Unavailable:
        assert not target.exists()
    else:
        assert sha256_of(target) == SHA256
