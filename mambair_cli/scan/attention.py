"""Attention in windows with a relative position bias: one native pass on a CPU, torch's attention elsewhere."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mambair_cli.scan import cpu, fused, gpu_around, library

FAR = -100.0  # added to the logits of pairs that the cyclic shift brought together


def relative_position_index(window: int) -> Tensor:
    """(window^2, window^2) row of the bias table for each pair of positions in a window."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    dy, dx = (p.flatten()[:, None] - p.flatten() + window - 1 for p in (y, x))
    return dy * (2 * window - 1) + dx


def shift_mask(window: int, last_row: bool, last_column: bool, device: torch.device) -> Tensor:
    """(window^2, window^2): FAR between pixels of a shifted window that are no neighbours in the picture.

    Only windows of the last row or column hold such pixels: their second half came from the other side.
    """
    make = _mask if torch.compiler.is_dynamo_compiling() else _kept_mask
    return make(window, last_row, last_column, device)


@lru_cache(maxsize=8)
def _kept_mask(window: int, last_row: bool, last_column: bool, device: torch.device) -> Tensor:
    with library.lasting():
        return _mask(window, last_row, last_column, device)


def _mask(window: int, last_row: bool, last_column: bool, device: torch.device) -> Tensor:
    wrapped = torch.arange(window, device=device) >= window - window // 2
    row = wrapped & last_row
    column = wrapped & last_column
    region = (2 * row[:, None] + column).flatten()
    return (region[:, None] != region) * FAR


def window_attention(qkv: Tensor, table: Tensor, index: Tensor, window: int, shift: int) -> Tensor:
    """Softmax attention of several heads in each window of the map rolled by (-shift, -shift), rolled back.

    qkv    (B, H, W, 3C)         queries, keys and values, heads side by side; H and W multiples of the window
    table  ((2w-1)^2, heads)     bias of the logits
    index  (w^2, w^2)            `relative_position_index`
    shift  0 or window // 2
    Returns (B, H, W, C). Differentiable.
    """
    channels, heads = qkv.shape[-1] // 3, table.shape[1]
    if fused.inference(qkv, table) and channels // heads <= cpu._cpu.MAX_HEAD:
        y = torch.empty(*qkv.shape[:-1], channels)
        cpu._cpu.attention(qkv.contiguous(), table.contiguous(), window, shift, FAR, y, torch.get_num_threads())
        return y
    if gpu_around.takes_window(window) and gpu_around.takes(qkv):
        return gpu_around.window_attention(qkv, table, window, shift, FAR)
    if shift:
        qkv = qkv.roll((-shift, -shift), (1, 2))
    y = _plain(qkv, table[index].permute(2, 0, 1).to(qkv.dtype), window, bool(shift))
    return y.roll((shift, shift), (1, 2)) if shift else y


def padded(heads: Tensor) -> Tensor:
    """Heads (..., width) with zeros up to a multiple of 8, without which CUDA has no fused attention. The logits are
    the same, the values get columns of zeros."""
    return F.pad(heads, (0, -heads.shape[-1] % 8))


def _plain(qkv: Tensor, bias: Tensor, side: int, shifted: bool) -> Tensor:
    """bias (heads, side^2, side^2)."""
    batch, height, width, _ = qkv.shape
    windows = qkv.view(batch, height // side, side, width // side, side, 3, bias.shape[0], -1)
    qkv = windows.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(-3, -2)  # (3, B, rows, columns, heads, side^2, C/heads)
    head = qkv.shape[-1]  # the width of one
    q, k, v = padded(qkv) if qkv.is_cuda else qkv

    def attend(rows: slice, columns: slice, bias: Tensor) -> Tensor:
        shape = q[:, rows, columns].shape
        part = [t[:, rows, columns].flatten(0, 2) for t in (q, k, v)]
        # Only with a mask of four dimensions does torch's CPU take the kernel that never holds the logits.
        y = F.scaled_dot_product_attention(part[0], part[1], part[2], bias[None], scale=head**-0.5)
        return y.view(shape)

    if shifted:
        inner, last = slice(None, -1), slice(-1, None)
        bands = []
        for rows in (inner, last):
            masks = [shift_mask(side, rows is last, end, q.device).to(q.dtype) for end in (False, True)]
            parts = [attend(rows, inner, bias + masks[0]), attend(rows, last, bias + masks[1])]
            bands.append(torch.cat(parts, dim=2))
        y = torch.cat(bands, dim=1)
    else:
        y = attend(slice(None), slice(None), bias)
    y = y[..., :head].unflatten(4, (side, side)).permute(0, 1, 4, 2, 5, 3, 6)
    return y.reshape(batch, height, width, -1)
