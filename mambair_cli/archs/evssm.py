"""EVSSM: Efficient Visual State Space Model for Image Deblurring (Kong et al., CVPR 2025).

One raster path per block; blocks turn the map between them, so that the path comes from other sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambair_cli.archs.family import Architecture, Padding, Shapes, count, ratio
from mambair_cli.archs.layers import (
    LayerNorm,
    Linear,
    SelectiveScan,
    depthwise,
    dwconv,
    full_precision,
    init_linear,
    linear_halves,
    pointwise,
    to_map,
    to_tokens,
)
from mambair_cli.scan import NormGate, fused
from mambair_cli.scan import orders as paths

D_STATE = 8
EXPANSION = 2  # of the width inside the scan block
TAPS = 7  # of the convolution over [dt | B | C] along the path
WINDOW = 8  # side of the blocks whose spectrum is weighed
LEVELS = 3
PATCH = 384  # longest side of a sequence's patch at level 1; half as much at each further level


class Norm(nn.Module):
    """Over channels by the root mean square, without subtracting the mean; (..., C) -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.ParameterDict({"weight": torch.ones(width), "bias": torch.zeros(width)})

    def forward(self, x: Tensor) -> Tensor:
        scaled = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        return torch.addcmul(self.body["bias"], scaled, self.body["weight"]).to(x.dtype)


class RasterScan(SelectiveScan):
    """The gated scan block along the rows; (B, H, W, C) -> the same. GELU where others have SiLU."""

    def __init__(self, width: int) -> None:
        inner, rank = EXPANSION * width, math.ceil(width / 16)
        super().__init__(1, inner, D_STATE, rank)
        self.in_proj = Linear(width, 2 * inner, bias=False)
        self.conv2d = depthwise(inner, 3)
        features = rank + 2 * D_STATE
        self.x_conv = nn.Conv1d(features, features, TAPS, padding=TAPS // 2, groups=features)
        self.out_norm = LayerNorm(inner)
        self.out_proj = Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u, z = linear_halves(x, self.in_proj.weight)
        u = F.gelu(dwconv(u, self.conv2d)).flatten(1, 2)
        proj = self.project(u)[:, :, 0]
        proj = self.x_conv(proj.transpose(1, 2)).transpose(1, 2)[:, :, None]  # also across the ends of rows
        norm = NormGate(self.out_norm.weight, self.out_norm.bias, self.out_norm.eps)
        y = self.scan(u, proj.contiguous(), paths.raster(u.shape[1], u.device), norm=norm)
        return self.out_proj(y.view_as(z) * F.gelu(z))


class SpectralFFN(nn.Module):
    """Widen, convolve depthwise, let one half gate the other; then weigh the spectrum of every 8x8 block."""

    def __init__(self, width: int, factor: float) -> None:
        super().__init__()
        hidden = int(width * factor)
        self.project_in = nn.Conv2d(width, 2 * hidden, 1, bias=False)
        self.dwconv = depthwise(2 * hidden, 3, bias=False)
        self.project_out = nn.Conv2d(hidden, width, 1, bias=False)
        self.fft = nn.Parameter(torch.ones(width, 1, 1, WINDOW, WINDOW // 2 + 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b = linear_halves(x, self.project_in.weight[:, :, 0, 0])
        of_a, of_b = self.dwconv.weight.chunk(2)
        none = of_a.new_zeros(len(of_a))  # the convolution has no bias
        b = fused.depthwise(b, of_b, none)
        y = fused.convolve_gated(a, of_a, none, b, activation="gelu")
        return self.weigh(pointwise(y, self.project_out))

    def weigh(self, x: Tensor) -> Tensor:
        """(B, H, W, C), sides above 4 -> the same. In float32: FFTs know no other small type."""
        _, height, width, _ = x.shape
        rows, columns = -height % WINDOW, -width % WINDOW
        image = F.pad(to_map(x).float(), (0, columns, 0, rows), mode="reflect")
        blocks = image.unflatten(3, (-1, WINDOW)).unflatten(2, (-1, WINDOW)).transpose(3, 4)  # (B, C, h, w, 8, 8)
        blocks = torch.fft.irfft2(torch.fft.rfft2(blocks) * self.fft.float(), s=(WINDOW, WINDOW))
        image = blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3)
        return to_tokens(image[..., :height, :width]).to(x.dtype)


class Block(nn.Module):
    """Turn the map, scan its patches, then the feed-forward network; (B, H, W, C) -> (B, W, H, C) or (B, H, W, C)."""

    def __init__(self, width: int, factor: float, patch: int, transposed: bool) -> None:
        super().__init__()
        self.patch, self.transposed = patch, transposed
        self.norm1, self.norm2 = Norm(width), Norm(width)
        self.attn = RasterScan(width)
        self.ffn = SpectralFFN(width, factor)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2) if self.transposed else x.flip(1, 2)
        x = self.scan_patches(x.contiguous())
        return x + self.ffn(self.norm2(x))

    def scan_patches(self, x: Tensor) -> Tensor:
        """Each patch is a sequence of its own; where patches overlap, the mean of their results counts."""
        rows, columns = (starts(side, self.patch) for side in x.shape[1:3])
        if len(rows) == len(columns) == 1:
            return x + self.attn(self.norm1(x))
        total, times = torch.zeros_like(x), x.new_zeros(*x.shape[1:3], 1)
        for top in rows:
            for left in columns:
                place = (slice(None), slice(top, top + self.patch), slice(left, left + self.patch))
                patch = x[place].contiguous()
                total[place] += patch + self.attn(self.norm1(patch))
                times[place[1:]] += 1
        return total / times


def starts(length: int, patch: int) -> list[int]:
    """Where patches of `patch` pixels begin along a side of `length`: evenly, the last one flush with the end."""
    side = min(length, patch)
    number = (length - 1) // side + 1
    step = side if number == 1 else math.ceil((length - side) / (number - 1))
    return [min(start, length - side) for start in range(0, length - side + step, step)]


class Stage(nn.ModuleDict):
    """Blocks under the names block0, block1, ..., turned in two ways by turns."""

    def __init__(self, number: int, width: int, factor: float, patch: int) -> None:
        super().__init__({f"block{i}": Block(width, factor, patch, transposed=i % 2 == 0) for i in range(number)})

    def forward(self, x: Tensor) -> Tensor:
        for block in self.values():
            x = block(x)
        return x


def _resampler(width: int, outputs: int) -> nn.ModuleDict:
    body = nn.Sequential(nn.Identity(), nn.Conv2d(width, outputs, 3, padding=1, bias=False))
    return nn.ModuleDict({"body": body})


class EVSSM(nn.Module):
    """Deblurring: three levels, added skips. Height and width are multiples of 4 and at least 20.

    The turns of the blocks are never undone one by one: over the whole network they cancel out.
    """

    def __init__(
        self,
        *,
        inp_channels: int = 3,
        out_channels: int = 3,
        dim: int = 48,
        num_blocks: Sequence[int] = (6, 6, 12),
        ffn_expansion_factor: float = 3,
    ) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(inp_channels, dim, 3, padding=1, bias=False)})
        for level, number in enumerate(num_blocks, 1):
            width = dim * 2 ** (level - 1)
            for side in ("encoder", "decoder"):
                stage = Stage(number, width, ffn_expansion_factor, PATCH // 2 ** (level - 1))
                self.add_module(f"{side}_level{level}", stage)
            if level < LEVELS:
                self.add_module(f"down{level}_{level + 1}", _resampler(width, 2 * width))
                self.add_module(f"up{level + 1}_{level}", _resampler(2 * width, width))
        self.output = nn.Conv2d(dim, out_channels, 3, padding=1, bias=False)
        self.apply(init_linear)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> the same shape. Raises ValueError for sides that the network does not take."""
        height, width = x.shape[2:]
        if not (PADDING.takes(height) and PADDING.takes(width)):
            raise ValueError(
                f"height and width must be multiples of {PADDING.multiple} from {PADDING.minimum} on, "
                f"not {height} and {width}"
            )
        y = to_tokens(self.patch_embed["proj"](x.contiguous(memory_format=torch.channels_last))).float()
        skips = []
        for level in range(1, LEVELS):
            y = getattr(self, f"encoder_level{level}")(y)
            skips.append(y)
            y = self.resample(y, f"down{level}_{level + 1}", 0.5)
        for side in ("encoder", "decoder"):
            y = getattr(self, f"{side}_level{LEVELS}")(y)
        for level in range(LEVELS - 1, 0, -1):
            y = self.resample(y, f"up{level + 1}_{level}", 2) + skips.pop()
            y = getattr(self, f"decoder_level{level}")(y)
        return full_precision(self.output, to_map(y)) + x

    def resample(self, x: Tensor, name: str, factor: float) -> Tensor:
        resized = F.interpolate(to_map(x), scale_factor=factor, mode="bilinear", align_corners=False)
        return to_tokens(getattr(self, name).body[1](resized)).float()


PADDING = Padding(multiple=4, minimum=20)
FIRST_BLOCK = "encoder_level1.block0."


def _arguments(shapes: Shapes) -> dict[str, object]:
    dim, inp_channels = shapes["patch_embed.proj.weight"][:2]
    levels = range(1, LEVELS + 1)
    inner = [shapes[f"encoder_level{level}.block0.ffn.project_out.weight"][:2] for level in levels]
    return {
        "inp_channels": inp_channels,
        "out_channels": shapes["output.weight"][0],
        "dim": dim,
        "num_blocks": [count(shapes, rf"encoder_level{level}\.block(\d+)\.") for level in levels],
        "ffn_expansion_factor": ratio(inner),
    }


RECORD = Architecture(
    name="evssm",
    builder=EVSSM,
    marks=(FIRST_BLOCK + "ffn.fft", FIRST_BLOCK + "attn.x_conv.weight"),
    hyperparameters=_arguments,
    bytes_per_channel=150,
    width="dim",
    channels="inp_channels",
    scale=1,
    padding=PADDING,
    without_effect=frozenset({"num_refinement_blocks"}),
    only_value={"bias": False},
)
