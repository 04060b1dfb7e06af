"""Degradations of photographs: reproducible, within range, brightness kept, and as strong as their ranges say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import skimage.data

from mambair_cli import degradations
from mambair_cli.degradations import Camera, Correlated, Jpegs, Noises, Photo, kernels, measured
from mambair_cli.degradations.arrays import blur, resized, separable
from mambair_cli.degradations.camera import DEMOSAICING, Fill, by_gradients, colour_matrix, demosaic
from mambair_cli.degradations.measured import MEASURED
from mambair_cli.metrics import gradient_kept, psnr

HQ = np.ascontiguousarray(skimage.data.astronaut()[60:220, 150:310])


def both(made: Any, hq: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return made if isinstance(made, tuple) else (made, hq)


PAIRS: dict[str, Any] = {  # input and truth
    "camera": degradations.camera,
    "correlated": lambda hq, rng: (degradations.correlated(hq, rng), hq),
    "jpegs": lambda hq, rng: (degradations.jpegs(hq, rng), hq),
    "noises": degradations.noises,
    "photo": lambda hq, rng: (degradations.photo(hq, rng, 4), hq),
    **{f"measured {name}": lambda hq, rng, f=f: both(f(hq, rng), hq) for name, f in MEASURED.items()},
}


def in_bytes(picture: np.ndarray) -> np.ndarray:
    return picture if picture.dtype == np.uint8 else np.clip(picture, 0, 1) * 255


@pytest.mark.parametrize("name", PAIRS)
def test_same_seed_same_picture(name: str) -> None:
    first, again, other = (PAIRS[name](HQ, np.random.default_rng(seed)) for seed in (3, 3, 4))
    for one, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, same)
    if name != "measured old":  # has nothing random
        assert (first[0] != other[0]).any()
    assert first[0].dtype in (np.uint8, np.float32)
    assert first[1].dtype == np.uint8
    assert first[1].shape == HQ.shape
    small = name.split()[-1] in ("photo", "web", "phone", "night", "old")
    assert first[0].shape == ((40, 40, 3) if small else HQ.shape)


@pytest.mark.parametrize("name", PAIRS)
def test_brightness_is_kept(name: str) -> None:
    """On average; a single draw may clip."""
    shifts = []
    for seed in range(12):
        lq, truth = PAIRS[name](HQ, np.random.default_rng(seed))
        shifts.append(in_bytes(lq).mean() - truth.mean())
    assert abs(np.mean(shifts)) < 3.5  # noise around black is clipped on one side
    assert max(map(abs, shifts)) < 9


@pytest.mark.parametrize("name", ["camera", "correlated", "noises", "photo", "jpegs"])
def test_draws_are_neither_all_weak_nor_all_strong(name: str) -> None:
    scores = []
    for seed in range(25):
        lq, truth = PAIRS[name](HQ, np.random.default_rng(seed))
        scores.append(psnr(degradations.bicubic(in_bytes(lq).astype(np.uint8), truth.shape[:2]), truth))
    assert min(scores) < 29
    assert max(scores) > min(scores) + 3.5


def test_a_camera_without_noise_changes_nothing_but_the_development() -> None:
    quiet = Camera(shot=(1e-12, 1e-12), smooth=0.0, sharpen=0.0, jpeg=0.0)
    for seed in range(4):
        lq, truth = degradations.camera(HQ, np.random.default_rng(seed), quiet)
        assert np.abs(lq.astype(int) - truth).max() <= 1
    same = replace(quiet, exposure=None, mixing=(0.0, 0.0))
    _, truth = degradations.camera(HQ, np.random.default_rng(0), same)
    assert psnr(truth, HQ) > 25  # demosaicing is all that is left
    assert abs(truth.mean() - HQ.mean()) < 1


def test_noise_of_a_camera_grows_with_light_and_is_correlated() -> None:
    grey = np.repeat(np.repeat(np.arange(40, 240, 2, dtype=np.uint8)[None, :, None], 100, 0), 3, 2)
    ranges = Camera(shot=(1e-2, 1e-2), read=(0.01, 0.01), gamma=(1, 1), exposure=None, smooth=0, sharpen=0, jpeg=0)
    lq, truth = degradations.camera(grey, np.random.default_rng(1), ranges)
    noise = lq.astype(float) - truth
    assert noise[:, 70:].std() > 1.3 * noise[:, :30].std()
    plane = noise[..., 0] - noise[..., 0].mean(axis=0)
    assert np.mean(plane[1:] * plane[:-1]) > 0.2 * plane.var()  # white noise: 0


@pytest.mark.parametrize("fill", DEMOSAICING)
@pytest.mark.parametrize("phase", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_demosaicing_keeps_what_the_sensor_saw_and_flat_colours(fill: Fill, phase: tuple[int, int]) -> None:
    flat = np.full((12, 14, 3), (0.2, 0.5, 0.7), np.float32)
    np.testing.assert_allclose(demosaic(flat, phase, fill), flat, atol=1e-5)
    picture = np.random.default_rng(0).random((12, 14, 3), np.float32)
    filled = demosaic(picture, phase, fill)
    top, left = phase
    np.testing.assert_allclose(filled[top::2, left::2, 0], picture[top::2, left::2, 0], atol=1e-6)
    np.testing.assert_allclose(
        filled[1 - top :: 2, 1 - left :: 2, 2], picture[1 - top :: 2, 1 - left :: 2, 2], atol=1e-6
    )
    np.testing.assert_allclose(filled[top::2, 1 - left :: 2, 1], picture[top::2, 1 - left :: 2, 1], atol=1e-6)


def test_demosaicing_by_gradients_equals_the_code_that_models_are_measured_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measured, "_bytes", lambda picture: picture)
    raw = np.random.default_rng(0).random((12, 14, 3)) * 0.5
    balanced = demosaic((raw * measured.WHITE_BALANCE).astype(np.float32), (0, 0), by_gradients)
    developed = measured._developed(measured._mosaic(raw))
    seen = 255 * np.where(
        balanced <= 0.0031308, 12.92 * balanced, 1.055 * np.clip(balanced, 1e-9, 1) ** (1 / 2.4) - 0.055
    )
    np.testing.assert_allclose(np.clip(seen, 0, 255), developed, atol=1e-3)


def test_colour_matrices_keep_white() -> None:
    matrix = colour_matrix(np.random.default_rng(0), (-0.5, 0.1))
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)


def test_correlated_noise_has_its_deviation_and_its_grain_fades() -> None:
    flat = np.full((200, 200, 3), 128, np.uint8)
    ranges = Correlated(sigma=(12, 12), size=(1.5, 1.5), fine=(0.2, 0.2), grey=0.5, grain=0.0)
    for seed in range(4):
        noise = degradations.correlated(flat, np.random.default_rng(seed), ranges).astype(float) - 128
        assert noise.std() == pytest.approx(12, rel=0.1)
        assert np.mean(noise[1:] * noise[:-1]) > 0.4 * noise.var()
    bands = np.repeat([2, 128], 100).astype(np.uint8)[:, None, None] + np.zeros((200, 200, 3), np.uint8)
    noise = degradations.correlated(bands, np.random.default_rng(0), replace(ranges, grain=1.0)).astype(float) - bands
    assert noise[100:].std() > 2 * noise[:100].std()


def test_shares_choose_the_kind() -> None:
    rng = np.random.default_rng(0)
    white = Noises(white=1.0, cameras=0.0, raw=1.0, sigma=(25, 25))
    lq, truth = degradations.noises(HQ, rng, white)
    assert lq.dtype == np.float32
    assert (lq * 255 - truth).std() == pytest.approx(25, rel=0.05)
    lq, truth = degradations.noises(HQ, rng, Noises(white=0.0, cameras=0.0, jpeg=0.0))
    np.testing.assert_array_equal(truth, HQ)
    assert lq.dtype == np.uint8
    _, truth = degradations.noises(HQ, rng, Noises(white=0.0, cameras=1.0))
    assert (truth != HQ).any()  # a camera develops its truth, too


def test_jpeg_of_a_high_quality_is_nearly_the_picture_wherever_its_grid() -> None:
    for seed in range(4):
        assert psnr(degradations.jpegs(HQ, np.random.default_rng(seed), Jpegs(quality=(98, 98), twice=1.0)), HQ) > 38
    grey = degradations.jpegs(HQ[..., 0], np.random.default_rng(0))
    assert grey.shape == HQ.shape[:2]


def test_a_gentle_photo_is_nearly_bicubic() -> None:
    still = Photo()
    order = replace(still.first, blur=0.0, noise=0.0, jpeg=0.0, resize=(1.0, 1.0))
    still = replace(still, mild=0, first=order, again=0, cameras=0, correlated=0, ringing=0, jpeg=0)
    small = degradations.photo(HQ, np.random.default_rng(2), 4, still)
    assert psnr(small, degradations.downscale(HQ, 4)) > 28


@pytest.mark.parametrize("side", [7, 40])
def test_a_kernel_in_the_frequency_domain_is_the_kernel(side: int) -> None:
    picture = np.random.default_rng(0).random((side, side + 5, 3), np.float32)
    expected = blur(picture, 0.6)
    kernel = np.outer(*2 * [np.exp(-(np.arange(-2, 3) ** 2) / (2 * 0.6**2))])
    inside = (slice(3, -3), slice(3, -3))
    np.testing.assert_allclose(
        kernels.convolve(picture, (kernel / kernel.sum()).astype(np.float32))[inside], expected[inside], atol=1e-4
    )


def test_kernels_are_normalised_and_turn() -> None:
    long = kernels.blur(1.0, 3.0, 0.0)
    assert long.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(kernels.blur(1.0, 3.0, np.pi / 2), long.T, atol=1e-6)
    flat, peaked = (kernels.blur(1.0, 1.0, 0.0, shape)[3] for shape in (4.0, 0.5))
    assert flat[4] / flat[3] > 0.5 > peaked[5] / peaked[3]
    ringing = kernels.sinc(np.pi / 2, 21)
    assert ringing.sum() == pytest.approx(1, abs=1e-5)
    assert ringing.min() < 0 < ringing.max() == ringing[10, 10]
    np.testing.assert_allclose(kernels.convolve(np.full((30, 30, 1), 7, np.float32), ringing), 7, atol=1e-4)


def test_small_operations() -> None:
    picture = np.random.default_rng(0).random((9, 11, 2), np.float32)
    assert resized(picture, (9, 11), degradations.web.FILTERS[0]) is picture
    assert resized(picture, (4, 5), degradations.web.FILTERS[2]).shape == (4, 5, 2)
    np.testing.assert_array_equal(separable(picture, np.ones(1, np.float32), np.ones(1, np.float32)), picture)


def test_what_is_measured_costs_what_it_is_meant_to() -> None:
    """Roughly as strong as the figures in docs/models.md say, on another photograph."""
    scores = {}
    for name in MEASURED:
        lq, truth = PAIRS[f"measured {name}"](HQ, np.random.default_rng(0))
        scores[name] = psnr(degradations.bicubic(lq, truth.shape[:2]), truth)
    assert scores["night"] < scores["phone"] - 0.5
    assert scores["camera_night"] < scores["camera"] - 3
    assert 26 < scores["blotch"] < 28.5
    assert 20 < scores["web"] < 30


def test_gradient_kept() -> None:
    soft = degradations.bicubic(degradations.downscale(HQ, 4), HQ.shape[:2])
    assert gradient_kept(HQ, HQ) == 1
    assert 0.2 < gradient_kept(soft, HQ, crop=4) < 0.8
    assert gradient_kept(np.full_like(HQ, 9), HQ) == 0
    assert gradient_kept(HQ, np.full_like(HQ, 9)) == np.inf
    with pytest.raises(ValueError, match="3x3"):
        gradient_kept(HQ[:10, :10], HQ[:10, :10], crop=4)
