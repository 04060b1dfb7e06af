"""Small operations on pictures as float arrays that several degradations share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def to_uint8(picture: NDArray[Any]) -> Bytes:
    """Clamp to 0-255 and round halves up, as Matlab does for values that are not negative."""
    return np.floor(np.clip(picture, 0, 255) + 0.5).astype(np.uint8)


def log_uniform(rng: np.random.Generator, span: tuple[float, float]) -> float:
    """A number drawn evenly in its logarithm between both ends, which are above 0."""
    low, high = np.log(span)
    return float(np.exp(rng.uniform(low, high)))


def gaussian_taps(sigma: float) -> Floats:
    """The weights of a Gaussian of deviation `sigma` pixels out to three of them; their sum is 1."""
    reach = max(1, int(np.ceil(3 * sigma)))
    taps = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * max(sigma, 1e-3) ** 2))
    return (taps / taps.sum()).astype(np.float32)


def blur(picture: Floats, sigma: float) -> Floats:
    """Gaussian blur of the first two axes, the border mirrored."""
    return separable(picture, gaussian_taps(sigma), gaussian_taps(sigma))


def separable(picture: Floats, rows: Floats, columns: Floats) -> Floats:
    """Correlate the first axis with `rows` and the second with `columns` (odd lengths), the border mirrored."""
    for axis, taps in enumerate((rows, columns)):
        reach, size = len(taps) // 2, picture.shape[axis]
        pad = [(reach, reach) if n == axis else (0, 0) for n in range(picture.ndim)]
        padded = np.pad(picture, pad, mode="symmetric" if reach <= size else "wrap")
        cuts = (padded[:, i : i + size] if axis else padded[i : i + size] for i in range(len(taps)))
        picture = sum(tap * cut for tap, cut in zip(taps, cuts, strict=True))
    return picture


def luma(picture: Floats) -> Floats:
    """Full-range luma (BT.601) of (h, w, 3), with an axis of one channel kept."""
    return picture @ np.array([[0.299], [0.587], [0.114]], np.float32)


def resized(picture: Floats, size: tuple[int, int], how: Image.Resampling) -> Floats:
    """(h, w, c) to `size` = (height, width) in float, channel by channel; widened filters when shrinking."""
    if picture.shape[:2] == size:
        return picture
    planes = (Image.fromarray(np.ascontiguousarray(picture[..., c])) for c in range(picture.shape[2]))
    return np.stack([np.asarray(plane.resize(size[::-1], how)) for plane in planes], axis=-1)
