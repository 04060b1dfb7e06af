"""MambaIR: A Simple Baseline for Image Restoration with State-Space Model (Guo et al., ECCV 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambair_cli.archs.layers import (
    CAB,
    SS2D,
    ChannelAttention,
    Group,
    LayerNorm,
    Skeleton,
    conv,
    depthwise,
    dwconv,
    pointwise,
    scale_add,
)


class LightCAB(nn.Module):
    """The light models' CAB: separable convolutions, the second one dilated."""

    def __init__(self, width: int, compress: int = 2, squeeze: int = 30) -> None:
        super().__init__()
        inner = width // compress
        self.cab = nn.Sequential(
            nn.Conv2d(width, inner, 1),
            depthwise(inner, 3),
            nn.GELU(),
            nn.Conv2d(inner, width, 1),
            nn.Conv2d(width, width, 3, padding=2, dilation=2, groups=width),
            ChannelAttention(width, squeeze),
        )

    def forward(self, x: Tensor) -> Tensor:
        shrink, near, _, grow, far, attention = cast(Sequence[nn.Conv2d], self.cab)
        y = pointwise(F.gelu(dwconv(pointwise(x, shrink), near)), grow)
        return conv(dwconv(y, far), attention)


class Block(nn.Module):
    """Gated scan, then channel attention, each with a scaled residual; (B, H, W, C) -> the same."""

    def __init__(self, width: int, d_state: int, mlp_ratio: float, light: bool = False) -> None:
        super().__init__()
        self.skip_scale = nn.Parameter(torch.ones(width))
        self.skip_scale2 = nn.Parameter(torch.ones(width))
        self.ln_1 = LayerNorm(width)
        self.self_attention = SS2D(width, int(mlp_ratio * width), d_state)
        self.ln_2 = LayerNorm(width)
        self.conv_blk = LightCAB(width) if light else CAB(width)

    def forward(self, x: Tensor) -> Tensor:
        x = scale_add(x, self.skip_scale, self.self_attention(self.ln_1(x)))
        return scale_add(x, self.skip_scale2, self.conv_blk(self.ln_2(x)))


class MambaIR(Skeleton):
    """Super-resolution, Gaussian denoising and JPEG restoration. Any size from 1x1 works.

    The light blocks belong to the light heads: the published code decides by `upsampler="pixelshuffledirect"` alone.
    """

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (6, 6, 6, 6),
        d_state: int = 16,
        mlp_ratio: float = 2.0,
        upscale: int = 2,
        upsampler: str = "",
    ) -> None:
        light = upsampler in ("pixelshuffledirect", "nearest+conv-light")
        groups = [
            Group(embed_dim, [Block(embed_dim, d_state, mlp_ratio, light) for _ in range(depth)]) for depth in depths
        ]
        super().__init__(groups, in_chans, embed_dim, upscale, upsampler)
