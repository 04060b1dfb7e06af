"""Half of it: `--strength`, between the picture and the result; `--sharpness`, between two networks."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.album import photo
from helpers.commands import Mambair, mambair
from PIL import Image

import mambair_cli
from mambair_cli.errors import UsageError
from mambair_cli.images.software import made_by
from mambair_cli.models import checkpoints, zoo
from mambair_cli.restoring.request import Request
from mambair_cli.tasks import TASKS


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Mambair:
    monkeypatch.chdir(tmp_path)
    photo().save("a.png")
    photo().save("a.jpg", quality=75)
    return partial(mambair, capture=capfdbinary)


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


# --- strength -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["denoise", "derain", "decompress"])
def test_strength_lies_between_the_picture_and_the_result(task: str, run: Mambair) -> None:
    for strength in (None, 0, 0.5, 1):
        asked = [] if strength is None else ["--strength", strength]
        assert run(task, "a.png", *asked, "-o", f"{strength}.png").status == 0
    original, full = pixels("a.png"), pixels("None.png")
    assert (full != original).any()
    assert np.array_equal(pixels("0.png"), original)
    assert np.array_equal(pixels("1.png"), full)
    assert np.abs(pixels("0.5.png") - (original + full) / 2).max() <= 1


def test_strength_keeps_depth_and_transparency(run: Mambair) -> None:
    picture = photo("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    half = mambair_cli.restore(picture, "denoise", strength=0.5).image
    assert np.array_equal(half.getchannel("A"), picture.getchannel("A"))
    deep = (np.asarray(photo(), np.uint16) << 8) + 7
    untouched = mambair_cli.restore(deep, "denoise", strength=0.0).picture.frames[0].pixels
    assert np.array_equal(untouched, deep)


# --- sharpness ----------------------------------------------------------------------------------------------------


def test_sharpness_mixes_the_weights_of_two_networks(run: Mambair) -> None:
    faithful, sharp = zoo.find("tiny-x4-photo@0"), zoo.find("tiny-x4-sharp")
    zoo_default = zoo.find("tiny-x4-photo")
    states = [checkpoints.load_network(spec)[0].state_dict() for spec in (faithful, sharp, zoo.find("photo@0.25"))]
    for name, mixed in states[2].items():
        torch.testing.assert_close(mixed, 0.75 * states[0][name] + 0.25 * states[1][name])
    for sharpness in (None, 0, 0.5, 1):
        asked = [] if sharpness is None else ["--sharpness", sharpness]
        done = run("upscale", "a.jpg", *asked, "-o", f"{sharpness}.png", "--json")
        assert done.status == 0, done.err
        model = "tiny-x4-photo" if sharpness is None else f"tiny-x4-photo@{sharpness}"
        assert json.loads(done.out)["model"] == model
        told = zoo.find("tiny-x4-sharp" if sharpness in (None, 1) else "tiny-x4-photo").source.sha256
        assert json.loads(done.out)["sha256"] == told
        made = made_by(Path(f"{sharpness}.png"))
        assert made is not None
        assert made.model == model
    assert run("upscale", "a.jpg", "-m", "sharp", "-o", "sharp.png").status == 0
    assert np.array_equal(pixels("1.png"), pixels("sharp.png"))

    def gradient(name: str) -> float:
        return float(np.abs(np.diff(pixels(name), axis=0)).mean() + np.abs(np.diff(pixels(name), axis=1)).mean())

    assert gradient("0.png") < gradient("0.5.png") < gradient("1.png")
    assert 0 < zoo_default.sharpness <= 1
    assert run("upscale", "a.jpg", "-m", f"photo@{zoo_default.sharpness}", "-o", "same.png").status == 0
    assert np.array_equal(pixels("same.png"), pixels("None.png"))


def test_sharpness_goes_with_photographs_of_any_size(run: Mambair) -> None:
    twice = json.loads(run("upscale", "-n", "--json", "-s", 2, "--sharpness", 0.5, "a.png").out)
    assert (twice["model"], twice["resampled"], twice["output_size"]) == ("tiny-x2-photo@0.5", False, [122, 94])
    thrice = json.loads(run("upscale", "-n", "--json", "-s", 3, "--sharpness", 0.5, "a.jpg").out)
    assert (thrice["model"], thrice["resampled"], thrice["output_size"]) == ("tiny-x4-photo@0.5", True, [183, 141])
    eight = json.loads(run("upscale", "-n", "--json", "-s", 8, "--sharpness", 0.5, "a.jpg").out)
    assert eight["model"] == "tiny-x2-photo@0.5 + tiny-x4"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sharpness", "0.5", "--clean"], "for photographs"),
        (["--sharpness", "0.5", "-m", "tiny-x4"], "tiny-x4 has no sharpness"),
        (["-m", "tiny-x4@0.5"], "tiny-x4 has no sharpness"),
        (["-m", "photo@2"], "a sharpness of 2 makes no sense"),
        (["-m", "photo@"], "a sharpness of makes no sense"),
        (["-m", "nobody@0.5"], "no model 'nobody'"),
        (["--sharpness", "7"], "Invalid value for '--sharpness'"),
        (["--strength", "0.5"], "No such option"),
    ],
)
def test_what_makes_no_sense_is_refused(options: list[str], words: str, run: Mambair) -> None:
    done = run("upscale", "a.jpg", *options)
    assert done.status == 2, done.err
    assert words in " ".join(done.err.split())
    assert sorted(path.name for path in Path().iterdir()) == ["a.jpg", "a.png"]


def test_every_task_has_one_share_and_refuses_others() -> None:
    for task in TASKS.values():
        assert task.share is not None
        Request(task.name, **{task.share.name: 0.5})
        other = "sharpness" if task.share.name == "strength" else "strength"
        with pytest.raises(UsageError, match=f"has no {other}"):
            Request(task.name, **{other: 0.5})
        for value in (-0.1, 1.5, float("nan")):
            with pytest.raises(UsageError, match="makes no sense"):
                Request(task.name, **{task.share.name: value})


def test_a_file_of_weights_has_no_sharpness(run: Mambair) -> None:
    file = checkpoints.BUNDLED / "upscale-x4-photo.safetensors"
    done = run("upscale", "a.jpg", "--weights", file, "--sharpness", "0.5")
    assert done.status == 2
    assert "one network" in done.err


@pytest.mark.parametrize("sharper", ["nobody", "tiny-x4"])
def test_a_manifest_whose_sharper_model_is_another_network_is_refused(
    sharper: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Mambair
) -> None:
    text = zoo.manifest().read_text("utf-8").replace('sharper = "tiny-x4-sharp"', f'sharper = "{sharper}"')
    (tmp_path / "zoo.toml").write_text(text, "utf-8")
    monkeypatch.setenv("MAMBAIR_ZOO", str(tmp_path / "zoo.toml"))
    done = run("upscale", "a.png")
    assert done.status != 0
    assert f"'{sharper}' is not of its kind" in done.err


# --- levels -------------------------------------------------------------------------------------------------------


def test_a_level_says_what_it_does(run: Mambair) -> None:
    assert "--sigma only chose the model" in run("denoise", "--sigma", 25, "a.png", "-o", "1.png").err
    assert "trained from 0 to 55 only" in run("denoise", "--sigma", 90, "a.png", "-o", "2.png").err
    assert run("denoise", "--sigma", "real", "a.png", "-o", "3.png").err.count("\n") == 1
    assert zoo.resolve("denoise").blind
    assert zoo.resolve("denoise", sigma="real").blind
    assert not zoo.resolve("denoise", sigma=25).blind
