"""NIQE: how far a picture's local statistics are from those of natural pictures, without a truth to compare with.

A. Mittal, R. Soundararajan, A. C. Bovik, "Making a Completely Blind Image Quality Analyzer", IEEE SPL 2013. The
model of natural pictures in niqe.json is that of the authors' release, see NOTICE.
"""

from __future__ import annotations

import json
import math
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambair_cli.metrics import studio_luma

Floats = NDArray[np.float64]

BLOCK = 96  # side of the blocks at the first scale, as in the authors' release
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
# Matlab's imresize by 1/2: the cubic of a = -0.5 at distances of 1/4, 3/4, 5/4, 7/4, exact in binary.
HALVING = np.array([-3, -9, 29, 111, 111, 29, -9, -3]) / 256.0
WINDOW = np.exp(-(np.arange(-3, 4) ** 2) / (2 * (7 / 6) ** 2))
WINDOW /= WINDOW.sum()


def niqe(picture: NDArray[Any], *, crop: int = 0) -> float | None:
    """Of (H, W) or (H, W, 3) on 0-255, without `crop` pixels on every side; lower is better, good photos have 2 to 6.

    On the Y of BT.601 studio swing rounded to whole levels, as in BasicSR. None where fewer than two blocks of 96x96
    pixels have any structure: there is no covariance then.
    """
    height, width = picture.shape[:2]
    inside = picture[crop : height - crop, crop : width - crop]
    plane = np.rint(studio_luma(inside) if inside.ndim == 3 else inside.astype(np.float64))
    rows, columns = (n // BLOCK for n in plane.shape)
    if rows * columns < 2:
        return None
    plane = plane[: rows * BLOCK, : columns * BLOCK]
    features = np.hstack([_features(plane, BLOCK), _features(_halve(plane), BLOCK // 2)])
    whole = features[~np.isnan(features).any(axis=1)]
    if len(whole) < 2:
        return None
    mean, covariance = _natural()
    distance = mean - np.nanmean(features, axis=0)
    spread = np.linalg.pinv((covariance + np.cov(whole, rowvar=False)) / 2)
    return math.sqrt(distance @ spread @ distance)  # equation 10


@cache
def _natural() -> tuple[Floats, Floats]:
    """Mean (36) and covariance (36, 36) of the features of natural pictures."""
    model = json.loads(files(__package__).joinpath("niqe.json").read_text(encoding="utf-8"))
    return np.array(model["mean"]), np.array(model["covariance"])


def _features(plane: Floats, side: int) -> Floats:
    """Equations 1 to 8: (blocks, 18), NaN where a block has no structure to fit."""
    # Like BasicSR, moments in single precision: in double, the rounding of sums passes for structure in flat areas.
    single = plane.astype(np.float32)
    mean, energy = (_blur(moment.astype(np.float64)).astype(np.float32) for moment in (single, single**2))
    normal = ((single - mean) / (np.sqrt(np.abs(energy - mean**2)) + 1)).astype(np.float64)
    height, width = (n // side for n in plane.shape)
    blocks = normal.reshape(height, side, width, side).swapaxes(1, 2).reshape(-1, side, side)
    shape, left, right, _ = _fit(blocks)
    columns = [shape, (left + right) / 2]
    for shift in NEIGHBOURS:
        shape, left, right, centre = _fit(blocks * np.roll(blocks, shift, axis=(1, 2)))
        columns += [shape, centre, left, right]
    return np.stack(columns, axis=1)


def _fit(blocks: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """The asymmetric generalized Gaussian of every block by moments: shape, left and right spread, centre."""
    values = blocks.reshape(len(blocks), -1)
    squares = values**2
    with np.errstate(invalid="ignore", divide="ignore"):
        left, right = (np.sqrt((squares * side).sum(1) / side.sum(1)) for side in (values < 0, values > 0))
        skew = left / right
        ratio = np.abs(values).mean(1) ** 2 / squares.mean(1)
        ratio *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shapes, between, widths, centres = _shapes()
    nearest = np.searchsorted(between, np.nan_to_num(ratio))
    left, right = left * widths[nearest], right * widths[nearest]
    return shapes[nearest], left, right, (right - left) * centres[nearest]


@cache
def _shapes() -> tuple[Floats, Floats, Floats, Floats]:
    """Shapes 0.2 to 10 in steps of 0.001: the ratios of moments half-way between them, and what scales a fit."""
    shapes = np.arange(200, 10001) / 1000.0
    first, second, third = (np.array([math.gamma(n / shape) for shape in shapes]) for n in (1, 2, 3))
    ratios = second**2 / (first * third)  # grows with the shape
    return shapes, (ratios[1:] + ratios[:-1]) / 2, np.sqrt(first / third), second / first


def _blur(plane: Floats) -> Floats:
    """Gaussian 7x7 of deviation 7/6, borders replicated."""
    return _filter(_filter(np.pad(plane, 3, mode="edge"), WINDOW).T, WINDOW).T


def _halve(plane: Floats) -> Floats:
    """Antialiased bicubic as Matlab's imresize, borders mirrored; of even sizes."""
    return _filter(_filter(np.pad(plane, 3, mode="symmetric"), HALVING, 2).T, HALVING, 2).T


def _filter(plane: Floats, weights: Floats, step: int = 1) -> Floats:
    """Down the rows, valid area, every `step`-th result."""
    size = (len(plane) - len(weights)) // step + 1
    return sum(
        (weight * plane[i : i + step * size : step] for i, weight in enumerate(weights)),
        start=np.zeros((size, plane.shape[1])),
    )
