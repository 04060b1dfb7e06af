"""The Triton kernels behind `gpu`.

A path of T steps is cut into chunks and a program holds one chunk of BLOCK channels, so that one image fills the
chip: `chunk_ends` runs every chunk from a zero state, `chain` lets the states travel across the chunks, and
`outputs` runs every chunk again from the state that enters it. `gradients` does the same in both directions of
time. Results are written in the order of the steps and `collect` brings them back to the positions, so nothing is
ever added by two programs and the sums have one order whatever the launch.

Layouts (all contiguous; D is the number of channels, F = R + 2N):
  u, delta, grad (B, L, D) or, PER_K, (B, K, L, D)     proj (B, L, K, F)     orders (K, T) or (B, K, T)
  weight (K, R, D)     bias, skip (K, D)     A (K, N, D)     states (B*K, chunks, N, D)     spans (B*K, chunks, D)

A program is one warp and its tiles are (CHUNK, BLOCK) with the channels across the lanes: every thread owns whole
columns of time, so that the scans and sums along time stay in its registers. The sizes are left unspecialised, which
also keeps the compiler from spreading time over the lanes for the sake of wider loads.
"""

# What a kernel is given has types of Triton only:
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import os

import triton
import triton.language as tl

from mambair_cli.scan.gpu_math import softplus, softplus_slope

LOG2E = tl.constexpr(1.4426950408889634)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own switch: kernels run on CPU tensors, slowly
WIDTHS = [4] if INTERPRETED else [32, 64]  # one or two channels to a thread; the results are the same bits

kernel = triton.jit(do_not_specialize=["L", "T", "K", "D"])  # a new image size must not compile anything
tuned = triton.autotune([triton.Config({"BLOCK": width}, num_warps=1) for width in WIDTHS], key=["D", "N", "R"])


@triton.jit
def _compose(decay, state, next_decay, next_state):
    """h -> decay h + state, then h -> next_decay h + next_state."""
    return decay * next_decay, next_decay * state + next_state


@triton.jit
def _compose_adjoints(decay, leaving, entered, later, next_decay, next_leaving, next_entered, next_later):
    """Backwards in time, with x the adjoint from the later step: entered = g + later x, leaving = g a + decay x."""
    return (
        decay * next_decay,
        next_decay * leaving + next_leaving,
        next_later * leaving + next_entered,
        next_later * decay,
    )


@triton.jit
def _visits(orders, table, t, T, L):
    """The positions of steps t as int64, 0 where there is none, and whether there is one: pads are no visits."""
    if orders is None:
        position = t
    else:
        position = tl.load(orders + table * T + t, mask=t < T, other=-1)
    visited = (t < T) & (position >= 0) & (position < L)
    return tl.where(visited, position, 0).to(tl.int64), visited


@triton.jit
def _rows(source, lead, L, D, position, visited, d):
    """Rows of (lead, L, D) as a float32 tile, zero outside."""
    rows = (lead * L + position)[:, None] * D + d[None, :]
    return tl.load(source + rows, mask=visited[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _raw_steps(delta, bk, p, weight, bias, k, L, D, position, visited, d, R: tl.constexpr):
    """dt before the softplus: W r + b, or delta + b where the time steps are given."""
    in_d = d < D
    if delta is None:
        raw = tl.zeros([position.shape[0], d.shape[0]], tl.float32)
        for r in range(R):
            low = tl.load(p + r, mask=visited, other=0.0).to(tl.float32)
            raw += low[:, None] * tl.load(weight + (k * R + r) * D + d, mask=in_d, other=0.0)[None, :]
    else:
        raw = _rows(delta, bk, L, D, position, visited, d)
    if bias is not None:
        raw += tl.load(bias + k * D + d, mask=in_d, other=0.0)[None, :]
    return raw


@triton.jit
def _dt(raw, t, T, SOFTPLUS: tl.constexpr):
    """The time step; 0 beyond the path, where the state then stays as it is."""
    if SOFTPLUS:
        raw = softplus(raw)
    return tl.where((t < T)[:, None], raw, 0.0)


@tuned
@kernel
def chunk_ends(
    source,  # u, or REVERSE: the gradient of y
    delta,
    proj,
    weight,
    bias,
    A,
    orders,
    states,
    spans,
    L,
    T,
    K,
    D,
    N: tl.constexpr,
    R: tl.constexpr,
    PER_K: tl.constexpr,
    PER_IMAGE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The state at the end of every chunk that starts from zero, and the time that passes in it.

    REVERSE: against time, the adjoint of the state that enters each chunk. Grid (chunks * blocks, B * K).
    """
    blocks = tl.cdiv(D, BLOCK)
    chunk = tl.program_id(0) // blocks
    bk = tl.program_id(1).to(tl.int64)
    k = bk % K
    d = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    in_d = d < D
    i = tl.arange(0, CHUNK)
    t = chunk * CHUNK + (CHUNK - 1 - i if REVERSE else i)
    position, visited = _visits(orders, bk if PER_IMAGE else k, t, T, L)
    p = proj + ((bk // K * L + position) * K + k) * (R + 2 * N)
    dt = _dt(_raw_steps(delta, bk, p, weight, bias, k, L, D, position, visited, d, R), t, T, SOFTPLUS)
    x = _rows(source, bk if PER_K else bk // K, L, D, position, visited, d)
    at = bk * tl.cdiv(T, CHUNK) + chunk
    if not REVERSE:
        x *= dt
        tl.store(spans + at * D + d, tl.sum(dt, 0), mask=in_d)
    for n in range(N):
        a = tl.exp2(dt * (tl.load(A + (k * N + n) * D + d, mask=in_d, other=0.0) * LOG2E)[None, :])
        if REVERSE:
            increment = a * x * tl.load(p + R + N + n).to(tl.float32)[:, None]
        else:
            increment = x * tl.load(p + R + n).to(tl.float32)[:, None]
        _, h = tl.associative_scan((a, increment), 0, _compose)
        end = tl.sum(tl.where((i == CHUNK - 1)[:, None], h, 0.0), 0)
        tl.store(states + (at * N + n) * D + d, end, mask=in_d)


@kernel
def chain(
    states,
    spans,
    A,
    chunks,
    K,
    D,
    N: tl.constexpr,
    REVERSE: tl.constexpr,
    CHUNK: tl.constexpr,  # chunks taken at once
    BLOCK: tl.constexpr,
):
    """In place: from the states of lone chunks to the states that leave them. Grid (N * blocks, B * K)."""
    blocks = tl.cdiv(D, BLOCK)
    n = tl.program_id(0) // blocks
    bk = tl.program_id(1).to(tl.int64)
    d = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    in_d = d < D
    rate = tl.load(A + (bk % K * N + n) * D + d, mask=in_d, other=0.0) * LOG2E
    i = tl.arange(0, CHUNK)
    state = tl.zeros([BLOCK], tl.float32)
    for start in range(0, chunks, CHUNK):
        chunk = chunks - 1 - start - i if REVERSE else start + i
        inside = (start + i < chunks)[:, None] & in_d[None, :]
        at = bk * chunks + chunk
        a = tl.exp2(tl.load(spans + at[:, None] * D + d[None, :], mask=inside, other=0.0) * rate[None, :])
        here = states + (at * N + n)[:, None] * D + d[None, :]
        end = tl.load(here, mask=inside, other=0.0)
        end += tl.where((i == 0)[:, None], a * state[None, :], 0.0)
        _, leaving = tl.associative_scan((a, end), 0, _compose)
        tl.store(here, leaving, mask=inside)
        state = tl.sum(tl.where((i == CHUNK - 1)[:, None], leaving, 0.0), 0)


@tuned
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
    states,
    y,  # (B*K, T, D) float32
    L,
    T,
    K,
    D,
    N: tl.constexpr,
    R: tl.constexpr,
    PER_K: tl.constexpr,
    PER_IMAGE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The output of every step. Grid (chunks * blocks, B * K)."""
    blocks = tl.cdiv(D, BLOCK)
    chunk = tl.program_id(0) // blocks
    bk = tl.program_id(1).to(tl.int64)
    k = bk % K
    d = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    in_d = d < D
    i = tl.arange(0, CHUNK)
    t = chunk * CHUNK + i
    position, visited = _visits(orders, bk if PER_IMAGE else k, t, T, L)
    p = proj + ((bk // K * L + position) * K + k) * (R + 2 * N)
    dt = _dt(_raw_steps(delta, bk, p, weight, bias, k, L, D, position, visited, d, R), t, T, SOFTPLUS)
    x = _rows(u, bk if PER_K else bk // K, L, D, position, visited, d)
    if skip is None:
        total = tl.zeros([CHUNK, BLOCK], tl.float32)
    else:
        total = x * tl.load(skip + k * D + d, mask=in_d, other=0.0)[None, :]
    x *= dt
    before = (bk * tl.cdiv(T, CHUNK) + chunk - 1) * N
    for n in range(N):
        a = tl.exp2(dt * (tl.load(A + (k * N + n) * D + d, mask=in_d, other=0.0) * LOG2E)[None, :])
        entering = tl.load(states + (before + n) * D + d, mask=d < tl.where(chunk > 0, D, 0), other=0.0)
        increment = x * tl.load(p + R + n).to(tl.float32)[:, None]
        increment += tl.where((i == 0)[:, None], a * entering[None, :], 0.0)
        _, h = tl.associative_scan((a, increment), 0, _compose)
        total += h * tl.load(p + R + N + n).to(tl.float32)[:, None]
    tl.store(y + (bk * T + t)[:, None] * D + d[None, :], total, mask=(t < T)[:, None] & in_d[None, :])


@triton.jit
def _state_gradients(a, own, dy, c, entering, later, i, CHUNK: tl.constexpr):
    """One state of every step, and the gradient at it: h_t and g_t = C_t dy_t + a_{t+1} g_{t+1}.

    own: what each step adds to the state. entering: the state before the chunk; later: a g of the chunk after it.
    """
    _, h = tl.associative_scan((a, own + tl.where((i == 0)[:, None], a * entering[None, :], 0.0)), 0, _compose)
    g = dy * c + tl.where((i == CHUNK - 1)[:, None], later[None, :], 0.0)
    one = tl.full(g.shape, 1.0, tl.float32)  # turned round by hand: `reverse=True` would shuffle half as often again
    _, _, g, _ = tl.associative_scan((tl.flip(a, 0), tl.flip(a * g, 0), tl.flip(g, 0), one), 0, _compose_adjoints)
    return h, tl.flip(g, 0)


@triton.jit
def _rank_gradients(g_raw, p, weight, row, column, k, t, T, D, visited, d, R: tl.constexpr):
    """From the gradient of the time steps before the softplus to those of the low rank and of W, stored."""
    for r in range(R):
        low = tl.load(p + r, mask=visited, other=0.0).to(tl.float32)
        w = tl.load(weight + (k * R + r) * D + d, mask=d < D, other=0.0)
        tl.store(column + r, tl.sum(g_raw * w[None, :], 1), mask=t < T)
        tl.store(row + r * D, tl.sum(g_raw * low[:, None], 0), mask=d < D)


@kernel
def gradients(
    u,
    delta,
    proj,
    weight,
    bias,
    A,
    orders,
    skip,
    grad,
    states,
    adjoints,
    g_u,  # (B*K, T, D)
    g_delta,  # (B*K, T, D) or None
    g_proj,  # (blocks, B*K, T, F)
    g_parameters,  # (B*K, chunks, N + R + 2, D): A, weight, bias, skip
    L,
    T,
    K,
    D,
    N: tl.constexpr,
    R: tl.constexpr,
    PER_K: tl.constexpr,
    GRAD_PER_K: tl.constexpr,
    PER_IMAGE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradients of every step and, per chunk, of the parameters. Grid (chunks * blocks, B * K)."""
    blocks = tl.cdiv(D, BLOCK)
    chunk = tl.program_id(0) // blocks
    chunks = tl.cdiv(T, CHUNK)
    bk = tl.program_id(1).to(tl.int64)
    k = bk % K
    d = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    in_d = d < D
    i = tl.arange(0, CHUNK)
    t = chunk * CHUNK + i
    position, visited = _visits(orders, bk if PER_IMAGE else k, t, T, L)
    p = proj + ((bk // K * L + position) * K + k) * (R + 2 * N)
    raw = _raw_steps(delta, bk, p, weight, bias, k, L, D, position, visited, d, R)
    dt = _dt(raw, t, T, SOFTPLUS)
    x = _rows(u, bk if PER_K else bk // K, L, D, position, visited, d)
    dy = _rows(grad, bk if GRAD_PER_K else bk // K, L, D, position, visited, d)

    at = bk * chunks + chunk
    row = g_parameters + at * (N + R + 2) * D + d
    column = g_proj + ((tl.program_id(0) % blocks * tl.num_programs(1) + bk) * T + t) * (R + 2 * N)
    over_b = tl.zeros([CHUNK, BLOCK], tl.float32)  # sum over n of g B
    over_a = tl.zeros([CHUNK, BLOCK], tl.float32)  # sum over n of g a h_{t-1} A
    for n in range(N):
        rate = tl.load(A + (k * N + n) * D + d, mask=in_d, other=0.0)
        a = tl.exp2(dt * (rate * LOG2E)[None, :])
        b = tl.load(p + R + n).to(tl.float32)[:, None]
        c = tl.load(p + R + N + n).to(tl.float32)[:, None]
        entering = tl.load(states + ((at - 1) * N + n) * D + d, mask=d < tl.where(chunk > 0, D, 0), other=0.0)
        later = tl.load(adjoints + ((at + 1) * N + n) * D + d, mask=d < tl.where(chunk + 1 < chunks, D, 0), other=0.0)
        own = dt * x * b
        h, g = _state_gradients(a, own, dy, c, entering, later, i, CHUNK)
        carried = g * (h - own)
        over_b += g * b
        over_a += carried * rate[None, :]
        tl.store(row + n * D, tl.sum(carried * dt, 0), mask=in_d)
        tl.store(column + R + n, tl.sum(g * dt * x, 1), mask=t < T)
        tl.store(column + R + N + n, tl.sum(dy * h, 1), mask=t < T)

    steps = (bk * T + t)[:, None] * D + d[None, :]
    inside = (t < T)[:, None] & in_d[None, :]
    g_x = dt * over_b
    if skip is not None:
        g_x += dy * tl.load(skip + k * D + d, mask=in_d, other=0.0)[None, :]
    tl.store(g_u + steps, g_x, mask=inside)
    g_raw = over_a + x * over_b
    if SOFTPLUS:
        g_raw *= softplus_slope(raw)
    g_raw = tl.where(inside, g_raw, 0.0)
    if g_delta is None:
        _rank_gradients(g_raw, p, weight, row + N * D, column, k, t, T, D, visited, d, R)
    else:
        tl.store(g_delta + steps, g_raw, mask=inside)
    tl.store(row + (N + R) * D, tl.sum(g_raw, 0), mask=in_d)
    tl.store(row + (N + R + 1) * D, tl.sum(dy * x, 0), mask=in_d)


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

    A position that no path visits gets 0. Grid (rows * blocks, B * K / group).
    """
    blocks = tl.cdiv(D, BLOCK)
    lead = tl.program_id(1).to(tl.int64)
    position = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    d = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
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
                rows = ((part * tl.num_programs(1) * group + bk) * T + t)[:, None] * D
                total += tl.load(steps + rows + d[None, :], mask=(visit < count)[:, None] & in_d, other=0.0)
    tl.store(out + (lead * L + position)[:, None] * D + d[None, :], total, mask=inside[:, None] & in_d)
