"""What pixels tell of a picture's past: its noise and its JPEGs; and what `upscale` does about them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from helpers.commands import Mambair, mambair
from PIL import Image

from mambair_cli import degradations
from mambair_cli.degradations.measured import MEASURED
from mambair_cli.images.history import jpeg_quality, went_through_jpeg
from mambair_cli.images.noise import is_correlated, smooth_noise
from mambair_cli.metrics import to_uint8

SCENES = {
    "astronaut": np.ascontiguousarray(skimage.data.astronaut()[:384, :384]),
    "coffee": np.ascontiguousarray(skimage.data.coffee()[:384, :576]),
    "cat": np.ascontiguousarray(skimage.data.chelsea()[:296, :448]),
}
scenes = pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Mambair:
    monkeypatch.chdir(tmp_path)
    return partial(mambair, capture=capfdbinary)


def noisy(scene: np.ndarray, sigma: float) -> np.ndarray:
    return to_uint8(degradations.gaussian_noise(scene, sigma))


def small(scene: np.ndarray) -> np.ndarray:
    """Clean, as no sensor and no JPEG left it: by a third, from a picture whose own past is averaged out."""
    return degradations.downscale(degradations.modcrop(scene, 6), 2)


# --- JPEG ---------------------------------------------------------------------------------------------------------


@scenes
@pytest.mark.parametrize("quality", [12, 30, 50, 75, 88])
@pytest.mark.parametrize("corner", [(0, 0), (3, 5)])
def test_the_quality_of_a_jpeg_is_read_off_its_pixels(
    quality: int, corner: tuple[int, int], scene: np.ndarray
) -> None:
    pixels = degradations.jpeg(scene, quality)[corner[0] :, corner[1] :]
    found = jpeg_quality(pixels)
    assert found is not None
    assert abs(found - quality) <= 4
    assert went_through_jpeg(pixels)
    assert jpeg_quality(pixels.astype(np.uint16) * 257) == found  # whatever the depth


@scenes
def test_of_two_jpegs_the_rougher_one_tells(scene: np.ndarray) -> None:
    twice = degradations.jpeg(degradations.jpeg(scene, 30), 80)
    assert abs((jpeg_quality(twice) or 0) - 30) <= 4


@scenes
def test_what_was_no_jpeg_is_none(scene: np.ndarray) -> None:
    for pixels in (small(scene), noisy(small(scene), 10), np.ascontiguousarray(small(scene)[..., :1])):
        assert jpeg_quality(pixels) is None
        assert not went_through_jpeg(pixels)
    for plain in (np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 1), 200, np.uint8), scene[:20, :20]):
        assert jpeg_quality(plain) is None
        assert not went_through_jpeg(plain)


# --- noise --------------------------------------------------------------------------------------------------------


@scenes
def test_noise_shows_in_smooth_places_and_texture_does_not(scene: np.ndarray) -> None:
    clean = smooth_noise(scene)
    assert clean < 3
    for sigma in (10, 25):
        luma = sigma * np.sqrt(0.299**2 + 0.587**2 + 0.114**2)
        assert 0.8 * luma < smooth_noise(noisy(scene, sigma)) < 1.3 * luma + clean
    assert smooth_noise(scene[:64, :64]) == 0  # too few places to judge by
    assert smooth_noise(np.full((256, 256, 3), 255, np.uint8)) == 0  # white: noise would be cut off


@scenes
@pytest.mark.parametrize("name", ["camera_night", "blotch"])
def test_a_cameras_noise_is_coarse_and_white_noise_is_not(name: str, scene: np.ndarray) -> None:
    made = MEASURED[name](scene, np.random.default_rng(0))
    pixels = made[0] if isinstance(made, tuple) else made
    assert is_correlated(pixels if pixels.dtype == np.uint8 else to_uint8(pixels))
    assert not is_correlated(noisy(scene, 15))
    assert not is_correlated(noisy(scene[..., :1], 15))


# --- the command --------------------------------------------------------------------------------------------------


def save(name: str, pixels: np.ndarray, **options: Any) -> None:
    Image.fromarray(pixels).save(name, **options)


def night(scene: np.ndarray) -> np.ndarray:
    return np.asarray(MEASURED["camera_night"](scene, np.random.default_rng(0))[0])


MADE: dict[str, tuple[Callable[[np.ndarray], np.ndarray], list[str], list[str], str]] = {
    # what is made of the scene; the models it goes through by itself, and with --clean; what is said
    "clean.png": (small, ["tiny-x4"], ["tiny-x4"], ""),
    "white.png": (lambda s: noisy(small(s), 20), ["tiny-denoise-white", "tiny-x4-photo"], ["tiny-x4"], "noise of"),
    "night.png": (lambda s: night(s[:160, :160]), ["tiny-denoise", "tiny-x4-photo"], ["tiny-x4"], "noise of about"),
    "was75.png": (lambda s: degradations.jpeg(small(s), 75), ["tiny-x4-photo"], ["tiny-x4"], ""),
    "was25.png": (
        lambda s: degradations.jpeg(small(s), 25),
        ["tiny-decompress", "tiny-x4-photo"],
        ["tiny-x4"],
        "once a JPEG of quality 2",
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_the_picture_decides_not_its_suffix(name: str, run: Mambair) -> None:
    make, models, clean, said = MADE[name]
    save(name, make(SCENES["astronaut"][:288, :288]))
    assert passes(run("upscale", "-n", "--json", name)) == models
    assert passes(run("upscale", "-n", "--json", "--clean", name)) == clean
    assert passes(run("upscale", "-n", "--json", "--compressed", name)) == ["tiny-x4-photo"]
    assert passes(run("upscale", "-n", "--json", "-m", "tiny-x4", name)) == ["tiny-x4"]
    done = run("upscale", name, "-o", "out.png")
    assert done.status == 0, done.err
    assert (f"first {models[0]}" in done.err) == (len(models) > 1)
    assert said in done.err
    with Image.open(name) as before, Image.open("out.png") as after:
        assert after.size == (before.width * 4, before.height * 4)
        assert " + ".join(models) in after.text["Software"]


def passes(outcome: Any) -> list[str]:
    assert outcome.status == 0, outcome.err
    return [one["model"] for one in json.loads(outcome.out)["passes"]]


def test_a_jpeg_stored_twice_is_said_to_be_so(run: Mambair) -> None:
    save("twice.jpg", degradations.jpeg(SCENES["coffee"][:96, :96], 20), quality=80)
    for command in ("upscale", "decompress"):
        done = run(command, "twice.jpg", "-o", "out.png", "--force")
        assert "stored again at 80" in done.err


def test_a_png_that_was_a_jpeg_is_decompressed_for_its_quality(run: Mambair) -> None:
    save("was30.png", degradations.jpeg(SCENES["coffee"][:96, :96], 30))
    assert "once a JPEG of quality 2" in run("decompress", "was30.png").err


def test_sigma_auto_tells_a_camera_from_white_noise(run: Mambair) -> None:
    save("night.png", night(SCENES["astronaut"][:200, :200]))
    save("white.png", noisy(SCENES["astronaut"][:200, :200], 20))
    assert passes(run("denoise", "--sigma", "auto", "-n", "--json", "night.png")) == ["tiny-denoise"]
    assert passes(run("denoise", "--sigma", "auto", "-n", "--json", "white.png")) == ["tiny-denoise-white"]
