"""Noise of every kind a blind denoiser is to know, one kind per sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambair_cli.degradations.arrays import Bytes, to_uint8
from mambair_cli.degradations.camera import Camera, camera
from mambair_cli.degradations.classic import gaussian_noise, jpeg
from mambair_cli.degradations.noise import Correlated, correlated

Span = tuple[float, float]


@dataclass(frozen=True)
class Noises:
    """What `noises` draws from: shares of the kinds (what is left of 1 is correlated) and ranges."""

    white: float = 0.25
    cameras: float = 0.5
    sigma: Span = (0, 55)  # of the white noise, on 0-255
    raw: float = 0.5  # share of the white noise that is neither clipped nor rounded, as in the field's benchmarks
    jpeg: float = 0.35  # share of rounded white and of correlated noise that is stored as JPEG
    quality: Span = (45, 98)
    camera: Camera = field(default_factory=Camera)
    correlated: Correlated = field(default_factory=Correlated)


DEFAULT = Noises()


def noises(hq: Bytes, rng: np.random.Generator, ranges: Noises = DEFAULT) -> tuple[NDArray[Any], Bytes]:
    """A clean picture (h, w, 3) -> a noisy one (uint8, or float32 around [0, 1]), and its truth."""
    kind = rng.random()
    if kind < ranges.cameras:
        return camera(hq, rng, ranges.camera)
    if kind < ranges.cameras + ranges.white:
        white = gaussian_noise(hq, rng.uniform(*ranges.sigma), rng)
        if rng.random() < ranges.raw:
            return white, hq
        lq = to_uint8(white * 255)
    else:
        lq = correlated(hq, rng, ranges.correlated)
    if rng.random() < ranges.jpeg:
        lq = jpeg(lq, round(rng.uniform(*ranges.quality)), ("4:4:4", "4:2:2", "4:2:0")[rng.integers(3)])
    return lq, hq
