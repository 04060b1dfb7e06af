"""The outer frame of most networks for restoring at the same size: the U-Net of Restormer (Zamir et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mambair_cli.archs.family import Padding, Shapes, count
from mambair_cli.archs.layers import LayerNorm, conv, init_linear, to_map, to_tokens

LEVELS = (1, 2, 3, 4)
MULTIPLE = 2 ** (len(LEVELS) - 1)  # of height and width
PADDING = Padding(multiple=MULTIPLE)
WITHOUT_EFFECT = frozenset({"heads", "scale"})  # published arguments that change nothing
ONLY_VALUE = {"LayerNorm_type": "WithBias", "bias": False, "dual_pixel_task": False}  # of which no model uses another


class Norm(nn.Module):
    """LayerNorm over the last dimension, under the name that the checkpoints use."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def _resampler(width: int, outputs: int, shuffle: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict({"body": nn.Sequential(nn.Conv2d(width, outputs, 3, padding=1, bias=False), shuffle)})


class UNet(nn.Module):
    """Four levels of channel-last blocks, `dim` wide at the top and twice as wide with every halving.

    Subclasses bring the head. The top decoder level has no reduction, hence works at 2*dim.
    """

    def __init__(
        self,
        block: Callable[[int], nn.Module],
        inp_channels: int,
        dim: int,
        num_blocks: Sequence[int],
        num_refinement_blocks: int,
    ) -> None:
        super().__init__()
        if len(num_blocks) != len(LEVELS):
            raise ValueError(f"num_blocks needs {len(LEVELS)} numbers, not {list(num_blocks)}")

        def stage(count: int, width: int) -> nn.Sequential:
            return nn.Sequential(*(block(width) for _ in range(count)))

        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(inp_channels, dim, 3, padding=1, bias=False)})
        for level in LEVELS[:-1]:
            width, count = dim * 2 ** (level - 1), num_blocks[level - 1]
            setattr(self, f"encoder_level{level}", stage(count, width))
            setattr(self, f"down{level}_{level + 1}", _resampler(width, width // 2, nn.PixelUnshuffle(2)))
            setattr(self, f"up{level + 1}_{level}", _resampler(2 * width, 4 * width, nn.PixelShuffle(2)))
            if level > 1:
                setattr(self, f"reduce_chan_level{level}", nn.Conv2d(2 * width, width, 1, bias=False))
            setattr(self, f"decoder_level{level}", stage(count, width if level > 1 else 2 * width))
        self.latent = stage(num_blocks[-1], dim * MULTIPLE)
        self.refinement = stage(num_refinement_blocks, 2 * dim)
        self.apply(init_linear)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 2*dim, H, W). Raises ValueError unless H and W are multiples of 8."""
        height, width = x.shape[-2:]
        if height % MULTIPLE or width % MULTIPLE:
            raise ValueError(f"height and width must be multiples of {MULTIPLE}, not {height} and {width}")
        # As in `Skeleton`, the residual stream stays float32 under autocast.
        y = to_tokens(self.patch_embed["proj"](x.contiguous(memory_format=torch.channels_last))).float()
        skips = {}
        for level in LEVELS[:-1]:
            skips[level] = y = getattr(self, f"encoder_level{level}")(y)
            y = conv(y, getattr(self, f"down{level}_{level + 1}").body).float()
        y = self.latent(y)
        for level in reversed(LEVELS[:-1]):
            y = conv(y, getattr(self, f"up{level + 1}_{level}").body).float()
            y = torch.cat([y, skips.pop(level)], dim=-1)
            if level > 1:
                y = conv(y, getattr(self, f"reduce_chan_level{level}")).float()
            y = getattr(self, f"decoder_level{level}")(y)
        return to_map(self.refinement(y))


def unet_arguments(shapes: Shapes, last: str) -> dict[str, object]:
    """What the shapes say about the arguments of `UNet`; `last` is the key of the last convolution."""
    dim, inp_channels = shapes["patch_embed.proj.weight"][:2]
    stages = [f"encoder_level{level}" for level in LEVELS[:-1]] + ["latent"]
    return {
        "inp_channels": inp_channels,
        "out_channels": shapes[last][0],
        "dim": dim,
        "num_blocks": [count(shapes, rf"{stage}\.(\d+)\.") for stage in stages],
        "num_refinement_blocks": count(shapes, r"refinement\.(\d+)\."),
    }
