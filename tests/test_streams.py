"""stdin and stdout that are closed, endless or cannot be wound back."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from helpers.album import encoded, photo

from mambair_cli import files, streams
from mambair_cli.errors import BadImage, UsageError
from mambair_cli.images.decode import read_picture


def test_a_closed_stdin_is_said_to_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # what Python makes of `<&-`
    for read in (streams.stdin, lambda: files.read_list("-")):
        with pytest.raises(UsageError, match="stdin is closed"):
            read()
    assert not streams.is_terminal(sys.stdin)


def test_a_closed_stdout_is_an_error_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(OSError, match="stdout is closed"):
        streams.write_stdout(b"x")
    assert not streams.is_terminal(sys.stdout)


@pytest.mark.skipif(os.name != "posix", reason="closes numbers as a shell does")
def test_no_file_gets_the_number_of_a_closed_stream() -> None:
    script = "import os; from mambair_cli.streams import hold_closed; hold_closed(); os._exit(os.open('/', 0))"
    closed = f'exec {sys.executable} -c "{script}" <&- >&-'
    assert subprocess.run(["sh", "-c", closed], check=False).returncode > 2


def test_what_is_piped_is_read_to_its_end_and_not_beyond_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_IN_MEMORY", 1000)  # so that a part of them goes to the disk
    for size in (0, 10, 999, 1000, 1001, 5000):
        for head in (b"", b"head"):
            with streams.held(BytesIO(b"x" * size), 5004, head) as file:
                assert file.read() == head + b"x" * size
    for most in (500, 3000):
        with pytest.raises(BadImage, match=f"more than {most:,} bytes"):
            streams.held(BytesIO(b"x" * 5000), most)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_a_picture_can_come_through_a_named_pipe(form: str, tmp_path: Path) -> None:
    """As of `mambair upscale <(curl ...)`."""
    data = encoded(photo(), form, **({"lossless": True} if form == "WEBP" else {}))
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(data))
    writer.start()
    assert np.array_equal(read_picture(tmp_path / "pipe").frames[0].pixels, np.asarray(photo()))
    writer.join()


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
def test_an_endless_stream_that_is_no_picture_is_refused_at_once() -> None:
    with subprocess.Popen(["cat", "/dev/zero"], stdout=subprocess.PIPE) as endless:
        assert endless.stdout
        with pytest.raises(BadImage, match="not a picture"):
            read_picture(endless.stdout)
        endless.kill()


@pytest.mark.skipif(os.name != "posix", reason="closes streams as a shell does")
@pytest.mark.parametrize(
    ("arguments", "closed", "said"),
    [
        ("-", "<&-", "stdin is closed"),
        ("--files-from -", "<&-", "stdin is closed"),
        ("-o - photo.png", ">&-", "stdout is closed"),
    ],
)
def test_commands_say_in_two_lines_which_stream_is_closed(
    arguments: str, closed: str, said: str, tmp_path: Path
) -> None:
    photo().save(tmp_path / "photo.png")
    command = f"exec {sys.executable} -m mambair_cli upscale -s 2 {arguments} {closed}"
    ended = subprocess.run(["sh", "-c", command], cwd=tmp_path, stderr=subprocess.PIPE, text=True, check=False)
    lines = [line for line in ended.stderr.splitlines() if "done, " not in line]
    assert ended.returncode in (1, 2)
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(lines) <= 2
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]
