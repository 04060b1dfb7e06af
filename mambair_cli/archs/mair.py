"""MaIR: A Locality- and Continuity-Preserving Mamba for Image Restoration (Li et al., CVPR 2025).

Four paths snake through stripes of the map; what they see is weighed by channel before it is added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from mambair_cli.archs import skeleton, unet
from mambair_cli.archs.family import Architecture, Shapes, ratio
from mambair_cli.archs.layers import SS2D, LayerNorm, Mlp, full_precision, norm_gate, scale_add
from mambair_cli.archs.skeleton import Group, Skeleton, group_depths, skeleton_arguments
from mambair_cli.archs.unet import UNet, unet_arguments
from mambair_cli.scan import orders as paths

SMALL_WIDTH = 24  # of U-nets with stripes of 8 pixels


def snake(grid: np.ndarray, stripe: int, first: int) -> np.ndarray:
    """Nested S: stripes of columns from left to right, every second one upwards, every second row of each backwards.

    grid (H, W) of pixel numbers; `first`: width of a narrower first stripe, or 0. Returns (H*W,).
    """
    flat = 1 < grid.shape[1] < first  # the published code turns the rows of so narrow a map twice
    edges = [0, *range(first or stripe, grid.shape[1], stripe), grid.shape[1]]
    steps = []
    for number, (left, right) in enumerate(pairwise(edges)):
        rows = grid[:, left:right][:: -1 if number % 2 else 1]
        steps += [row[:: -1 if t % 2 and not flat else 1] for t, row in enumerate(rows)]
    return np.concatenate(steps)


@paths.table
def nested(height: int, width: int, stripe: int, first: int) -> np.ndarray:
    """(4, H*W): through stripes of columns, through stripes of rows, and both on the map turned by 180 degrees."""
    grid = np.arange(height * width, dtype=np.int32).reshape(height, width)
    columns, rows = snake(grid, stripe, first), snake(grid.T, stripe, first)
    return np.stack([columns, height * width - 1 - columns, rows, height * width - 1 - rows])


class Gate(nn.Module):
    """Sequence shuffle attention: each path's channels are weighed by the means of all four paths, then added up."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        conv = nn.Conv2d(4 * inner, 4 * inner, 1, groups=inner)  # channel-major, path-minor
        self.gating = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv, nn.Sigmoid())

    def forward(self, y: Tensor) -> Tensor:
        """(B, 4, L, E) -> (B, L, E)."""
        _, conv, sigmoid = self.gating
        means = y.mean(2, dtype=torch.float32).transpose(1, 2).reshape(len(y), -1, 1, 1)  # (B, 4E, 1, 1)
        weights = sigmoid(full_precision(conv, means)).view(len(y), -1, 4).permute(2, 0, 1).unsqueeze(2).to(y.dtype)
        total = y[:, 0] * weights[0]
        for path in range(1, 4):
            total = torch.addcmul(total, y[:, path], weights[path])
        return total


class StripeScan(SS2D):
    """The gated scan block along nested S-shaped paths; (B, H, W, C) -> the same."""

    def __init__(self, width: int, inner: int, d_state: int, stripe: int, shifted: bool) -> None:
        super().__init__(width, inner, d_state)
        self.stripe, self.first = stripe, stripe // 2 if shifted else 0
        self.gating = Gate(inner)

    def mix(self, x: Tensor, z: Tensor) -> Tensor:
        orders = nested(x.shape[1], x.shape[2], self.stripe, self.first, x.device)
        tokens = x.flatten(1, 2)
        y = self.gating(self.scan(tokens, self.project(tokens), orders, reduce=False))
        return norm_gate(y.view_as(x), z, self.out_norm)


class Block(nn.Module):
    """Gated scan, then an MLP (under the name `key` in checkpoints), each with a scaled residual."""

    def __init__(
        self,
        width: int,
        ssm_ratio: float,
        d_state: int,
        mlp_ratio: float,
        stripe: int,
        shifted: bool = False,
        key: str = "conv_blk",
    ) -> None:
        super().__init__()
        self.skip_scale = nn.Parameter(torch.ones(width))
        self.skip_scale2 = nn.Parameter(torch.ones(width))
        self.ln_1 = LayerNorm(width)
        self.self_attention = StripeScan(width, int(ssm_ratio * width), d_state, stripe, shifted)
        self.ln_2 = LayerNorm(width)
        self.key = key
        self.add_module(key, Mlp(width, int(mlp_ratio * width)))

    def forward(self, x: Tensor) -> Tensor:
        x = scale_add(x, self.skip_scale, self.self_attention(self.ln_1(x)))
        return scale_add(x, self.skip_scale2, getattr(self, self.key)(self.ln_2(x)))


class MaIR(Skeleton):
    """Super-resolution and Gaussian denoising. Any size from 1x1 works. Stripes are `scan_len` pixels wide."""

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dim: int = 180,
        depths: Sequence[int] = (6, 6, 6, 6, 6, 6),
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        mlp_ratio: float = 2.0,
        scan_len: int = 8,
        upscale: int = 2,
        upsampler: str | None = None,
    ) -> None:
        def block(number: int) -> Block:
            return Block(embed_dim, ssm_ratio, d_state, mlp_ratio, scan_len, shifted=number % 2 == 1)

        groups = [Group(embed_dim, [block(number) for number in range(depth)]) for depth in depths]
        super().__init__(groups, in_chans, embed_dim, upscale, upsampler or "")


class MaIRUNet(UNet):
    """Real denoising, motion deblurring, dehazing. Height and width are multiples of 8; no stripes are shifted."""

    def __init__(
        self,
        *,
        inp_channels: int = 3,
        out_channels: int = 3,
        dim: int = 48,
        num_blocks: Sequence[int] = (4, 6, 6, 8),
        num_refinement_blocks: int = 4,
        ssm_ratio: float = 2.0,
        flp_ratio: float = 4.0,
        mlp_ratio: float = 2.0,
        scan_len: int = 8,
    ) -> None:
        def block(width: int) -> nn.Module:
            first = width == dim  # only encoder_level1 is so narrow
            return Block(width, ssm_ratio, 4 * width // dim, flp_ratio if first else mlp_ratio, scan_len, key="mlp")

        super().__init__(block, inp_channels, dim, num_blocks, num_refinement_blocks)
        self.output = nn.Conv2d(2 * dim, out_channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> the same shape."""
        return full_precision(self.output, self.features(x)) + x


FIRST_BLOCK = "layers.0.residual_group.blocks.0."
FIRST_UNET_BLOCK = "encoder_level1.0."
GATE = "self_attention.gating.gating.1.weight"


def _arguments(shapes: Shapes) -> dict[str, object]:
    arguments = skeleton_arguments(shapes)
    rows, d_state = shapes[FIRST_BLOCK + "self_attention.A_logs"]
    hidden, embed_dim = shapes[FIRST_BLOCK + "conv_blk.fc1.weight"]
    # The width of the stripes leaves no trace in the weights. Published: 8 in the tiny and in the classic models.
    wide = d_state == 1 or arguments["upsampler"] == "pixelshuffle"
    return {
        **arguments,
        "upsampler": arguments["upsampler"] or None,
        "depths": group_depths(shapes),
        "d_state": d_state,
        "ssm_ratio": ratio([(embed_dim, rows // 4)]),
        "mlp_ratio": ratio([(embed_dim, hidden)]),
        "scan_len": 8 if wide else 4,
    }


def _unet_arguments(shapes: Shapes) -> dict[str, object]:
    arguments = unet_arguments(shapes, "output.weight")
    stages = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
    inner = [shapes[f"{stage}.0.self_attention.out_proj.weight"] for stage in stages]
    mlp = [shapes[f"{stage}.0.mlp.fc2.weight"] for stage in stages]
    return {
        **arguments,
        "ssm_ratio": ratio(inner),
        "flp_ratio": ratio(mlp[:1]),
        "mlp_ratio": ratio(mlp[1:]),
        "scan_len": 8 if mlp[0][0] <= SMALL_WIDTH else 4,  # published: 8 for removing haze
    }


MAIR = Architecture(
    name="mair",
    builder=MaIR,
    marks=(FIRST_BLOCK + GATE,),
    hyperparameters=_arguments,
    bytes_per_channel=120,
    paper_tiles=(200, 10),
    without_effect=skeleton.WITHOUT_EFFECT | {"batch_size", "dynamic_ids"},
    only_value=skeleton.ONLY_VALUE,
)
UNET = Architecture(
    name="mair_unet",
    builder=MaIRUNet,
    marks=(FIRST_UNET_BLOCK + GATE,),
    hyperparameters=_unet_arguments,
    bytes_per_channel=320,
    width="dim",
    channels="inp_channels",
    scale=1,
    padding=unet.PADDING,
    without_effect=unet.WITHOUT_EFFECT | {"batch_size", "dynamic_ids", "img_size"},
    only_value=unet.ONLY_VALUE,
)
