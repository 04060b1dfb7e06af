"""Scan orders as index tables: the paths that networks take over their pixels.

A table is int32, (K, T): step t of path k visits token `table[k, t]`; -1 is a pad (`scan.ordered_scan`). Tokens are
numbered in raster order. Tables depend on the size alone and are kept for the sizes last used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mambair_cli.scan.library import lasting

CROSS_WINDOW = 16  # side of the windows of the cross-scale scan, in high-resolution pixels


def table(build: Callable[..., np.ndarray]) -> Callable[..., Tensor]:
    """Make of `build(*size) -> array` a function (*size, device) -> int32 tensor, kept for the last 16 calls."""

    @lru_cache(maxsize=16)
    def kept(*size_and_device: object) -> Tensor:
        *size, device = size_and_device
        array = np.ascontiguousarray(build(*size), dtype=np.int32)
        with lasting():
            return torch.from_numpy(array).to(device)  # type: ignore[call-overload]

    def constant(*size_and_device: object) -> Tensor:
        return kept(*size_and_device)

    # What `torch.compiler.assume_constant_result` sets; calling it imports the compiler, half of a start.
    constant._dynamo_marked_constant = True  # type: ignore[attr-defined]

    @wraps(build)
    def table_for(*size_and_device: Any) -> Tensor:
        if not torch.compiler.is_dynamo_compiling():
            return kept(*size_and_device)
        *size, device = size_and_device
        return constant(*(len(range(side)) for side in size), device)  # as numbers: compiled code is for one size

    return table_for


def _grid(height: int, width: int) -> np.ndarray:
    return np.arange(height * width, dtype=np.int32).reshape(height, width)


def _both_ways(*paths: np.ndarray) -> np.ndarray:
    """(K, T): each path followed by its reverse."""
    return np.stack([way for path in paths for way in (path, path[::-1])])


def _windows(grid: np.ndarray, size: int) -> np.ndarray:
    """Windows in raster order, raster order inside; (H, W) -> (windows, size * size). H, W are multiples of size."""
    height, width = grid.shape
    tiles = grid.reshape(height // size, size, width // size, size)
    return tiles.transpose(0, 2, 1, 3).reshape(-1, size * size)


@table
def cross(height: int, width: int) -> np.ndarray:
    """(4, H*W): rows, columns, rows reversed, columns reversed (VMamba's SS2D)."""
    grid = _grid(height, width)
    rows, columns = grid.ravel(), grid.T.ravel()
    return np.stack([rows, columns, rows[::-1], columns[::-1]])


@table
def raster(length: int) -> np.ndarray:
    """(1, length): every token in turn, forward."""
    return np.arange(length, dtype=np.int32)[None]


@table
def window(height: int, width: int, size: int, columns: bool) -> np.ndarray:
    """(2, T): window after window and the reverse of that; T is H*W with both sides padded to multiples of `size`.

    With `columns` the windows follow each other down the columns and so do the pixels inside them.
    """
    padded = np.pad(_grid(height, width), ((0, -height % size), (0, -width % size)), constant_values=-1)
    return _both_ways(_windows(padded.T if columns else padded, size).ravel())


@table
def cross_scale(height: int, width: int) -> np.ndarray:
    """(4, 5*H*W/4): w16, w16 reversed, c_w16, c_w16 reversed over a map and its half-size twin together.

    Tokens are the H*W high-resolution pixels followed by the H*W/4 low-resolution ones. Steps come in fives: a low
    pixel, then the 2x2 high pixels it covers. H and W are multiples of 16. A reversed path reverses the low and the
    high sequence separately, so that the low pixel still leads its five.
    """
    high, low = _grid(height, width), height * width + _grid(height // 2, width // 2)

    def fives(high: np.ndarray, low: np.ndarray) -> np.ndarray:
        rows, columns = (side // 2 for side in high.shape)
        cells = high.reshape(rows, 2, columns, 2).transpose(0, 2, 1, 3).reshape(rows, columns, 4)
        leaders = _windows(low, CROSS_WINDOW // 2).reshape(-1, 1)
        followers = np.stack([_windows(cells[..., i], CROSS_WINDOW // 2).ravel() for i in range(4)], axis=-1)
        ahead = np.concatenate([leaders, followers], axis=1)
        back = np.concatenate([leaders[::-1], followers[::-1, ::-1]], axis=1)
        return np.stack([ahead.ravel(), back.ravel()])

    return np.concatenate([fives(high, low), fives(high.T, low.T)])


@table
def cross_scale_readout(height: int, width: int) -> np.ndarray:
    """(H*W,): the pixel whose result the published code puts at each pixel after a column-first cross-scale scan.

    It reads the windows, which were visited as a (W/16, H/16) grid, as if they were an (H/16, W/16) one: the
    identity on square grids and a scramble on all others, which the published weights' results contain.
    """
    size = CROSS_WINDOW
    visited = _windows(_grid(height, width).T, size)
    misread = visited.reshape(height // size, width // size, size, size)
    return misread.transpose(1, 3, 0, 2).ravel()


@table
def channel(length: int) -> np.ndarray:
    """(2, length): forward and reversed, over channels instead of pixels."""
    return _both_ways(np.arange(length, dtype=np.int32))
