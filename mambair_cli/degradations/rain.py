"""Rain as it falls in the field's benchmarks: bright streaks in one direction, added to a dry picture."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mambair_cli.degradations.arrays import Bytes, to_uint8

Streaks = NDArray[np.float32]
Size = tuple[int, int]
_DRY, _LIT = 0.15, 0.35  # shares of the training samples
_NET = 0.3  # share of the lit ones


def rain_and_lights(hq: Bytes, rng: np.random.Generator) -> tuple[Bytes, Bytes]:
    """A picture in the rain and the dry one: sometimes both are dry, sometimes rows of lights in both are to stay."""
    if rng.random() < _LIT:
        hq = lights(hq, rng)
    return (hq if rng.random() < _DRY else rain(hq, rng)), hq


def lights(hq: Bytes, rng: np.random.Generator) -> Bytes:
    """What a derainer takes for rain: bright bars side by side, as of lit windows, blinds, railings or a net.

    Direction, size, distance, colour, how many are lit, and where in the picture they are, are drawn anew.
    """
    size = (hq.shape[0], hq.shape[1])
    side = _around(size, 0)
    angle = rng.normal(0, 8) if rng.random() < 0.6 else rng.uniform(-90, 90)
    if rng.random() < _NET:
        bars, part = _net(side, rng), 1.2
    else:
        bars, part = _bars(side, rng), 0.6
        if rng.random() < 0.25:
            bars = np.maximum(bars, _bars(side, rng).T)
    top, left = rng.uniform(-part / 2, 1 - part / 2, 2) * side
    inside = np.zeros((side, side), bool)
    inside[max(round(top), 0) : round(top + part * side), max(round(left), 0) : round(left + part * side)] = True
    cover = _turned(bars * inside, angle, size)
    if hq.ndim == 2:
        return to_uint8(hq + cover * (rng.uniform(120, 255) - hq))
    colour = rng.uniform(120, 255) * np.array([1.0, rng.uniform(0.7, 1.0), rng.uniform(0.4, 1.0)])
    return to_uint8(hq + cover[..., None] * (colour - hq))


def _bars(side: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Rows of upright bars, all of one size: (side, side), how much of a pixel they cover, in [0, 1]."""
    across, down = 3 * 8 ** rng.random(), 5 * 30 ** rng.random()
    wide, high = max(across * rng.uniform(0.15, 0.6), 0.8), down * rng.uniform(0.4, 1.0)
    places = np.arange(side)
    columns, rows = (
        np.clip(0.5 + size / 2 - np.abs(places % period - period / 2), 0, min(size, 1))
        for size, period in ((wide, across), (high, down))
    )
    cells = rng.uniform(0.5, 1.0, (math.ceil(side / down), math.ceil(side / across)))
    lit = np.where(rng.random(cells.shape) < rng.uniform(0.4, 1.4), cells, 0.0)
    return np.outer(rows, columns) * lit[(places // down).astype(int)][:, (places // across).astype(int)]


def _net(side: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Unbroken lines from edge to edge, mostly crossed by others, as of a net, a fence or tiles: (side, side)."""
    period = 4 * 6 ** rng.random()
    wide, other = max(period * rng.uniform(0.1, 0.4), 0.8), period * rng.choice([1.0, rng.uniform(0.5, 3)])
    places = np.arange(side)
    across, down = (np.clip(0.5 + wide / 2 - np.abs(places % p - p / 2), 0, 1) for p in (period, other))
    return np.maximum(across[None], down[:, None] if rng.random() < 0.7 else 0.0) * np.ones((side, 1))


def rain(hq: Bytes, rng: np.random.Generator) -> Bytes:
    """Light rain, in the manner of Rain100L (Yang et al., CVPR 2017).

    Half of the pictures get drops in three layers, from far (short, thin, many) to near; the other half noise that is
    smeared along its fall, as image editors make rain: knotty streaks of uneven width. Direction, length, softness,
    brightness and amount vary by picture, around what is usual there: steep, bright in few places and faint in most,
    a tenth to a quarter of the picture covered.
    """
    angle = rng.normal(0, 15) if rng.random() < 0.75 else rng.uniform(-45, 45)
    length, brightness = 14 * 5 ** rng.random(), 52 * 5 ** rng.random()
    make = _drops if rng.random() < 0.5 else _smeared_noise
    shape = np.maximum(make((hq.shape[0], hq.shape[1]), angle, length, rng), 0.0)
    streaks = brightness * shape ** rng.uniform(1.0, 2.0)
    return to_uint8(hq + (streaks[..., None] if hq.ndim == 3 else streaks))


def _drops(size: Size, angle: float, length: float, rng: np.random.Generator) -> Streaks:
    """Three layers of drops of random brightness, each smeared along its fall: (H, W), about 1 where none overlap."""
    amount, thickness = 0.009 * 5 ** rng.random(), rng.uniform(0.4, 1.1)
    fade = rng.uniform(0.2, 1.0)  # the share of the length over which a streak fades in, and again out
    total = np.zeros(size, np.float32)
    for near in (0.6, 1.0, 1.5):
        side, span = _around(size, near * length), max(round(near * length), 2)
        fallen = rng.random((side, side)) < amount / length / near**2
        smeared = _running_sum(np.where(fallen, rng.uniform(0.1, 1.0, (side, side)), 0.0), span)
        soft = max(round(near * length * fade), 2)
        smeared = _running_sum(smeared, soft) / soft
        total += _turned(_widen(smeared, near * thickness), angle + rng.normal(0, 2), size)
    return total


def _smeared_noise(size: Size, angle: float, length: float, rng: np.random.Generator) -> Streaks:
    """What stands out of noise that was smeared along the fall: (H, W) in [0, 1]."""
    side, grain = _around(size, length), rng.uniform(0.5, 1.2)
    noise = _running_sum(_widen(rng.standard_normal((side, side)), grain), round(0.9 * length + 4))
    noise = _running_sum(noise, round(0.5 * length + 2))  # tapers the ends
    noise /= noise.std()
    low, width = rng.uniform(0.2, 1.6), 0.8 * 4.5 ** rng.random()
    return _turned(np.clip((noise - low) / width, 0.0, 1.0), angle, size)


def _around(size: Size, length: float) -> int:
    """The side of a square that holds the picture however it is turned, with what falls into it."""
    return math.ceil(math.hypot(*size)) + 2 * math.ceil(length)


def _turned(streaks: NDArray[Any], angle: float, size: Size) -> Streaks:
    """Streaks that fall straight down, turned by `angle` degrees and cut to `size`."""
    image = Image.fromarray(streaks.astype(np.float32)).rotate(angle, Image.Resampling.BILINEAR)
    top, left = ((side - n) // 2 for side, n in zip(streaks.shape, size, strict=True))
    return np.asarray(image)[top : top + size[0], left : left + size[1]]


def _running_sum(values: NDArray[Any], span: int) -> NDArray[Any]:
    """The sum of the last `span` values down each column."""
    total = np.cumsum(np.pad(values, ((span, 0), (0, 0))), axis=0)
    return total[span:] - total[:-span]


def _widen(values: NDArray[Any], thickness: float) -> NDArray[Any]:
    """Gaussian of deviation `thickness` across the columns, its peak kept at 1."""
    offsets = np.arange(-3, 4)
    weights = np.exp(-(offsets**2) / (2 * thickness**2))
    return np.asarray(sum(w * np.roll(values, int(o), axis=1) for o, w in zip(offsets, weights, strict=True)))
