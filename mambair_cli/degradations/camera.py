"""The noise of cameras: light counted on a Bayer mosaic, then developed into the picture one sees.

After Brooks et al., "Unprocessing Images for Learned Raw Denoising" (CVPR 2019): a picture is taken back to linear
light and to the colours of a sensor, gets shot and read noise there (Foi et al., IEEE TIP 2008: variance a x + b) and
is developed again: demosaicing, white balance, colour matrix, exposure, gamma, noise reduction, sharpening, JPEG. So
the noise is correlated between neighbours and colours and depends on the brightness, as that of real pictures is.
The truth goes through the same development without noise: a network learns noise, not demosaicing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from mambair_cli.degradations.arrays import Bytes, Floats, blur, log_uniform, luma, separable, to_uint8
from mambair_cli.degradations.classic import jpeg

Span = tuple[float, float]


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
    phase, sharp = (int(rng.integers(2)), int(rng.integers(2))), bool(rng.integers(2))
    exposure = rng.uniform(*ranges.exposure) if ranges.exposure else brightest

    def develop(raw: Floats) -> Floats:
        linear = demosaic(raw * gains, phase, sharp) @ matrix.T
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
    """From a sensor's colours to the screen's: white stays white, and what the filters let through is taken back."""
    matrix = rng.uniform(*mixing, (3, 3)).astype(np.float32)
    np.fill_diagonal(matrix, 0)
    np.fill_diagonal(matrix, 1 - matrix.sum(axis=1))
    return matrix


def demosaic(raw: Floats, phase: tuple[int, int], sharp: bool) -> Floats:
    """Keep of every pixel what a Bayer sensor sees there (red first at `phase`) and fill in the rest.

    Bilinear, or (`sharp`) with green corrected by the curvature of the colour at hand and red and blue filled in as
    differences to green (after Hamilton and Adams, US patent 5,629,734, expired, without the choice of direction).
    """
    top, left = phase
    seen = np.zeros(raw.shape, np.float32)
    seen[top::2, left::2, 0] = 1
    seen[1 - top :: 2, 1 - left :: 2, 2] = 1
    seen[..., 1] = 1 - seen[..., 0] - seen[..., 2]
    tent = np.array([0.5, 1, 0.5], np.float32)
    if not sharp:
        filled = separable(raw * seen, tent, tent) / separable(seen, tent, tent)
        return np.where(seen == 1, raw, filled)
    mosaic = (raw * seen).sum(axis=2)
    far = np.pad(mosaic, 2, mode="reflect")
    around = far[1:-3, 2:-2] + far[3:-1, 2:-2] + far[2:-2, 1:-3] + far[2:-2, 3:-1]
    beyond = far[:-4, 2:-2] + far[4:, 2:-2] + far[2:-2, :-4] + far[2:-2, 4:]
    green = np.where(seen[..., 1] == 1, mosaic, around / 4 + (4 * mosaic - beyond) / 8)
    rest = [0, 2]
    differences = (raw[..., rest] - green[..., None]) * seen[..., rest]
    filled = separable(differences, tent, tent) / separable(seen[..., rest], tent, tent) + green[..., None]
    return np.stack([filled[..., 0], green, filled[..., 1]], axis=-1)


def smoothed(noise: Floats, rng: np.random.Generator) -> Floats:
    """What a camera's noise reduction leaves of it: brightness partly, colour mostly as blotches."""
    grey = luma(noise)
    colour = noise - grey
    keep, keep_colour = rng.uniform(0.3, 1.0), rng.uniform(0.0, 0.7)
    grey = keep * grey + (1 - keep) * blur(grey, rng.uniform(0.5, 1.5))
    return grey + keep_colour * colour + (1 - keep_colour) * blur(colour, rng.uniform(0.7, 2.5))
