"""What may be wished for a run. Without torch, so that it can be refused before anything is loaded."""

from __future__ import annotations

import re

from mambair_cli.errors import UsageError

GRAIN = 16  # tile sides are multiples of it: the MambaIRv2 window, and twice the 8 of the U-nets
PRECISIONS = ("fp32", "bf16", "fp16")


def check_tile(tile: str | int, overlap: int | None) -> str | int:
    """The tile as a side or one of the words; raises UsageError where it or the overlap makes no sense."""
    if isinstance(tile, str) and tile.isdecimal():
        tile = int(tile)
    if tile not in ("auto", "off", "paper") and not (isinstance(tile, int) and tile >= GRAIN):
        raise UsageError(f"No such tile: {tile}.", f"Use auto, off, or a side of at least {GRAIN} pixels.")
    if overlap is not None and not 0 <= overlap <= (tile // 2 if isinstance(tile, int) else overlap):
        raise UsageError(f"No such overlap: {overlap}.", "It may be 0 to half of the tile.")
    return tile


def check_precision(precision: str) -> None:
    """Raise UsageError for an unknown precision."""
    if precision not in ("auto", *PRECISIONS):
        raise UsageError(f"No such precision: {precision}.", f"Choose from: auto, {', '.join(PRECISIONS)}.")


def check_device(device: str) -> None:
    """Raise UsageError for what is no device's name; whether it is there, torch must say (`restorer.pick_device`)."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise UsageError(f"No such device: {device}.", "Choose from: auto, cpu, cuda, cuda:0 (or another), mps.")
