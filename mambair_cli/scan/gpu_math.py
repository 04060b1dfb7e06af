"""Functions of numbers for the Triton kernels."""

# What a kernel is given has types of Triton only:
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _log1p(x):
    """log(1 + x) for 0 <= x <= 1 to a unit in the last place or two: 2 artanh(x / (2 + x)), s <= 1/3."""
    s = x / (2 + x)
    q = s * s
    series = 1 / 13 + q * (1 / 15)
    series = 1 / 9 + q * (1 / 11 + q * series)
    series = 1 / 3 + q * (1 / 5 + q * (1 / 7 + q * series))
    return 2 * s + 2 * s * q * series


@triton.jit
def softplus(x):
    return tl.maximum(x, 0.0) + _log1p(tl.exp(-tl.abs(x)))


@triton.jit
def softplus_slope(x):
    small = tl.exp(-tl.abs(x))
    return tl.where(x > 0, 1.0, small) / (1 + small)


@triton.jit
def silu(x):
    return x * tl.sigmoid(x)


@triton.jit
def norm_gate_rows(x, inside, weight, bias, z, z_row, row, c, eps, C: tl.constexpr):
    """LayerNorm over the C channels of rows x (ROWS, WIDTH) in float32, zeros outside, times SiLU(z) where there is
    a z, whose rows are z_row apart. row (ROWS, 1) as int64, c (1, WIDTH)."""
    x = tl.where(inside, x - (tl.sum(x, 1) / C)[:, None], 0.0)
    x = x * tl.rsqrt(tl.sum(x * x, 1) / C + eps)[:, None]
    x = x * tl.load(weight + c, mask=c < C) + tl.load(bias + c, mask=c < C)
    if z is not None:
        x = x * silu(tl.load(z + row * z_row + c, mask=inside, other=0.0).to(tl.float32))
    return x
