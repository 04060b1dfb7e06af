"""The Triton kernel behind `routing.draw`: one launch, nothing from the host but a key."""

# What a kernel is given has types of Triton only:
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 8  # pixels per program


@triton.jit
def _noisy(logits, row, rows, q, word, i: tl.constexpr, TOKENS: tl.constexpr, QUADS: tl.constexpr):
    """Scores of the tokens i * QUADS + q, and those tokens; see `routing.gumbel`."""
    token = i * QUADS + q
    inside = (row < rows)[:, None] & ((q < QUADS) & (token < TOKENS))[None, :]
    u = ((word >> 9).to(tl.int32).to(tl.float32) + 0.5) * (1.0 / 8388608)
    logit = tl.load(logits + row.to(tl.int64)[:, None] * TOKENS + token[None, :], mask=inside, other=0.0)
    return tl.where(inside, logit - tl.log(-tl.log(u)), -3e38), token[None, :] + tl.zeros(u.shape, tl.int32)


@triton.jit
def _higher(score, winner, other, other_winner):
    better = other > score
    return tl.where(better, other, score), tl.where(better, other_winner, winner)


@triton.jit(do_not_specialize=["key", "layer", "rows", "length"])
def categories(
    logits,  # (rows, TOKENS) float32
    category,  # (rows) int32
    key,  # a number, or KEYS: a pointer to int64, one for every `length` rows
    layer,
    rows,
    length,
    KEYS: tl.constexpr,
    TOKENS: tl.constexpr,
    QUADS: tl.constexpr,
    WIDTH: tl.constexpr,  # a power of two, at least QUADS
    ROWS: tl.constexpr,
):
    """argmax of logits plus Gumbel noise. Grid (cdiv(rows, ROWS))."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    q = tl.arange(0, WIDTH)
    zero = tl.zeros([ROWS, WIDTH], tl.uint32)
    if KEYS:
        key = tl.load(key + row // length, mask=row < rows, other=0)[:, None]
    counter, counted = zero + q[None, :].to(tl.uint32), zero + (row % length)[:, None].to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(key, counter, counted, zero + layer.to(tl.uint32), zero)
    score, winner = _noisy(logits, row, rows, q, w0, 0, TOKENS, QUADS)
    other, token = _noisy(logits, row, rows, q, w1, 1, TOKENS, QUADS)
    score, winner = _higher(score, winner, other, token)
    other, token = _noisy(logits, row, rows, q, w2, 2, TOKENS, QUADS)
    score, winner = _higher(score, winner, other, token)
    other, token = _noisy(logits, row, rows, q, w3, 3, TOKENS, QUADS)
    score, winner = _higher(score, winner, other, token)
    highest = tl.max(score, 1)
    first = tl.min(tl.where(score == highest[:, None], winner, TOKENS), 1)
    tl.store(category + row, first, mask=row < rows)


def draw(logits: Tensor, key: int | Tensor, layer: int) -> Tensor:
    """`routing.draw` of float32 logits (rows, tokens), contiguous; int32. A tensor holds a key for every image."""
    rows, tokens = logits.shape
    length, keys = rows, isinstance(key, Tensor)
    if isinstance(key, Tensor):
        length, key = rows // key.numel(), key.to(logits.device, torch.int64).contiguous()
    category = torch.empty(rows, dtype=torch.int32, device=logits.device)
    quads = -(-tokens // 4)
    sizes = dict(KEYS=keys, TOKENS=tokens, QUADS=quads, WIDTH=triton.next_power_of_2(quads), ROWS=ROWS)
    with torch.cuda.device_of(logits):
        categories[(-(-rows // ROWS),)](logits, category, key, layer, rows, length, **sizes, num_warps=1)
    return category
