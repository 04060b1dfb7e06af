"""Real checkpoints of real architectures whose output is known: made by hand, so tests need neither luck nor time."""

from __future__ import annotations

from pathlib import Path

import torch

from mambair_cli import archs

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
