"""The noise of cameras: light counted on a Bayer mosaic, then developed into the picture one sees.

After Brooks et al., "Unprocessing Images for Learned Raw Denoising" (CVPR 2019): a picture is taken back to linear
light and to the colours of a sensor, gets shot and read noise there (Foi et al., IEEE TIP 2008: variance a x + b) and
is developed again: demosaicing, white balance, colour matrix, exposure, gamma, noise reduction, sharpening, JPEG. So
the noise is correlated between neighbours and colours and depends on the brightness, as that of real pictures is.
The truth goes through the same development without noise: a network learns noise, not demosaicing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from mambair_cli.degradations.arrays import Bytes, Floats, blur, log_uniform, luma, separable, to_uint8
from mambair_cli.degradations.classic import jpeg

Span = tuple[float, float]
Fill = Callable[[Floats, Floats], Floats]  # what the sensor saw (h, w, 3), 0 elsewhere, and where -> all of it
TENT = np.array([0.5, 1, 0.5], np.float32)


@dataclass(frozen=True)
class Camera:
    """Ranges that `camera` draws from; shares are probabilities."""

    shot: Span = (2e-4, 3e-2)  # a: variance of the noise per light, where 1 is the brightest in the picture
    read: Span = (0.005, 0.15)  # b / a: variance without light over that
    red: Span = (1.4, 2.5)  # white balance: gains of red and blue over green
    blue: Span = (1.25, 2.2)
    mixing: Span = (-0.45, 0.05)  # colour matrix: what is taken from each other channel (rows add up to 1)
    gamma: Span = (2.0, 2.4)
    exposure: Span | None = (0.5, 1.0)  # how bright the brightest becomes; without it everything stays as bright
    smooth: float = 0.35  # share whose noise the camera has smoothed, more in colour than in brightness
    sharpen: float = 0.5  # share that is sharpened
    jpeg: float = 0.7  # share that is stored as JPEG
    quality: Span = (70, 99)


DEFAULT = Camera()


def camera(hq: Bytes, rng: np.random.Generator, ranges: Camera = DEFAULT) -> tuple[Bytes, Bytes]:
    """A clean picture (h, w, 3), at least 8x8 -> the same with a camera's noise, and without it."""
    gamma = rng.uniform(*ranges.gamma)
    light = (hq.astype(np.float32) / 255) ** gamma
    brightest = max(float(light.max()), 1e-3)
    gains = np.array([rng.uniform(*ranges.red), 1.0, rng.uniform(*ranges.blue)], np.float32)
    matrix = colour_matrix(rng, ranges.mixing)
    raw = np.asarray(
        np.maximum(light / brightest @ np.linalg.inv(matrix).T.astype(np.float32), 0) / gains, np.float32
    )
    a = log_uniform(rng, ranges.shot)
    spread = np.sqrt(a * (raw + log_uniform(rng, ranges.read)))
    phase, fill = (int(rng.integers(2)), int(rng.integers(2))), DEMOSAICING[rng.integers(len(DEMOSAICING))]
    exposure = rng.uniform(*ranges.exposure) if ranges.exposure else brightest

    def develop(raw: Floats) -> Floats:
        linear = demosaic(raw * gains, phase, fill) @ matrix.T
        return np.asarray(np.clip(linear * exposure, 0, 1) ** (1 / gamma) * 255, np.float32)

    noisy_raw: Floats = raw + spread * rng.standard_normal(raw.shape, np.float32)
    truth, noisy = develop(raw), develop(noisy_raw)
    if rng.random() < ranges.smooth:
        noisy = truth + smoothed(noisy - truth, rng)
    lq, target = to_uint8(noisy), to_uint8(truth)
    if rng.random() < ranges.sharpen:
        mask = ImageFilter.UnsharpMask(rng.uniform(0.5, 1.5), int(rng.uniform(20, 100)), 0)
        lq, target = (np.array(Image.fromarray(picture).filter(mask)) for picture in (lq, target))
    if rng.random() < ranges.jpeg:
        lq = jpeg(lq, round(rng.uniform(*ranges.quality)), ("4:4:4", "4:2:2", "4:2:0")[rng.integers(3)])
    return lq, target


def colour_matrix(rng: np.random.Generator, mixing: Span) -> Floats:
    """From a sensor's colours to the screen's: white stays white, and what the filters let through is taken back.

    Every second one takes back less than `mixing` says, down to nothing.
    """
    matrix = (rng.uniform(*mixing, (3, 3)) * min(2 * rng.random(), 1.0)).astype(np.float32)
    np.fill_diagonal(matrix, 0)
    np.fill_diagonal(matrix, 1 - matrix.sum(axis=1))
    return matrix


def demosaic(raw: Floats, phase: tuple[int, int], fill: Fill) -> Floats:
    """Keep of every pixel (h, w, 3) what a Bayer sensor sees there (red first at `phase`) and `fill` in the rest."""
    top, left = phase
    seen = np.zeros(raw.shape, np.float32)
    seen[top::2, left::2, 0] = 1
    seen[1 - top :: 2, 1 - left :: 2, 2] = 1
    seen[..., 1] = 1 - seen[..., 0] - seen[..., 2]
    return fill(raw * seen, seen)


def bilinear(raw: Floats, seen: Floats) -> Floats:
    """From the nearest of the same colour."""
    return np.where(seen == 1, raw, separable(raw, TENT, TENT) / separable(seen, TENT, TENT))


def by_differences(raw: Floats, seen: Floats) -> Floats:
    """Green corrected by the curvature of the colour at hand, red and blue filled in as differences to green.

    After Hamilton and Adams, US patent 5,629,734, expired, without the choice of direction.
    """
    green = corrected_green(raw, seen)
    rest = [0, 2]
    differences = (raw[..., rest] - green[..., None]) * seen[..., rest]
    filled = separable(differences, TENT, TENT) / separable(seen[..., rest], TENT, TENT) + green[..., None]
    return np.stack([filled[..., 0], green, filled[..., 1]], axis=-1)


def by_gradients(raw: Floats, seen: Floats) -> Floats:
    """Every colour corrected by the curvature of the one at hand.

    Malvar, He, Cutler, "High-quality linear interpolation for demosaicing of Bayer-patterned color images", ICASSP
    2004.
    """
    here, at = neighbours(raw)
    corners = at(-1, -1) + at(-1, 1) + at(1, -1) + at(1, 1)
    near = at(0, -1) + at(0, 1), at(-1, 0) + at(1, 0)  # along the row, along the column
    far = at(0, -2) + at(0, 2), at(-2, 0) + at(2, 0)
    along, down = ((5 * here + 4 * near[i] - corners - far[i] + far[1 - i] / 2) / 8 for i in (0, 1))
    across = (6 * here + 2 * corners - 1.5 * (far[0] + far[1])) / 8
    planes = [corrected_green(raw, seen)] * 3
    red_rows = seen[..., 0].any(axis=1, keepdims=True)
    for colour, its_rows in ((0, red_rows), (2, ~red_rows)):
        at_green = np.where(its_rows, along, down)
        planes[colour] = np.where(seen[..., colour] == 1, here, np.where(seen[..., 1] == 1, at_green, across))
    return np.stack(planes, axis=-1)


def corrected_green(raw: Floats, seen: Floats) -> Floats:
    here, at = neighbours(raw)
    around = at(-1, 0) + at(1, 0) + at(0, -1) + at(0, 1)
    beyond = at(-2, 0) + at(2, 0) + at(0, -2) + at(0, 2)
    return np.where(seen[..., 1] == 1, here, around / 4 + (4 * here - beyond) / 8)


def neighbours(raw: Floats) -> tuple[Floats, Callable[[int, int], Floats]]:
    """The mosaic, and what of it lies so many rows below and columns to the right, up to 2; the border mirrored."""
    mosaic = raw.sum(axis=2)
    height, width = mosaic.shape
    padded = np.pad(mosaic, 2, mode="reflect")
    return mosaic, lambda down, right: padded[2 + down : 2 + down + height, 2 + right : 2 + right + width]


DEMOSAICING: tuple[Fill, ...] = (bilinear, by_differences, by_gradients)


def smoothed(noise: Floats, rng: np.random.Generator) -> Floats:
    """What a camera's noise reduction leaves of it: brightness partly, colour mostly as blotches."""
    grey = luma(noise)
    colour = noise - grey
    keep, keep_colour = rng.uniform(0.3, 1.0), rng.uniform(0.0, 0.7)
    grey = keep * grey + (1 - keep) * blur(grey, rng.uniform(0.5, 1.5))
    return grey + keep_colour * colour + (1 - keep_colour) * blur(colour, rng.uniform(0.7, 2.5))
