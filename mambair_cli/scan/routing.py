"""Categories drawn at random, and the path that visits one category after the other.

The Gumbel noise comes from a counter-based generator (Philox 4x32-10, Salmon et al. 2011): a key and a layer give the
same integers on every device, whatever else has been drawn.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from mambair_cli.scan import cpu, fused, gpu, standard

_WORD = 2**32 - 1


def _multiply(a: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """Low and high words of 32-bit words (in int64) times a 32-bit word; the product wraps as it should."""
    product = a * by
    return product & _WORD, (product >> 32) & _WORD


def philox(key: int, counter: list[Tensor]) -> list[Tensor]:
    """Four random 32-bit words for each counter of four words, all int64; the key has 64 bits."""
    low, high = key & _WORD, key >> 32 & _WORD
    c0, c1, c2, c3 = counter
    for _ in range(10):
        low0, high0 = _multiply(c0, 0xD2511F53)
        low1, high1 = _multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ low, low1, high0 ^ c3 ^ high, low0
        low, high = (low + 0x9E3779B9) & _WORD, (high + 0xBB67AE85) & _WORD
    return [c0, c1, c2, c3]


def gumbel(rows: int, tokens: int, key: int, layer: int, device: torch.device | str = "cpu") -> Tensor:
    """Gumbel(0, 1) noise (rows, tokens), float32.

    Row r takes the counters (q, r, layer, 0), q < quads = ceil(tokens / 4); word i of counter q is the noise of token
    i * quads + q, by the upper 23 bits.
    """
    quads = -(-tokens // 4)
    q, r = torch.arange(quads, device=device), torch.arange(rows, device=device)[:, None]
    zero = torch.zeros(rows, quads, dtype=torch.int64, device=device)
    words = torch.cat(philox(key, [zero + q, zero + r, zero + layer, zero]), dim=1)[:, :tokens]
    return ((words >> 9).float() + 0.5).mul_(2**-23).log_().neg_().log_().neg_()


def draw(logits: Tensor, key: int, layer: int) -> Tensor:
    """The category of every row of logits (..., tokens): argmax of them plus `gumbel`; int32."""
    tokens = logits.shape[-1]
    if fused.inference(logits):
        category = torch.empty(logits.shape[:-1], dtype=torch.int32)
        rows = logits.reshape(-1, tokens).contiguous()
        cpu._cpu.route(rows, key, layer, category.view(-1), torch.get_num_threads())
        return category
    if logits.is_cuda and not gpu.missing():
        kernel = importlib.import_module("mambair_cli.scan.gpu_route")
        return kernel.draw(logits.float().reshape(-1, tokens).contiguous(), key, layer).view(logits.shape[:-1])
    noise = gumbel(logits.numel() // tokens, tokens, key, layer, logits.device)
    return (logits + noise.view_as(logits)).argmax(-1).int()


def by_category(category: Tensor, categories: int) -> tuple[Tensor, Tensor]:
    """(B, L) int32 -> the position visited at each step and the step that visits each position, int32.

    Ties in raster order: an unstable sort gives another path, hence another picture.
    """
    if category.device.type == "cpu" and not cpu.missing and not standard.active():
        visits, step_of = torch.empty_like(category), torch.empty_like(category)
        cpu._cpu.visit(category.contiguous(), categories, visits, step_of, torch.get_num_threads())
        return visits, step_of
    if standard.active():  # where no sort need be stable, and none of its keys equal another
        length = category.shape[-1]
        order = (category.long() * length + torch.arange(length, device=category.device)).argsort(dim=-1)
    else:
        order = category.argsort(dim=-1, stable=True)
    steps = torch.arange(order.shape[1], dtype=torch.int32, device=order.device).expand_as(order)
    return order.int(), torch.empty_like(category).scatter_(1, order, steps)
