"""MambaIRv2: Attentive State Space Restoration (Guo et al., CVPR 2025), classic and light.

Each layer is window attention, then a scan that visits pixels of the same learned category one after another.
The category is drawn at random (Gumbel-max) at inference too, as in the published code: training saw nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambair_cli.archs import skeleton
from mambair_cli.archs.family import Architecture, Padding, Shapes, ratio
from mambair_cli.archs.layers import (
    LayerNorm,
    Linear,
    SelectiveScan,
    conv,
    depthwise,
    full_precision,
    scale_add,
    to_tokens,
)
from mambair_cli.archs.skeleton import Group, Skeleton, group_depths, skeleton_arguments

Noise = Callable[[tuple[int, ...]], Tensor]  # shape -> Gumbel(0, 1) noise, or zeros for argmax routing
FAR = -100.0  # added to the logits of pairs that the cyclic shift brought together


def relative_position_index(window: int) -> Tensor:
    """(window^2, window^2) row of the bias table for each pair of positions in a window."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    dy, dx = (p.flatten()[:, None] - p.flatten() + window - 1 for p in (y, x))
    return dy * (2 * window - 1) + dx


@lru_cache(maxsize=8)
def shift_mask(window: int, last_row: bool, last_column: bool, device: torch.device) -> Tensor:
    """(window^2, window^2): FAR between pixels of a shifted window that are no neighbours in the picture.

    Only windows of the last row or column hold such pixels: their second half came from the other side.
    """
    with torch.inference_mode(False):
        wrapped = torch.arange(window, device=device) >= window - window // 2
        row = wrapped & last_row
        column = wrapped & last_column
        region = (2 * row[:, None] + column).flatten()
        return (region[:, None] != region) * FAR


class WindowAttention(nn.Module):
    """Multi-head self-attention in windows with a relative position bias."""

    def __init__(self, width: int, window: int, heads: int) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.normal_(self.relative_position_bias_table, std=0.02)
        self.proj = Linear(width, width)

    def forward(self, qkv: Tensor, index: Tensor, shift: int) -> Tensor:
        """qkv (B, H, W, 3C), H and W multiples of the window; index: `relative_position_index`. (B, H, W, C)."""
        if shift:
            qkv = qkv.roll((-shift, -shift), (1, 2))
        batch, height, width, _ = qkv.shape
        side = self.window
        windows = qkv.view(batch, height // side, side, width // side, side, 3, self.heads, -1)
        q, k, v = windows.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(
            -3, -2
        )  # (B, rows, columns, heads, side^2, C/heads)
        bias = self.relative_position_bias_table[index].permute(2, 0, 1).to(q.dtype)

        def attend(rows: slice, columns: slice, bias: Tensor) -> Tensor:
            shape = q[:, rows, columns].shape
            part = [t[:, rows, columns].flatten(0, 2) for t in (q, k, v)]
            # Only with a mask of four dimensions does torch's CPU take the kernel that never holds the logits.
            return F.scaled_dot_product_attention(part[0], part[1], part[2], bias[None]).view(shape)

        if shift:
            inner, last = slice(None, -1), slice(-1, None)
            bands = []
            for rows in (inner, last):
                masks = [shift_mask(side, rows is last, end, q.device).to(q.dtype) for end in (False, True)]
                parts = [attend(rows, inner, bias + masks[0]), attend(rows, last, bias + masks[1])]
                bands.append(torch.cat(parts, dim=2))
            y = torch.cat(bands, dim=1)
        else:
            y = attend(slice(None), slice(None), bias)
        y = y.unflatten(4, (side, side)).permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, -1)
        y = self.proj(y)
        return y.roll((shift, shift), (1, 2)) if shift else y


class ASSM(nn.Module):
    """Attentive state space module: scan the pixels category by category, with the category prompting the output.

    (B, H, W, C) -> the same. Categories are rows of a low-rank table (embeddingB @ embeddingA).
    """

    def __init__(self, width: int, d_state: int, num_tokens: int, inner_rank: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.in_proj = nn.Sequential(nn.Conv2d(width, hidden, 1))
        self.CPE = nn.Sequential(depthwise(hidden, 3))
        self.selectiveScan = SelectiveScan(1, hidden, d_state, dt_rank=math.ceil(hidden / 16))
        self.out_norm = LayerNorm(hidden)
        self.out_proj = Linear(hidden, width)
        self.embeddingB = nn.Embedding(num_tokens, inner_rank)
        nn.init.uniform_(self.embeddingB.weight, -1 / num_tokens, 1 / num_tokens)
        self.route = nn.Sequential(Linear(width, width // 3), nn.GELU(), Linear(width // 3, num_tokens))

    def forward(self, x: Tensor, embedding_a: Tensor, noise: Noise) -> Tensor:
        logits = full_precision(self.route, x.flatten(1, 2))  # a route that flips reorders the whole scan
        logits = logits + noise(tuple(logits.shape)).to(logits.device)
        category = logits.argmax(-1)  # (B, L)
        table = self.embeddingB.weight @ embedding_a
        if torch.is_grad_enabled() and logits.requires_grad:
            prompt = straight_through(logits, category).to(table.dtype) @ table
        else:
            prompt = table[category]

        # Ties in raster order: an unstable sort gives another path, hence another picture.
        visits = category.argsort(dim=-1, stable=True)
        steps = torch.arange(visits.shape[1], device=visits.device).expand_as(visits)
        step_of_pixel = torch.empty_like(visits).scatter_(1, visits, steps)
        # As published, the prompt is not sorted with the pixels: step t is prompted by raster pixel t.
        prompt = prompt.gather(1, step_of_pixel.unsqueeze(-1).expand_as(prompt))

        v = conv(x, self.in_proj)
        v = (v * torch.sigmoid(conv(v, self.CPE))).flatten(1, 2)
        proj = self.selectiveScan.project(v)  # (B, L, 1, R + 2N)
        proj[..., 0, -prompt.shape[-1] :] += prompt
        y = self.selectiveScan.scan(v, proj, visits.unsqueeze(1).int())
        return self.out_proj(self.out_norm(y)).view_as(x)


def straight_through(logits: Tensor, category: Tensor) -> Tensor:
    """One-hot categories whose gradient is that of the softmax (Jang et al. 2017)."""
    soft = logits.softmax(-1)
    return torch.zeros_like(soft).scatter_(-1, category.unsqueeze(-1), 1.0) + (soft - soft.detach())


class ConvFFN(nn.Module):
    """Feed-forward network with a depthwise convolution beside the identity."""

    def __init__(self, width: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.dwconv = nn.ModuleDict({"depthwise_conv": nn.Sequential(depthwise(hidden, kernel), nn.GELU())})
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.fc1(x))
        return self.fc2(x + conv(x, self.dwconv["depthwise_conv"]))


class GatedMlp(nn.Module):
    """The light models' feed-forward network: one half gates the other through a depthwise convolution."""

    def __init__(self, width: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        half = hidden // 2
        self.sg = nn.ModuleDict({"norm": LayerNorm(half), "conv": depthwise(half, kernel)})
        self.fc2 = Linear(half, width)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.gelu(self.fc1(x)).chunk(2, dim=-1)
        return self.fc2(a * conv(self.sg["norm"](b), self.sg["conv"]))


class Layer(nn.Module):
    """Window attention (shifted in every second layer) and ASSM, each followed by a feed-forward network."""

    def __init__(
        self,
        width: int,
        window: int,
        heads: int,
        shift: int,
        d_state: int,
        num_tokens: int,
        inner_rank: int,
        mlp_ratio: float,
        ffn: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.shift = shift
        self.scale1 = nn.Parameter(torch.full((width,), 1e-4))
        self.scale2 = nn.Parameter(torch.full((width,), 1e-4))
        self.norm1, self.norm2, self.norm3, self.norm4 = (LayerNorm(width) for _ in range(4))
        self.wqkv = Linear(width, 3 * width)
        self.win_mhsa = WindowAttention(width, window, heads)
        self.assm = ASSM(width, d_state, num_tokens, inner_rank, mlp_ratio)
        self.convffn1, self.convffn2 = ffn(), ffn()
        self.embeddingA = nn.Embedding(inner_rank, d_state)
        nn.init.uniform_(self.embeddingA.weight, -1 / inner_rank, 1 / inner_rank)

    def forward(self, x: Tensor, index: Tensor, noise: Noise) -> Tensor:
        y = x + self.win_mhsa(self.wqkv(self.norm1(x)), index, self.shift)
        y = y + self.convffn1(self.norm2(y))
        x = scale_add(x, self.scale1, y)
        y = x + self.assm(self.norm3(x), self.embeddingA.weight, noise)
        y = y + self.convffn2(self.norm4(y))
        return scale_add(x, self.scale2, y)


def mirrored(length: int, multiple: int, device: torch.device) -> Tensor:
    """Indices that extend 0..length-1 to a multiple by mirroring, edge included, as often as it takes."""
    padded = -(-length // multiple) * multiple
    position = torch.arange(padded, device=device) % (2 * length)
    return torch.minimum(position, 2 * length - 1 - position)


class MambaIRv2(Skeleton):
    """Super-resolution, Gaussian denoising and JPEG restoration. Any size from 1x1: padded inside by mirroring.

    `routing`: "gumbel", categories drawn at random, or "argmax". `generator`: the CPU generator of the noise (None:
    torch's own); the noise is always drawn on the CPU, so that a seed means the same on every device.
    """

    BUFFER = "relative_position_index_SA"  # published files carry it; a file without it loads as well
    FFN: ClassVar[type[ConvFFN] | type[GatedMlp]] = ConvFFN

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dim: int = 48,
        depths: Sequence[int] = (6, 6, 6, 6),
        num_heads: Sequence[int] = (4, 4, 4, 4),
        window_size: int = 16,
        d_state: int = 8,
        inner_rank: int = 32,
        num_tokens: int = 64,
        convffn_kernel_size: int = 5,
        mlp_ratio: float = 2.0,
        upscale: int = 1,
        upsampler: str = "",
    ) -> None:
        if len(depths) != len(num_heads):
            raise ValueError(f"depths {list(depths)} and num_heads {list(num_heads)} differ in length")

        def ffn() -> nn.Module:
            return self.FFN(embed_dim, int(embed_dim * mlp_ratio), convffn_kernel_size)

        scan = (d_state, num_tokens, inner_rank, mlp_ratio)
        groups = []
        for depth, heads in zip(depths, num_heads, strict=True):
            shifts = [0 if i % 2 == 0 else window_size // 2 for i in range(depth)]
            layers = [Layer(embed_dim, window_size, heads, shift, *scan, ffn) for shift in shifts]
            groups.append(Group(embed_dim, layers, key="layers"))
        super().__init__(groups, in_chans, embed_dim, upscale, upsampler)
        self.register_buffer(self.BUFFER, relative_position_index(window_size))
        self.window_size = window_size
        self.routing = "gumbel"
        self.generator: torch.Generator | None = None

    def load_state_dict(  # type: ignore[override]
        self, state_dict: dict[str, Tensor], strict: bool = True, assign: bool = False
    ) -> object:
        """As `nn.Module`'s; a state dict without the position index, which holds nothing learned, is complete."""
        state_dict = {self.BUFFER: getattr(self, self.BUFFER), **state_dict}
        return super().load_state_dict(state_dict, strict, assign)

    def gumbel(self, shape: tuple[int, ...]) -> Tensor:
        """Gumbel(0, 1) noise (B, L, num_tokens), float32 on the CPU.

        From uniform numbers: `exponential_` is 8 times slower and, with MKL, another stream than without.
        """
        return torch.rand(shape, generator=self.generator).log_().neg_().log_().neg_()

    def noise(self, shape: tuple[int, ...]) -> Tensor:
        if self.routing == "gumbel":
            return self.gumbel(shape)
        if self.routing == "argmax":
            return torch.zeros(())
        raise ValueError(f'routing is "gumbel" or "argmax", not {self.routing!r}')

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, C, H*upscale, W*upscale)."""
        height, width = x.shape[-2:]
        if height % self.window_size or width % self.window_size:
            rows, columns = (mirrored(side, self.window_size, x.device) for side in (height, width))
            x = x.index_select(2, rows).index_select(3, columns)
        return super().forward(x)[..., : height * self.upscale, : width * self.upscale]

    def body(self, shallow: Tensor) -> Tensor:
        x = self.patch_embed["norm"](to_tokens(shallow))
        index = getattr(self, self.BUFFER)
        for group in self.layers:
            x = group(x, index, self.noise)
        return x


class MambaIRv2Light(MambaIRv2):
    """The light variant: gated feed-forward networks."""

    FFN = GatedMlp


FIRST_LAYER = "layers.0.residual_group.layers.0."
KERNEL = FIRST_LAYER + "convffn1.dwconv.depthwise_conv.0.weight"
LIGHT_KERNEL = FIRST_LAYER + "convffn1.sg.conv.weight"
LARGEST_WINDOW = 64  # the index of positions has its fourth power of entries


def _arguments(kernel: str, shapes: Shapes) -> dict[str, object]:
    table = "residual_group.layers.0.win_mhsa.relative_position_bias_table"
    window = (math.isqrt(shapes[f"layers.0.{table}"][0]) + 1) // 2
    if window > LARGEST_WINDOW:
        raise ValueError(f"attention in windows of {window}x{window} pixels")
    num_tokens, inner_rank = shapes[FIRST_LAYER + "assm.embeddingB.weight"]
    hidden, embed_dim = shapes[FIRST_LAYER + "convffn1.fc1.weight"]
    depths = group_depths(shapes, "layers")
    return {
        **skeleton_arguments(shapes),
        "depths": depths,
        "num_heads": [shapes[f"layers.{group}.{table}"][1] for group in range(len(depths))],
        "window_size": window,
        "d_state": shapes[FIRST_LAYER + "assm.selectiveScan.A_logs"][1],
        "inner_rank": inner_rank,
        "num_tokens": num_tokens,
        "convffn_kernel_size": shapes[kernel][-1],
        "mlp_ratio": ratio([(embed_dim, hidden)]),
    }


MAMBAIRV2 = Architecture(
    name="mambairv2",
    builder=MambaIRv2,
    marks=(KERNEL,),
    hyperparameters=partial(_arguments, KERNEL),
    bytes_per_channel=65,
    computed=frozenset({MambaIRv2.BUFFER}),
    padding=Padding(minimum=8),
    paper_tiles=(200, 10),
    random=True,
    without_effect=skeleton.WITHOUT_EFFECT,
    only_value={**skeleton.ONLY_VALUE, "qkv_bias": True},
)
LIGHT = replace(
    MAMBAIRV2,
    name="mambairv2_light",
    builder=MambaIRv2Light,
    marks=(LIGHT_KERNEL,),
    hyperparameters=partial(_arguments, LIGHT_KERNEL),
    bytes_per_channel=100,
)
