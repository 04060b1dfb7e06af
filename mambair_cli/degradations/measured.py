"""What models are measured on: photographs made worse in fixed ways, by other code than the one that training uses.

Those of `SHRUNK` return a picture made smaller by `scale`, those of `KEPT` one of the same size and its truth. The
same generator state gives the same picture.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Bytes = NDArray[np.uint8]
Linear = NDArray[np.float64]

WHITE_BALANCE = np.array([2.0, 1.0, 1.6])
DAY, NIGHT = (340.0, 2.0), (135.0, 2.5)  # electrons at white in green, and those of the readout's noise

# Malvar, He, Cutler, "High-quality linear interpolation for demosaicing of Bayer-patterned color images" (ICASSP
# 2004), in eighths: green at red or blue, red at green in a red row (in a blue row: its transpose), red at blue.
GREEN = np.array([[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0]]) / 8
ALONG = np.array([[0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1], [0, -1, 0, -1, 0], [0, 0, 0.5, 0, 0]]) / 8
ACROSS = (
    np.array([[0, 0, -1.5, 0, 0], [0, 2, 0, 2, 0], [-1.5, 0, 6, 0, -1.5], [0, 2, 0, 2, 0], [0, 0, -1.5, 0, 0]]) / 8
)


def web(hq: Bytes, rng: np.random.Generator, scale: int = 4) -> Bytes:
    """A picture from the web: slightly blurred, shrunk by bicubic, noise of deviation 3, JPEG 80."""
    soft = Image.fromarray(hq).filter(ImageFilter.GaussianBlur(0.3 * scale))
    small = np.asarray(_small(soft, scale, Image.Resampling.BICUBIC), np.float64)
    return _jpeg(_bytes(small + 3 * rng.standard_normal(small.shape)), 80)


def old(hq: Bytes, rng: np.random.Generator, scale: int = 4) -> Bytes:
    """An old small JPEG: shrunk by averaging, quality 35."""
    return _jpeg(np.asarray(_small(Image.fromarray(hq), scale, Image.Resampling.BOX)), 35)


def phone(hq: Bytes, rng: np.random.Generator, scale: int = 4) -> Bytes:
    """A phone by day: a small sensor, developed and stored as JPEG 90."""
    small = np.asarray(_small(Image.fromarray(hq), scale, Image.Resampling.LANCZOS))
    return _jpeg(_developed(_exposed(small, rng, *DAY)), 90)


def night(hq: Bytes, rng: np.random.Generator, scale: int = 4) -> Bytes:
    """A phone at night: the same with two fifths of the light, JPEG 88."""
    small = np.asarray(_small(Image.fromarray(hq), scale, Image.Resampling.LANCZOS))
    return _jpeg(_developed(_exposed(small, rng, *NIGHT)), 88)


def camera(hq: Bytes, rng: np.random.Generator) -> tuple[Bytes, Bytes]:
    """A camera's noise by day at full size, sharpened, JPEG 92; the truth is developed and sharpened alike."""
    return _shot(hq, rng, DAY, 92)


def camera_night(hq: Bytes, rng: np.random.Generator) -> tuple[Bytes, Bytes]:
    """The same with two fifths of the light, JPEG 90."""
    return _shot(hq, rng, NIGHT, 90)


def blotch(hq: Bytes, rng: np.random.Generator) -> tuple[Bytes, Bytes]:
    """Blotchy noise of deviation 20: white noise averaged over 3x3 with more weight in the middle."""
    height, width = hq.shape[:2]
    white = rng.standard_normal((height + 2, width + 2, 3))
    weights = np.outer([1, 2, 1], [1, 2, 1]) / 6  # the sum of squares is 1
    noise = sum(weights[y, x] * white[y : y + height, x : x + width] for y in range(3) for x in range(3))
    return _bytes(hq + 20 * noise), hq


SHRUNK: dict[str, Callable[[Bytes, np.random.Generator, int], Bytes]] = {
    f.__name__: f for f in (web, phone, night, old)
}
KEPT: dict[str, Callable[[Bytes, np.random.Generator], tuple[Bytes, Bytes]]] = {
    f.__name__: f for f in (camera, camera_night, blotch)
}
MEASURED: dict[str, Callable[..., Any]] = {**SHRUNK, **KEPT}


def _small(picture: Image.Image, scale: int, how: Image.Resampling) -> Image.Image:
    return picture.resize((picture.width // scale, picture.height // scale), how)


def _shot(hq: Bytes, rng: np.random.Generator, light: tuple[float, float], quality: int) -> tuple[Bytes, Bytes]:
    mask = ImageFilter.UnsharpMask(1.0, 40, 0)
    noisy, truth = (
        np.asarray(Image.fromarray(_developed(mosaic)).filter(mask))
        for mosaic in (_exposed(hq, rng, *light), _mosaic(_light(hq) / WHITE_BALANCE))
    )
    return _jpeg(noisy, quality), truth


def _light(hq: Bytes) -> Linear:
    """Linear light of sRGB bytes (IEC 61966-2-1), in [0, 1]."""
    x = hq / 255.0
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def _exposed(hq: Bytes, rng: np.random.Generator, full: float, readout: float) -> Linear:
    """What a red-green-green-blue sensor counts, over `full`: Poisson electrons and Gaussian readout."""
    expected = _mosaic(_light(hq) / WHITE_BALANCE) * full
    return (rng.poisson(expected) + readout * rng.standard_normal(expected.shape)) / full


def _mosaic(raw: Linear) -> Linear:
    mosaic = raw[..., 1].copy()
    mosaic[::2, ::2], mosaic[1::2, 1::2] = raw[::2, ::2, 0], raw[1::2, 1::2, 2]
    return mosaic


def _developed(mosaic: Linear) -> Bytes:
    """White balance, demosaicing (Malvar et al.) and sRGB."""
    balanced = mosaic.copy()
    balanced[::2, ::2] *= WHITE_BALANCE[0]
    balanced[1::2, 1::2] *= WHITE_BALANCE[2]
    cross, along, down, across = (_filter(balanced, k) for k in (GREEN, ALONG, ALONG.T, ACROSS))
    red, green, blue = (balanced.copy() for _ in range(3))
    for r, c in ((0, 0), (1, 1)):  # red, and blue
        green[r::2, c::2] = cross[r::2, c::2]
    for plane, row in ((red, 0), (blue, 1)):
        other = 1 - row
        plane[row::2, other::2] = along[row::2, other::2]
        plane[other::2, row::2] = down[other::2, row::2]
        plane[other::2, other::2] = across[other::2, other::2]
    x = np.clip(np.stack([red, green, blue], axis=-1), 0, 1)
    return _bytes(255 * np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055))


def _filter(plane: Linear, kernel: NDArray[Any]) -> Linear:
    height, width = plane.shape
    padded = np.pad(plane, 2, mode="reflect")  # keeps the colours of the mosaic in their places
    taps = ((y, x) for y in range(5) for x in range(5) if kernel[y, x])
    return np.sum([kernel[y, x] * padded[y : y + height, x : x + width] for y, x in taps], axis=0)


def _jpeg(picture: Bytes, quality: int) -> Bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))


def _bytes(picture: NDArray[Any]) -> Bytes:
    return np.rint(np.clip(picture, 0, 255)).astype(np.uint8)
