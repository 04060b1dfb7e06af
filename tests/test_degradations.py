"""Degradations: bit-exact where the field has files to show, deterministic and plausible elsewhere."""

from __future__ import annotations

import functools
import math
import operator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from mambair_cli.degradations import (
    bicubic,
    downscale,
    gaussian_noise,
    jpeg,
    modcrop,
    rain,
    rain_and_lights,
    realistic,
)
from mambair_cli.metrics import psnr, studio_luma, to_uint8


def matlab_axis(picture: np.ndarray, size: int) -> np.ndarray:
    """Rows by Matlab's imresize, written out value by value: the same sums in the same order, so the same halves."""
    length = len(picture)
    scale = size / length
    shrink = min(scale, 1.0)
    width = 4.0 / shrink

    def cubic(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.5 * (x * x * x) - 2.5 * (x * x) + 1
        return -0.5 * (x * x * x) + 2.5 * (x * x) - 4 * x + 2 if x <= 2 else 0.0

    rows = []
    for i in range(1, size + 1):
        u = i / scale + 0.5 * (1 - 1 / scale)
        left = math.floor(u - width / 2)
        weights = {tap: shrink * cubic(shrink * (u - tap)) for tap in range(left, left + math.ceil(width) + 2)}
        total = functools.reduce(operator.add, weights.values())  # sum() compensates for rounding
        row = np.zeros(picture.shape[1:])
        for tap, weight in weights.items():
            inside = (tap - 1) % (2 * length)
            row = row + weight / total * picture[inside if inside < length else 2 * length - 1 - inside]
        rows.append(np.floor(np.clip(row, 0, 255) + 0.5).astype(np.uint8))
    return np.stack(rows)


@given(
    height=st.integers(5, 40),
    width=st.integers(5, 40),
    scale=st.sampled_from([2, 3, 4]),
    up=st.booleans(),
    colour=st.booleans(),
    seed=st.integers(0, 999),
)
@example(height=35, width=5, scale=3, up=False, colour=False, seed=35)  # where float32 rounds a half the other way
@settings(max_examples=40, deadline=None)
def test_bicubic_is_matlabs(height: int, width: int, scale: int, up: bool, colour: bool, seed: int) -> None:
    shape = (height, width, 3) if colour else (height, width)
    picture = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    size = (height * scale, width * scale) if up else (-(-height // scale), -(-width // scale))
    expected = picture
    for axis in sorted((0, 1), key=lambda axis: size[axis] / shape[axis]):
        expected = np.moveaxis(matlab_axis(np.moveaxis(expected, axis, 0), size[axis]), 0, axis)
    np.testing.assert_array_equal(bicubic(picture, size), expected)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", ["Set5", "Set14"])
def test_low_resolution_files_of_the_field_come_out_identical(shared: Path, name: str, scale: int) -> None:
    files = sorted((shared / "data" / name / "HR").glob("*.png"))
    assert len(files) in (5, 14)
    for file in files:
        published = np.array(Image.open(file.parents[1] / f"LRx{scale}" / f"{file.stem}x{scale}.png"))
        np.testing.assert_array_equal(downscale(np.array(Image.open(file)), scale), published, err_msg=file.name)


def test_modcrop_keeps_the_top_left() -> None:
    picture = np.arange(7 * 9, dtype=np.uint8).reshape(7, 9)
    np.testing.assert_array_equal(modcrop(picture, 4), picture[:4, :8])


def test_published_noise_is_drawn_blue_first_and_never_clipped() -> None:
    black = np.zeros((8, 8, 3), np.uint8)
    noise = gaussian_noise(black, 25)
    first = np.random.RandomState(0).normal(0, 25 / 255, 3)
    np.testing.assert_array_equal(noise[0, 0], first[::-1].astype(np.float32))
    assert noise.dtype == np.float32
    assert noise.min() < 0
    np.testing.assert_array_equal(noise, gaussian_noise(black, 25))


def test_published_noise_level_on_the_test_set(shared: Path) -> None:
    values = []
    for file in sorted((shared / "data" / "CBSD68" / "HR").glob("*.png"))[:12]:
        clean = np.array(Image.open(file).convert("RGB"))
        values.append(psnr(gaussian_noise(clean, 25) * 255.0, clean, channel="rgb"))
    assert np.mean(values) == pytest.approx(20.17, abs=0.02)


@pytest.mark.parametrize(("name", "expected"), [("Classic5", 27.82), ("LIVE1", 27.77)])
def test_jpeg_reproduces_the_published_starting_point(shared: Path, name: str, expected: float) -> None:
    values = []
    for file in sorted((shared / "data" / name / "HR").glob("*.png")):
        picture = np.array(Image.open(file))
        grey = to_uint8(studio_luma(picture) / 255) if picture.ndim == 3 else picture
        values.append(psnr(jpeg(grey, 10), grey, channel="gray"))
    assert np.mean(values) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("shape", [(40, 56), (40, 56, 3)])
def test_random_degradations_are_reproducible_and_keep_shape(shape: tuple[int, ...]) -> None:
    clean = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    for degrade in (rain, realistic, lambda hq, rng: rain_and_lights(hq, rng)[0]):
        first, again, other = (degrade(clean, np.random.default_rng(seed)) for seed in (3, 3, 4))
        assert first.shape == shape
        assert first.dtype == np.uint8
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()
    assert realistic(clean, np.random.default_rng(0), scale=4).shape[:2] == (10, 14)
    assert jpeg(clean, 50).shape == shape


def test_rain_only_brightens_and_spans_more_than_the_benchmark() -> None:
    clean = np.full((160, 240, 3), 90, np.uint8)
    rainy = [rain(clean, np.random.default_rng(seed)) for seed in range(120)]
    assert all((r >= clean).all() for r in rainy)
    levels = [psnr(r, clean) for r in rainy]
    assert 24.5 < np.mean(levels) < 27.5  # Rain100L: 26.5 on average,
    assert min(levels) < 20.8  # from 20.8
    assert max(levels) > 34.2  # to 34.2


def test_a_derainer_also_learns_what_is_no_rain() -> None:
    clean = np.full((64, 96, 3), 40, np.uint8)
    samples = [rain_and_lights(clean, np.random.default_rng(seed)) for seed in range(60)]
    assert all((rainy >= dry).all() for rainy, dry in samples)
    assert 3 <= sum(bool((rainy == dry).all()) for rainy, dry in samples) <= 20  # about one in seven
    lit = [dry for _, dry in samples if (dry != clean).any()]
    assert 12 <= len(lit) <= 30  # about one in three, some of which have their lights elsewhere
    assert all((dry == clean).all(axis=2).mean() > 0.2 for dry in lit)
    assert max(int(dry.max()) for dry in lit) > 150
