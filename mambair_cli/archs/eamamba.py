"""EAMamba: Efficient All-Around Vision State Space Model for Image Restoration (Lin et al., ICCV 2025).

Eight heads scan the map along eight paths, each over channels of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mambair_cli.archs import unet
from mambair_cli.archs.family import Architecture, Shapes, count, ratio
from mambair_cli.archs.layers import (
    LayerNorm,
    Linear,
    SelectiveScan,
    conv,
    depthwise,
    dwconv,
    full_precision,
    init_linear,
    linear_halves,
    norm_gate,
    pointwise,
    to_map,
    to_tokens,
)
from mambair_cli.archs.skeleton import pixel_shuffle_steps
from mambair_cli.archs.unet import Norm, UNet, unet_arguments
from mambair_cli.scan import orders as paths

HEADS = 8
# Options of the published scan block, beside d_state and expand, and the only values that published models have.
OPTIONS: Mapping[str, object] = {
    "scan_type": "diagonal",
    "scan_count": HEADS,
    "scan_merge_method": "concate",
    "disable_z_branch": False,
    "d_conv": 3,
    "conv_2d": True,
}


@paths.table
def heads(height: int, width: int) -> np.ndarray:
    """(8, H*W): diagonals from the top left and the bottom right, both mirrored, rows, columns, both reversed."""
    grid = np.arange(height * width, dtype=np.int32).reshape(height, width)
    row, column = np.indices((height, width)).reshape(2, -1)
    diagonals = np.lexsort((row, row + column))
    ways = (grid, grid[::-1, ::-1], grid[:, ::-1], grid[::-1])
    rows, columns = grid.ravel(), grid.T.ravel()
    return np.stack([*(way.ravel()[diagonals] for way in ways), rows, rows[::-1], columns, columns[::-1]])


class HeadScan(SelectiveScan):
    """The gated scan block with a path and channels of its own for each head; (B, H, W, C) -> the same."""

    def __init__(self, width: int, d_state: int, expand: int) -> None:
        inner = expand * width
        if inner % HEADS:
            raise ValueError(f"{inner} channels cannot be shared out to {HEADS} heads")
        super().__init__(HEADS, inner // HEADS, d_state, dt_rank=math.ceil(width / 16))
        self.in_proj = Linear(width, 2 * inner, bias=False)
        self.conv = depthwise(inner, 3)
        self.out_norm = LayerNorm(inner)
        self.out_proj = Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u, z = linear_halves(x, self.in_proj.weight)
        y = self.scan_heads(dwconv(u, self.conv, silu=True))
        return self.out_proj(norm_gate(y, z, self.out_norm))

    def scan_heads(self, x: Tensor) -> Tensor:
        """(B, H, W, E) -> the same; head k owns channels k * E/8 to (k + 1) * E/8."""
        _, height, width, _ = x.shape
        u = x.flatten(1, 2).unflatten(2, (HEADS, -1))  # (B, L, 8, D)
        proj = torch.einsum("blkd,krd->blkr", u, self.x_proj_weight.to(u.dtype))
        y = self.scan(u.transpose(1, 2), proj, heads(height, width, x.device), reduce=False)  # (B, 8, L, D)
        return y.transpose(1, 2).reshape(x.shape)


class SimpleFFN(nn.Module):
    """Widen, let one half multiply the other, narrow."""

    def __init__(self, width: int, factor: float) -> None:
        super().__init__()
        hidden = int(width * factor)
        self.project_in = nn.Conv2d(width, hidden, 1, bias=False)
        self.project_out = nn.Conv2d(hidden // 2, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a, b = pointwise(x, self.project_in).chunk(2, dim=-1)
        return pointwise(a * b, self.project_out)


class Block(nn.Module):
    def __init__(self, width: int, factor: float, d_state: int, expand: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(width), Norm(width)
        self.mamba = HeadScan(width, d_state, expand)
        self.ffn = SimpleFFN(width, factor)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mamba(self.norm1(x))
        return x + self.ffn(self.norm2(x))


def scan_options(mamba_cfg: Mapping[str, int]) -> tuple[int, int]:
    """`d_state` and `expand`. Raises ValueError where another option has a value that no published model has."""
    for name, value in mamba_cfg.items():
        if name not in ("d_state", "expand") and OPTIONS.get(name) != value:
            raise ValueError(f"mamba_cfg is implemented for {name}={OPTIONS.get(name)!r} only, not {value!r}")
    return mamba_cfg.get("d_state", 16), mamba_cfg.get("expand", 1)


class EAMamba(UNet):
    """Denoising, deblurring, removing haze and rain. Height and width are multiples of 8.

    With `dual_pixel_task` the input has six channels, the two views of a dual-pixel sensor, and is not added.
    """

    def __init__(
        self,
        *,
        inp_channels: int = 3,
        out_channels: int = 3,
        dim: int = 64,
        num_blocks: Sequence[int] = (4, 6, 6, 7),
        num_refinement_blocks: int = 2,
        ffn_expansion_factor: float = 2,
        dual_pixel_task: bool = False,
        mamba_cfg: Mapping[str, int] = {},
    ) -> None:
        options = scan_options(mamba_cfg)

        def block(width: int) -> nn.Module:
            return Block(width, ffn_expansion_factor, *options)

        super().__init__(block, inp_channels, dim, num_blocks, num_refinement_blocks)
        self.skip_conv = nn.Conv2d(dim, 2 * dim, 1, bias=False) if dual_pixel_task else None
        self.output = nn.Conv2d(2 * dim, out_channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, out_channels, H, W)."""
        y = self.features(x)
        if self.skip_conv is None:
            return full_precision(self.output, y) + x
        return full_precision(self.output, y + self.skip_conv(self.patch_embed["proj"](x)))


class Group(nn.Module):
    """Blocks, a 3x3 convolution, and a residual around both."""

    def __init__(self, width: int, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + conv(self.blocks(x), self.conv)


class EAMambaSR(nn.Module):
    """Super-resolution. Any size from 1x1 works."""

    def __init__(
        self,
        *,
        inp_channels: int = 3,
        out_channels: int = 3,
        dim: int = 64,
        num_blocks: Sequence[int] = (4, 4, 4, 4),
        ffn_expansion_factor: float = 1,
        upscale: int = 2,
        mamba_cfg: Mapping[str, int] = {},
    ) -> None:
        super().__init__()
        options = scan_options(mamba_cfg)
        self.conv_first = nn.Conv2d(inp_channels, dim, 3, padding=1, bias=False)
        self.layers = nn.ModuleList(
            Group(dim, [Block(dim, ffn_expansion_factor, *options) for _ in range(number)]) for number in num_blocks
        )
        self.norm = Norm(dim)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.conv_before_upsample = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1), nn.LeakyReLU())
        self.upsample = pixel_shuffle_steps(dim, upscale)
        self.conv_last = nn.Conv2d(dim, out_channels, 3, padding=1, bias=False)
        self.apply(init_linear)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, out_channels, H*upscale, W*upscale)."""
        shallow = self.conv_first(x.contiguous(memory_format=torch.channels_last)).float()
        y = to_tokens(shallow)
        for group in self.layers:
            y = group(y)
        features = self.conv_after_body(to_map(self.norm(y))) + shallow
        return full_precision(self.conv_last, self.upsample(self.conv_before_upsample(features)))


FIRST_BLOCK = "layers.0.blocks.0."
FIRST_UNET_BLOCK = "encoder_level1.0."


def _block_arguments(shapes: Shapes, block: str) -> dict[str, object]:
    inner, d_state = shapes[block + "mamba.A_logs"]
    hidden, width = shapes[block + "ffn.project_in.weight"][:2]
    options = {**OPTIONS, "d_state": d_state, "expand": inner // width}
    return {"ffn_expansion_factor": ratio([(width, hidden)]), "mamba_cfg": options}


def _unet_arguments(shapes: Shapes) -> dict[str, object]:
    arguments = {**unet_arguments(shapes, "output.weight"), **_block_arguments(shapes, FIRST_UNET_BLOCK)}
    return {**arguments, "dual_pixel_task": "skip_conv.weight" in shapes}


def _arguments(shapes: Shapes) -> dict[str, object]:
    dim, inp_channels = shapes["conv_first.weight"][:2]
    groups = count(shapes, r"layers\.(\d+)\.")
    steps = [shapes[key][0] for key in shapes if key.startswith("upsample.") and key.endswith(".weight")]
    return {
        "inp_channels": inp_channels,
        "out_channels": shapes["conv_last.weight"][0],
        "dim": dim,
        "num_blocks": [count(shapes, rf"layers\.{group}\.blocks\.(\d+)\.") for group in range(groups)],
        **_block_arguments(shapes, FIRST_BLOCK),
        "upscale": math.prod(math.isqrt(outputs // dim) for outputs in steps),
    }


WITHOUT_EFFECT = frozenset({"checkpoint_percentage", "heads"})
ONLY_VALUE = {
    "LayerNorm_type": "WithBias",
    "bias": False,
    "channel_mixer_type": "Simple",
    "layernorm_type": "WithBias",
}
UNET = Architecture(
    name="eamamba",
    builder=EAMamba,
    marks=(FIRST_UNET_BLOCK + "mamba.x_proj_weight",),
    hyperparameters=_unet_arguments,
    bytes_per_channel=230,
    width="dim",
    channels="inp_channels",
    scale=1,
    padding=unet.PADDING,
    without_effect=WITHOUT_EFFECT,
    only_value={**ONLY_VALUE, "upscale": 1},
)
SR = Architecture(
    name="eamamba_sr",
    builder=EAMambaSR,
    marks=(FIRST_BLOCK + "mamba.x_proj_weight",),
    hyperparameters=_arguments,
    bytes_per_channel=180,
    width="dim",
    channels="inp_channels",
    without_effect=WITHOUT_EFFECT,
    only_value=ONLY_VALUE,
)
