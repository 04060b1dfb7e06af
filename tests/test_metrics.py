"""Metrics against scikit-image under matching settings, and against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mambair_cli.metrics import psnr, ssim, studio_luma, to_uint8


def pair(shape: tuple[int, ...], seed: int = 0, spread: float = 12.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    smooth = 128 + 90 * np.sin(rows / 5.0) * np.cos(columns / 7.0)
    truth = smooth if len(shape) == 2 else np.stack([np.roll(smooth, c, 0) for c in range(shape[2])], -1)
    noisy = truth + rng.normal(0, spread, shape)
    return tuple(np.clip(np.rint(p), 0, 255).astype(np.uint8) for p in (noisy, truth))


@given(
    height=st.integers(16, 40),
    width=st.integers(16, 40),
    crop=st.integers(0, 2),
    channel=st.sampled_from(["y", "rgb", "gray"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_agrees_with_scikit_image(height: int, width: int, crop: int, channel: str, seed: int) -> None:
    a, b = pair((height, width) if channel == "gray" else (height, width, 3), seed)
    planes = [studio_luma(p) if channel == "y" else p.astype(float) for p in (a, b)]
    planes = [p[crop : height - crop, crop : width - crop] for p in planes]
    expected = structural_similarity(
        *planes,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        channel_axis=-1 if channel == "rgb" else None,
    )
    assert ssim(a, b, channel=channel, crop=crop) == pytest.approx(expected, abs=1e-4)
    expected = peak_signal_noise_ratio(planes[1], planes[0], data_range=255)
    assert psnr(a, b, channel=channel, crop=crop) == pytest.approx(expected, abs=1e-9)


def test_luma_is_studio_swing_and_not_rounded() -> None:
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [1, 0, 0]]], np.uint8)
    np.testing.assert_allclose(studio_luma(colours)[0], [16, 235, 81.481, 16 + 65.481 / 255])


def test_luma_can_be_rounded_as_matlab_does() -> None:
    a, b = pair((24, 24, 3))
    grey = [np.floor(studio_luma(p) + 0.5).astype(np.uint8) for p in (a, b)]
    assert psnr(a, b, round_luma=True) == pytest.approx(psnr(*grey, channel="gray"))
    assert ssim(a, b, round_luma=True) == pytest.approx(ssim(*grey, channel="gray"))
    assert psnr(a, b, round_luma=True) != psnr(a, b)


def test_one_level_everywhere() -> None:
    a = np.full((20, 20), 100, np.uint8)
    assert psnr(a + 1, a) == pytest.approx(20 * math.log10(255))
    assert psnr(a, a) == math.inf
    assert ssim(a, a) == pytest.approx(1.0)


def test_the_border_does_not_count() -> None:
    a, b = pair((24, 24, 3))
    spoiled = a.copy()
    spoiled[:4] = spoiled[:, -4:] = 0
    assert psnr(spoiled, b, crop=4) == psnr(a, b, crop=4)
    assert ssim(spoiled, b, crop=4) == ssim(a, b, crop=4)
    assert psnr(spoiled, b) < psnr(a, b)


def test_rounding_is_half_to_even_after_clamping() -> None:
    picture = np.array([-0.2, 0.5 / 255, 1.5 / 255, 2.5 / 255, 1.7])
    assert to_uint8(picture).tolist() == [0, 0, 2, 2, 255]


@pytest.mark.parametrize(
    ("shapes", "arguments"),
    [
        (((20, 20, 3), (20, 21, 3)), {}),
        (((20, 20, 3), (20, 20, 3)), {"channel": "gray"}),
        (((20, 20), (20, 20)), {"channel": "rgb"}),
        (((20, 20, 4), (20, 20, 4)), {}),
        (((20, 20), (20, 20)), {"crop": 10}),
        (((20, 20), (20, 20)), {"crop": 5}),
    ],
)
def test_what_cannot_be_compared_is_refused(shapes: tuple, arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"shape|channels|leaves nothing|11x11"):
        ssim(*(np.zeros(shape, np.uint8) for shape in shapes), **arguments)
