"""How tensors lie for the Triton kernels, and into how many pieces they are cut."""

from __future__ import annotations

import torch
from torch import Tensor

from mambair_cli.scan.kept import kept


def pieces(count: int, size: int) -> int:
    return -(-count // size)


def power(n: int) -> int:
    """The next power of two."""
    return 1 << max(0, n - 1).bit_length()


def as_float(t: Tensor | None) -> Tensor | None:
    """Of a parameter: float32 and contiguous, made once."""
    return None if t is None else kept(t, torch.float32, lambda w: w.float().contiguous())


def as_rows(x: Tensor) -> tuple[Tensor, int]:
    """(..., C), dense or a slice of the channels of dense rows, and how far its rows are apart; else a dense copy."""
    step = x.stride(-2) if x.dim() > 1 else x.shape[-1]
    expected = step
    for size, stride in zip(reversed(x.shape[:-1]), reversed(x.stride()[:-1]), strict=True):
        if (size > 1 and stride != expected) or x.stride(-1) != 1:
            return x.contiguous(), x.shape[-1]
        expected *= size
    return x, step
