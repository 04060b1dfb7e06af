"""Categories drawn at random, and the path that visits one category after the other.

The Gumbel noise comes from a counter-based generator (Philox 4x32-10, Salmon et al. 2011): a key and a layer give the
same integers on every device, whatever else has been drawn.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from mambair_cli.scan import cpu, fused, gpu, library

_WORD = 2**32 - 1
Key = int | Tensor  # 64 bits; as a tensor of int64, which may lie on a device


def _multiply(a: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """Low and high words of 32-bit words (in int64) times a 32-bit word; the product wraps as it should."""
    product = a * by
    return product & _WORD, (product >> 32) & _WORD


def philox(key: Key, counter: list[Tensor]) -> list[Tensor]:
    """Four random 32-bit words for each counter of four words, all int64; the key has 64 bits."""
    low, high = key & _WORD, key >> 32 & _WORD
    c0, c1, c2, c3 = counter
    for _ in range(10):
        low0, high0 = _multiply(c0, 0xD2511F53)
        low1, high1 = _multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ low, low1, high0 ^ c3 ^ high, low0
        low, high = (low + 0x9E3779B9) & _WORD, (high + 0xBB67AE85) & _WORD
    return [c0, c1, c2, c3]


def gumbel(rows: int, tokens: int, key: Key, layer: int, device: torch.device | str = "cpu") -> Tensor:
    """Gumbel(0, 1) noise (rows, tokens), float32.

    Row r takes the counters (q, r, layer, 0), q < quads = ceil(tokens / 4); word i of counter q is the noise of token
    i * quads + q, by the upper 23 bits.
    """
    quads = -(-tokens // 4)
    q, r = torch.arange(quads, device=device), torch.arange(rows, device=device)[:, None]
    zero = torch.zeros(rows, quads, dtype=torch.int64, device=device)
    words = torch.cat(philox(key, [zero + q, zero + r, zero + layer, zero]), dim=1)[:, :tokens]
    return ((words >> 9).float() + 0.5).mul_(2**-23).log_().neg_().log_().neg_()


def noisy(logits: Tensor, key: Key, layer: int) -> Tensor:
    """Logits (B, L, tokens) plus `gumbel`.

    With one key the rows of all images are counted on; with a key for each image, every one counts from 0, so that
    its noise does not depend on what it shares a batch with.
    """
    images, length, tokens = logits.shape
    if isinstance(key, Tensor) and key.numel() == images:
        noise = [gumbel(length, tokens, own, layer, logits.device) for own in key.unbind()]
        return logits + torch.stack(noise)
    return logits + gumbel(images * length, tokens, key, layer, logits.device).view_as(logits)


def draw(logits: Tensor, key: Key, layer: int) -> Tensor:
    """The category of each pixel, (B, L) int32: the argmax of `noisy` logits (B, L, tokens)."""
    if library.tracing():
        keys = key if isinstance(key, Tensor) else torch.tensor([key])
        category: Tensor = torch.ops.mambair.categories(logits, keys, layer)
        return category
    tokens = logits.shape[-1]
    if fused.inference(logits):
        category = torch.empty(logits.shape[:-1], dtype=torch.int32)
        rows = logits.contiguous().view(-1, tokens)
        for part, one, own in _each(rows, category.view(-1), key):
            cpu._cpu.route(part, own, layer, one, torch.get_num_threads())
        return category
    if logits.is_cuda and not gpu.missing():
        kernel = importlib.import_module("mambair_cli.scan.gpu_route")
        return kernel.draw(logits.float().reshape(-1, tokens).contiguous(), key, layer).view(logits.shape[:-1])
    return noisy(logits, key, layer).argmax(-1).int()


def _each(rows: Tensor, category: Tensor, key: Key) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Rows of logits, where their categories go, and their key as a number."""
    keys = key.tolist() if isinstance(key, Tensor) else [key]
    return zip(rows.chunk(len(keys)), category.chunk(len(keys)), keys, strict=True)


def _categories(logits: Tensor, keys: Tensor, layer: int) -> Tensor:
    return draw(logits, keys, layer)


_operator = torch.library.custom_op(
    "mambair::categories", _categories, mutates_args=(), schema="(Tensor logits, Tensor keys, int layer) -> Tensor"
)
_operator.register_fake(lambda logits, keys, layer: logits.new_empty(logits.shape[:-1], dtype=torch.int32))


def by_category(category: Tensor, categories: int) -> tuple[Tensor, Tensor]:
    """(B, L) int32 -> the position visited at each step and the step that visits each position, int32.

    Ties in raster order: an unstable sort gives another path, hence another picture.
    """
    if category.device.type == "cpu" and not cpu.missing and not library.tracing():
        visits, step_of = torch.empty_like(category), torch.empty_like(category)
        cpu._cpu.visit(category.contiguous(), categories, visits, step_of, torch.get_num_threads())
        return visits, step_of
    if library.tracing():  # where no sort need be stable, and none of its keys equal another
        length = category.shape[-1]
        order = (category.long() * length + torch.arange(length, device=category.device)).argsort(dim=-1)
    else:
        order = category.argsort(dim=-1, stable=True)
    steps = counted(order.shape[1], order.device).expand_as(order)
    return order.int(), torch.empty_like(category).scatter_(1, order, steps)


@lru_cache(maxsize=16)
def _kept_count(length: int, device: torch.device) -> Tensor:
    with library.lasting():
        return torch.arange(length, dtype=torch.int32, device=device)


def counted(length: int, device: torch.device) -> Tensor:
    """0, 1, ... length - 1, int32; not to be written to."""
    if library.tracing():
        return torch.arange(length, dtype=torch.int32, device=device)
    return _kept_count(length, device)
