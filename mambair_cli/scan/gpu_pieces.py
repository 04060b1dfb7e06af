"""What the kernels of the scan begin with, and a step of one: the pieces of `gpu_kernels` and `gpu_gradients`."""

# What a kernel is given has types of Triton only, and tuples in kernels grow by concatenation, not by unpacking:
# mypy: disable-error-code="no-untyped-def,assignment,var-annotated"
# ruff: noqa: RUF005

from __future__ import annotations

import triton
import triton.language as tl

kernel = triton.jit(do_not_specialize=["L", "T", "K", "D", "SEGMENT", "segments", "parts", "group"])


@triton.jit
def part_of_program(parts, K, D, BLOCK: tl.constexpr):
    """The path, its direction, the part of it and the channels of this program: channels count first."""
    blocks = tl.cdiv(D, BLOCK)
    program = tl.program_id(0)
    bk = (program // blocks // parts).to(tl.int64)
    return bk, bk % K, program // blocks % parts, program % blocks * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def read_numbers(rows, STRIDE: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr):
    """Columns FIRST to LAST of rows that lie a multiple of STRIDE apart: a tuple of (BLOCK) float32.

    rows: one pointer for all channels, or (BLOCK) pointers. Loaded four or two at a time where STRIDE allows it.
    """
    SIZE: tl.constexpr = 4 if STRIDE % 4 == 0 else (2 if STRIDE % 2 == 0 else 1)
    cells = (rows + tl.zeros([BLOCK], tl.int32))[:, None] + tl.arange(0, SIZE)[None, :]
    numbers = ()
    for start in tl.static_range(FIRST // SIZE * SIZE, LAST, SIZE):
        loaded = tl.load(cells + start).to(tl.float32)
        if SIZE == 4:
            even, odd = tl.split(tl.reshape(loaded, [BLOCK, 2, 2]))
            first, third = tl.split(even)
            second, fourth = tl.split(odd)
            columns = (first, second, third, fourth)
        elif SIZE == 2:
            columns = tl.split(loaded)
        else:
            columns = (tl.reshape(loaded, [BLOCK]),)
        for i in tl.static_range(SIZE):
            if start + i >= FIRST and start + i < LAST:
                numbers = numbers + (columns[i],)
    return numbers


@triton.jit
def read_channels(parameter, k, D, d, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """The row of each channel in (K, D, COUNT); beyond the last channel its row again."""
    return read_numbers(parameter + (k * D + tl.minimum(d, D - 1)) * COUNT, COUNT, 0, COUNT, BLOCK)


@triton.jit
def read_or_zero(vector, k, D, d, BLOCK: tl.constexpr):
    """A row of (K, D); zeros for None."""
    if vector is None:
        row = tl.zeros([BLOCK], tl.float32)
    else:
        row = tl.load(vector + k * D + d, mask=d < D, other=0.0)
    return row


@triton.jit
def beginning(
    source,
    delta,
    proj,
    weight,
    bias,
    orders,
    bk,
    k,
    d,
    L,
    T,
    K,
    D,
    N: tl.constexpr,
    R: tl.constexpr,
    PER_K: tl.constexpr,
    PER_IMAGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Where the path bk begins in source, delta, proj and orders, and its time steps' weights and bias."""
    source += (bk if PER_K else bk // K) * L * D
    proj += (bk // K * L * K + k) * (R + 2 * N)
    if orders is not None:
        orders += (bk if PER_IMAGE else k) * T
    weights = ()
    if delta is None:
        weights = read_channels(weight, k, D, d, R, BLOCK)
    else:
        delta += bk * L * D
    return source, delta, proj, orders, weights, read_or_zero(bias, k, D, d, BLOCK)


@triton.jit
def find_visit(orders, t, L):
    """The position of step t as int64, 0 where there is none, and whether there is one: pads are no visits."""
    if orders is None:
        position = t
    else:
        position = tl.load(orders + t)
    visited = (position >= 0) & (position < L)
    return tl.where(visited, position, 0).to(tl.int64), visited


@triton.jit
def read_row(source, position, visited, D, d):
    """A row of (L, D) as float32; zeros where nothing is visited."""
    return tl.load(source + position * D + d, mask=d < tl.where(visited, D, 0), other=0.0).to(tl.float32)


@triton.jit
def raw_step(
    delta, row, weights, bias, position, visited, D, d, N: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr
):
    """dt before the softplus: W r + b, or delta + b where the time steps are given."""
    if delta is None:
        low = read_numbers(row, R + 2 * N, 0, R, BLOCK)
        raw = tl.zeros([BLOCK], tl.float32)
        for r in tl.static_range(R):
            raw += low[r] * weights[r]
        raw = tl.where(visited, raw, 0.0)
    else:
        raw = read_row(delta, position, visited, D, d)
    return bias + raw


@triton.jit
def read_entering(states, bk, part, parts, D, d, N: tl.constexpr, REVERSE: tl.constexpr, BLOCK: tl.constexpr):
    """What left the part before, or REVERSE after, this one: a tuple; zeros at the end of the path and for None."""
    neighbour = part + 1 if REVERSE else part - 1
    inside = d < tl.where((neighbour >= 0) & (neighbour < parts), D, 0)
    entering = ()
    for n in tl.static_range(N):
        if states is None:
            state = tl.zeros([BLOCK], tl.float32)
        else:
            state = tl.load(states + ((bk * parts + neighbour) * N + n) * D + d, mask=inside, other=0.0)
        entering = entering + (state,)
    return entering
