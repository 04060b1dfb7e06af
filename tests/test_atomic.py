"""Files that appear whole or not at all, and temporary files of the living and the dead."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import pytest

from mambair_cli import atomic
from mambair_cli.atomic import DiskFullError, atomic_write
from mambair_cli.errors import AlreadyThere, MambairError


@pytest.fixture(autouse=True)
def _unswept() -> None:
    atomic._swept.clear()


def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "new" / "a.png") as file:
            file.write(b"whole")
    finally:
        os.umask(before)
    target = tmp_path / "new" / "a.png"
    assert target.read_bytes() == b"whole"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"old")
    with pytest.raises(TypeError), atomic_write(tmp_path / "a.png") as file:
        file.writelines([b"half", None])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path) -> IO[bytes]:
        (folder / "begun.part").symlink_to("/dev/full")
        return (folder / "begun.part").open("wb")

    monkeypatch.setattr(atomic, "_open_new", full)
    with pytest.raises(DiskFullError, match=r"a\.png: No space left"), atomic_write(tmp_path / "a.png") as file:
        file.write(b"x" * 100_000)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MambairError, match="cannot write"), atomic_write(tmp_path / "file" / "a.png"):
        pass


def test_a_folder_that_can_be_written_but_not_read_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mode 0333, for everybody but root, who runs some of these tests."""
    real = os.open

    def denied(path: str | Path, *rest: int) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *rest)

    monkeypatch.setattr(os, "open", denied)
    with atomic_write(tmp_path / "a.png") as file:
        file.write(b"whole")
    assert (tmp_path / "a.png").read_bytes() == b"whole"


# --- sweeping ---------------------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from mambair_cli import atomic
atomic.os.getpid = lambda: 2**22 + 1  # as seen from another PID namespace: a number that is nobody's here
with atomic.atomic_write(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("begun", flush=True)
    sys.stdin.read()
    file.write(b" and half")
"""
posix = pytest.mark.skipif(os.name != "posix", reason="needs locks on open files")


def begun(target: Path) -> subprocess.Popen[bytes]:
    """A process that is writing `target`, and ends once its stdin does."""
    command = [sys.executable, "-c", WRITER, str(target)]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdout
    assert writer.stdout.readline() == b"begun\n"
    return writer


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@posix
def test_what_a_living_process_of_another_container_writes_is_not_swept(tmp_path: Path) -> None:
    with begun(tmp_path / "a.png") as writer:
        for _ in range(3):
            atomic.sweep([tmp_path])
        assert len(names(tmp_path)) == 1
        writer.communicate()
    assert (tmp_path / "a.png").read_bytes() == b"half and half"


@posix
def test_what_a_killed_process_left_goes_when_its_folder_is_next_written_to(tmp_path: Path) -> None:
    with begun(tmp_path / "a.png") as writer:
        writer.send_signal(signal.SIGKILL)
    [left] = names(tmp_path)
    assert left.startswith(".mambair-")
    with atomic_write(tmp_path / "b.png") as file:
        file.write(b"whole")
    assert names(tmp_path) == ["b.png"]


def test_only_temporary_files_are_swept(tmp_path: Path) -> None:
    own, other, day = atomic._host, "00000000", 25 * 3600
    kept = ["a.png", ".part", f".mambair-{own}-1-0.partial", f".mambair-{other}-1-0.part"]
    swept = [f".mambair-{own}-{os.getpid()}-7.part", f".mambair-{other}-1-1.part"]
    for name in kept + swept:
        (tmp_path / name).touch()
    for name in swept if os.name == "nt" else swept[1:]:
        os.utime(tmp_path / name, (day, day))
    os.symlink(tmp_path / "a.png", tmp_path / f".mambair-{own}-1-2.part")
    atomic.sweep([tmp_path, tmp_path / "missing"])
    assert names(tmp_path) == sorted([*kept, f".mambair-{own}-1-2.part"])


@pytest.mark.parametrize("locks", ["none", "windows"])
def test_without_locks_a_day_has_to_pass(locks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if locks == "windows":
        monkeypatch.setattr(atomic, "fcntl", None)
        monkeypatch.setattr(atomic, "_CAN_RENAME_OPEN", False)
    else:
        monkeypatch.setattr(
            atomic.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks"))
        )
    new, old = (tmp_path / f".mambair-{atomic._host}-1-{n}.part" for n in (0, 1))
    new.touch()
    old.touch()
    os.utime(old, (0, 0))
    with atomic_write(tmp_path / "a.png") as file:
        file.write(b"whole")
    assert names(tmp_path) == sorted([new.name, "a.png"])


@posix
def test_writers_and_sweepers_never_lose_a_file(tmp_path: Path) -> None:
    """Also when one is swept between its making and its locking."""
    stop = threading.Event()

    def sweeper() -> None:
        while not stop.is_set():
            atomic.sweep([tmp_path])

    threads = [threading.Thread(target=sweeper) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(200):
            with atomic_write(tmp_path / f"{number}.png") as file:
                file.write(b"whole")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert names(tmp_path) == sorted(f"{number}.png" for number in range(200))


@posix
def test_a_sweeper_that_was_first_and_slow_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It locks the new file before its writer, and unlinks the name when another file is being written."""
    hold = atomic._hold
    judged: list[tuple[Path, int]] = []

    def sweeper_first(number: int) -> bool | None:
        if not judged:
            [path] = tmp_path.iterdir()
            judged.append((path, os.open(path, os.O_RDWR)))
            assert hold(judged[0][1])
        return hold(number)

    monkeypatch.setattr(atomic, "_hold", sweeper_first)
    with atomic_write(tmp_path / "a.png") as file:
        path, number = judged[0]
        path.unlink(missing_ok=True)
        os.close(number)
        file.write(b"whole")
    assert names(tmp_path) == ["a.png"]


def test_an_exclusive_file_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "result.png"
    for without_links in (False, True):
        if without_links:
            monkeypatch.setattr(os, "link", refuse)
        with atomic_write(target, exclusive=True) as stream:
            stream.write(b"first")
        with pytest.raises(AlreadyThere), atomic_write(target, exclusive=True) as stream:
            stream.write(b"second")
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"first"]
        target.unlink()
    target.symlink_to(tmp_path / "nowhere")
    with atomic_write(target, exclusive=True) as stream:
        stream.write(b"third")
    assert target.read_bytes() == b"third"


def refuse(*_: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")
