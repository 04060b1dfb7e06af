"""VmambaIR: Visual State Space Model for Image Restoration (Shi et al., 2024): deraining, x4 and real x4 variants.

Its omni-selective scan crosses the map in four directions and then the channels in two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambair_cli.archs import unet
from mambair_cli.archs.family import Architecture, Shapes, ratio
from mambair_cli.archs.layers import (
    SelectiveScan,
    conv,
    cross_scan,
    depthwise,
    dwconv,
    full_precision,
    linear_halves,
    run_scan,
    scan_parameters,
)
from mambair_cli.archs.unet import Norm, UNet, unet_arguments
from mambair_cli.scan import orders as paths
from mambair_cli.scan.products import project

D_STATE = 16
TAIL_SCALE = 4


@dataclass(frozen=True)
class ChannelScan:
    """How a variant scans the channels: features lifted to `lift` per channel (None: not lifted), `dt_rank`
    (None: width / 16), and what the result does to the features, `multiply` (y * c + y) or add (y + c)."""

    lift: int | None
    dt_rank: int | None
    multiply: bool


class OmniScan(SelectiveScan):
    """The OSS module: a gated scan of the map, scaled or shifted by a scan over the channels' means."""

    def __init__(self, width: int, channel: ChannelScan) -> None:
        rank = math.ceil(width / 16)
        super().__init__(4, width, D_STATE, rank)
        self.multiply = channel.multiply
        features = channel.lift or 1
        parameters = scan_parameters(2, features, D_STATE, channel.dt_rank or rank)
        self.xc_proj_weight, self.dtc_projs_weight, self.dtc_projs_bias, self.Ac_logs, self.Dsc = parameters
        self.conv_cin = nn.Conv2d(1, features, 1) if channel.lift else None
        self.conv_cout = nn.Conv2d(features, 1, 1) if channel.lift else None
        self.channel_norm = Norm(width)
        self.in_conv = nn.Conv2d(width, 2 * width, 1)
        self.conv2d = depthwise(width, 3)
        self.out_norm = Norm(width)
        self.out_conv = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, z = linear_halves(x, self.in_conv.weight.flatten(1), self.in_conv.bias)
        y = cross_scan(dwconv(x, self.conv2d, silu=True), self, z, self.out_norm.body)
        c = self.scan_channels(y.mean((1, 2)))[:, None, None]
        return conv(torch.addcmul(y, y, c) if self.multiply else y + c, self.out_conv)

    def scan_channels(self, means: Tensor) -> Tensor:
        """(B, C) -> (B, C): the channels as a sequence, forward and reversed."""
        x = means.unsqueeze(-1)  # (B, L = C, features)
        if self.conv_cin is not None:
            x = F.linear(x, self.conv_cin.weight.flatten(1), self.conv_cin.bias)
        weights = (self.dtc_projs_weight, self.dtc_projs_bias, self.Ac_logs, self.Dsc)
        y = run_scan(x, project(x, self.xc_proj_weight), *weights, paths.channel(x.shape[1], x.device))
        if self.conv_cout is not None:
            y = F.linear(y, self.conv_cout.weight.flatten(1), self.conv_cout.bias)
        return self.channel_norm(y.squeeze(-1))


class GatedFFN(nn.Module):
    """EFFN: widen, convolve depthwise, let one half gate the other."""

    def __init__(self, width: int, factor: float) -> None:
        super().__init__()
        hidden = int(width * factor)
        self.project_in = nn.Conv2d(width, 2 * hidden, 1, bias=False)
        self.dwconv = depthwise(2 * hidden, 3, bias=False)
        self.project_out = nn.Conv2d(hidden, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a, b = conv(conv(x, self.project_in), self.dwconv).chunk(2, dim=-1)
        return conv(F.gelu(a) * b, self.project_out)


class Block(nn.Module):
    def __init__(self, width: int, factor: float, channel: ChannelScan) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(width), Norm(width)
        self.attn = OmniScan(width, channel)
        self.ffn = GatedFFN(width, factor)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class VmambaIR(UNet):
    """The U-Net with omni-selective scans. Height and width are multiples of 8.

    `upsample`: x4 through two pixel shuffles on top of the nearest-neighbour enlargement; otherwise same size.
    """

    def __init__(
        self,
        channel: ChannelScan,
        upsample: bool,
        *,
        inp_channels: int = 3,
        out_channels: int = 3,
        dim: int = 48,
        num_blocks: Sequence[int] = (4, 6, 6, 8),
        num_refinement_blocks: int = 4,
        ffn_expansion_factor: float = 2.66,
    ) -> None:
        def block(width: int) -> nn.Module:
            return Block(width, ffn_expansion_factor, channel)

        super().__init__(block, inp_channels, dim, num_blocks, num_refinement_blocks)
        if upsample:
            steps = [m for _ in range(2) for m in (nn.Conv2d(2 * dim, 8 * dim, 3, padding=1), nn.PixelShuffle(2))]
            self.tail = nn.Sequential(nn.Sequential(*steps), nn.Conv2d(2 * dim, out_channels, 3, padding=1))
        else:
            self.output = nn.Conv2d(2 * dim, out_channels, 3, padding=1, bias=False)
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> the same shape, or four times as high and wide."""
        if self.upsample:
            enlarge, to_pixels = self.tail
            y = full_precision(to_pixels, enlarge(self.features(x)))
            return y + F.interpolate(x, scale_factor=TAIL_SCALE, mode="nearest")
        return full_precision(self.output, self.features(x)) + x


FIRST_SCAN = "encoder_level1.0.attn."
CHANNELS = FIRST_SCAN + "xc_proj_weight"
LIFT = FIRST_SCAN + "conv_cin.weight"


def _arguments(last: str, shapes: Shapes) -> dict[str, object]:
    stages = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
    inner = [shapes[f"{stage}.0.ffn.project_out.weight"][:2] for stage in stages]
    factor = ratio((width, hidden) for width, hidden in inner)
    return {**unet_arguments(shapes, last), "ffn_expansion_factor": factor}


DERAIN = Architecture(
    name="vmambair_derain",
    builder=partial(VmambaIR, ChannelScan(lift=4, dt_rank=6, multiply=False), False),
    marks=(CHANNELS, "output.weight"),
    hyperparameters=partial(_arguments, "output.weight"),
    bytes_per_channel=180,
    width="dim",
    channels="inp_channels",
    scale=1,
    padding=unet.PADDING,
    without_effect=unet.WITHOUT_EFFECT,
    only_value=unet.ONLY_VALUE,
)
SISR = replace(
    DERAIN,
    name="vmambair_sisr",
    builder=partial(VmambaIR, ChannelScan(lift=4, dt_rank=6, multiply=True), True),
    marks=(LIFT, "tail.1.weight"),
    hyperparameters=partial(_arguments, "tail.1.weight"),
    bytes_per_channel=340,
    scale=TAIL_SCALE,
)
REALSR = replace(
    SISR,
    name="vmambair_realsr",
    builder=partial(VmambaIR, ChannelScan(lift=None, dt_rank=None, multiply=True), True),
    marks=(CHANNELS, "tail.1.weight"),
    unmarked=(LIFT,),
)
