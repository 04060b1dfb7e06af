"""What the field's benchmarks do to pictures, to the last bit; and a mild pipeline of photographs."""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from mambair_cli.degradations.arrays import Bytes, to_uint8


def modcrop(hq: Bytes, multiple: int) -> Bytes:
    """Cut right and bottom so that height and width are multiples of `multiple`."""
    height, width = (n - n % multiple for n in hq.shape[:2])
    return hq[:height, :width]


def bicubic(picture: Bytes, size: tuple[int, int]) -> Bytes:
    """Resize to `size` = (height, width) as Matlab's `imresize(..., 'bicubic')` does, to the last bit.

    Cubic of a = -0.5, widened when shrinking, borders mirrored with the edge pixel. Matlab resizes the axis
    that shrinks most first (rows, if equal) and rounds to uint8 after each of the two passes.
    """
    for axis in sorted((0, 1), key=lambda axis: size[axis] / picture.shape[axis]):
        picture = _bicubic_axis(picture, size[axis], axis)
    return picture


def downscale(hq: Bytes, scale: int) -> Bytes:
    """The low-resolution input of the field's benchmarks: crop to a multiple of `scale`, then `bicubic`."""
    hq = modcrop(hq, scale)
    return bicubic(hq, (hq.shape[0] // scale, hq.shape[1] // scale))


def gaussian_noise(hq: Bytes, sigma: float, rng: np.random.Generator | None = None) -> NDArray[np.float32]:
    """White Gaussian noise of deviation `sigma` (on 0-255); float32 on [0, 1], neither clipped nor rounded.

    Without `rng` the noise is that of the published denoising figures: numpy's legacy Mersenne Twister seeded
    with 0 for every picture anew, and the three channels drawn in the order blue, green, red.
    """
    shape, spread = hq.shape, sigma / 255.0
    if rng is None:
        noise = np.random.RandomState(0).normal(0.0, spread, shape)
    else:
        noise = rng.normal(0.0, spread, shape)
    if hq.ndim == 3:
        noise = noise[..., ::-1]
    return (hq / 255.0 + noise).astype(np.float32)


def jpeg(hq: Bytes, quality: int, subsampling: str = "4:2:0") -> Bytes:
    """Through libjpeg's baseline encoder at `quality` and back; colour by default 4:2:0, as OpenCV stores it."""
    buffer = io.BytesIO()
    Image.fromarray(hq).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    with Image.open(buffer) as decoded:
        return np.array(decoded)


def realistic(hq: Bytes, rng: np.random.Generator, scale: int = 1) -> Bytes:
    """A mild camera and web pipeline for training: slight blur, bicubic by `scale`, noise, JPEG 60-95."""
    blurred = Image.fromarray(hq).filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 0.4 * max(scale, 2))))
    small = downscale(np.array(blurred), scale)
    noisy = to_uint8(gaussian_noise(small, rng.uniform(0.0, 6.0), rng) * 255.0)
    return jpeg(noisy, int(rng.integers(60, 96)))


def _bicubic_axis(picture: Bytes, size: int, axis: int) -> Bytes:
    """One pass of `bicubic`: Matlab's sums in Matlab's order, in float64, so that halves are rounded as there."""
    weights, taps = _contributions(picture.shape[axis], size)
    lines = np.moveaxis(picture, axis, 0)
    total = np.zeros((size, *lines.shape[1:]))
    for weight, tap in zip(weights, taps, strict=True):
        total += weight.reshape(-1, *[1] * (lines.ndim - 1)) * lines[tap]
    return np.ascontiguousarray(np.moveaxis(to_uint8(total), 0, axis))


def _contributions(length: int, size: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Weights and positions, both (taps, size), that make `size` values out of `length`; as in Matlab's imresize."""
    scale = size / length
    shrink = min(scale, 1.0)
    width = 4 / shrink
    centre = np.arange(1, size + 1) / scale + 0.5 * (1 - 1 / scale)  # counted from 1
    position = np.floor(centre - width / 2) + np.arange(math.ceil(width) + 2)[:, None]
    x = np.abs(shrink * (centre - position))
    x2, x3 = x * x, x * x * x
    near, far = 1.5 * x3 - 2.5 * x2 + 1, -0.5 * x3 + 2.5 * x2 - 4 * x + 2
    weights = shrink * np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
    mirrored = np.concatenate([np.arange(length), np.arange(length)[::-1]])
    return weights / sum(weights), mirrored[(position.astype(np.int64) - 1) % (2 * length)]
