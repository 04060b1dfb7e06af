"""PSNR and SSIM as the field computes them, with the protocol as arguments: nothing is implied.

Pictures are (H, W) or (H, W, C) arrays on the scale 0-255, `uint8` or float. Published figures are taken on
the picture one would save, so round a network's output with `to_uint8` first.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Channel = Literal["y", "rgb", "gray"]

_LUMA = np.array([65.481, 128.553, 24.966])  # ITU-R BT.601, studio swing: Y in 16-235 for R, G, B in 0-255


def to_uint8(picture: Array) -> NDArray[np.uint8]:
    """Round a float picture in [0, 1] to 0-255, halves to even as numpy and BasicSR do; clamps first."""
    return np.rint(np.clip(picture, 0.0, 1.0) * 255.0).astype(np.uint8)


def studio_luma(picture: Array) -> NDArray[np.float64]:
    """Y of an (H, W, 3) RGB picture on 0-255: BT.601 studio swing, float64, not rounded."""
    return picture @ _LUMA / 255.0 + 16.0


def psnr(restored: Array, truth: Array, *, channel: Channel = "y", crop: int = 0, round_luma: bool = False) -> float:
    """Peak signal-to-noise ratio in dB with peak 255, the error averaged over all channels together.

    `channel`: "y" compares luma (one-channel pictures are taken as they are), "rgb" all channels, "gray"
    insists on one channel. `crop` pixels are left out on every side. `round_luma` rounds Y to whole levels, as
    Matlab's rgb2ycbcr does on bytes. Infinite if the pictures are equal.
    Raises ValueError if the shapes differ, do not suit the channel, or nothing is left after the crop.
    """
    a, b = _planes(restored, truth, channel, crop, round_luma)
    mse = float(np.mean((a - b) ** 2))
    return 10.0 * math.log10(255.0**2 / mse) if mse else math.inf


def ssim(restored: Array, truth: Array, *, channel: Channel = "y", crop: int = 0, round_luma: bool = False) -> float:
    """Structural similarity (Wang et al., IEEE TIP 2004): Gaussian 11x11 of sigma 1.5, valid area only.

    Computed per channel and averaged; C1 = (0.01 * 255)^2, C2 = (0.03 * 255)^2, biased covariances, as in
    the authors' Matlab code and BasicSR. Arguments and errors as for `psnr`; after the crop at least 11x11
    pixels.
    """
    a, b = _planes(restored, truth, channel, crop, round_luma)
    if min(a.shape[:2]) < 11:
        raise ValueError(f"SSIM needs 11x11 pixels after the crop, here are {a.shape[1]}x{a.shape[0]}")
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = _blur(a), _blur(b)
    energy = _blur(a * a + b * b) - mean_a**2 - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float(np.mean(similarity / ((mean_a**2 + mean_b**2 + c1) * (energy + c2))))


def gradient_kept(result: Array, truth: Array, *, crop: int = 0) -> float:
    """Mean gradient magnitude of the result's Y over the truth's: below 1 is blurrier, above 1 sharper or noisier.

    Central differences inside the picture, 1 for no blur at all, `crop` pixels left out on every side. Infinite where
    the truth is flat and the result is not. Raises ValueError as `psnr` does, and under 3x3 pixels.
    """
    a, b = (plane[..., 0] for plane in _planes(result, truth, "y", crop, False))
    if min(a.shape) < 3:
        raise ValueError(f"gradients need 3x3 pixels after the crop, here are {a.shape[1]}x{a.shape[0]}")
    ours, theirs = (float(np.mean(np.hypot(p[1:-1, 2:] - p[1:-1, :-2], p[2:, 1:-1] - p[:-2, 1:-1]))) for p in (a, b))
    return ours / theirs if theirs else (1.0 if ours == theirs else math.inf)


def _planes(restored: Array, truth: Array, channel: Channel, crop: int, round_luma: bool) -> tuple[Array, Array]:
    """Both pictures as float64 (h, w, c), in the channel of the protocol and without the border."""
    if restored.shape != truth.shape:
        raise ValueError(f"pictures differ in shape: {restored.shape} against {truth.shape}")
    pair = [p if p.ndim == 3 else p[..., None] for p in (restored, truth)]
    height, width, channels = pair[0].shape
    if channels not in (1, 3) or (channel == "gray" and channels != 1) or (channel == "rgb" and channels != 3):
        raise ValueError(f"cannot measure {channel!r} on {channels} channels")
    if crop < 0 or min(height, width) <= 2 * crop:
        raise ValueError(f"a border of {crop} leaves nothing of {width}x{height} pixels")
    pair = [p[crop : height - crop, crop : width - crop].astype(np.float64) for p in pair]
    if channel == "y" and channels == 3:
        pair = [studio_luma(p)[..., None] for p in pair]
        if round_luma:
            pair = [np.floor(p + 0.5) for p in pair]
    return pair[0], pair[1]


def _blur(plane: Array) -> Array:
    """The separable Gaussian window of SSIM over the first two axes, valid area: 10 rows and columns less."""
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window /= window.sum()
    height, width = plane.shape[0] - 10, plane.shape[1] - 10
    rows = sum(weight * plane[i : i + height] for i, weight in enumerate(window))
    return sum(weight * rows[:, i : i + width] for i, weight in enumerate(window))
