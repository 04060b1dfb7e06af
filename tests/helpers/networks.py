"""Networks and checkpoints whose output is known: made by hand, so tests need neither luck nor time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mambair_cli import archs
from mambair_cli.models.spec import ModelSpec, Source
from mambair_cli.task import Protocol

NEAREST = {"upscale": 2, "embed_dim": 30, "d_state": 1, "depths": [1], "upsampler": "pixelshuffledirect"}
IDENTITY = {"upscale": 1, "embed_dim": 30, "d_state": 1, "depths": [1], "upsampler": ""}


def nearest(path: Path, scale: int = 2) -> Path:
    """A MambaIR that repeats each pixel `scale` times: its body adds nothing, its ends pass the colours through."""
    network = archs.build("mambair", **NEAREST | {"upscale": scale}, in_chans=3, mlp_ratio=1.2, img_range=1.0)
    state = {key: torch.zeros_like(value) for key, value in network.state_dict().items()}
    for channel in range(3):
        state["conv_first.weight"][channel, channel, 1, 1] = 1
        state["upsample.0.weight"][channel * scale**2 : (channel + 1) * scale**2, channel, 1, 1] = 1
    torch.save({"params": state}, path)
    return path


def identity(path: Path, channels: int = 3) -> Path:
    """A MambaIR for denoising (grey: for JPEG artefacts) that finds nothing to change."""
    network = archs.build("mambair", **IDENTITY, in_chans=channels, mlp_ratio=1.2, img_range=1.0)
    state = {key: torch.zeros_like(value) for key, value in network.state_dict().items()}
    torch.save({"params": state}, path)
    return path


def spec(scale: int = 1, arch: str = "mambair", **more: Any) -> ModelSpec:
    return ModelSpec("test", "mambair", arch, {}, "upscale", Source("x"), Protocol("y", 0), 0, scale=scale, **more)


class Nearest(nn.Module):
    """Enlarges by repeating pixels; remembers the sizes that it was given."""

    def __init__(self, scale: int = 1, multiple: int = 1) -> None:
        super().__init__()
        self.scale, self.multiple = scale, multiple
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2] % self.multiple == 0
        assert x.shape[3] % self.multiple == 0
        self.seen.append(tuple(x.shape))
        return x.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)


def blur(channels: int = 3, size: int = 7) -> nn.Conv2d:
    """A convolution whose zero padding shows at the borders of a tile."""
    net = nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels, bias=False)
    nn.init.constant_(net.weight, 1 / size**2)
    return net


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(channels, height, width, generator=torch.Generator().manual_seed(seed))
