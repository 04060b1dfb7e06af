"""The application: what it loads, what it says, and the status it leaves with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers.album import cutout, encoded, photo
from helpers.commands import Mambair, mambair
from helpers.networks import identity, nearest
from PIL import Image

from mambair_cli import files
from mambair_cli.models import zoo


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Mambair:
    for variable in ("MAMBAIR_MODEL", "MAMBAIR_DEVICE", "MAMBAIR_OFFLINE", "CI"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("MAMBAIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    photo().save("a.png")
    return partial(mambair, capture=capfdbinary)


@pytest.mark.parametrize(
    "command",
    ["--help", "--version", "models list", "upscale --help", "upscale -n -m light -s 7 a.png", "upscale -s 1 a.png"],
)
def test_what_needs_no_network_loads_no_torch(command: str, tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    code = (
        "import sys\n"
        "from mambair_cli.cli.app import run\n"
        f"try: run({command.split()!r})\n"
        "except SystemExit: print('torch' in sys.modules, 'numpy' in sys.modules, file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    torch, numpy = ended.stderr.split()[-2:]
    assert torch == "False"
    assert numpy == "False" or "a.png" in command


def test_a_restoration_does_not_load_the_compiler(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    code = (
        "import sys\n"
        "from mambair_cli.cli.app import run\n"
        "try: run(['upscale', '-q', 'a.png'])\n"
        "finally: print(*{'torch', 'torch._dynamo', 'sympy'} & sys.modules.keys(), file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stderr.split() == ["torch"]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8:strict"])
def test_what_a_pipe_cannot_encode_is_escaped(encoding: str, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.png") if sys.platform == "linux" else "\u65e5.png"
    (tmp_path / name).write_bytes(encoded(photo(), "PNG"))
    command = [sys.executable, "-m", "mambair_cli"]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    for arguments, said in (("models list", b"denoise"), (f"upscale --dry-run {name}", b".png -> ")):
        ended = subprocess.run([*command, *arguments.split()], cwd=tmp_path, env=environment, capture_output=True)
        assert (ended.returncode, ended.stderr) == (0, b"")
        assert said in ended.stdout


@pytest.mark.parametrize(
    ("command", "status", "reason"),
    [
        ("upscale", 2, "no pictures given"),
        ("upscale -s 1 a.png", 2, "a scale of 1 enlarges nothing"),
        ("upscale --width 9 --long-edge 9 a.png", 2, "more than one size"),
        ("upscale -m mambairv2-lihgt-x4 a.png", 2, "Did you mean"),
        ("upscale --format bmp a.png", 2, "unknown format"),
        ("upscale --nonsense a.png", 2, "No such option"),
        ("upscale -m light -s 4 --device abacus a.png", 2, "abacus"),
        ("upscale -m light -s 4 --tile 1x1 a.png", 2, "tile"),
        ("upscale -m light -s 4 --precision fp8 a.png", 2, "fp8"),
        ("upscale -m light -s 4 -o - --json a.png", 2, "cannot share stdout"),
        ("denoise --sigma loud a.png", 2, "makes no sense"),
        ("denoise --sigma 300 a.png", 2, "makes no sense"),
        ("upscale -m base -s 4 --offline a.png", 3, "classicSR_Base_x4"),
        ("upscale --files-from none.txt", 2, "cannot read the list"),
        ("upscale -m light -s 4 --files-from - -", 2, "a picture and a list"),
        ("upscale -m light -s 4 --compare a.png -o -", 2, "a file before and a file after"),
        ("upscale -m light -s 4 --compare - -o b.png", 2, "a file before and a file after"),
    ],
)
def test_what_cannot_work_says_why_and_leaves_its_status(
    command: str, status: int, reason: str, run: Mambair
) -> None:
    outcome = run(*command.split())
    assert outcome.status == status
    assert reason in " ".join(outcome.err.split())
    assert outcome.out == b""
    assert "Traceback" not in outcome.err
    assert sorted(path.name for path in Path().iterdir() if path.name != "cache") == ["a.png"]


@pytest.mark.parametrize(
    "options", ["--tile foo", "--tile 64 --overlap 64", "--device nope", "--device cuda:x", "--precision zz"]
)
@pytest.mark.parametrize("rehearsal", [[], ["-n"]])
def test_options_that_make_no_sense_are_one_error_before_any_work(
    options: str, rehearsal: list[str], run: Mambair
) -> None:
    outcome = run("upscale", "-m", "light", "-s", "4", "a.png", *options.split(), *rehearsal)
    assert (outcome.status, outcome.out) == (2, b"")
    assert outcome.err.startswith("error: No such")
    assert len(outcome.err.splitlines()) == 2


def test_a_scan_that_is_not_there_is_one_error_before_any_work(run: Mambair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAMBAIR_SCAN", "foo")
    outcome = run("upscale", "-m", "light", "-s", "4", "a.png", "--json")
    assert (outcome.status, outcome.out) == (2, b"")
    assert outcome.err.startswith("error: MAMBAIR_SCAN=foo: no such backend")
    assert "not tried" not in outcome.err


def test_what_nobody_expected_of_a_file_names_it(run: Mambair, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "far/away.png")

    monkeypatch.setattr(files, "find", denied)
    outcome = run("upscale", "-m", "light", "-s", "4", "a.png")
    assert (outcome.status, outcome.err) == (1, "error: cannot go on: Permission denied (far/away.png)\n")


def test_a_name_that_is_empty_is_not_the_current_folder(run: Mambair) -> None:
    outcome = run("upscale", "-m", "light", "-s", "4", "")
    assert outcome.status == 2
    assert "one of the names is empty" in outcome.err


def test_stdin_cannot_be_listed_in_stdin(run: Mambair) -> None:
    outcome = run("upscale", "-m", "light", "-s", "4", "--files-from", "-", stdin=b"a.png\n-\n")
    assert outcome.status == 2
    assert "stdin cannot be a picture and a list" in outcome.err


def test_weights_for_another_job_are_refused(run: Mambair, tmp_path: Path) -> None:
    outcome = run("denoise", "--weights", nearest(tmp_path / "nearest.pth"), "a.png")
    assert outcome.status == 2
    assert "enlarges x2: it cannot denoise" in outcome.err
    compressed = run("upscale", "--compressed", "--weights", nearest(tmp_path / "x2.pth"), tmp_path / "a.png")
    assert compressed.status == 2
    assert "Leave --compressed out" in compressed.err


def test_a_rehearsal_names_everything_and_does_nothing(run: Mambair) -> None:
    Path("b.png").write_bytes(b"broken")
    Path("c_x4.png").touch()
    photo().save("c.png")
    before = sorted(Path().iterdir())
    outcome = run("upscale", "-m", "light", "-s", "4", "-n", "a.png", "b.png", "c.png")
    lines = outcome.out.decode().splitlines()
    assert lines[0].startswith("a.png -> a_x4.png (mambairv2-light-x4")
    assert lines[0].endswith("61x47 -> 244x188)")
    assert "fails: not a picture" in lines[1]
    assert lines[2].endswith("exists, skipped")
    assert outcome.status == 1
    assert sorted(Path().iterdir()) == before
    outcome = run("upscale", "-m", "light", "-s", "4", "-n", "--json", "a.png")
    [record] = [json.loads(line) for line in outcome.out.splitlines()]
    assert (record["status"], record["output_size"]) == ("planned", [244, 188])


@pytest.mark.parametrize(
    ("options", "environment", "lines"),
    [((), {}, 1), ((), {"TERM": "dumb"}, 3), ((), {"CI": "1"}, 3), (("-q",), {"CI": "1"}, 0)],
)
def test_progress_is_as_quiet_as_wished(
    options: tuple[str, ...],
    environment: dict[str, str],
    lines: int,
    run: Mambair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    photo().save("b.png")
    outcome = run("upscale", "--weights", nearest(tmp_path / "nearest.pth"), *options, "a.png", "b.png")
    assert outcome.out.splitlines() == ([] if options else [b"a_x2.png", b"b_x2.png"])
    assert len(outcome.err.splitlines()) == lines


def test_grey_models_restore_luma_and_keep_chroma(run: Mambair, tmp_path: Path) -> None:
    weights = identity(tmp_path / "grey.pth", channels=1)
    Path("a.jpg").write_bytes(encoded(photo(), "JPEG", quality=30))
    outcome = run("decompress", "--weights", weights, "a.jpg", "--format", "png")
    assert outcome.status == 0, outcome.err
    with Image.open("a.jpg") as before, Image.open("a_decompressed.png") as after:
        assert np.abs(np.asarray(after).astype(int) - np.asarray(before)).max() <= 1


def test_a_wished_size_comes_out(run: Mambair, tmp_path: Path) -> None:
    weights = nearest(tmp_path / "nearest.pth")
    outcome = run("upscale", "--weights", weights, "--long-edge", "100", "--json", "a.png")
    record = json.loads(outcome.out)
    assert (record["scale"], record["output_size"], record["output"]) == (2, [100, 77], "a_100px.png")
    with Image.open("a_100px.png") as image:
        assert image.size == (100, 77)


def test_what_is_large_enough_only_shrinks(run: Mambair, tmp_path: Path) -> None:
    plain = cutout()
    plain.paste((200, 100, 50), mask=plain.getchannel("A").point(lambda value: 255 if value else 0))
    plain.putalpha(cutout().getchannel("A"))
    plain.save("b.png")
    weights = nearest(tmp_path / "nearest.pth")
    outcome = run("upscale", "--weights", weights, "--long-edge", "30", "--json", "a.png", "b.png")
    told = [json.loads(line) for line in outcome.out.splitlines()]
    assert [(r["status"], r["model"], r["output_size"]) for r in told] == [("done", None, [30, 23])] * 2
    assert "large enough already: only resampled to 30x23" in outcome.err
    with Image.open("a_30px.png") as image:
        assert np.array_equal(np.asarray(image), np.asarray(photo().resize((30, 23), Image.Resampling.BICUBIC)))
    with Image.open("b_30px.png") as image:
        seen = np.asarray(image)[np.asarray(image.getchannel("A")) > 0]
    assert np.abs(seen[:, :3].astype(int) - (200, 100, 50)).max() <= 1  # no black from under the transparency
    outcome = run("upscale", "--weights", weights, "--long-edge", "30", "--dry-run", "--force", "a.png")
    assert b"a_30px.png (resampled, 61x47 -> 30x23)" in outcome.out


def test_a_comparison_beside_each_result(run: Mambair, tmp_path: Path) -> None:
    command = (
        "upscale",
        "--weights",
        nearest(tmp_path / "nearest.pth"),
        "--compare",
        "--json",
        "-o",
        "out/",
        "a.png",
    )
    page, result = Path("out/a_compare.html"), Path("out/a.png")

    def statuses(*more: str) -> list[str]:
        return [json.loads(line)["status"] for line in run(*command, *more).out.splitlines()]

    assert statuses() == ["done"]
    assert page.read_text("utf-8").count("data:image/webp") == 2
    assert "<h1>a.png and out/a.png</h1>" in page.read_text("utf-8")
    page.unlink()
    before = result.stat()
    assert statuses() == ["skipped"]  # the result is not made again for it
    assert page.exists()
    assert result.stat() == before
    page.write_text("mine")
    assert statuses() == ["skipped"]
    assert page.read_text() == "mine"
    assert statuses("--force") == ["done"]
    assert page.read_text("utf-8").startswith("<!DOCTYPE html>")
    page.unlink()
    page.mkdir()
    outcome = run(*command, "--force")
    assert outcome.status == 1
    assert "out/a.png is there, its comparison not: cannot write out/a_compare.html" in outcome.err
    photo().save("a.jpg")
    outcome = run(*command, "a.jpg")
    assert outcome.status == 2
    assert "would both become out/a_compare.html" in outcome.err


@pytest.mark.parametrize("start", ["mambairv2-light-x", "rea"])
def test_shells_complete_the_names_of_models(start: str) -> None:
    command = f"mambair upscale -m {start}"
    asked = {"_MAMBAIR_COMPLETE": "complete_bash", "COMP_WORDS": command, "COMP_CWORD": "3"}
    ended = subprocess.run(
        [sys.executable, "-c", "from mambair_cli.__main__ import main; main()"],
        env=os.environ | asked,
        capture_output=True,
        text=True,
        check=True,
    )
    names = ended.stdout.split()
    assert names == [name for name, _ in zoo.complete(start)]
    assert len(names) > 1


def test_what_works_on_a_terminal_draws_a_bar(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty", reason="pseudo-terminals are POSIX")
    import threading

    photo().save(tmp_path / "a.png")
    reader, terminal = pty.openpty()
    drawn: list[bytes] = []

    def drain() -> None:
        while True:
            try:
                drawn.append(os.read(reader, 65536))
            except OSError:
                return

    thread = threading.Thread(target=drain)
    thread.start()
    weights = nearest(tmp_path / "nearest.pth")
    subprocess.run(
        [sys.executable, "-m", "mambair_cli", "upscale", "--weights", str(weights), "--tile", "32", "a.png"],
        cwd=tmp_path,
        stderr=terminal,
        stdout=subprocess.PIPE,
        env={key: value for key, value in os.environ.items() if key != "CI"} | {"TERM": "xterm"},
        check=True,
    )
    os.close(terminal)
    thread.join()
    os.close(reader)
    text = b"".join(drawn).decode()
    assert "a.png" in text
    assert "1 done, 0 skipped, 0 failed" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")  # the cursor comes back


# --- streams that fail ------------------------------------------------------------------------------------------


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`mambair` here is this checkout's; every descriptor that the command closes is really closed."""
    program = f'mambair() {{ "{sys.executable}" -m mambair_cli "$@"; }}; {command}'
    return subprocess.run(["bash", "-c", program], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("stdout", ["> /dev/full", ">&-"])
def test_a_failing_stdout_loses_no_result(stdout: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in "abcd":
        photo().crop((0, 0, 20, 16)).save(tmp_path / "in" / f"{name}.png")
    outcome = shell(f"mambair upscale -s 2 -o out/ in/ {stdout}", tmp_path)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png", "c.png", "d.png"]
    assert outcome.returncode == 1
    assert outcome.stderr.count("stdout cannot be written") == 1
    assert "4 done, 0 skipped, 0 failed" in outcome.stderr


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("mambair models list >&-", "error: cannot go on: stdout is closed"),
        ("mambair doctor >&-", "error: cannot go on: stdout is closed"),
        ("mambair upscale - -o a.png <&-", "-: cannot be read: it is closed"),
        ("mambair upscale --files-from - <&-", "error: stdin cannot be read: it is closed"),
        ("mambair upscale -o - photo.png >&-", "photo.png: stdout cannot be written: it is closed"),
        (
            "mambair upscale -o - photo.png > /dev/full",
            "photo.png: stdout cannot be written: No space left on device",
        ),
    ],
)
def test_closed_streams_are_named(command: str, told: str, tmp_path: Path) -> None:
    photo().crop((0, 0, 20, 16)).save(tmp_path / "photo.png")
    outcome = shell(command, tmp_path)
    assert outcome.returncode == 1
    assert told in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_names_of_files_do_not_steer_the_terminal(run: Mambair, tmp_path: Path) -> None:
    name = "\x1b]0;title\x07\x1b[2J.png"
    (tmp_path / name).write_bytes(b"no picture")
    for outcome in (run("upscale", tmp_path / name), run("compare", tmp_path / name, tmp_path / name)):
        assert outcome.status == 1
        assert "\x1b]0" not in outcome.err
        assert "\x1b[2J" not in outcome.err
        assert r"\033]0;title\a\033[2J.png" in outcome.err or "\N{REPLACEMENT CHARACTER}" in outcome.err
