"""Kinds of files as a new user meets them, by the true command line: scans, raw, videos, results of yesterday."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers.album import exif, photo
from helpers.commands import Mambair, mambair
from helpers.networks import nearest
from helpers.raw import dng
from PIL import Image

from mambair_cli.images.software import made_by


@pytest.fixture(scope="session")
def x2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nearest(tmp_path_factory.mktemp("weights") / "nearest.pth")


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Mambair:
    monkeypatch.delenv("CI", raising=False)
    return partial(mambair, capture=capfdbinary)


def test_a_folder_run_twice_leaves_out_its_results_and_counts_what_it_leaves(
    tmp_path: Path, run: Mambair, x2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photo().save("a.png")
    photo().save("b.jpg", exif=exif())
    for name in ("film.mp4", "text.pdf"):
        Path(name).touch()
    assert run("upscale", "--weights", x2, ".").status == 0
    for name in ("a_x2.png", "b_x2.jpg"):
        assert str(made_by(Path(name))).endswith(", nearest, x2")
    outcome = run("upscale", "--weights", x2, ".", "-o", "le/")
    assert outcome.status == 0
    assert sorted(path.name for path in Path("le").iterdir()) == ["a.png", "b.jpg"]
    assert "2 left out, as results of an earlier run" in outcome.err
    assert "2 others left alone: .mp4, .pdf (videos: docs/video.md)" in outcome.err
    run("upscale", "--weights", x2, "a.png", "-o", "bare.png", "--strip-metadata")
    assert made_by(Path("bare.png")) is None


def test_a_scan_of_16_bits_becomes_a_jpeg_with_a_note(tmp_path: Path, run: Mambair, x2: Path) -> None:
    pixels = np.asarray(photo()).astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "scan.tif", pixels, photometric="rgb")
    outcome = run("upscale", "--weights", x2, tmp_path / "scan.tif", "-o", tmp_path / "scan.jpg")
    assert outcome.status == 0
    assert "JPEG holds 8 bits a sample: the 16 of the input are rounded" in outcome.err
    with Image.open(tmp_path / "scan.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (122, 94))


def test_raw_becomes_a_16_bit_png_or_tiff(tmp_path: Path, run: Mambair, x2: Path) -> None:
    pytest.importorskip("rawpy", reason="needs the extra `raw`")
    (tmp_path / "a.dng").write_bytes(dng())
    for name in ("a_x2.png", "b.tif"):
        output = () if name == "a_x2.png" else ("-o", tmp_path / name)
        assert run("upscale", "--weights", x2, tmp_path / "a.dng", *output).status == 0
        data = (tmp_path / name).read_bytes()
        assert data[24] == 16 if name.endswith("png") else tifffile.imread(tmp_path / name).dtype == np.uint16


def test_a_video_is_refused_in_two_lines(tmp_path: Path, run: Mambair, x2: Path) -> None:
    (tmp_path / "film.mp4").touch()
    outcome = run("upscale", "--weights", x2, tmp_path / "film.mp4")
    assert outcome.status == 1
    assert "film.mp4: a video\nTake it apart into frames" in outcome.err


def test_a_name_that_steers_terminals_is_shown_escaped_and_piped_as_it_is(tmp_path: Path, x2: Path) -> None:
    """On a terminal in the bar and among the results; in a pipe the next program needs the true name."""
    pty = pytest.importorskip("pty", reason="pseudo-terminals are POSIX")
    name = "\x1b]0;title\x07.png"
    photo().save(tmp_path / name)
    command = [sys.executable, "-m", "mambair_cli", "upscale", "--force", "--weights", str(x2), "--tile", "32", name]
    piped = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    assert piped.decode() == "\x1b]0;title\x07_x2.png\n"
    reader, terminal = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key != "CI"} | {"TERM": "xterm"}
    shown: list[bytes] = []

    def drain() -> None:
        with suppress(OSError):  # the terminal is closed
            while True:
                shown.append(os.read(reader, 65536))

    thread = threading.Thread(target=drain)
    thread.start()
    for extra in ([], ["--dry-run"]):
        subprocess.run(
            [*command, *extra], cwd=tmp_path, stdout=terminal, stderr=terminal, env=environment, check=True
        )
    os.close(terminal)
    thread.join()
    text = b"".join(shown).decode()
    assert "\x1b]0;" not in text
    assert text.count(r"\033]0;title\a_x2.png") >= 2


def test_a_list_keeps_its_tree_below_a_base(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    names = [tmp_path / "a" / folder / "p.png" for folder in "xy"]
    for name in names:
        name.parent.mkdir(parents=True)
        photo().crop((0, 0, 20, 16)).save(name)
    (tmp_path / "list").write_text("\n".join(map(str, names)))
    options = ("--files-from", tmp_path / "list", "-s", 2)
    for base, folder in ((tmp_path, "a/x"), (tmp_path / "a", "x")):
        out = tmp_path / f"of {base.name}"
        outcome = mambair("upscale", *options, "--base", base, "-o", f"{out}/", capture=capsysbinary)
        assert outcome.status == 0, outcome.err
        assert (out / folder / "p.png").exists()
    outcome = mambair("upscale", *options, "--base", tmp_path / "a" / "x", "-o", f"{out}/", capture=capsysbinary)
    assert outcome.status == 2
    assert "p.png" in outcome.err
