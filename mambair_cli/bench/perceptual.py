"""LPIPS and DISTS, from torchmetrics: the extra `perceptual`. Both fetch VGG-16 once, through torchvision."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mambair_cli.errors import Unavailable, UsageError


class Perceptual:
    """Both distances of two pictures (H, W) or (H, W, 3), uint8; 0 for equal ones. On RGB, nothing cropped.

    LPIPS is that on VGG (Zhang et al., CVPR 2018), as restoration papers report it; DISTS: Ding et al., TPAMI 2020.
    Raises UsageError where the extra is not installed, Unavailable where VGG cannot be fetched.
    """

    def __init__(self) -> None:
        try:
            import_module("torchvision")
            lpip, dists = (import_module(f"torchmetrics.image.{name}") for name in ("lpip", "dists"))
        except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision made for another torch
            raise UsageError(
                f"LPIPS and DISTS need an extra that is not installed: {error}.", "pip install 'mambair[perceptual]'"
            ) from error
        try:
            self._lpips = lpip.LearnedPerceptualImagePatchSimilarity(net_type="vgg", normalize=True)
            self._dists = dists.DeepImageStructureAndTextureSimilarity()
        except OSError as error:  # URLError is one
            raise Unavailable(
                f"VGG-16, which LPIPS and DISTS are made of, cannot be fetched: {error}.",
                f"Put vgg16-397923af.pth into {torch.hub.get_dir()}/checkpoints.",
            ) from error

    def __call__(self, restored: NDArray[Any], truth: NDArray[Any]) -> dict[str, float]:
        """{"lpips": ..., "dists": ...}"""
        a, b = (_tensor(picture) for picture in (restored, truth))
        with torch.inference_mode():
            values = {"lpips": float(self._lpips(a, b)), "dists": float(self._dists(a, b))}
        for metric in (self._lpips, self._dists):
            metric.reset()  # they would sum up
        return values


def _tensor(picture: NDArray[Any]) -> torch.Tensor:
    """(1, 3, H, W) in [0, 1]."""
    colour = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
    plain = np.clip(np.moveaxis(colour, 2, 0) / 255.0, 0.0, 1.0).astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(plain))[None]
