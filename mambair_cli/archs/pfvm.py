"""PFVM: Parameter-Free Vision Mamba (an entry of the NTIRE 2025 efficient super-resolution challenge, team 34).

MambaIR's light frame and scan, with an attention that has no parameters of its own (SPAN, Wan et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambair_cli.archs import skeleton
from mambair_cli.archs.family import Architecture, Shapes, ratio
from mambair_cli.archs.layers import SS2D, LayerNorm, conv, scale_add
from mambair_cli.archs.skeleton import Group, Skeleton, group_depths, skeleton_arguments


class Block(nn.Module):
    """Gated scan, then attention by a convolution's own sign and size; at the end the input comes in once more."""

    def __init__(self, width: int, d_state: int, mlp_ratio: float) -> None:
        super().__init__()
        self.skip_scale = nn.Parameter(torch.ones(width))
        self.skip_scale2 = nn.Parameter(torch.ones(width))
        self.skip_scale3 = nn.Parameter(torch.ones(width))
        self.ln_1 = LayerNorm(width)
        self.self_attention = SS2D(width, int(mlp_ratio * width), d_state)
        self.ln_2 = LayerNorm(width)
        self.conv_blk = nn.ModuleDict({"conv3x3": nn.Conv2d(width, width, 3, padding=1)})

    def forward(self, x: Tensor) -> Tensor:
        y = scale_add(x, self.skip_scale, self.self_attention(self.ln_1(x)))
        n = self.ln_2(y)
        o = F.silu(conv(n, self.conv_blk["conv3x3"]))
        y = scale_add(y, self.skip_scale2, (o + n) * (torch.sigmoid(o) - 0.5))
        return scale_add(x, self.skip_scale3, y)


class ParameterFreeVisionMamba(Skeleton):
    """Super-resolution. Any size from 1x1 works."""

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dim: int = 60,
        depths: Sequence[int] = (4,),
        d_state: int = 16,
        mlp_ratio: float = 2.0,
        upscale: int = 4,
    ) -> None:
        groups = [Group(embed_dim, [Block(embed_dim, d_state, mlp_ratio) for _ in range(depth)]) for depth in depths]
        super().__init__(groups, in_chans, embed_dim, upscale, "pixelshuffledirect")


FIRST_BLOCK = "layers.0.residual_group.blocks.0."


def _arguments(shapes: Shapes) -> dict[str, object]:
    rows, d_state = shapes[FIRST_BLOCK + "self_attention.A_logs"]
    arguments = skeleton_arguments(shapes)
    if arguments.pop("upsampler") != "pixelshuffledirect":
        raise ValueError("another head than pixelshuffledirect")
    mlp_ratio = ratio([(shapes["conv_first.weight"][0], rows // 4)])
    return {**arguments, "depths": group_depths(shapes), "d_state": d_state, "mlp_ratio": mlp_ratio}


RECORD = Architecture(
    name="pfvm",
    builder=ParameterFreeVisionMamba,
    marks=(FIRST_BLOCK + "skip_scale3", FIRST_BLOCK + "conv_blk.conv3x3.weight"),
    hyperparameters=_arguments,
    bytes_per_channel=110,
    without_effect=skeleton.WITHOUT_EFFECT,
    only_value={**skeleton.ONLY_VALUE, "upsampler": "pixelshuffledirect"},
)
