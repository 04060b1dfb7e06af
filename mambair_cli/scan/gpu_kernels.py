"""The Triton kernels behind `gpu`.

A thread is a channel of a path: its N states, its rates and its row of the time steps' weights stay in registers and
time runs one step after the other, so nothing is exchanged between threads. Where channels are too few to fill the
chip a path of T steps is cut into segments: `states` runs each from zero, `chain` lets the states travel across the
segments, and `outputs` starts every segment from the state that enters it. With one segment `outputs` is all.

`gradients`, in `gpu_gradients`, takes a chunk of a few steps at once, from the states and adjoints at its borders,
which `states` keeps. Results are written in the order of the steps and `collect` brings them back to the positions,
so nothing is ever added by two programs and the sums have one order whatever the launch. At inference
`collect_normed` does so, with the norm and the gate that follow.

Layouts (all contiguous; D is the number of channels, F = R + 2N, the parts of a path are its segments or chunks):
  u, delta, grad (B, L, D) or, PER_K, (B, K, L, D)     proj (B, L, K, F)     orders (K, T) or (B, K, T)
  weight (K, D, R)     bias, skip (K, D)     A (K, D, N)     states (B*K, parts, N, D)     spans (B*K, segments, D)

All programs lie along the first axis of the grid, the only one that may be longer than 65535. The sizes are left
unspecialised: a new size of picture must not compile anything.
"""

# What a kernel is given has types of Triton only, and tuples in kernels grow by concatenation, not by unpacking:
# mypy: disable-error-code="no-untyped-def,assignment,var-annotated"
# ruff: noqa: RUF005

from __future__ import annotations

import triton
import triton.language as tl

from mambair_cli.scan.gpu_math import LOG2E, norm_gate_rows, softplus
from mambair_cli.scan.gpu_pieces import (
    beginning,
    find_visit,
    kernel,
    part_of_program,
    raw_step,
    read_channels,
    read_entering,
    read_numbers,
    read_or_zero,
    read_row,
)


@triton.jit
def _compose(decay, state, next_decay, next_state):
    """h -> decay h + state, then h -> next_decay h + next_state."""
    return decay * next_decay, next_decay * state + next_state


@kernel
def states(
    source,  # u, or REVERSE: the gradient of y
    delta,
    proj,
    weight,
    bias,
    A,
    orders,
    entering,  # what leaves the segments, or None: all start from zero
    kept,
    spans,
    L,
    T,
    K,
    D,
    SEGMENT,
    N: tl.constexpr,
    R: tl.constexpr,
    PER_K: tl.constexpr,
    PER_IMAGE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The states at the ends of the segments and the time that passes in each; with CHUNK those after every chunk.

    REVERSE: against time, the adjoints of the states that enter. Grid: segments.
    """
    segments = tl.cdiv(T, SEGMENT)
    bk, k, segment, d = part_of_program(segments, K, D, BLOCK)
    source, delta, proj, orders, weights, offset = beginning(
        source, delta, proj, weight, bias, orders, bk, k, d, L, T, K, D, N, R, PER_K, PER_IMAGE, BLOCK
    )
    rates = read_channels(A, k, D, d, N, BLOCK)
    h = read_entering(entering, bk, segment, segments, D, d, N, REVERSE, BLOCK)
    span = tl.zeros([BLOCK], tl.float32)

    begin = segment * SEGMENT
    end = tl.minimum(begin + SEGMENT, T)
    position, visited = find_visit(orders, end - 1 if REVERSE else begin, L)
    x = read_row(source, position, visited, D, d)
    for i in range(end - begin):
        t = end - 1 - i if REVERSE else begin + i
        row = proj + position * (K * (R + 2 * N))
        raw = raw_step(delta, row, weights, offset, position, visited, D, d, N, R, BLOCK)
        dt = softplus(raw) if SOFTPLUS else raw
        across = read_numbers(row, R + 2 * N, R + N if REVERSE else R, R + 2 * N if REVERSE else R + N, BLOCK)
        now = x if REVERSE else dt * x
        # The next step's row is on its way while this one is worked on; the last step fetches its own again.
        position, visited = find_visit(orders, tl.maximum(t - 1, begin) if REVERSE else tl.minimum(t + 1, end - 1), L)
        x = read_row(source, position, visited, D, d)
        after = ()
        for n in tl.static_range(N):
            decay = tl.exp2(dt * (rates[n] * LOG2E))
            if REVERSE:
                after = after + (decay * (h[n] + now * across[n]),)
            else:
                after = after + (decay * h[n] + now * across[n],)
        h = after
        if CHUNK is None:
            span += dt
        else:
            if (t if REVERSE else t + 1) % CHUNK == 0:
                for n in tl.static_range(N):
                    tl.store(kept + ((bk * tl.cdiv(T, CHUNK) + t // CHUNK) * N + n) * D + d, h[n], mask=d < D)
    if CHUNK is None:
        for n in tl.static_range(N):
            tl.store(kept + ((bk * segments + segment) * N + n) * D + d, h[n], mask=d < D)
        tl.store(spans + (bk * segments + segment) * D + d, span, mask=d < D)


@kernel
def chain(
    states,
    spans,
    A,
    segments,
    K,
    D,
    N: tl.constexpr,
    REVERSE: tl.constexpr,
    AHEAD: tl.constexpr,  # segments taken at once
    BLOCK: tl.constexpr,
):
    """In place: from the states of lone segments to the states that leave them. Grid: N."""
    bk, k, n, d = part_of_program(N, K, D, BLOCK)
    in_d = d < D
    rate = tl.load(A + (k * D + d) * N + n, mask=in_d, other=0.0) * LOG2E
    i = tl.arange(0, AHEAD)
    state = tl.zeros([BLOCK], tl.float32)
    for start in range(0, segments, AHEAD):
        segment = segments - 1 - start - i if REVERSE else start + i
        inside = (start + i < segments)[:, None] & in_d[None, :]
        at = bk * segments + segment
        decay = tl.exp2(tl.load(spans + at[:, None] * D + d[None, :], mask=inside, other=0.0) * rate[None, :])
        here = states + (at * N + n)[:, None] * D + d[None, :]
        end = tl.load(here, mask=inside, other=0.0)
        end += tl.where((i == 0)[:, None], decay * state[None, :], 0.0)
        _, leaving = tl.associative_scan((decay, end), 0, _compose)
        tl.store(here, leaving, mask=inside)
        state = tl.sum(tl.where((i == AHEAD - 1)[:, None], leaving, 0.0), 0)


@kernel
def outputs(
    u,
    delta,
    proj,
    weight,
    bias,
    A,
    orders,
    skip,
    entering,  # what leaves the segments, or None where there is one
    y,  # (B*K, T, D)
    L,
    T,
    K,
    D,
    SEGMENT,
    N: tl.constexpr,
    R: tl.constexpr,
    PER_K: tl.constexpr,
    PER_IMAGE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The output of every step. Grid: segments."""
    segments = tl.cdiv(T, SEGMENT)
    bk, k, segment, d = part_of_program(segments, K, D, BLOCK)
    u, delta, proj, orders, weights, offset = beginning(
        u, delta, proj, weight, bias, orders, bk, k, d, L, T, K, D, N, R, PER_K, PER_IMAGE, BLOCK
    )
    through = read_or_zero(skip, k, D, d, BLOCK)
    rates = read_channels(A, k, D, d, N, BLOCK)
    h = read_entering(entering, bk, segment, segments, D, d, N, False, BLOCK)

    begin = segment * SEGMENT
    end = tl.minimum(begin + SEGMENT, T)
    position, visited = find_visit(orders, begin, L)
    x = read_row(u, position, visited, D, d)
    for t in range(begin, end):
        row = proj + position * (K * (R + 2 * N))
        raw = raw_step(delta, row, weights, offset, position, visited, D, d, N, R, BLOCK)
        dt = softplus(raw) if SOFTPLUS else raw
        across = read_numbers(row, R + 2 * N, R, R + 2 * N, BLOCK)
        now = dt * x
        total = through * x
        position, visited = find_visit(orders, tl.minimum(t + 1, end - 1), L)
        x = read_row(u, position, visited, D, d)
        after = ()
        for n in tl.static_range(N):
            state = tl.exp2(dt * (rates[n] * LOG2E)) * h[n] + now * across[n]
            total += state * across[N + n]
            after = after + (state,)
        h = after
        tl.store(y + (bk * T + t) * D + d, total, mask=d < D)


@kernel
def collect(
    steps,  # (parts, B*K, T, D)
    visits,  # (K, T) or (B, K, T): the steps, sorted by position
    starts,  # (K, L+1) or (B, K, L+1): where each position's begin
    out,  # (B*K / group, L, D)
    parts,
    group,
    L,
    T,
    K,
    D,
    PER_IMAGE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Bring steps back to their positions and add up parts, visits and, `group` at a time, the directions.

    A position that no path visits gets 0. Grid: rows, for B * K / group.
    """
    bands = tl.cdiv(L, ROWS)
    lead, _, band, d = part_of_program(bands, K, D, BLOCK)
    paths = tl.num_programs(0).to(tl.int64) // tl.cdiv(D, BLOCK) // bands * group
    position = band * ROWS + tl.arange(0, ROWS)
    total = _gathered(
        steps, visits, starts, lead, position, d, paths, parts, group, L, T, K, D, PER_IMAGE, ROWS, BLOCK
    )
    inside = (position < L)[:, None] & (d < D)[None, :]
    tl.store(out + (lead * L + position)[:, None] * D + d[None, :], total, mask=inside)


@triton.jit
def _gathered(
    steps,
    visits,
    starts,
    lead,
    position,
    d,
    paths,
    parts,
    group,
    L,
    T,
    K,
    D,
    PER_IMAGE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sums of `collect` at some positions and channels: (ROWS, BLOCK), 0 outside."""
    in_d = (d < D)[None, :]
    inside = position < L
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for j in range(group):
        bk = lead * group + j
        table = bk if PER_IMAGE else bk % K
        first = tl.load(starts + table * (L + 1) + position, mask=inside, other=0)
        count = tl.load(starts + table * (L + 1) + position + 1, mask=inside, other=0) - first
        for visit in range(tl.max(count, 0)):
            t = tl.load(visits + table * T + first + visit, mask=visit < count, other=0)
            for part in range(parts):
                rows = ((part * paths + bk) * T + t)[:, None] * D
                total += tl.load(steps + rows + d[None, :], mask=(visit < count)[:, None] & in_d, other=0.0)
    return total


@kernel
def collect_normed(
    steps,  # (B*K, T, C)
    visits,
    starts,
    weight,  # (C), as bias
    bias,
    z,  # (B, L, C), rows z_row apart, or None
    out,  # (B, L, C)
    L,
    T,
    K,
    z_row,
    eps,
    C: tl.constexpr,
    PER_IMAGE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,  # a power of two, at least C
):
    """`collect` of all directions, then `gpu_fused.norm_gate`: their sum is never written. Grid: rows, for B."""
    image, _, band, c = part_of_program(tl.cdiv(L, ROWS), 1, C, WIDTH)
    position = band * ROWS + tl.arange(0, ROWS)
    total = _gathered(steps, visits, starts, image, position, c, 0, 1, K, L, T, K, C, PER_IMAGE, ROWS, WIDTH)
    row, c = (image * L + position)[:, None], c[None, :]
    inside = (position < L)[:, None] & (c < C)
    total = norm_gate_rows(total, inside, weight, bias, z, z_row, row, c, eps, C)
    tl.store(out + row * C + c, total.to(out.dtype.element_ty), mask=inside)
