"""What stands around the scan on a GPU, at inference: each a launch of a kernel of `gpu_fused`.

Under autocast they compute in its type, as the operators that they stand for; sums are in float32.
"""

from __future__ import annotations

import importlib
import time
from functools import lru_cache
from textwrap import shorten
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambair_cli.scan import gpu
from mambair_cli.scan.backend import HALVES
from mambair_cli.scan.gpu_layout import as_float, as_rows, pieces, power
from mambair_cli.scan.kept import kept
from mambair_cli.scan.library import tracing

BLOCK = 64  # rows of a product, its columns, queries and keys: what fits the registers without spilling
FOUR_WARPS, EIGHT_WARPS = (dict(num_warps=warps, enable_fp_fusion=True) for warps in (4, 8))
MOST_CHANNELS = 1024  # that a program normalises at once
RELU, GELU, SIGMOID = 4, 3, 2  # numbers of activations; the others are those of `fused.ACTIVATIONS`
MOST_KEYS = 256  # of a window that a program attends to at once
KINDS = (torch.float32, *HALVES)


def _kernels() -> Any:
    return importlib.import_module("mambair_cli.scan.gpu_fused")


def takes(*tensors: Tensor | None) -> bool:
    """Whether the kernels may run on these; none has a backward."""
    given = [t for t in tensors if t is not None]
    return (
        all(t.is_cuda for t in given)
        and not torch.is_grad_enabled()
        and not tracing()
        and all(t.dtype in KINDS and t.numel() > 0 for t in given)
        and not missing()
    )


def in_half(x: Tensor) -> bool:
    """Whether products with x are in half precision."""
    return kind(x) in HALVES


def kind(x: Tensor) -> torch.dtype:
    """The type in which operators on x compute."""
    device = x.device.type
    if device == "meta":  # which has none
        return x.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def missing() -> str:
    """Why the kernels cannot run here, or "": those of the scan must, and a small try must give what it should.

    As there, what failed is tried again in time.
    """
    global _works
    if _works:
        return ""
    why = gpu.missing() or _tried(int(time.monotonic() // gpu.RETRY))
    _works = not why
    return why


_works = False


@lru_cache(maxsize=1)
def _tried(period: int) -> str:
    return trial(torch.device("cuda"))


def trial(device: torch.device) -> str:
    """Why the kernels are of no use on a device, or ""."""
    g = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(s, generator=g).to(device) for s in ((1, 4, 4, 24), (24, 24), (24,)))
    taps, table = torch.randn(24, 1, 3, 3, generator=g).to(device), torch.randn(49, 2, generator=g).to(device)
    norm = nn.LayerNorm(24, device=device)
    half = torch.float16
    try:
        with torch.no_grad():
            pairs = [
                (linear(x.to(half), w, b, norm), F.linear(norm(x.to(half).float()), w, b)),
                (norm_gate(x, x, b, b, 1e-5), F.layer_norm(x, (24,), b, b) * F.silu(x)),
                (
                    depthwise(x, taps, b, 1, 0, None, True).permute(0, 3, 1, 2),
                    F.conv2d(x.permute(0, 3, 1, 2), taps, b, padding=1, groups=24),
                ),
                (window_attention(x.repeat(1, 1, 1, 3)[..., :72], table, 4, 0, 0.0).mean(), None),
            ]
            worst = max((a.float() - b).abs().max().item() for a, b in pairs if b is not None)
    except Exception as error:  # anything that a compiler or a driver may throw; the reason is passed on
        return f"its kernels do not run ({type(error).__name__}: {shorten(str(error), 200)})"
    return "" if worst < 0.1 else f"its kernels are off by {worst:.1g} on this device"


def norm_gate(
    y: Tensor, z: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype | None = None
) -> Tensor:
    """LayerNorm(y) [* SiLU(z)] over the last dimension, up to MOST_CHANNELS; of the type of y unless told."""
    channels, count = y.shape[-1], y.numel() // y.shape[-1]
    out = torch.empty(y.shape, dtype=dtype or y.dtype, device=y.device)
    (y, y_row), (z, z_row) = as_rows(y), (None, 0) if z is None else as_rows(z)
    width = power(channels)
    rows = max(1, 2048 // width)
    with torch.cuda.device_of(y):
        _kernels().norm_gate[(pieces(count, rows),)](
            *(y, z, as_float(weight), as_float(bias), out, count, y_row, z_row, eps),
            **dict(C=channels, WIDTH=width, ROWS=rows, **FOUR_WARPS),
        )
    return out


def depthwise(
    x: Tensor, weight: Tensor, bias: Tensor, dilation: int, activation: int, partner: Tensor | None, product: bool
) -> Tensor:
    """activation(k x k depthwise convolution of x (B, H, W, C) + bias), times or plus the partner."""
    (_, height, width, channels), side = x.shape, weight.shape[-1]
    out = torch.empty(x.shape, dtype=kind(x), device=x.device)
    taps = kept(weight, "taps", lambda w: w.detach().float().view(-1, side * side).t().contiguous())
    (x, x_row), (partner, partner_row) = as_rows(x), (None, 0) if partner is None else as_rows(partner)
    pixels = x.numel() // channels
    block = min(64, power(channels))
    each = max(1, 512 // block)
    with torch.cuda.device_of(x):
        _kernels().depthwise[(pieces(pixels, each), pieces(channels, block))](
            *(x, taps, as_float(bias), partner, out, height, width, x_row, partner_row, pixels, channels),
            **dict(SIDE=side, DILATION=dilation, ACTIVATION=activation, PRODUCT=product),
            **dict(PIXELS=each, BLOCK=block, **EIGHT_WARPS),
        )
    return out


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm: nn.LayerNorm | None = None,
    activation: int = 0,
    add: Tensor | None = None,
    scale: Tensor | None = None,
    other: Tensor | None = None,
) -> Tensor:
    """`products.linear` in half precision; where something is added, in the type of that."""
    half = kind(x)
    inside, outside = weight.shape[1], weight.shape[0]
    residual = other if add is None else add
    y = torch.empty(*x.shape[:-1], outside, dtype=half if residual is None else residual.dtype, device=x.device)
    x, x_row = as_rows(x)
    rows = x.numel() // inside
    weight = kept(weight, half, lambda w: w.to(half).contiguous())
    n_block = min(BLOCK, max(16, power(outside)))
    k_block = min(32, max(16, power(inside)))
    sums = [None if t is None else t.contiguous() for t in (add, as_float(scale), other)]
    before = (None, None) if norm is None else (as_float(norm.weight), as_float(norm.bias))
    with torch.cuda.device_of(x):
        _kernels().linear[(pieces(rows, BLOCK), pieces(outside, n_block))](
            *(x, *before, weight, as_float(bias), *sums, y, rows, x_row, outside, norm.eps if norm else 0.0),
            **dict(K=inside, ACTIVATION=activation, M_BLOCK=BLOCK, N_BLOCK=n_block, K_BLOCK=k_block),
            **EIGHT_WARPS,
        )
    return y


def window_attention(qkv: Tensor, table: Tensor, window: int, shift: int, far: float) -> Tensor:
    """`attention.window_attention` for windows whose side is a power of two, up to MOST_KEYS pixels."""
    images, height, width, channels = *qkv.shape[:3], qkv.shape[3] // 3
    heads = table.shape[1]
    qkv = qkv.to(kind(qkv)).contiguous()
    out = torch.empty(*qkv.shape[:3], channels, dtype=qkv.dtype, device=qkv.device)
    head = channels // heads
    together = min(BLOCK, window * window)
    queries = together if qkv.dtype in HALVES else max(16, together // 2)
    keys = min(32, together) if torch.version.hip else together  # AMD spills with more
    programs = images * (height // window) * (width // window) * (window * window // queries)
    with torch.cuda.device_of(qkv):
        _kernels().attention[(programs, heads)](
            *(qkv, as_float(table), out, height, width, shift, head**-0.5, far),
            **dict(
                C=channels,
                HEADS=heads,
                SIDE=window,
                WIDTH=max(16, power(head)),
                QUERIES=queries,
                KEYS=keys,
                **EIGHT_WARPS,
            ),
        )
    return out


def takes_window(window: int) -> bool:
    return window >= 4 and not window & (window - 1) and window * window <= MOST_KEYS
