"""The outer frame of most networks for enlarging: first convolution, groups of blocks, long skip, upsampling head."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambair_cli.archs.family import Shapes, count
from mambair_cli.archs.layers import LayerNorm, conv, full_precision, init_linear, to_map, to_tokens

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K; grey input has none
# Published arguments of such networks: those that change nothing, and those of which no model uses another value.
WITHOUT_EFFECT = frozenset({"drop_path_rate", "drop_rate", "img_size", "norm_layer", "patch_size", "use_checkpoint"})
ONLY_VALUE = {"ape": False, "img_range": 1, "patch_norm": True, "resi_connection": "1conv"}


class Group(nn.Module):
    """Blocks, a 3x3 convolution, and a residual around both. `key` is the checkpoints' name for the blocks."""

    def __init__(self, width: int, blocks: Sequence[nn.Module], key: str = "blocks") -> None:
        super().__init__()
        self.key = key
        self.residual_group = nn.ModuleDict({key: nn.ModuleList(blocks)})
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, *context: object) -> Tensor:
        y = x
        for block in cast(nn.ModuleList, self.residual_group[self.key]):
            y = block(y, *context)
        return x + conv(y, self.conv)


def pixel_shuffle_steps(width: int, scale: int) -> nn.Sequential:
    """Convolutions and pixel shuffles by 2 (scale 1, 2, 4, 8) or once by 3."""
    if scale == 3:
        factors = [3]
    elif scale & (scale - 1) == 0:
        factors = [2] * (scale.bit_length() - 1)
    else:
        raise ValueError(f"scale {scale} is neither 3 nor a power of two")
    pairs = ((nn.Conv2d(width, width * f * f, 3, padding=1), nn.PixelShuffle(f)) for f in factors)
    return nn.Sequential(*(module for pair in pairs for module in pair))


class ResizeConv(nn.Module):
    """Enlarge bilinearly and convolve, twice for x4, on top of the bilinear enlargement of the input.

    Every pixel comes from the same weights, so no checkerboard is invited as by a pixel shuffle (Odena et al.,
    "Deconvolution and Checkerboard Artifacts", Distill 2016); with nearest neighbours in place of bilinear ones, as
    there, a discriminator still found the grid. (B, width, H, W) and the input -> (B, C, H*s, W*s).
    """

    def __init__(self, width: int, inner: int, channels: int, scale: int) -> None:
        super().__init__()
        if scale not in (2, 4):
            raise ValueError(f"enlarging by resize+conv is for scales 2 and 4, not {scale}")
        self.before = nn.Conv2d(width, inner, 3, padding=1)
        self.up = nn.ModuleList(nn.Conv2d(inner, inner, 3, padding=1) for _ in range(scale // 2))
        self.hr = nn.Conv2d(inner, inner, 3, padding=1)
        self.last = nn.Conv2d(inner, channels, 3, padding=1)

    def forward(self, features: Tensor, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.before(features), 0.2)
        for step in self.up:
            y = F.leaky_relu(step(F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)), 0.2)
        detail = full_precision(self.last, F.leaky_relu(self.hr(y), 0.2))
        return detail + F.interpolate(x, detail.shape[2:], mode="bilinear", align_corners=False)


class Skeleton(nn.Module):
    """First convolution, groups, long skip, upsampling head.

    `upsampler`: "pixelshuffle", "pixelshuffledirect" (light), "resize+conv-light" (ours), or "" for restoration at
    the same size.
    """

    HEAD_WIDTH = 64
    LAST_NORM = "norm"  # the checkpoints' name for it
    mean: Tensor

    def __init__(
        self, groups: Sequence[nn.Module], in_chans: int, embed_dim: int, upscale: int, upsampler: str
    ) -> None:
        super().__init__()
        mean = RGB_MEAN if in_chans == 3 else (0.0,) * in_chans
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.upscale, self.upsampler = upscale, upsampler
        self.conv_first = nn.Conv2d(in_chans, embed_dim, 3, padding=1)
        self.patch_embed = nn.ModuleDict({"norm": LayerNorm(embed_dim)})
        self.layers = nn.ModuleList(groups)
        self.add_module(self.LAST_NORM, LayerNorm(embed_dim))
        self.conv_after_body = nn.Conv2d(embed_dim, embed_dim, 3, padding=1)
        if upsampler == "pixelshuffle":
            self.conv_before_upsample = nn.Sequential(
                nn.Conv2d(embed_dim, self.HEAD_WIDTH, 3, padding=1), nn.LeakyReLU()
            )
            self.upsample = pixel_shuffle_steps(self.HEAD_WIDTH, upscale)
            self.conv_last = nn.Conv2d(self.HEAD_WIDTH, in_chans, 3, padding=1)
        elif upsampler == "pixelshuffledirect":
            last = nn.Conv2d(embed_dim, in_chans * upscale**2, 3, padding=1)
            self.upsample = nn.Sequential(last, nn.PixelShuffle(upscale))
        elif upsampler == "resize+conv-light":
            self.enlarge = ResizeConv(embed_dim, self.HEAD_WIDTH // 2, in_chans, upscale)
        elif upsampler == "" and upscale == 1:
            self.conv_last = nn.Conv2d(embed_dim, in_chans, 3, padding=1)
        else:
            raise ValueError(f"no head upsampler={upsampler!r} for scale {upscale}")
        self.apply(init_linear)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, C, H*upscale, W*upscale)."""
        x = (x - self.mean).contiguous(memory_format=torch.channels_last)
        shallow = self.conv_first(x).float()  # the residual stream stays float32 under autocast
        deep = getattr(self, self.LAST_NORM)(self.body(shallow))
        return self.head(self.conv_after_body(to_map(deep)) + shallow, x) + self.mean

    def body(self, shallow: Tensor) -> Tensor:
        """(B, C, H, W) features of the first convolution -> (B, H, W, C)."""
        x = self.patch_embed["norm"](to_tokens(shallow))
        for group in self.layers:
            x = group(x)
        return x

    def head(self, features: Tensor, x: Tensor) -> Tensor:
        if self.upsampler == "pixelshuffledirect":
            return full_precision(self.upsample, features)
        if self.upsampler == "pixelshuffle":
            return full_precision(self.conv_last, self.upsample(self.conv_before_upsample(features)))
        if self.upsampler == "resize+conv-light":
            enlarged: Tensor = self.enlarge(features, x)
            return enlarged
        return x + full_precision(self.conv_last, features)


def skeleton_arguments(shapes: Shapes) -> dict[str, object]:
    """What the shapes say about the arguments of `Skeleton`, beside the groups."""
    embed_dim, in_chans = shapes["conv_first.weight"][:2]
    if "conv_before_upsample.0.weight" in shapes:
        steps = sum(bool(re.fullmatch(r"upsample\.\d+\.weight", key)) for key in shapes)
        upsampler, upscale = "pixelshuffle", 2**steps
        if steps == 1:
            outputs, inputs = shapes["upsample.0.weight"][:2]
            upscale = math.isqrt(outputs // inputs)
    elif "enlarge.before.weight" in shapes:
        upsampler, upscale = "resize+conv-light", 2 * count(shapes, r"enlarge\.up\.(\d+)\.")
    elif "upsample.0.weight" in shapes:
        upsampler, upscale = "pixelshuffledirect", math.isqrt(shapes["upsample.0.weight"][0] // in_chans)
    else:
        upsampler, upscale = "", 1
    return {"in_chans": in_chans, "embed_dim": embed_dim, "upscale": upscale, "upsampler": upsampler}


def group_depths(shapes: Shapes, key: str = "blocks", layers: str = "layers") -> list[int]:
    """The number of blocks in each of the groups under `layers`; `key` as in `Group`."""
    groups = count(shapes, rf"{layers}\.(\d+)\.")
    return [count(shapes, rf"{layers}\.{g}\.residual_group\.{key}\.(\d+)\.") for g in range(groups)]
