"""Photographs as they reach people: blurred, resized, noisy and compressed, and often all of it twice.

The second-order degradation of Real-ESRGAN (Wang et al., "Training Real-World Blind Super-Resolution with Pure
Synthetic Data", ICCVW 2021, section 3), with milder ranges by default and with camera noise (`camera`) in between.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from mambair_cli.degradations import kernels
from mambair_cli.degradations.arrays import Bytes, Floats, log_uniform, luma, resized, to_uint8
from mambair_cli.degradations.camera import Camera, camera
from mambair_cli.degradations.classic import jpeg, realistic
from mambair_cli.degradations.noise import Correlated, correlated

Span = tuple[float, float]
FILTERS = (Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
SUBSAMPLING = ("4:4:4", "4:2:2", "4:2:0", "4:2:0")


@dataclass(frozen=True)
class Order:
    """Ranges of one round of blur, resizing, noise and JPEG; shares are probabilities."""

    blur: float = 0.8  # share that is blurred
    width: Span = (0.2, 3.0)  # deviation of the blur across and along, in pixels of the original
    sinc: float = 0.1  # share of the blurs that ring: a low-pass with a sharp edge
    shape: Span = (0.5, 4.0)  # exponent of the generalised Gaussian; 1 is the Gaussian
    resize: Span = (0.25, 1.2)  # of the side, drawn in its logarithm
    noise: float = 0.7  # share that gets noise
    sigma: Span = (0.5, 12.0)  # deviation of the Gaussian noise, on 0-255
    photons: Span = (150.0, 4000.0)  # per pixel at white: Poisson noise, drawn in its logarithm
    grey: float = 0.4  # share of the noise that is the same in all channels
    jpeg: float = 0.5  # share that is stored as JPEG
    quality: Span = (40, 97)


@dataclass(frozen=True)
class Photo:
    """What `photo` draws from; shares are probabilities."""

    mild: float = 0.35  # share that is only slightly blurred, shrunk and stored well (`realistic`)
    first: Order = field(default_factory=Order)
    again: float = 0.4  # share that goes through the second round
    second: Order = field(
        default_factory=lambda: Order(
            blur=0.5, width=(0.2, 1.5), resize=(0.5, 1.2), noise=0.5, sigma=(0.5, 8.0), jpeg=0.0
        )
    )
    cameras: float = 0.3  # share with a camera's noise in place of the first round's
    camera: Camera = field(default_factory=lambda: Camera(shot=(3e-4, 2.5e-2), exposure=None, sharpen=0.3, jpeg=0.0))
    correlated: float = 0.05  # share with blotchy noise
    blotches: Correlated = field(default_factory=lambda: Correlated(sigma=(2.0, 14.0)))
    ringing: float = 0.1  # share whose last step but JPEG is a sinc filter
    jpeg: float = 0.85  # share that is stored as JPEG at the end
    quality: Span = (35, 97)


DEFAULT = Photo()


def photo(hq: Bytes, rng: np.random.Generator, scale: int, ranges: Photo = DEFAULT) -> Bytes:
    """A clean picture (h, w, 3), sides multiples of `scale`, at least 16 after it -> (h / scale, w / scale, 3)."""
    if rng.random() < ranges.mild:
        return realistic(hq, rng, scale)
    size = (hq.shape[0] // scale, hq.shape[1] // scale)
    picture, first = hq.astype(np.float32), ranges.first
    shot = rng.random() < ranges.cameras
    picture = shrunk(blurred(picture, rng, first), rng, first, hq.shape[:2], size)
    if shot:
        picture = camera(to_uint8(picture), rng, ranges.camera)[0].astype(np.float32)
    else:
        picture = noisy(picture, rng, first)
    picture = stored(picture, rng, first.jpeg, first.quality)
    if rng.random() < ranges.again:
        second = ranges.second
        picture = shrunk(blurred(picture, rng, second), rng, second, hq.shape[:2], size)
        picture = stored(noisy(picture, rng, second), rng, second.jpeg, second.quality)
    picture = resized(picture, size, FILTERS[rng.integers(len(FILTERS))])
    if rng.random() < ranges.correlated:
        picture = correlated(to_uint8(picture), rng, ranges.blotches).astype(np.float32)
    if rng.random() < ranges.ringing:
        picture = kernels.convolve(picture, kernels.sinc(rng.uniform(np.pi / 2, np.pi), 13))
    return to_uint8(stored(picture, rng, ranges.jpeg, ranges.quality))


def blurred(picture: Floats, rng: np.random.Generator, order: Order) -> Floats:
    """Through a random kernel: Gaussian, generalised or plateau-shaped, round or elongated, or a sinc."""
    if rng.random() >= order.blur:
        return picture
    if rng.random() < order.sinc:
        return kernels.convolve(picture, kernels.sinc(rng.uniform(np.pi / 3, np.pi), 21))
    across = rng.uniform(*order.width)
    along = rng.uniform(*order.width) if rng.random() < 0.4 else across
    kind = rng.random()
    shape = 1.0 if kind < 0.7 else log_uniform(rng, order.shape)
    plateau = kind > 0.85
    return kernels.convolve(picture, kernels.blur(across, along, rng.uniform(0, np.pi), shape, plateau))


def shrunk(
    picture: Floats, rng: np.random.Generator, order: Order, whole: tuple[int, int], smallest: tuple[int, int]
) -> Floats:
    """Resized by a random factor and filter, but not to less than `smallest` or more than `whole` by the range."""
    factor = log_uniform(rng, order.resize)
    high = max(1.0, order.resize[1])
    size = [
        round(min(max(n * factor, low), top * high))
        for n, low, top in zip(picture.shape[:2], smallest, whole, strict=True)
    ]
    return resized(picture, (size[0], size[1]), FILTERS[rng.integers(len(FILTERS))])


def noisy(picture: Floats, rng: np.random.Generator, order: Order) -> Floats:
    """Gaussian or Poisson noise, in colour or grey."""
    if rng.random() >= order.noise:
        return picture
    grey = rng.random() < order.grey
    base = luma(picture) if grey else picture
    if rng.random() < 0.5:
        return picture + rng.uniform(*order.sigma) * rng.standard_normal(base.shape, np.float32)
    photons = log_uniform(rng, order.photons) / 255
    noise = rng.poisson(np.clip(base, 0, 255) * photons) / photons - np.clip(base, 0, 255)
    return picture + noise.astype(np.float32)


def stored(picture: Floats, rng: np.random.Generator, share: float, quality: Span) -> Floats:
    """As JPEG, in `share` of the cases."""
    if rng.random() >= share:
        return picture
    return jpeg(to_uint8(picture), round(rng.uniform(*quality)), SUBSAMPLING[rng.integers(4)]).astype(np.float32)
