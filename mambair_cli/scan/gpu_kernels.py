"""The Triton kernels behind `gpu`.

A thread is a channel of a path: its N states, its rates and its row of the time steps' weights stay in registers and
time runs one step after the other, so nothing is exchanged between threads. Where channels are too few to fill the
chip a path of T steps is cut into segments: `states` runs each from zero, `chain` lets the states travel across the
segments, and `outputs` starts every segment from the state that enters it. With one segment `outputs` is all.

`gradients` takes a chunk of a few steps at once, from the states and adjoints at its borders, which `states` keeps.
Results are written in the order of the steps and `collect` brings them back to the positions, so nothing is ever
added by two programs and the sums have one order whatever the launch.

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

from mambair_cli.scan.gpu_math import softplus, softplus_slope

LOG2E = tl.constexpr(1.4426950408889634)

kernel = triton.jit(do_not_specialize=["L", "T", "K", "D", "SEGMENT", "segments", "parts", "group"])


@triton.jit
def _compose(decay, state, next_decay, next_state):
    """h -> decay h + state, then h -> next_decay h + next_state."""
    return decay * next_decay, next_decay * state + next_state


@triton.jit
def _program(parts, K, D, BLOCK: tl.constexpr):
    """The path, its direction, the part of it and the channels of this program: channels count first."""
    blocks = tl.cdiv(D, BLOCK)
    program = tl.program_id(0)
    bk = (program // blocks // parts).to(tl.int64)
    return bk, bk % K, program // blocks % parts, program % blocks * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _numbers(rows, STRIDE: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr):
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
def _of_channels(parameter, k, D, d, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """The row of each channel in (K, D, COUNT); beyond the last channel its row again."""
    return _numbers(parameter + (k * D + tl.minimum(d, D - 1)) * COUNT, COUNT, 0, COUNT, BLOCK)


@triton.jit
def _or_zero(vector, k, D, d, BLOCK: tl.constexpr):
    """A row of (K, D); zeros for None."""
    if vector is None:
        row = tl.zeros([BLOCK], tl.float32)
    else:
        row = tl.load(vector + k * D + d, mask=d < D, other=0.0)
    return row


@triton.jit
def _visit(orders, t, L):
    """The position of step t as int64, 0 where there is none, and whether there is one: pads are no visits."""
    if orders is None:
        position = t
    else:
        position = tl.load(orders + t)
    visited = (position >= 0) & (position < L)
    return tl.where(visited, position, 0).to(tl.int64), visited


@triton.jit
def _row(source, position, visited, D, d):
    """A row of (L, D) as float32; zeros where nothing is visited."""
    return tl.load(source + position * D + d, mask=d < tl.where(visited, D, 0), other=0.0).to(tl.float32)


@triton.jit
def _raw_step(
    delta, row, weights, bias, position, visited, D, d, N: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr
):
    """dt before the softplus: W r + b, or delta + b where the time steps are given."""
    if delta is None:
        low = _numbers(row, R + 2 * N, 0, R, BLOCK)
        raw = tl.zeros([BLOCK], tl.float32)
        for r in tl.static_range(R):
            raw += low[r] * weights[r]
        raw = tl.where(visited, raw, 0.0)
    else:
        raw = _row(delta, position, visited, D, d)
    return bias + raw


@triton.jit
def _entering(states, bk, part, parts, D, d, N: tl.constexpr, REVERSE: tl.constexpr, BLOCK: tl.constexpr):
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
    bk, k, segment, d = _program(segments, K, D, BLOCK)
    source += (bk if PER_K else bk // K) * L * D
    proj += (bk // K * L * K + k) * (R + 2 * N)
    if orders is not None:
        orders += (bk if PER_IMAGE else k) * T
    weights = ()
    if delta is None:
        weights = _of_channels(weight, k, D, d, R, BLOCK)
    else:
        delta += bk * L * D
    offset = _or_zero(bias, k, D, d, BLOCK)
    rates = _of_channels(A, k, D, d, N, BLOCK)
    h = _entering(entering, bk, segment, segments, D, d, N, REVERSE, BLOCK)
    span = tl.zeros([BLOCK], tl.float32)

    begin = segment * SEGMENT
    end = tl.minimum(begin + SEGMENT, T)
    position, visited = _visit(orders, end - 1 if REVERSE else begin, L)
    x = _row(source, position, visited, D, d)
    for i in range(end - begin):
        t = end - 1 - i if REVERSE else begin + i
        row = proj + position * (K * (R + 2 * N))
        raw = _raw_step(delta, row, weights, offset, position, visited, D, d, N, R, BLOCK)
        dt = softplus(raw) if SOFTPLUS else raw
        across = _numbers(row, R + 2 * N, R + N if REVERSE else R, R + 2 * N if REVERSE else R + N, BLOCK)
        now = x if REVERSE else dt * x
        # The next step's row is on its way while this one is worked on; the last step fetches its own again.
        position, visited = _visit(orders, tl.maximum(t - 1, begin) if REVERSE else tl.minimum(t + 1, end - 1), L)
        x = _row(source, position, visited, D, d)
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
    bk, k, n, d = _program(N, K, D, BLOCK)
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
    bk, k, segment, d = _program(segments, K, D, BLOCK)
    u += (bk if PER_K else bk // K) * L * D
    proj += (bk // K * L * K + k) * (R + 2 * N)
    if orders is not None:
        orders += (bk if PER_IMAGE else k) * T
    weights = ()
    if delta is None:
        weights = _of_channels(weight, k, D, d, R, BLOCK)
    else:
        delta += bk * L * D
    offset = _or_zero(bias, k, D, d, BLOCK)
    through = _or_zero(skip, k, D, d, BLOCK)
    rates = _of_channels(A, k, D, d, N, BLOCK)
    h = _entering(entering, bk, segment, segments, D, d, N, False, BLOCK)

    begin = segment * SEGMENT
    end = tl.minimum(begin + SEGMENT, T)
    position, visited = _visit(orders, begin, L)
    x = _row(u, position, visited, D, d)
    for t in range(begin, end):
        row = proj + position * (K * (R + 2 * N))
        raw = _raw_step(delta, row, weights, offset, position, visited, D, d, N, R, BLOCK)
        dt = softplus(raw) if SOFTPLUS else raw
        across = _numbers(row, R + 2 * N, R, R + 2 * N, BLOCK)
        now = dt * x
        total = through * x
        position, visited = _visit(orders, tl.minimum(t + 1, end - 1), L)
        x = _row(u, position, visited, D, d)
        after = ()
        for n in tl.static_range(N):
            state = tl.exp2(dt * (rates[n] * LOG2E)) * h[n] + now * across[n]
            total += state * across[N + n]
            after = after + (state,)
        h = after
        tl.store(y + (bk * T + t) * D + d, total, mask=d < D)


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
    """The gradients of every step and, per chunk, of the parameters. Grid: chunks.

    With g_t the gradient at the state h_t, g_t = C_t dy_t + a_(t+1) g_(t+1): one state after the other goes forward
    through the chunk and back.
    """
    F: tl.constexpr = R + 2 * N
    chunks = tl.cdiv(T, CHUNK)
    bk, k, chunk, d = _program(chunks, K, D, BLOCK)
    in_d = d < D
    u += (bk if PER_K else bk // K) * L * D
    grad += (bk if GRAD_PER_K else bk // K) * L * D
    proj += (bk // K * L * K + k) * F
    if orders is not None:
        orders += (bk if PER_IMAGE else k) * T
    weights = ()
    if delta is None:
        weights = _of_channels(weight, k, D, d, R, BLOCK)
    else:
        delta += bk * L * D
    first = chunk * CHUNK
    zero = tl.zeros([BLOCK], tl.float32)
    offset = _or_zero(bias, k, D, d, BLOCK)

    rows, reached, raws, dts, xs, dys = (), (), (), (), (), ()
    over_b, over_a = (), ()  # sums over n of g B, of g a h_(t-1) A
    for i in tl.static_range(CHUNK):
        position, visited = _visit(orders, tl.minimum(first + i, T - 1), L)
        visited = visited & (first + i < T)
        row = proj + position * (K * F)
        raw = _raw_step(delta, row, weights, offset, position, visited, D, d, N, R, BLOCK)
        dt = softplus(raw) if SOFTPLUS else raw
        rows = rows + (row,)
        reached = reached + (visited,)
        raws = raws + (raw,)
        dts = dts + (tl.where(first + i < T, dt, 0.0),)  # beyond the path the state stays as it is
        xs = xs + (_row(u, position, visited, D, d),)
        dys = dys + (_row(grad, position, visited, D, d),)
        over_b = over_b + (zero,)
        over_a = over_a + (zero,)

    at = bk * chunks + chunk
    blocks = tl.cdiv(D, BLOCK)
    paths = tl.num_programs(0).to(tl.int64) // blocks // chunks
    of_chunk = g_parameters + at * (N + R + 2) * D + d
    of_steps = g_proj + ((tl.program_id(0) % blocks * paths + bk) * T + first) * F
    for n in range(N):
        rate = tl.load(A + (k * D + d) * N + n, mask=in_d, other=0.0)
        h = tl.load(states + ((at - 1) * N + n) * D + d, mask=d < tl.where(chunk > 0, D, 0), other=0.0)
        later = tl.load(adjoints + ((at + 1) * N + n) * D + d, mask=d < tl.where(chunk + 1 < chunks, D, 0), other=0.0)
        decays, carried = (), ()
        for i in tl.static_range(CHUNK):
            decay = tl.exp2(dts[i] * (rate * LOG2E))
            decays = decays + (decay,)
            carried = carried + (decay * h,)
            h = carried[i] + dts[i] * xs[i] * tl.load(rows[i] + R + n).to(tl.float32)
            tl.store(of_steps + i * F + R + N + n, tl.sum(dys[i] * h, 0), mask=first + i < T)
        g_rate = zero
        with_b, with_a = (), ()
        for i in tl.static_range(CHUNK - 1, -1, -1):
            g = dys[i] * tl.load(rows[i] + R + N + n).to(tl.float32) + later
            later = decays[i] * g
            g_rate += g * carried[i] * dts[i]
            with_b = (over_b[i] + g * tl.load(rows[i] + R + n).to(tl.float32),) + with_b
            with_a = (over_a[i] + g * carried[i] * rate,) + with_a
            tl.store(of_steps + i * F + R + n, tl.sum(g * dts[i] * xs[i], 0), mask=first + i < T)
        over_b, over_a = with_b, with_a
        tl.store(of_chunk + n * D, g_rate, mask=in_d)

    through = _or_zero(skip, k, D, d, BLOCK)
    g_bias, g_skip = zero, zero
    g_raws = ()
    for i in tl.static_range(CHUNK):
        step = (bk * T + first + i) * D + d
        inside = d < tl.where(first + i < T, D, 0)
        tl.store(g_u + step, dts[i] * over_b[i] + dys[i] * through, mask=inside)
        g_raw = over_a[i] + xs[i] * over_b[i]
        if SOFTPLUS:
            g_raw *= softplus_slope(raws[i])
        g_raw = tl.where(inside, g_raw, 0.0)
        g_raws = g_raws + (g_raw,)
        g_bias += g_raw
        g_skip += dys[i] * xs[i]
        if g_delta is not None:
            tl.store(g_delta + step, g_raw, mask=inside)
    tl.store(of_chunk + (N + R) * D, g_bias, mask=in_d)
    tl.store(of_chunk + (N + R + 1) * D, g_skip, mask=in_d)
    for r in range(R):
        w = tl.load(weight + (k * D + d) * R + r, mask=in_d, other=0.0)
        g_weight = zero
        for i in tl.static_range(CHUNK):
            g_weight += g_raws[i] * tl.load(rows[i] + r, mask=reached[i], other=0.0).to(tl.float32)
            tl.store(of_steps + i * F + r, tl.sum(g_raws[i] * w, 0), mask=first + i < T)
        tl.store(of_chunk + (N + r) * D, g_weight, mask=in_d)


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
    lead, _, band, d = _program(bands, K, D, BLOCK)
    paths = tl.num_programs(0).to(tl.int64) // tl.cdiv(D, BLOCK) // bands * group
    position = band * ROWS + tl.arange(0, ROWS)
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
    tl.store(out + (lead * L + position)[:, None] * D + d[None, :], total, mask=inside[:, None] & in_d)
