"""Habits from other programs: what people type and feed, and what they expect to come of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
from helpers.album import exif, photo
from helpers.commands import Mambair, mambair
from helpers.networks import nearest
from PIL import Image

from mambair_cli.cli.app import OTHERS
from mambair_cli.images.decode import size_of
from mambair_cli.tasks import TASKS


@pytest.fixture(scope="session")
def x2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nearest(tmp_path_factory.mktemp("weights") / "nearest.pth")


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Mambair:
    for variable in ("MAMBAIR_MODEL", "CI"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    photo().save("a.png")
    return partial(mambair, capture=capfdbinary)


@pytest.mark.parametrize(
    ("inputs", "hint"),
    [
        (["a.png", "out.png"], "mambair upscale a.png -o out.png"),
        (["a.png", "new"], "mambair upscale a.png -o new"),
        (["-", "out.png"], "mambair upscale - -o out.png"),
        (["a.png", "b c.png"], "-o 'b c.png'"),
        (["a.png"] * 4 + ["le/"], "mambair upscale a.png a.png a.png ... -o le/"),
    ],
)
@pytest.mark.parametrize("rehearsal", [[], ["-n"]])
def test_the_last_name_is_no_output(inputs: list[str], hint: str, rehearsal: list[str], run: Mambair) -> None:
    outcome = run("upscale", *inputs, *rehearsal)
    assert (outcome.status, outcome.out) == (2, b"")
    assert f"{inputs[-1]} is not there to be read" in outcome.err
    assert hint in outcome.err
    assert os.listdir() == ["a.png"]


def test_missing_inputs_among_others_fail_by_themselves(run: Mambair, x2: Path) -> None:
    photo().save("b.png")
    outcome = run("upscale", "--weights", x2, "a.png", "b.png", "missing.png")
    assert (outcome.status, outcome.out) == (1, b"a_x2.png\nb_x2.png\n")
    assert "missing.png: no such file" in outcome.err


@pytest.mark.parametrize("options", [["-o", "out/"], ["-o", "out.png"], ["-o", "-"], ["--json"], ["-n"], ["-r"]])
def test_an_empty_inbox_is_no_error(options: list[str], run: Mambair) -> None:
    Path("inbox").mkdir()
    Path("list").touch()
    for inputs, name in ((["inbox"], "inbox"), (["--files-from", "list"], "list"), (["--files-from", "-"], "-")):
        outcome = run("upscale", *inputs, *options)
        assert (outcome.status, outcome.out) == (0, b"")
        deeper = "; folders within folders: -r" if name == "inbox" and "-r" not in options else ""
        assert outcome.err == f"nothing to do: no pictures in {name}{deeper}\n"
    Path("inbox/film.mp4").touch()
    assert "1 other left alone: .mp4" in run("upscale", "inbox", *options).err
    assert run("upscale", "-q", "inbox", *options).err == ""
    assert not Path("out").exists()


def test_a_glob_without_a_match_is_an_error(run: Mambair) -> None:
    outcome = run("upscale", "*.jpg")
    assert outcome.status == 1
    assert "*.jpg: no such file" in outcome.err


def test_records_of_what_is_there_say_what_it_is(run: Mambair, x2: Path) -> None:
    photo().save("turned.jpg", exif=exif(6))
    names = ["a.png", "turned.jpg"]
    plans = [json.loads(line) for line in run("upscale", "-n", "--weights", x2, "--json", *names).out.splitlines()]
    assert [(plan["status"], plan["error"], plan["output_size"]) for plan in plans] == [
        ("planned", None, [122, 94]),
        ("planned", None, [94, 122]),
    ]
    done = [json.loads(line) for line in run("upscale", "--weights", x2, "--json", *names).out.splitlines()]
    for rehearsal in ([], ["-n"]):
        again = run("upscale", "--weights", x2, "--json", *names, *rehearsal)
        for before, line in zip(done, again.out.splitlines(), strict=True):
            record = json.loads(line)
            assert (before["status"], record["status"]) == ("done", "skipped")
            same = ("model", "input", "output", "input_size", "output_size")
            assert {key: record[key] for key in same} == {key: before[key] for key in same}
            assert record["seconds"] is not None
    Path("a_x2.png").write_bytes(b"something else")
    record = json.loads(run("upscale", "--weights", x2, "--json", "a.png").out)
    assert [record[key] for key in ("status", "model", "input_size", "output_size")] == [
        "skipped",
        None,
        [61, 47],
        None,
    ]


def test_sizes_are_read_off_headers(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.webp", "a.tif", "a.gif", "a.avif"):
        photo().save(tmp_path / name)
        assert size_of(tmp_path / name) == (61, 47)
    assert size_of(tmp_path / "missing.png") is None


def test_stdin_and_stdout_by_their_other_names(run: Mambair, x2: Path) -> None:
    data = Path("a.png").read_bytes()
    outcome = run("upscale", "--weights", x2, "/dev/stdin", "-o", "/dev/stdout", stdin=data)
    assert (outcome.status, outcome.out[:4]) == (0, b"\x89PNG")
    assert run("upscale", "--weights", x2, "a.png", "-o", "/dev/fd/1").out == outcome.out
    assert "cannot share stdout" in run("upscale", "--weights", x2, "--json", "a.png", "-o", "/dev/stdout").err


def test_help_and_version_as_elsewhere(run: Mambair) -> None:
    for command in ([], ["upscale"], ["models", "list"]):
        outcome = run("help", *command)
        assert (outcome.status, outcome.out) == (0, run(*command, "--help").out)
    outcome = run("help", "upscal")
    assert outcome.status == 2
    assert "No such command 'upscal'" in outcome.err
    assert run("-V").out == run("--version").out


def completed(line: str, run: Mambair, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a shell offers at the end of a line."""
    words = line.split(" ")
    for name, value in {
        "_MAMBAIR_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }.items():
        monkeypatch.setenv(name, value)
    return run().out.decode().split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("mambair upscale --format ", ["png", "jpg", "webp", "tiff", "avif"]),
        ("mambair denoise --format w", ["webp"]),
        ("mambair upscale -s ", ["2", "3", "4", "1.5", "6", "8"]),
        ("mambair upscale --device c", ["cpu", "cuda"]),
        ("mambair bench -d Set", ["Set5", "Set14"]),
        ("mambair train up", ["upscale-x4"]),
        ("mambair help ", [*TASKS, *OTHERS, "models"]),
        ("mambair upscale -m min", ["mini"]),
    ],
)
def test_shells_complete(line: str, offered: list[str], run: Mambair, monkeypatch: pytest.MonkeyPatch) -> None:
    found = completed(line, run, monkeypatch)
    assert set(offered) <= set(found), found
    assert all(word.startswith(line.rpartition(" ")[2]) for word in found)


def test_the_readme_prints_no_null(run: Mambair, x2: Path) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    assert """| jq 'select(.status == "done").seconds'""" in readme
    for _ in range(2):
        records = [json.loads(line) for line in run("upscale", "--weights", x2, "--json", "a.png").out.splitlines()]
        assert all(record["seconds"] is not None for record in records if record["status"] == "done")
    with Image.open("a_x2.png") as image:
        assert image.size == (122, 94)


# --- logs ---------------------------------------------------------------------------------------------------------


def test_a_log_has_times_and_no_colour(run: Mambair, x2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    Path("bad\n\x1b[31m.png").write_bytes(b"no picture")
    outcome = run("upscale", "--weights", x2, "-q", "a.png", "bad\n\x1b[31m.png", "-o", "out/", "--log", "all.log")
    assert outcome.status == 1
    assert "\x1b[" in outcome.err
    Path("all.log").rename("all.log.1")  # as logrotate does
    run("upscale", "-s", "1", "a.png", "--log", "all.log")
    first, second = (Path(name).read_text("utf-8").splitlines() for name in ("all.log.1", "all.log"))
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} \S", line) for line in first + second)
    told = [line.split(" ", 1)[1] for line in first]
    assert told[0].startswith("mambair ")
    assert re.fullmatch(r"\[1/2\] out/a.png done in \d+\.\d s", told[1])
    assert told[2].startswith(r"bad; \033[31m.png: not a picture")
    assert told[3].startswith("1 done, 0 skipped, 1 failed in")
    assert second[-1].endswith(
        "error: a scale of 1 enlarges nothing; Give a number above 1; --width, --height and "
        "--long-edge also make pictures smaller."
    )
    run("upscale", "-n", "a.png", "--log", "none.log")
    assert not Path("none.log").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_log_that_cannot_be_written_costs_no_result(run: Mambair, x2: Path) -> None:
    outcome = run("upscale", "--weights", x2, "a.png", "--log", "nowhere/all.log")
    assert (outcome.status, os.listdir()) == (2, ["a.png"])
    assert "cannot write the log nowhere/all.log: No such file or directory" in outcome.err
    before = Path("a.png").read_bytes()
    outcome = run("upscale", "--weights", x2, "--log", "a.png", "a.png")
    assert (outcome.status, Path("a.png").read_bytes()) == (2, before)
    assert "called like a picture" in outcome.err
    outcome = run("upscale", "--weights", x2, "a.png", "--log", "/dev/full")
    assert (outcome.status, outcome.out) == (0, b"a_x2.png\n")
    assert outcome.err.count("the log cannot be written: [Errno 28] No space left on device") == 1


# --- docs/automation.md ---------------------------------------------------------------------------------------------

AUTOMATION = (Path(__file__).parent.parent / "docs" / "automation.md").read_text("utf-8")


def test_the_commands_of_the_docs_are_understood(run: Mambair, tmp_path: Path) -> None:
    Path("srv/pictures/in").mkdir(parents=True)
    photo().save("srv/pictures/in/a.png")
    commands = re.findall(r"(?:^|`|/usr/local/bin/)mambair ([a-z]+ [^`\n]+)$", AUTOMATION, re.MULTILINE)
    commands += re.findall(r"`mambair (upscale [^`]+)`", AUTOMATION)
    assert len(commands) >= 4
    pytest.importorskip("watchfiles", reason="needs the extra `watch`")
    for command in commands:
        arguments = command.replace("/srv/", "srv/").replace("/var/log/", "").split()
        outcome = run(*arguments, "-n")
        assert (outcome.status, outcome.out[:20]) == (0, b"srv/pictures/in/a.pn"), command


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_the_unit_of_the_docs_is_sound(tmp_path: Path) -> None:
    [unit] = re.findall(r"```ini\n(.*?)```", AUTOMATION, re.DOTALL)
    (tmp_path / "mambair.service").write_text(unit.replace("/usr/local/bin/mambair", "/bin/true"))
    ended = subprocess.run(
        ["systemd-analyze", "verify", "mambair.service"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "mambair.service" not in ended.stderr, ended.stderr
