"""The models in the package: whole, as their cards say, and better than doing nothing through the true command."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import mambair
from numpy.typing import NDArray
from PIL import Image

from mambair_cli import degradations
from mambair_cli.metrics import gradient_kept, psnr
from mambair_cli.models import checkpoints, zoo
from mambair_cli.models.spec import ModelSpec
from mambair_cli.train.recipe import parse

BUNDLED = [spec for spec in zoo.zoo().values() if spec.source.bundled]
PHOTO = Path(__file__).parent / "pictures" / "photo.png"


def worse(hq: NDArray[np.uint8], spec: ModelSpec) -> NDArray[np.uint8]:
    """What the model is there to undo."""
    rng = np.random.default_rng(1)
    match spec.task:
        case "upscale" if spec.compressed:
            return degradations.realistic(hq, rng, spec.scale)
        case "upscale":
            return degradations.downscale(hq, spec.scale)
        case "denoise":
            noisy = degradations.gaussian_noise(hq, 25, rng)
            return np.rint(np.clip(noisy, 0, 1) * 255).astype(np.uint8)
        case "decompress":
            return degradations.jpeg(hq, 10)
        case _:
            return degradations.rain(hq, rng)


def test_every_job_has_a_bundled_model() -> None:
    for scale in (2, 3, 4):
        assert zoo.resolve("upscale", scale=scale).source.bundled
    for scale in (2, 4):  # a photograph that is enlarged by 3 takes the one for 4
        assert zoo.resolve("upscale", scale=scale, compressed=True).source.bundled
    for request in (dict(task="denoise", sigma=25), dict(task="denoise"), dict(task="derain")):
        assert zoo.resolve(**request).source.bundled
    assert zoo.resolve("decompress", quality=10) == zoo.resolve("decompress")
    assert zoo.resolve("upscale").scale == 4


def test_together_they_are_small() -> None:
    folder = checkpoints.BUNDLED
    assert sum(file.stat().st_size for file in folder.iterdir()) < 24e6


@pytest.mark.parametrize("spec", BUNDLED, ids=lambda spec: spec.name)
def test_the_file_is_as_its_card_and_the_manifest_say(spec: ModelSpec) -> None:
    path = checkpoints.path(spec)
    assert path is not None
    card = json.loads(path.with_suffix(".json").read_text("utf-8"))
    assert card["sha256"] == spec.source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert card["bytes"] == spec.source.bytes == path.stat().st_size
    assert card["parameters"] == spec.params
    assert (card["arch"], card["kwargs"]) == (spec.arch, dict(spec.kwargs))
    assert (card["task"], card["scale"]) == (spec.task, spec.scale)
    recipe = checkpoints.BUNDLED.parent.parent / "train" / "recipes" / f"{card['recipe']['name']}.toml"
    assert recipe.is_file()
    told = {key: value for key, value in card["recipe"].items() if key != "name" and value is not None}
    assert parse(told, card["recipe"]["name"]).network == card["recipe"]["network"]  # the trainer would take it
    assert not any(word in json.dumps(card) for word in ("/work", "/home", "/tmp"))  # where it was made
    assert checkpoints.spec_for_file(path).task == spec.task


@pytest.mark.parametrize("spec", BUNDLED, ids=lambda spec: spec.name)
def test_the_command_beats_doing_nothing(
    spec: ModelSpec, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    hq = np.pad(np.array(Image.open(PHOTO).convert("RGB")), ((0, 49), (0, 59), (0, 0)), "symmetric")
    hq = degradations.modcrop(hq, 12)
    lq = worse(hq, spec)
    Image.fromarray(lq).save(tmp_path / "lq.png")
    level = ["-s", spec.scale] if spec.scale > 1 else []
    done = mambair(
        *(
            spec.task,
            *level,
            "-m",
            spec.name + "@0" * bool(spec.sharper),
            tmp_path / "lq.png",
            "-o",
            tmp_path / "hq.png",
            "--offline",
        ),
        capture=capfdbinary,
    )
    assert done.status == 0, done.err
    score = partial(psnr, truth=hq, channel="rgb", crop=4)
    nothing = degradations.bicubic(lq, hq.shape[:2])
    result = np.array(Image.open(tmp_path / "hq.png"))
    gain = score(result) - score(nothing)
    if "sharp" in spec.aliases:  # trained for looks: sharper, and for that a little further from the truth
        more = 1.25 if spec.scale == 4 else 1.1  # there is less to regain at half the side
        assert gradient_kept(result, hq, crop=4) > more * gradient_kept(nothing, hq, crop=4)
    assert gain > (-0.5 if "sharp" in spec.aliases else 0.5)


@pytest.mark.parametrize(
    ("name", "options", "model"),
    [
        ("a.jpg", "", "tiny-x4-photo"),
        ("a.webp", "-s 2", "tiny-x2-photo"),
        ("a.jpg", "--long-edge 180", "tiny-x4-photo"),
        ("a.jpg", "--clean", "tiny-x4"),
        ("a.jpg", "-m tiny", "tiny-x4"),
        ("a.png", "", "tiny-x4"),
        ("a.png", "-s 3 --compressed", "tiny-x4-photo"),
        ("a.png", "-m photo", "tiny-x4-photo"),
    ],
)
def test_pictures_that_were_compressed_take_the_model_for_it(
    name: str, options: str, model: str, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with Image.open(PHOTO) as photo:
        photo.convert("RGB").save(tmp_path / name)
    done = mambair("upscale", *options.split(), tmp_path / name, "--dry-run", "--json", capture=capfdbinary)
    assert json.loads(done.out)["model"] == model
