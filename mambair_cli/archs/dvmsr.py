"""DVMSR: Distillated Vision Mamba for Efficient Super-Resolution (Lei et al., CVPR workshops 2024).

Plain Mamba blocks (Gu & Dao 2023) on the pixels in raster order, one direction, no residual around a block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambair_cli.archs import skeleton
from mambair_cli.archs.family import Architecture, Shapes
from mambair_cli.archs.layers import LayerNorm, Linear, linear_halves, run_scan, scan_parameters
from mambair_cli.archs.skeleton import Group, Skeleton, group_depths, skeleton_arguments
from mambair_cli.scan import causal
from mambair_cli.scan import orders as paths

D_STATE = 16
EXPANSION = 2  # of the width inside the mixer
TAPS = 4  # of the causal convolution


class Mixer(nn.Module):
    """The Mamba block on the raster sequence, (B, H, W, C) -> the same; names as in `mamba_ssm`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner, rank = EXPANSION * width, math.ceil(width / 16)
        self.in_proj = Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, TAPS, groups=inner)
        self.x_proj = Linear(inner, rank + 2 * D_STATE, bias=False)
        self.out_proj = Linear(inner, width, bias=False)
        _, dt_weight, dt_bias, self.A_log, self.D = scan_parameters(1, inner, D_STATE, rank)
        # No nn.Linear: its initialisation must not be that of other linear layers.
        self.dt_proj = nn.ParameterDict({"weight": dt_weight[0], "bias": dt_bias[0]})

    def forward(self, x: Tensor) -> Tensor:
        u, z = linear_halves(x, self.in_proj.weight)
        assert self.conv1d.bias is not None
        u = causal.causal_conv(u.flatten(1, 2), self.conv1d.weight, self.conv1d.bias)
        dt_weight, dt_bias = self.dt_proj["weight"][None], self.dt_proj["bias"][None]
        order = paths.raster(u.shape[1], u.device)
        y = run_scan(u, self.x_proj(u)[:, :, None], dt_weight, dt_bias, self.A_log, self.D, order)
        gate, y = F.silu(z), y.view_as(z)
        return self.out_proj(gate * y if torch.is_grad_enabled() else gate.mul_(y))


class Block(nn.Module):
    """The mixer after a norm. The published layer adds nothing back: the group does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm(width)
        self.mixer = Mixer(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(self.norm(x))


class DVMSR(Skeleton):
    """Super-resolution. Any size from 1x1 works."""

    LAST_NORM = "norm_f"

    def __init__(
        self,
        *,
        channels: int = 3,
        embed_dim: int = 60,
        depths: Sequence[int] = (2, 2, 2, 2),
        upscale: int = 4,
        upsampler: str = "pixelshuffledirect",
    ) -> None:
        groups = [Group(embed_dim, [Block(embed_dim) for _ in range(depth)]) for depth in depths]
        super().__init__(groups, channels, embed_dim, upscale, upsampler)


FIRST_BLOCK = "layers.0.residual_group.blocks.0."


def _arguments(shapes: Shapes) -> dict[str, object]:
    arguments = {**skeleton_arguments(shapes), "depths": group_depths(shapes)}
    return {"channels": arguments.pop("in_chans"), **arguments}


RECORD = Architecture(
    name="dvmsr",
    builder=DVMSR,
    marks=(FIRST_BLOCK + "mixer.A_log",),
    hyperparameters=_arguments,
    bytes_per_channel=100,
    channels="channels",
    without_effect=skeleton.WITHOUT_EFFECT,
    only_value=skeleton.ONLY_VALUE,
)
