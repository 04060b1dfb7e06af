"""The Triton kernel of the scan's gradients; the layouts are those of `gpu_kernels`."""

# What a kernel is given has types of Triton only, and tuples in kernels grow by concatenation, not by unpacking:
# mypy: disable-error-code="no-untyped-def,assignment,var-annotated"
# ruff: noqa: RUF005

from __future__ import annotations

import triton.language as tl

from mambair_cli.scan.gpu_math import LOG2E, softplus, softplus_slope
from mambair_cli.scan.gpu_pieces import (
    beginning,
    find_visit,
    kernel,
    part_of_program,
    raw_step,
    read_or_zero,
    read_row,
)


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
    bk, k, chunk, d = part_of_program(chunks, K, D, BLOCK)
    in_d = d < D
    u, delta, proj, orders, weights, offset = beginning(
        u, delta, proj, weight, bias, orders, bk, k, d, L, T, K, D, N, R, PER_K, PER_IMAGE, BLOCK
    )
    grad += (bk if GRAD_PER_K else bk // K) * L * D
    first = chunk * CHUNK
    zero = tl.zeros([BLOCK], tl.float32)

    rows, reached, raws, dts, xs, dys = (), (), (), (), (), ()
    over_b, over_a = (), ()  # sums over n of g B, of g a h_(t-1) A
    for i in tl.static_range(CHUNK):
        position, visited = find_visit(orders, tl.minimum(first + i, T - 1), L)
        visited = visited & (first + i < T)
        row = proj + position * (K * F)
        raw = raw_step(delta, row, weights, offset, position, visited, D, d, N, R, BLOCK)
        dt = softplus(raw) if SOFTPLUS else raw
        rows = rows + (row,)
        reached = reached + (visited,)
        raws = raws + (raw,)
        dts = dts + (tl.where(first + i < T, dt, 0.0),)  # beyond the path the state stays as it is
        xs = xs + (read_row(u, position, visited, D, d),)
        dys = dys + (read_row(grad, position, visited, D, d),)
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

    through = read_or_zero(skip, k, D, d, BLOCK)
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
