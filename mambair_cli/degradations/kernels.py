"""Blur kernels of Real-ESRGAN (Wang et al. 2021, section 3.1 and 3.2), and how a picture goes through one."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mambair_cli.degradations.arrays import Floats


def blur(across: float, along: float, angle: float, shape: float = 1.0, plateau: bool = False) -> Floats:
    """A Gaussian of both deviations (pixels), turned; or generalised: exp(-r^shape / 2); or 1 / (1 + r^shape).

    r: the squared distance in deviations (Liu et al., "Estimating generalized Gaussian blur kernels", IEEE TIP 2020).
    Odd sides of at most 21; the sum is 1.
    """
    reach = min(10, max(1, math.ceil(3 * max(across, along))))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float64)
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    distance = (u / across) ** 2 + (v / along) ** 2
    kernel = 1 / (1 + distance**shape) if plateau else np.exp(-0.5 * distance**shape)
    return (kernel / kernel.sum()).astype(np.float32)


def sinc(cutoff: float, side: int) -> Floats:
    """The ideal low-pass of `cutoff` radians per pixel, cut to `side` pixels (odd): it rings; the sum is 1."""
    reach = side // 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float64)
    r = np.hypot(x, y)
    r[reach, reach] = 1e-6  # the limit there is cutoff^2 / (4 pi)
    kernel = cutoff * _bessel_j1(cutoff * r) / (2 * np.pi * r)
    return (kernel / kernel.sum()).astype(np.float32)


def convolve(picture: Floats, kernel: Floats) -> Floats:
    """(h, w, c) through an odd square kernel, the border mirrored; in the frequency domain."""
    reach, (height, width) = kernel.shape[0] // 2, picture.shape[:2]
    mode = "reflect" if min(height, width) > reach else "edge"
    padded = np.pad(picture, ((reach, reach), (reach, reach), (0, 0)), mode=mode)  # type: ignore[call-overload]
    size = tuple(_fast(n) for n in padded.shape[:2])
    spectrum = np.fft.rfft2(padded, size, axes=(0, 1)) * np.fft.rfft2(kernel, size)[..., None]
    whole = np.fft.irfft2(spectrum, size, axes=(0, 1))
    return whole[2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width].astype(np.float32)


def _fast(length: int) -> int:
    """The next length that the Fourier transform is fast at: a multiple of 32."""
    return -(-length // 32) * 32


def _bessel_j1(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bessel's function of the first kind and order 1, by its integral (1 / pi) of cos(t - x sin t) from 0 to pi."""
    t = (np.arange(64) + 0.5) * np.pi / 64
    return np.cos(t - x[..., None] * np.sin(t)).mean(axis=-1)
