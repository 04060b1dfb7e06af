"""MambaIR: A Simple Baseline for Image Restoration with State-Space Model (Guo et al., ECCV 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mambair_cli.archs import skeleton, unet
from mambair_cli.archs.family import Architecture, Shapes, ratio
from mambair_cli.archs.layers import (
    CAB,
    SS2D,
    ChannelAttention,
    LayerNorm,
    depthwise,
    dwconv,
    full_precision,
    pointwise,
)
from mambair_cli.archs.skeleton import Group, Skeleton, group_depths, skeleton_arguments
from mambair_cli.archs.unet import UNet, unet_arguments


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

    def residual(self, x: Tensor, norm: LayerNorm, scale: Tensor) -> Tensor:
        """scale * x + CAB(norm(x))"""
        shrink, near, _, grow, far, attention = cast(Sequence[nn.Conv2d], self.cab)
        y = pointwise(dwconv(pointwise(x, shrink, norm), near, gelu=True), grow)
        return cast(ChannelAttention, attention).residual(dwconv(y, far), x, scale)


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
        x = self.self_attention(x, self.ln_1, scaled=(self.skip_scale, x))
        return self.conv_blk.residual(x, self.ln_2, self.skip_scale2)


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
        light = upsampler in ("pixelshuffledirect", "resize+conv-light")
        groups = [
            Group(embed_dim, [Block(embed_dim, d_state, mlp_ratio, light) for _ in range(depth)]) for depth in depths
        ]
        super().__init__(groups, in_chans, embed_dim, upscale, upsampler)


class MambaIRUNet(UNet):
    """MambaIR's network for real camera noise. Height and width are multiples of 8."""

    def __init__(
        self,
        *,
        inp_channels: int = 3,
        out_channels: int = 3,
        dim: int = 48,
        num_blocks: Sequence[int] = (4, 6, 6, 8),
        num_refinement_blocks: int = 4,
        mlp_ratio: float = 2.0,
        d_state: int = 16,
    ) -> None:
        def block(width: int) -> nn.Module:
            return Block(width, d_state, mlp_ratio)

        super().__init__(block, inp_channels, dim, num_blocks, num_refinement_blocks)
        self.output = nn.Conv2d(2 * dim, out_channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> the same shape."""
        return full_precision(self.output, self.features(x)) + x


FIRST_BLOCK = "layers.0.residual_group.blocks.0."
FIRST_UNET_BLOCK = "encoder_level1.0."


def _mambair_arguments(shapes: Shapes) -> dict[str, object]:
    rows, d_state = shapes[FIRST_BLOCK + "self_attention.A_logs"]
    mlp_ratio = ratio([(shapes["conv_first.weight"][0], rows // 4)])
    depths = group_depths(shapes)
    return {**skeleton_arguments(shapes), "depths": depths, "d_state": d_state, "mlp_ratio": mlp_ratio}


def _unet_arguments(shapes: Shapes) -> dict[str, object]:
    inner = [shapes[f"{stage}.0.self_attention.out_proj.weight"] for stage in ("encoder_level1", "latent")]
    d_state = shapes[FIRST_UNET_BLOCK + "self_attention.A_logs"][1]
    return {**unet_arguments(shapes, "output.weight"), "mlp_ratio": ratio(inner), "d_state": d_state}


def _older_release(shapes: Shapes) -> str:
    if FIRST_BLOCK + "conv_blk.cab.3.attention.1.weight" in shapes and "conv_last.weight" not in shapes:
        return "These may be MambaIR-light weights from before November 2024, since replaced by their authors."
    return ""


MAMBAIR = Architecture(
    name="mambair",
    builder=MambaIR,
    marks=(FIRST_BLOCK + "conv_blk.cab.0.weight",),
    hyperparameters=_mambair_arguments,
    bytes_per_channel=65,
    exports=True,
    paper_tiles=(200, 10),
    without_effect=skeleton.WITHOUT_EFFECT,
    only_value=skeleton.ONLY_VALUE,
    hint=_older_release,
)
UNET = Architecture(
    name="mambair_unet",
    builder=MambaIRUNet,
    marks=(FIRST_UNET_BLOCK + "conv_blk.cab.0.weight",),
    hyperparameters=_unet_arguments,
    bytes_per_channel=150,
    exports=True,
    width="dim",
    channels="inp_channels",
    scale=1,
    padding=unet.PADDING,
    without_effect=unet.WITHOUT_EFFECT,
    only_value=unet.ONLY_VALUE,
)
