"""One picture of a benchmark: its clean and degraded halves made ready, and a restored one scored against them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambair_cli import degradations, metrics
from mambair_cli.bench.damage import Damage
from mambair_cli.bench.datasets import Item, read_8bit
from mambair_cli.bench.niqe import niqe
from mambair_cli.bench.perceptual import Perceptual
from mambair_cli.bench.records import Score
from mambair_cli.errors import BadImage
from mambair_cli.task import Protocol


@dataclass(frozen=True)
class Prepared:
    """A picture ready to be restored: truth uint8, lq float32 on [0, 1], before (doing nothing) on 0-255."""

    truth: NDArray[np.uint8]
    lq: NDArray[np.float32]
    before: NDArray[Any]


def prepare(item: Item, damage: Damage, protocol: Protocol) -> Prepared:
    """Read a picture and its degraded half, or make it. Raises BadImage where that cannot be."""
    if item.problem:
        raise BadImage(item.problem)
    grey, scale = protocol.channel == "gray", damage.scale
    truth = degradations.modcrop(read_8bit(item.truth, grey), scale)
    if 0 in truth.shape:
        raise BadImage(f"{item.truth.name} is smaller than {scale}x{scale}.")
    made = (read_8bit(item.degraded, grey), truth) if item.degraded else damage.apply(truth, item.name)
    degraded: NDArray[Any] = made[0]
    truth = made[1]
    height, width = (scale * n for n in degraded.shape[:2])
    if truth.shape[:2] != (height, width):
        raise BadImage(
            f"sizes differ: {item.truth.name} is {truth.shape[1]}x{truth.shape[0]}, the degraded one at x{scale} "
            f"{width}x{height}"
        )
    if degraded.dtype == np.float32:
        return Prepared(truth, degraded, degraded * 255.0)
    before = degradations.bicubic(degraded, (height, width)) if scale > 1 else degraded
    return Prepared(truth, degraded.astype(np.float32) / 255.0, before)


@dataclass(frozen=True)
class Scorer:
    """Scores by the rules of a protocol, and what else was asked for."""

    rules: Protocol
    distances: Perceptual | None = None
    blind: bool = False
    gradient: bool = False

    def __call__(self, picture: NDArray[Any], truth: NDArray[np.uint8]) -> Score:
        """Raises ValueError for pictures too small to measure."""
        how: dict[str, Any] = {
            "channel": self.rules.channel,
            "crop": self.rules.crop,
            "round_luma": self.rules.rounding == "luma",
        }
        return Score(
            psnr=metrics.psnr(picture, truth, **how),
            ssim=metrics.ssim(picture, truth, **how),
            niqe=niqe(picture, crop=self.rules.crop) if self.blind else None,
            gradient=metrics.gradient_kept(picture, truth, crop=self.rules.crop) if self.gradient else None,
            **(self.distances(picture, truth) if self.distances else {}),
        )
