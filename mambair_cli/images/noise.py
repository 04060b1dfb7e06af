"""How noisy a picture is."""

from __future__ import annotations

import numpy as np

from mambair_cli.images.color import Array, as_float

_NORMAL_MAD = 0.6744897501960817  # median of |x| for x ~ N(0, 1)


def noise_level(pixels: Array) -> float:
    """Standard deviation, on the scale of 255, of white Gaussian noise in (H, W, C) pixels of any depth.

    Median absolute deviation of the finest diagonal Haar band (Donoho & Johnstone 1994), averaged over the
    channels. Fine texture counts as noise, so clean but busy pictures give 1 to 5.
    """
    x = as_float(pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2])
    diagonal = (x[::2, ::2] - x[1::2, ::2] - x[::2, 1::2] + x[1::2, 1::2]) / 2
    if not diagonal.size:
        return 0.0
    return float(np.median(np.abs(diagonal), axis=(0, 1)).mean() / _NORMAL_MAD * 255)
