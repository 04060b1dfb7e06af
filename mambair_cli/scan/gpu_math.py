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
