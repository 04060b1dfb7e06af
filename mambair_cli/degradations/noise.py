"""Noise that is neither white nor a camera's: correlated from pixel to pixel, as scans, grain and resizing are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mambair_cli.degradations.arrays import Bytes, Floats, blur, luma, resized, to_uint8

Span = tuple[float, float]


@dataclass(frozen=True)
class Correlated:
    """Ranges that `correlated` draws from; shares are probabilities."""

    sigma: Span = (2, 28)  # deviation of the noise on 0-255, all channels together
    size: Span = (0.4, 2.2)  # of the blotches: deviation of the Gaussian, or half the enlargement, in pixels
    fine: Span = (0.0, 0.5)  # white noise mixed in, as a share of the deviation
    grey: float = 0.25  # share whose noise is the same in all channels, as grain is
    grain: float = 0.25  # share whose noise fades towards black and white, as film's does


DEFAULT = Correlated()


def correlated(hq: Bytes, rng: np.random.Generator, ranges: Correlated = DEFAULT) -> Bytes:
    """Add blotchy noise to (h, w, 3): white noise blurred or enlarged, brought back to its deviation."""
    sigma, size = rng.uniform(*ranges.sigma), rng.uniform(*ranges.size)
    noise = blotches(hq.shape, size, rng)
    fine = rng.uniform(*ranges.fine)
    noise = math.sqrt(1 - fine**2) * noise + fine * rng.standard_normal(hq.shape, np.float32)
    kind = rng.random()
    if kind < ranges.grey:
        noise = np.repeat(noise[..., :1], 3, axis=2)
    elif kind > (1 + ranges.grey) / 2:  # brightness and colour apart, colour coarser
        grey, colour = luma(noise), blotches(hq.shape, size * rng.uniform(1, 2), rng)
        noise = rng.uniform(0.3, 1.2) * grey + rng.uniform(0.4, 1.2) * (colour - luma(colour))
        noise /= max(float(noise.std()), 1e-6)
    if rng.random() < ranges.grain:
        middle = luma(hq.astype(np.float32)) / 255
        noise *= 0.35 + 2.6 * middle * (1 - middle)
    return to_uint8(hq + sigma * noise)


def blotches(shape: tuple[int, ...], size: float, rng: np.random.Generator) -> Floats:
    """Noise of mean 0 and deviation 1 whose neighbours resemble each other over about `size` pixels."""
    height, width = shape[:2]
    if rng.random() < 0.5:
        noise = blur(rng.standard_normal(shape, np.float32), size)
    else:
        by = 1 + size
        small = rng.standard_normal((int(height / by) + 2, int(width / by) + 2, *shape[2:]), np.float32)
        how = Image.Resampling.BICUBIC if rng.random() < 0.5 else Image.Resampling.BILINEAR
        noise = resized(small, (height, width), how)
    return noise / max(float(noise.std()), 1e-6)
