"""MambaCSR: Dual-Interleaved Scanning for Compressed Image Super-Resolution with SSMs (Ren et al., 2024).

Blocks scan small windows and large ones in turn; the full model also scans the map together with its half-size twin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambair_cli.archs import skeleton
from mambair_cli.archs.family import Architecture, Padding, Shapes
from mambair_cli.archs.layers import (
    CAB,
    SS2D,
    LayerNorm,
    Linear,
    Mlp,
    SelectiveScan,
    depthwise,
    dwconv,
    init_linear,
    linear,
    linear_halves,
    norm_gate,
    scale_add,
    to_tokens,
)
from mambair_cli.archs.skeleton import Group, Skeleton, group_depths, skeleton_arguments
from mambair_cli.scan import orders as paths

LARGE_WINDOW = 64
SHALLOW_WINDOW = 32  # of all blocks in groups of fewer than INTERLEAVED blocks beside a cross-scale branch
INTERLEAVED = 6
CAB_WEIGHT = 0.01
FUSION_STATES = 16  # whatever the blocks' d_state


class DirectionAttention(nn.Module):
    """Weigh each direction's channels by what their mean says, then add the directions up (BiAttn)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm(width)
        self.global_reduce = Linear(width, width // 8)
        self.channel_select = Linear(width // 8, width)

    def forward(self, y: Tensor) -> Tensor:
        """(B, K, L, D) -> (B, L, D)."""
        mean = self.norm(y).mean(2, keepdim=True)
        weight = torch.sigmoid(self.channel_select(F.gelu(self.global_reduce(mean))))
        return (y * weight).sum(1)


class WindowScan(SS2D):
    """The gated scan block along windows, forward and reversed; (B, H, W, C) -> the same."""

    def __init__(self, width: int, d_state: int, window: int, columns: bool) -> None:
        super().__init__(width, 2 * width, d_state, directions=2)
        self.window, self.columns = window, columns
        self.multi_scan = nn.ModuleDict({"attn": DirectionAttention(2 * width)})

    def mix(self, x: Tensor, z: Tensor) -> Tensor:
        orders = paths.window(x.shape[1], x.shape[2], self.window, self.columns, x.device)
        tokens = x.flatten(1, 2)
        y = self.scan(tokens, self.project(tokens), orders, reduce=False)
        return norm_gate(self.multi_scan["attn"](y).view_as(x), z, self.out_norm)


class Block(nn.Module):
    """Window scan beside a faint channel-attention block, then an MLP, each with a scaled residual."""

    def __init__(self, width: int, d_state: int, mlp_ratio: int, window: int, columns: bool) -> None:
        super().__init__()
        self.skip_scale = nn.Parameter(torch.ones(width))
        self.skip_scale2 = nn.Parameter(torch.ones(width))
        self.ln_1 = LayerNorm(width)
        self.self_attention = WindowScan(width, d_state, window, columns)
        self.conv_block = CAB(width, compress=24, squeeze=24)
        self.ln_2 = LayerNorm(width)
        self.mlp = Mlp(width, mlp_ratio * width)

    def forward(self, x: Tensor) -> Tensor:
        n = self.ln_1(x)
        y = self.self_attention(n) + CAB_WEIGHT * self.conv_block(n)
        x = scale_add(x, self.skip_scale, y)
        return scale_add(x, self.skip_scale2, self.mlp(self.ln_2(x)))


class CrossScaleFusion(SelectiveScan):
    """Scan the map and its half-size twin as one sequence: every low pixel ahead of the four it covers.

    (B, H, W, C) and (B, H/2, W/2, C) -> (B, H, W, C); H and W are multiples of 16.
    """

    def __init__(self, width: int) -> None:
        inner = 2 * width
        super().__init__(4, inner, FUSION_STATES, dt_rank=math.ceil(width / 16))
        self.skip_scale = nn.Parameter(torch.ones(width))
        self.skip_scale2 = nn.Parameter(torch.ones(width))
        self.ln_1 = LayerNorm(width)
        self.ln_2 = LayerNorm(width)
        self.in_proj = Linear(width, 2 * inner, bias=False)
        self.in_proj_down = Linear(width, 2 * inner, bias=False)  # its second half is published but unused
        self.conv2d = depthwise(inner, 3)
        self.conv2d2 = depthwise(inner, 3)
        self.multi_scan = nn.ModuleDict({"attn": DirectionAttention(inner)})
        self.out_norm = LayerNorm(inner)
        self.out_proj = Linear(inner, width, bias=False)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor, low: Tensor) -> Tensor:
        u, z = linear_halves(self.ln_1(x), self.in_proj.weight)
        u_low = linear(low, self.in_proj_down.weight[: u.shape[-1]])
        y = self.mix(dwconv(u, self.conv2d, silu=True), dwconv(u_low, self.conv2d2, silu=True))
        x = scale_add(x, self.skip_scale, self.out_proj(norm_gate(y, z, self.out_norm)))
        return scale_add(x, self.skip_scale2, self.mlp(self.ln_2(x)))

    def mix(self, high: Tensor, low: Tensor) -> Tensor:
        _, height, width, _ = high.shape
        tokens = torch.cat([high.flatten(1, 2), low.flatten(1, 2)], dim=1)
        orders = paths.cross_scale(height, width, tokens.device)
        y = self.scan(tokens, self.project(tokens), orders, reduce=False)[:, :, : height * width]
        if height != width:
            rows, columns = y.chunk(2, dim=1)
            y = torch.cat([rows, columns[:, :, paths.cross_scale_readout(height, width, y.device)]], dim=1)
        return self.multi_scan["attn"](y).view_as(high)


class MambaCSR(Skeleton):
    """Super-resolution of JPEG-compressed pictures. With `cross_scale_scan`, sizes are multiples of 16."""

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dim: int = 180,
        depths: Sequence[int] = (6, 6, 6, 6, 6, 6),
        depths2: Sequence[int] = (6,),
        d_state: int = 16,
        scan_size: int = 8,
        mlp_ratio: int = 2,
        upscale: int = 4,
        upsampler: str = "pixelshuffle",
        cross_scale_scan: bool = True,
    ) -> None:
        def group(depth: int) -> Group:
            shallow = cross_scale_scan and depth < INTERLEAVED
            pair = (SHALLOW_WINDOW, SHALLOW_WINDOW) if shallow else (scan_size, LARGE_WINDOW)
            blocks = [
                Block(embed_dim, d_state, mlp_ratio, window=pair[i // 2 % 2], columns=bool(i % 2))
                for i in range(depth)
            ]
            return Group(embed_dim, blocks)

        super().__init__([group(depth) for depth in depths], in_chans, embed_dim, upscale, upsampler)
        self.cross_scale = cross_scale_scan
        if cross_scale_scan:
            self.patch_embed2 = nn.ModuleDict({"norm": LayerNorm(embed_dim)})
            self.layers2 = nn.ModuleList([group(depth) for depth in depths2])
            self.layers3 = nn.ModuleList([CrossScaleFusion(embed_dim) for _ in depths2])
            for added in (self.layers2, self.layers3):
                added.apply(init_linear)

    def body(self, shallow: Tensor) -> Tensor:
        if not self.cross_scale:
            return super().body(shallow)
        height, width = shallow.shape[-2:]
        if height % paths.CROSS_WINDOW or width % paths.CROSS_WINDOW:
            raise ValueError(f"height and width must be multiples of {paths.CROSS_WINDOW}, not {height} and {width}")
        half = F.interpolate(shallow, scale_factor=0.5, mode="bilinear", align_corners=False)
        x, low = self.patch_embed["norm"](to_tokens(shallow)), self.patch_embed2["norm"](to_tokens(half))
        for i, group in enumerate(self.layers):
            x = group(x)
            if i < len(self.layers2):
                low = self.layers2[i](low)
                x = self.layers3[i](x, low)
        return x


FIRST_BLOCK = "layers.0.residual_group.blocks.0."


def _arguments(shapes: Shapes) -> dict[str, object]:
    hidden, embed_dim = shapes[FIRST_BLOCK + "mlp.fc1.weight"]
    cross_scale = any(key.startswith("layers3.") for key in shapes)
    return {
        **skeleton_arguments(shapes),
        "depths": group_depths(shapes),
        "d_state": shapes[FIRST_BLOCK + "self_attention.A_logs"][1],
        "mlp_ratio": hidden // embed_dim,
        "cross_scale_scan": cross_scale,
        **({"depths2": group_depths(shapes, layers="layers2")} if cross_scale else {}),
    }


MAMBACSR = Architecture(
    name="mambacsr",
    builder=MambaCSR,
    marks=(FIRST_BLOCK + "conv_block.cab.0.weight",),
    hyperparameters=_arguments,
    bytes_per_channel=65,
    padding=Padding(multiple=64, minimum=32, mode="symmetric", extra=True),  # as the authors tested
    paper_tiles=(192, 4),
    without_effect=skeleton.WITHOUT_EFFECT | {"interval", "num_heads", "window_size"},
    only_value={**skeleton.ONLY_VALUE, "dual_interleaved_scan": True},
)
