"""Triton kernels for what stands around the scan; `gpu_around` launches them. Sums are in float32."""

# What a kernel is given has types of Triton only:
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from mambair_cli.scan.gpu_math import norm_gate_rows, silu

SILU = tl.constexpr(1)  # numbers of activations, as in `fused.ACTIVATIONS`
SIGMOID = tl.constexpr(2)
GELU = tl.constexpr(3)
RELU = tl.constexpr(4)

# A new size of picture must not compile anything.
kernel = triton.jit(do_not_specialize=["rows", "pixels", "H", "W", "shift"])


@triton.jit
def _activated(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == SILU:
        x = silu(x)
    elif ACTIVATION == SIGMOID:
        x = tl.sigmoid(x)
    elif ACTIVATION == GELU:
        x = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == RELU:
        x = tl.maximum(x, 0.0)
    return x


@kernel
def norm_gate(
    y, z, weight, bias, out, rows, y_row, z_row, eps, C: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr
):
    """LayerNorm over the channels of rows, times SiLU(z) where there is a z. Grid (cdiv(rows, ROWS))."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    c = tl.arange(0, WIDTH)[None, :]
    inside = (row < rows) & (c < C)
    x = tl.load(y + row * y_row + c, mask=inside, other=0.0).to(tl.float32)
    x = norm_gate_rows(x, inside, weight, bias, z, z_row, row, c, eps, C)
    tl.store(out + row * C + c, x.to(out.dtype.element_ty), mask=inside)


@kernel
def depthwise(
    x,
    taps,
    bias,
    partner,
    out,
    H,
    W,
    x_row,
    partner_row,
    pixels,
    C,
    SIDE: tl.constexpr,
    DILATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRODUCT: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """activation(SIDE x SIDE depthwise convolution + bias), times or plus the partner. taps (SIDE^2, C).

    Grid (cdiv(pixels, PIXELS), cdiv(C, BLOCK)); pixels of all images, channel last.
    """
    p = (tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)).to(tl.int64)
    c = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    column, line = p % W, p // W % H
    there = c < C
    total = tl.zeros([PIXELS, BLOCK], tl.float32) + tl.load(bias + c, mask=there, other=0.0)
    for tap in tl.static_range(SIDE * SIDE):
        dy = (tap // SIDE - SIDE // 2) * DILATION
        dx = (tap % SIDE - SIDE // 2) * DILATION
        inside = (p < pixels) & (line + dy >= 0) & (line + dy < H) & (column + dx >= 0) & (column + dx < W)
        values = tl.load(x + (p + dy * W + dx)[:, None] * x_row + c, mask=inside[:, None] & there, other=0.0)
        total += values.to(tl.float32) * tl.load(taps + tap * C + c, mask=there, other=0.0)
    total = _activated(total, ACTIVATION)
    inside = (p < pixels)[:, None] & there
    if partner is not None:
        other = tl.load(partner + p[:, None] * partner_row + c, mask=inside, other=0.0).to(tl.float32)
        total = total * other if PRODUCT else total + other
    tl.store(out + p[:, None] * C + c, total.to(out.dtype.element_ty), mask=inside)


@kernel
def linear(
    x,
    norm_weight,
    norm_bias,
    weight,
    bias,
    add,
    scale,
    other,
    y,
    rows,
    x_row,
    N,
    eps,
    K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    M_BLOCK: tl.constexpr,
    N_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
):
    """activation(norm(x) weight^T + bias) + add + scale * other. Grid (cdiv(rows, M_BLOCK), cdiv(N, N_BLOCK)).

    x (rows, K), rows x_row apart; weight (N, K), in whose type the product is; add, other and y (rows, N).
    """
    m = (tl.program_id(0) * M_BLOCK + tl.arange(0, M_BLOCK)).to(tl.int64)[:, None]
    n = (tl.program_id(1) * N_BLOCK + tl.arange(0, N_BLOCK))[None, :]
    k = tl.arange(0, K_BLOCK)
    mean = tl.zeros([M_BLOCK], tl.float32)
    spread = tl.zeros([M_BLOCK], tl.float32)
    if norm_weight is not None:
        for first in range(0, K, K_BLOCK):
            inside = (m < rows) & (first + k < K)[None, :]
            mean += tl.sum(tl.load(x + m * x_row + first + k[None, :], mask=inside, other=0.0).to(tl.float32), 1)
        mean = mean / K
        for first in range(0, K, K_BLOCK):
            inside = (m < rows) & (first + k < K)[None, :]
            part = tl.load(x + m * x_row + first + k[None, :], mask=inside, other=0.0).to(tl.float32)
            part = tl.where(inside, part - mean[:, None], 0.0)
            spread += tl.sum(part * part, 1)
        spread = tl.rsqrt(spread / K + eps)
    total = tl.zeros([M_BLOCK, N_BLOCK], tl.float32)
    for first in range(0, K, K_BLOCK):
        inner = first + k < K
        a = tl.load(x + m * x_row + first + k[None, :], mask=(m < rows) & inner[None, :], other=0.0)
        if norm_weight is not None:
            scales = tl.load(norm_weight + first + k, mask=inner, other=0.0)[None, :]
            shifts = tl.load(norm_bias + first + k, mask=inner, other=0.0)[None, :]
            a = (a.to(tl.float32) - mean[:, None]) * spread[:, None] * scales + shifts
        b = tl.load(weight + n * K + (first + k)[:, None], mask=(n < N) & inner[:, None], other=0.0)
        total = tl.dot(a.to(b.dtype), b, total, input_precision="ieee")
    if bias is not None:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)
    total = _activated(total, ACTIVATION)
    inside = (m < rows) & (n < N)
    if add is not None:
        total += tl.load(add + m * N + n, mask=inside, other=0.0).to(tl.float32)
    if scale is not None:
        total += tl.load(scale + n, mask=n < N, other=0.0) * tl.load(other + m * N + n, mask=inside, other=0.0).to(
            tl.float32
        )
    tl.store(y + m * N + n, total.to(y.dtype.element_ty), mask=inside)


@kernel
def attention(
    qkv,
    table,
    out,
    H,
    W,
    shift,
    scale,
    far,
    C: tl.constexpr,
    HEADS: tl.constexpr,
    SIDE: tl.constexpr,  # of a window; a power of two
    WIDTH: tl.constexpr,  # a power of two from 16, at least C / HEADS
    QUERIES: tl.constexpr,  # of a program, and
    KEYS: tl.constexpr,  # at a time; powers of two that divide SIDE^2
):
    """`attention.window_attention`. Grid (windows of all images * SIDE^2 / QUERIES, HEADS).

    The map is read and written where the shift puts it, so nothing is rolled, and the softmax is done as the keys
    come (Milakov and Gimelshein 2018), so no logits are held.
    """
    COUNT: tl.constexpr = SIDE * SIDE
    HEAD: tl.constexpr = C // HEADS
    head = tl.program_id(1)
    part = tl.program_id(0) % (COUNT // QUERIES)
    window = tl.program_id(0) // (COUNT // QUERIES)
    across, down = W // SIDE, H // SIDE
    column, line = window % across, window // across % down
    first = (window // (across * down)).to(tl.int64) * H * W
    i = part * QUERIES + tl.arange(0, QUERIES)
    d = tl.arange(0, WIDTH)[None, :]
    iy, ix = i // SIDE, i % SIDE
    from_i = ((line * SIDE + iy + shift) % H * W + (column * SIDE + ix + shift) % W)[:, None]
    wide = d < HEAD
    base = qkv + first * (3 * C) + head * HEAD
    q = tl.load(base + from_i * (3 * C) + d, mask=wide, other=0.0)
    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    y = tl.zeros([QUERIES, WIDTH], tl.float32)
    for start in range(0, COUNT, KEYS):
        j = start + tl.arange(0, KEYS)
        jy, jx = j // SIDE, j % SIDE
        from_j = ((line * SIDE + jy + shift) % H * W + (column * SIDE + jx + shift) % W)[:, None]
        k = tl.load(base + C + from_j * (3 * C) + d, mask=wide, other=0.0)
        v = tl.load(base + 2 * C + from_j * (3 * C) + d, mask=wide, other=0.0)
        logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        offset = (iy[:, None] - jy[None, :] + SIDE - 1) * (2 * SIDE - 1) + ix[:, None] - jx[None, :] + SIDE - 1
        logits += tl.load(table + offset * HEADS + head)
        if shift > 0:  # pixels that came from the other side are no neighbours
            apart = (line == down - 1) & ((iy >= SIDE - shift)[:, None] != (jy >= SIDE - shift)[None, :])
            apart |= (column == across - 1) & ((ix >= SIDE - shift)[:, None] != (jx >= SIDE - shift)[None, :])
            logits += tl.where(apart, far, 0.0)
        top = tl.maximum(highest, tl.max(logits, 1))
        logits = tl.exp(logits - top[:, None])
        fading = tl.exp(highest - top)
        total = total * fading + tl.sum(logits, 1)
        y = y * fading[:, None] + tl.dot(logits.to(v.dtype), v, input_precision="ieee")
        highest = top
    y = y / total[:, None]
    tl.store(out + first * C + from_i * C + head * HEAD + d, y.to(out.dtype.element_ty), mask=wide)
