"""How a network runs. Without torch, so that what makes no sense is refused before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from mambair_cli.errors import UsageError

GRAIN = 16  # tile sides are multiples of it: a window of attention, twice the 8 of the U-nets
TilesDone = Callable[[int, int], None]  # who is told of tiles done, of tiles in all
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Running:
    """Where and how a network runs; plain data that can be sent to another process.

    - `device`: "auto" (`MAMBAIR_DEVICE`, else CUDA, else MPS, else the CPU), "cpu", "cuda", "cuda:1", "mps"
    - `precision`: "fp32", "bf16", "fp16" or "auto"; the scan always runs in float32
    - `tile`: side in input pixels, "auto" (whole pictures where memory allows), "off", or "paper" (as the published
      scores were measured: pasted without blending); `overlap`: input pixels shared by neighbours
    - `ensemble`: mean over eight flips and transposes, published as "+"
    - `seed`: of what a network draws at random (`light` and `base`: its routes), together with the picture's content

    Raises UsageError for what makes no sense; whether a device is there, torch must say (`restorer.pick_device`).
    """

    device: str = "auto"
    precision: str = "auto"
    tile: str | int = "auto"
    overlap: int | None = None
    ensemble: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.tile, str) and self.tile.isdecimal():
            object.__setattr__(self, "tile", int(self.tile))
        tile, overlap = self.tile, self.overlap
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise UsageError(
                f"No such device: {self.device}.", "Choose from: auto, cpu, cuda, cuda:0 (or another), mps."
            )
        if self.precision not in ("auto", *PRECISIONS):
            raise UsageError(f"No such precision: {self.precision}.", f"Choose from: auto, {', '.join(PRECISIONS)}.")
        if tile not in ("auto", "off", "paper") and not (isinstance(tile, int) and tile >= GRAIN):
            raise UsageError(f"No such tile: {tile}.", f"Use auto, off, or a side of at least {GRAIN} pixels.")
        if overlap is not None and not 0 <= overlap <= (tile // 2 if isinstance(tile, int) else overlap):
            raise UsageError(f"No such overlap: {overlap}.", "It may be 0 to half of the tile.")


DEFAULT = Running()
