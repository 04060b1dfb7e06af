"""--watch: a folder whose pictures are restored as they arrive, each once. Time is made here, so nothing waits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers.album import encoded, photo
from helpers.commands import Mambair, Outcome, mambair
from helpers.networks import nearest

from mambair_cli.restoring import steps, watch

pytest.importorskip("watchfiles", reason="needs the extra `watch`")
Story = list[tuple[float, Callable[[], Any]]]  # seconds after the beginning, and what happens then


@pytest.fixture(scope="session")
def x2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nearest(tmp_path_factory.mktemp("weights") / "nearest.pth")


class Clock:
    """Time that passes only while the program waits; the story happens meanwhile."""

    def __init__(self) -> None:
        self.start = self.now = time.time()
        self.story: Story = []

    def monotonic(self) -> float:
        return self.now

    time = monotonic

    def wait(self, bell: object, seconds: float) -> None:
        until = self.now + seconds
        while self.story and self.start + self.story[0][0] <= until:
            at, happens = self.story.pop(0)
            self.now = self.start + at
            if happens() != "goes on":
                return  # as the bell rings
        self.now = until

    def put(self, path: Path, data: bytes, age: float = 0.0) -> None:
        """A file that was changed so many seconds ago."""
        path.write_bytes(data)
        os.utime(path, (self.now - age, self.now - age))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watch, "time", clock)
    monkeypatch.setattr(watch.Bell, "wait", lambda bell, seconds: clock.wait(bell, seconds))
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    return clock


@pytest.fixture
def tell(clock: Clock, capfdbinary: pytest.CaptureFixture[bytes], x2: Path) -> Callable[..., Outcome]:
    """The command while a story happens; in the end the folder is taken away, which ends it."""
    run: Mambair = partial(mambair, capture=capfdbinary)

    def tell(story: Story, *options: str) -> Outcome:
        clock.start = clock.now
        clock.story = [*story, (max((at for at, _ in story), default=0) + 15, lambda: Path("in").rename("gone"))]
        outcome = run("upscale", "--weights", x2, "--watch", "in", *options)
        Path("gone").rename("in")
        assert outcome.status == 1
        assert "in is gone" in outcome.err
        return outcome

    return tell


def there(name: str, expected: bool = True) -> Callable[[], str]:
    def look() -> str:
        assert os.path.exists(f"out/{name}") == expected, name
        return "goes on"

    return look


PICTURE = encoded(photo(), "PNG")


def test_a_day_at_the_inbox(clock: Clock, tell: Callable[..., Outcome]) -> None:
    inbox = Path("in")
    clock.put(inbox / "old.png", PICTURE, age=999)
    clock.put(inbox / "broken.jpg", b"no picture", age=999)
    held: list[Any] = []

    def hold() -> None:
        clock.put(inbox / "held.png", PICTURE, age=999)
        held.append(open(inbox / "held.png", "ab"))  # noqa: SIM115 -- that is the point

    outcome = tell(
        [
            (1, there("old.png")),
            (5, lambda: clock.put(inbox / "moved.png", PICTURE, age=999)),
            (5.6, there("moved.png")),  # at once
            (10, lambda: clock.put(inbox / "slow.png", PICTURE[:999])),
            (11.5, lambda: clock.put(inbox / "slow.png", PICTURE[:2999])),
            (13, lambda: clock.put(inbox / "slow.png", PICTURE)),
            (14.9, there("slow.png", False)),
            (15.6, there("slow.png")),
            (20, lambda: clock.put(inbox / ".hidden.png", PICTURE, age=999)),
            (20, lambda: clock.put(inbox / "c.png.part", PICTURE, age=999)),
            (20, hold),
            (40, there("held.png", not hasattr(watch.fcntl, "F_SETLEASE"))),
            (40, lambda: held[0].close()),
            (43, there("held.png")),
            (50, lambda: clock.put(inbox / "broken.jpg", encoded(photo(), "JPEG"))),
            (60, lambda: clock.put(inbox / "old.png", PICTURE + b"more")),
            (61, lambda: (inbox / "locked").mkdir()),
        ],
        "-o",
        "out/",
    )
    names = ["broken.jpg", "held.png", "moved.png", "old.png", "slow.png"]
    assert sorted(name for name in os.listdir("out") if not name.startswith(".")) == names
    assert outcome.out.decode().split() == [
        f"out/{name}" for name in ("old.png", *names[2:3], "slow.png", *names[1::-1])
    ]
    assert outcome.err.count("broken.jpg: not a picture") == 1
    assert "in/old.png: has changed, but out/old.png is there already" in outcome.err
    assert "5 done, 1 skipped, 1 failed in" in outcome.err
    assert "not tried" not in outcome.err


def test_a_file_is_taken_once_even_if_its_result_is_taken_away(clock: Clock, tell: Callable[..., Outcome]) -> None:
    clock.put(Path("in/a.png"), PICTURE, age=999)
    clock.put(Path("in/b.png"), b"no picture", age=999)
    assert "1 done, 0 skipped, 1 failed" in tell([], "-o", "out").err
    os.unlink("out/a.png")
    with open(f"out/{watch.JOURNAL}", "ab") as journal:
        journal.write(b'[1]\n{"input": 3, "output": 4, "bytes": "", "changed": []}\n\xff{"inp')  # a power cut
    later = [(3.0, lambda: clock.put(Path("in/c.png"), PICTURE, age=999))]
    again = tell(later, "-o", "out", "--json")
    assert [json.loads(line)["input"] for line in again.out.splitlines()] == ["in/c.png"]
    os.unlink("in/c.png")
    os.unlink("out/c.png")
    assert "0 done, 0 skipped, 0 failed" in tell([], "-o", "out").err
    assert "c.png" not in Path(f"out/{watch.JOURNAL}").read_text()
    assert "0 done, 0 skipped, 1 failed" in tell([], "-o", "out", "--max-pixels", "99999").err  # may do better
    assert "1 done, 0 skipped, 1 failed" in tell([], "-o", "out", "--force").err


def test_results_beside_their_originals_are_no_arrivals(clock: Clock, tell: Callable[..., Outcome]) -> None:
    clock.put(Path("in/a.png"), PICTURE, age=999)
    story = [(5.0, lambda: os.unlink("in/a.png")), (20.0, lambda: None)]
    assert "1 done, 0 skipped, 0 failed" in tell(story, "--strip-metadata").err
    assert sorted(os.listdir("in")) == [watch.JOURNAL, "a_x2.png"]
    assert "0 done" in tell([], "--strip-metadata").err


def test_two_files_for_one_result_do_not_end_it(clock: Clock, tell: Callable[..., Outcome]) -> None:
    for name in ("a.bmp", "a.png"):
        clock.put(Path("in") / name, encoded(photo(), name[2:].upper()), age=999)
    outcome = tell([], "-o", "out/", "--format", "png")
    assert "in/a.bmp and in/a.png would both become out/a.png" in outcome.err
    assert "1 done, 0 skipped, 1 failed" in outcome.err


def test_a_full_disk_ends_it_and_nothing_counts_as_taken(
    clock: Clock, x2: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(steps.encode, "write", full)
    for index in range(9):
        clock.put(Path(f"in/{index}.png"), PICTURE, age=999)
    outcome = mambair("upscale", "--weights", x2, "--watch", "in", "-o", "out", capture=capfdbinary)
    assert outcome.status == 1
    assert "not tried in" in outcome.err
    assert Path(f"out/{watch.JOURNAL}").read_text() == ""


@pytest.mark.skipif(not hasattr(watch.fcntl, "F_SETLEASE"), reason="leases are Linux's")
def test_a_refused_lease_tells_something_only_where_others_were_given(tmp_path: Path) -> None:
    leases = watch.Leases()
    (tmp_path / "other").touch()
    with open(tmp_path / "held", "wb"):
        assert not leases.refused(str(tmp_path / "held"))  # as on NFS, where all are refused
        assert not leases.refused(str(tmp_path / "other"))
        assert leases.refused(str(tmp_path / "held"))
    assert not leases.refused(str(tmp_path / "held"))
    assert not leases.refused(str(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--watch", "nowhere"], "there is no folder nowhere to watch"),
        (["--watch", "in", "a.png"], "the pictures of its folder and no others"),
        (["--watch", "in", "--files-from", "list"], "the pictures of its folder and no others"),
        (["--watch", "in", "-o", "a.png"], "Use -o FOLDER/"),
        (["--watch", "in", "-o", "-"], "Use -o FOLDER/"),
        (["--watch", "in", "-o", "s3://bucket/out/"], "stay on this machine"),
    ],
)
@pytest.mark.usefixtures("clock")
def test_what_cannot_be_watched(
    options: list[str], reason: str, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = mambair("denoise", *options, capture=capfdbinary)
    assert (outcome.status, os.listdir()) == (2, ["in"])
    assert reason in outcome.err
    monkeypatch.setattr(watch, "find_spec", lambda name: None)
    outcome = mambair("denoise", "--watch", "in", capture=capfdbinary)
    assert (outcome.status, "pip install 'mambair[watch]'" in outcome.err) == (2, True)


@pytest.mark.usefixtures("clock")
def test_a_rehearsal_tells_what_is_there_now(x2: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    Path("in/a.png").write_bytes(PICTURE)
    outcome = mambair("upscale", "--weights", x2, "--watch", "in", "-n", capture=capfdbinary)
    assert (outcome.status, outcome.out) == (0, b"in/a.png -> in/a_x2.png (nearest, 61x47 -> 122x94)\n")
    assert os.listdir("in") == ["a.png"]


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_with_true_time_and_a_true_signal(x2: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "mambair_cli", "upscale", "--weights", str(x2), "--watch", "in", "-o", "out"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stderr.readline() == "watching in for pictures, until Ctrl-C\n"
    (tmp_path / "a.png").write_bytes(PICTURE)
    os.utime(tmp_path / "a.png", (1, 1))
    (tmp_path / "a.png").rename(tmp_path / "in" / "a.png")
    assert process.stdout.readline() == "out/a.png\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err.startswith("1 done, 0 skipped, 0 failed in")
    shutil.rmtree(tmp_path / "out")
