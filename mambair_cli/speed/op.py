"""The scan alone, on every back end that runs on a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mambair_cli import scan
from mambair_cli.scan import orders
from mambair_cli.speed.machine import Rates, median_seconds

# (height, width, channels, states, rank) of the layers of MambaIR-light and classic
LAYERS = {"light": (128, 128, 72, 10, 4), "classic": (64, 64, 360, 16, 12)}


@dataclass(frozen=True)
class ScanSpeed:
    """The op alone: state updates per second, forward and backward, and per `torch.exp`."""

    layer: str
    backend: str
    threads: int
    forward: float
    backward: float
    of_exp_rate: float


def backends_on(device: torch.device) -> list[str]:
    """The back ends worth measuring there: plain PyTorch on a CPU alone, where it is not hopeless."""
    able = [b for b in scan.BACKENDS.values() if b.device in (device.type, None) and not b.missing()]
    return [b.name for b in able if b.device or device.type == "cpu"]


def _layer(name: str, device: torch.device) -> tuple[Tensor, ...]:
    """The tensors of one layer, in the order of `ordered_scan`'s arguments."""
    height, width, channels, states, rank = LAYERS[name]
    length, directions = height * width, 4
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(device)

    return (
        normal(1, length, channels),  # x
        normal(1, length, directions, rank + 2 * states),  # proj
        normal(directions, channels, rank) / rank**0.5,  # dt_weight
        normal(directions, channels) - 3,  # dt_bias
        -torch.arange(1.0, states + 1, device=device).repeat(directions, channels, 1),  # A
        normal(directions, channels),  # D
        orders.cross(height, width, device),
    )


def measure_scan(layer: str, backend: str, device: torch.device, rates: Rates) -> ScanSpeed:
    """Time the op alone on one back end, forward and backward."""
    tensors = _layer(layer, device)
    height, width, channels, states, _ = LAYERS[layer]
    updates = height * width * 4 * channels * states
    run: Callable[..., Tensor] = partial(scan.ordered_scan, backend=backend)
    with torch.inference_mode():
        forward = median_seconds(lambda: run(*tensors), device)
    for tensor in tensors[:-1]:
        tensor.requires_grad_()
    total = run(*tensors).sum()
    backward = median_seconds(lambda: total.backward(retain_graph=True), device)
    return ScanSpeed(
        layer=layer,
        backend=backend,
        threads=torch.get_num_threads(),
        forward=updates / forward,
        backward=updates / backward,
        of_exp_rate=updates / forward / rates.exps,
    )
