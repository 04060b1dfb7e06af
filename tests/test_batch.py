"""Many files at once: bad ones, interruptions, full disks, pipes."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from helpers.album import encoded, exif, photo
from helpers.commands import Mambair, mambair
from helpers.networks import identity, nearest
from PIL import Image

from mambair_cli.cli import app

COMMAND = [sys.executable, "-m", "mambair_cli"]


@pytest.fixture(scope="module")
def x2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nearest(tmp_path_factory.mktemp("weights") / "nearest.pth")


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Mambair:
    return partial(mambair, capture=capfdbinary)


def album(folder: Path, count: int = 5) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{index:03}.png" for index in range(count)]
    for index, path in enumerate(paths):
        photo().rotate(index).save(path)
    return paths


def mutants(count: int, seed: int) -> list[tuple[str, bytes]]:
    """Names and bytes of broken pictures: cut short, bits flipped, empty, misnamed, of absurd size."""
    chance = random.Random(seed)
    small = photo().resize((16, 12))
    sound = {
        ".png": encoded(small, "PNG", exif=exif(6)),
        ".jpg": encoded(small, "JPEG", exif=exif(6), dpi=(72, 72)),
        ".webp": encoded(small, "WEBP", lossless=True, exif=exif(3)),
        ".tif": encoded(small, "TIFF", compression="tiff_lzw"),
        ".gif": encoded(small, "GIF", save_all=True, append_images=[small.rotate(9)], duration=50),
        ".bmp": encoded(small, "BMP"),
        ".avif": encoded(small, "AVIF"),
        ".ppm": encoded(small, "PPM"),
    }

    def mutate(data: bytes) -> bytes:
        kind, broken = chance.randrange(5), bytearray(data)
        if kind == 0:
            return data[: chance.randrange(len(data))]
        if kind == 1:
            for _ in range(chance.randrange(1, 12)):
                broken[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif kind == 2:  # in the header, where sizes are declared
            broken[chance.randrange(min(64, len(data)))] = chance.choice((0, 0x7F, 0xFF))
        elif kind == 3:
            start = chance.randrange(len(data))
            del broken[start : start + chance.randrange(1, 40)]
        return bytes(broken)

    result = []
    for index in range(count):
        suffix = chance.choice(list(sound))
        name = chance.choice(list(sound)) if chance.random() < 0.1 else suffix
        result.append((f"{index:03}{name}", b"" if index % 50 == 0 else mutate(sound[suffix])))
    return result


def test_500_broken_pictures_in_one_batch_are_all_accounted_for(tmp_path: Path, run: Mambair, x2: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, data in mutants(500, seed=5):
        (tmp_path / "in" / name).write_bytes(data)
    out = tmp_path / "out"
    outcome = run(
        *("upscale", "--weights", x2, tmp_path / "in", "-o", out, "--json", "--max-pixels", 100_000),
        *("--name", "{name}{ext}", "-q"),
    )
    told = [json.loads(line) for line in outcome.out.splitlines()]
    assert [Path(record["input"]).name for record in told] == sorted(os.listdir(tmp_path / "in"))
    assert {record["status"] for record in told} == {"done", "failed"}
    assert outcome.status == 1
    assert all(record["error"] for record in told if record["status"] == "failed")
    done = {record["output"]: record for record in told if record["status"] == "done"}
    assert sorted(map(str, out.iterdir())) == sorted(done)
    for path, record in done.items():
        with Image.open(path) as image:
            image.load()
            assert list(image.size) == record["output_size"]
    assert "Traceback" not in outcome.err
    assert len(done) > 50


def start(context: multiprocessing.context.ForkServerContext, *args: object) -> multiprocessing.process.BaseProcess:
    """The command line in a process of its own that has torch loaded already."""
    process = context.Process(target=app.run, args=([str(arg) for arg in args],))
    process.start()
    return process


@pytest.fixture(scope="module")
def server() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    modules = [
        "mambair_cli.cli.app",
        "mambair_cli.restoring.batch",
        "mambair_cli.restoring.restorer",
        "torch._dynamo",
    ]
    context.set_forkserver_preload(modules)
    return context


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_killed_at_20_random_moments_it_ends_as_if_nothing_had_happened(
    tmp_path: Path, x2: Path, server: multiprocessing.context.ForkServerContext
) -> None:
    album(tmp_path / "in", 30)
    command = ("upscale", "--weights", x2, "-q", "--device", "cpu", tmp_path / "in", "-o")
    began = time.monotonic()
    whole = start(server, *command, tmp_path / "whole")
    whole.join()
    duration = time.monotonic() - began
    assert whole.exitcode == 0
    chance = random.Random(9)
    for _ in range(20):
        process = start(server, *command, tmp_path / "broken")
        process.join(chance.uniform(0.2, 0.9) * duration)
        process.kill()
        process.join()
        if len(list((tmp_path / "broken").glob("*.png"))) > 20:  # begin again: so that every moment has its turn
            for path in list((tmp_path / "broken").glob("*.png"))[::2]:
                path.unlink()
    last = start(server, *command, tmp_path / "broken")
    last.join()
    assert last.exitcode == 0
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_within_a_second_and_leaves_nothing_half_done(
    number: int, status: int, tmp_path: Path, x2: Path
) -> None:
    album(tmp_path / "in", 300)
    process = subprocess.Popen(
        [*COMMAND, "upscale", "--weights", str(x2), str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    process.send_signal(number)
    began = time.monotonic()
    rest, err = process.communicate(timeout=30)
    assert process.returncode == status
    assert time.monotonic() - began < 5  # one second where nothing else runs
    assert first["status"] == "done"
    assert "not tried" in err
    assert "Traceback" not in err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {Path(json.loads(line)["output"]).name for line in rest.splitlines()} <= names
    for path in (tmp_path / "out").iterdir():
        assert path.suffix == ".png"
        with Image.open(path) as image:
            image.load()


def test_the_same_command_again_goes_on(tmp_path: Path, run: Mambair, x2: Path) -> None:
    album(tmp_path / "in", 3)
    command = ("upscale", "--weights", x2, "--json", tmp_path / "in", "-o", tmp_path / "out")
    statuses = lambda outcome: [json.loads(line)["status"] for line in outcome.out.splitlines()]  # noqa: E731
    assert statuses(run(*command)) == ["done"] * 3
    (tmp_path / "out" / "001.png").unlink()
    again = run(*command)
    assert statuses(again) == ["skipped", "done", "skipped"]
    assert "2 results are there already, whatever settings made them: --force makes them anew" in again.err
    redone = run(*command, "--force")
    assert statuses(redone) == ["done"] * 3
    assert "--force" not in redone.err


def test_a_walk_tells_what_it_leaves_out(
    tmp_path: Path, run: Mambair, x2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    album(tmp_path, 2)
    for options in ((), ("-r", "-o", "out")):
        assert run("upscale", "--weights", x2, ".", *options).status == 0
        again = run("upscale", "--weights", x2, ".", *options)
        assert (again.status, again.out) == (0, b"")
        assert "2 left out, as results of an earlier run" in again.err
        assert "2 left out" in run("upscale", "-n", "--weights", x2, ".", *options).err
        for path in tmp_path.glob("*_x2.png"):
            path.unlink()


def test_what_cannot_be_reached_fails_and_the_rest_goes_on(
    tmp_path: Path, run: Mambair, x2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    album(tmp_path / "in", 1)
    (tmp_path / "in" / "locked").mkdir()
    scandir = os.scandir

    def denied(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    inputs = ("n" * 300, tmp_path / "in", tmp_path / "nothing*.png")
    command = ("upscale", "--weights", x2, *inputs, "-r", "--json", "-o", tmp_path / "out")
    for rehearsal, status in (["--dry-run"], "planned"), ([], "done"):
        outcome = run(*command, *rehearsal)
        told = [json.loads(line) for line in outcome.out.splitlines()]
        assert [record["status"] for record in told] == ["failed", status, "failed", "failed"]
        assert "File name too long" in told[0]["error"]
        assert (told[2]["input"], told[2]["output"]) == (str(tmp_path / "in" / "locked"), None)
        assert told[2]["error"] == "cannot be searched: Permission denied"
        assert told[3]["error"] == "no such file"
        assert outcome.status == 1


def test_one_bad_file_stops_nothing_unless_asked(tmp_path: Path, run: Mambair, x2: Path) -> None:
    paths = album(tmp_path / "in", 6)
    paths[1].write_bytes(b"no picture")
    command = ("upscale", "--weights", x2, *paths, tmp_path / "missing.png", "-o")
    outcome = run(*command, tmp_path / "out/")
    assert outcome.status == 1
    assert "5 done, 0 skipped, 2 failed" in outcome.err
    assert f"{paths[1]}: not a picture" in outcome.err
    assert "missing.png: no such file" in outcome.err
    assert len(outcome.out.splitlines()) == 5
    outcome = run(*command, tmp_path / "fast/", "--fail-fast")
    assert outcome.status == 1
    assert "not tried" in outcome.err
    assert len(list((tmp_path / "fast").iterdir())) < 5
    outcome = run(*command, tmp_path / "fast/", "--fail-fast", "--json")
    told = [json.loads(line) for line in outcome.out.splitlines()]
    assert [record["input"] for record in told] == [*map(str, paths), str(tmp_path / "missing.png")]
    assert (told[-1]["status"], told[-1]["error"]) == ("not tried", "another picture failed")
    left = sum(record["status"] == "not tried" for record in told)
    assert f"1 failed, {left} not tried in" in outcome.err


@pytest.mark.skipif(shutil.which("mount") is None or os.name != "posix", reason="needs POSIX limits")
def test_a_full_disk_leaves_no_part_and_is_named(tmp_path: Path, x2: Path) -> None:
    import resource

    paths = album(tmp_path / "in", 3)
    for path in paths:
        Image.effect_noise((160, 160), 90).convert("RGB").save(path)

    def limit() -> None:  # a file that may not grow stands in for a disk without room
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = [*COMMAND, "upscale", "--weights", str(x2), *map(str, paths), "-o", str(tmp_path / "out/")]
    process = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert process.returncode == 1
    assert f"cannot write {tmp_path / 'out' / '000.png'}: File too large" in process.stderr
    assert "Traceback" not in process.stderr
    assert list((tmp_path / "out").iterdir()) == []


# --- pipes ------------------------------------------------------------------------------------------------------


def test_a_picture_through_a_pipe(run: Mambair, x2: Path) -> None:
    outcome = run("upscale", "--weights", x2, "-", stdin=encoded(photo(), "JPEG"))
    assert outcome.status == 0
    with Image.open(io.BytesIO(outcome.out)) as image:
        assert (image.format, image.size) == ("PNG", (122, 94))
    outcome = run("upscale", "--weights", x2, "-", "-o", "-", "--format", "webp", stdin=encoded(photo(), "PNG"))
    assert outcome.out[8:12] == b"WEBP"


def test_find_print0_and_json_lines(tmp_path: Path) -> None:
    weights = identity(tmp_path / "identity.pth")
    album(tmp_path / "in", 2)
    (tmp_path / "in" / "new\nline.png").write_bytes(encoded(photo(), "PNG"))
    names = subprocess.run(["find", tmp_path / "in", "-name", "*.png", "-print0"], capture_output=True, check=True)
    out = tmp_path / "out"
    process = subprocess.run(
        [*COMMAND, "denoise", "--weights", str(weights), "--files-from", "-", "-o", f"{out}/", "--json"],
        input=names.stdout,
        capture_output=True,
        check=True,
    )
    told = [json.loads(line) for line in process.stdout.splitlines()]
    assert {record["status"] for record in told} == {"done"}
    assert {Path(record["output"]).name for record in told} == {"000.png", "001.png", "new\nline.png"}


def test_a_closed_pipe_ends_it_quietly(tmp_path: Path, x2: Path) -> None:
    album(tmp_path / "in", 40)
    process = subprocess.Popen(
        [
            *COMMAND,
            "upscale",
            "--weights",
            str(x2),
            str(tmp_path / "in"),
            "-o",
            str(tmp_path / "out"),
            "--json",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "CI"},  # that asks for a line a picture
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert err == b""
    assert len(list((tmp_path / "out").iterdir())) < 40


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["--help", "models list", "upscale --json", "upscale -o -"])
def test_a_full_disk_behind_stdout_is_told_without_a_traceback(command: str, tmp_path: Path, x2: Path) -> None:
    photo().save(tmp_path / "a.png")
    options = ["--weights", str(x2), str(tmp_path / "a.png")] if "upscale" in command else []
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [*COMMAND, *command.split(), *options], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert ended.returncode == 1
    assert "No space left on device" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "ignored" not in ended.stderr


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX")
def test_no_picture_is_printed_on_a_terminal(tmp_path: Path, x2: Path) -> None:
    import pty

    photo().save(tmp_path / "a.png")
    reader, terminal = pty.openpty()
    command = [*COMMAND, "upscale", "--weights", str(x2), str(tmp_path / "a.png"), "-o", "-"]
    process = subprocess.run(command, stdout=terminal, stderr=subprocess.PIPE, text=True, check=False)
    os.close(terminal)
    os.close(reader)
    assert process.returncode == 2
    assert "Redirect it" in process.stderr
