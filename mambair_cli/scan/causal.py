"""The causal convolution of the Mamba block: the published CUDA kernel where it loads, else the same in PyTorch."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mambair_cli.scan import fused
from mambair_cli.scan.meter import note

WIDTHS = (2, 3, 4)  # taps that the kernel was written for
PIECE = 512  # steps
GRAIN = 8  # channels: it takes channel-last tensors in multiples of this


@cache
def missing() -> str:
    """Why `causal_conv1d` cannot run here, or "". Only loading it tells: it may have been built for another torch."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        _kernel()
    except ImportError as error:
        return f"it does not load ({error})"
    return ""


def _kernel() -> Any:
    return importlib.import_module("causal_conv1d").causal_conv1d_fn


def takes(x: Tensor, taps: int) -> bool:
    """True where the kernel can run on x (B, L, D)."""
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    return x.device.type == "cuda" and x.dtype in kinds and x.shape[-1] % GRAIN == 0 and taps in WIDTHS


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """SiLU of a depthwise convolution over time that sees no later step; zeros before the start. Differentiable.

    x (B, L, D); weight (D, 1, taps), the last tap that of the step itself; bias (D). Returns (B, L, D).
    """
    taps = weight.shape[-1]
    note(taps * x.numel())
    if takes(x, taps) and not missing():
        y = _kernel()(x.contiguous().transpose(1, 2), weight[:, 0], bias, activation="silu")
        return y.transpose(1, 2)
    weights = weight[:, 0].t().to(x.dtype).contiguous().unbind(0)[::-1]  # by how many steps they look back
    if fused.inference(x, weight, bias):
        return _in_pieces(x, weights, bias)
    padded = F.pad(x, (0, 0, taps - 1, 0))
    y = bias.to(x.dtype)
    for back, values in enumerate(weights):
        y = torch.addcmul(y, padded[:, taps - 1 - back : taps - 1 - back + x.shape[1]], values)
    return F.silu(y)


def _in_pieces(x: Tensor, weights: Sequence[Tensor], bias: Tensor) -> Tensor:
    """So many steps at a time that the processor's cache holds them from the first tap to the last."""
    length, y = x.shape[1], torch.empty_like(x)
    for start in range(0, length, PIECE):
        stop = min(start + PIECE, length)
        part = torch.addcmul(bias, x[:, start:stop], weights[0], out=y[:, start:stop])
        for back, values in enumerate(weights[1:], 1):
            first = max(start, back)
            if first < stop:
                part[:, first - start :].addcmul_(x[:, first - back : stop - back], values)
        F.silu(part, inplace=True)
    return y
