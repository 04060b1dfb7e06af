"""What a run spent in the scan: for `mambair speed`, and nothing on the way of anybody else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from mambair_cli.scan.backend import ScanInputs


@dataclass
class Meter:
    """State updates, multiply-adds (as run, and as papers count) and seconds since the meter was switched on."""

    updates: int = 0
    multiply_adds: int = 0
    macs: int = 0
    seconds: float = 0.0


_running: Meter | None = None


@contextmanager
def metered() -> Iterator[Meter]:
    """Count and time every scan inside the block."""
    global _running
    before, _running = _running, Meter()
    try:
        yield _running
    finally:
        _running = before


def note(macs: int) -> None:
    """Multiply-adds beside a scan that no counter of products sees."""
    if _running is not None:
        _running.macs += macs


def measure(inputs: ScanInputs, run: Callable[[], Tensor]) -> Tensor:
    """`run()`, noted if a meter is on."""
    if _running is None:
        return run()
    meter = _running
    if inputs.u.is_cuda:
        torch.cuda.synchronize(inputs.u.device)  # what came before is not of the scan
    start = time.perf_counter()
    y = run()
    if y.is_cuda:
        torch.cuda.synchronize(y.device)
    meter.seconds += time.perf_counter() - start
    meter.updates += inputs.updates
    meter.multiply_adds += inputs.multiply_adds
    meter.macs += inputs.macs
    return y
