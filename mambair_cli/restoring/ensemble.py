"""Geometric self-ensemble (EDSR, Lim et al. 2017; published as "+"): the mean over eight flips and transposes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

SIZE = 8


def view(x: Tensor, index: int) -> Tensor:
    """The index-th (0..7) symmetry of the square applied to (..., H, W); 0 changes nothing."""
    if index & 4:
        x = x.transpose(-2, -1)
    if index & 2:
        x = x.flip(-2)
    if index & 1:
        x = x.flip(-1)
    return x


def undo(x: Tensor, index: int) -> Tensor:
    """The inverse of `view`."""
    if index & 1:
        x = x.flip(-1)
    if index & 2:
        x = x.flip(-2)
    if index & 4:
        x = x.transpose(-2, -1)
    return x


def average(x: Tensor, run: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Mean of `run(view, index)` over the eight views, each turned back, in the dtype that `run` returns."""
    total = undo(run(view(x, 0), 0), 0)
    for index in range(1, SIZE):
        total = total + undo(run(view(x, index), index), index)
    return total / SIZE
