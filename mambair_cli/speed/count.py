"""The multiply-adds of a network, counted on the network itself without computing any.

The convention is that of the papers, who call them MACs and often FLOPs: one for each multiply-add of convolutions,
linear layers, matrix products and attention, and for the scan those of `ScanInputs.macs`. Norms, activations, sums,
Fourier transforms and sorting are not counted. A picture that the network pads counts with its padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mambair_cli import archs
from mambair_cli.models.spec import ModelSpec
from mambair_cli.scan.meter import metered

SQUARE = (128, 128)  # height and width of an input
RESULT = (720, 1280)  # of a result: what the papers on lightweight networks count for


@dataclass(frozen=True)
class Count:
    """Multiply-adds of one run: those of the scan, with a causal convolution before it, and all others."""

    products: int
    scan: int

    @property
    def total(self) -> int:
        return self.products + self.scan


def count(network: nn.Module, channels: int, size: tuple[int, int]) -> Count:
    """For one picture of (height, width), which the network has to take. The network is left as it was."""
    shapes: Any = deepcopy(network).to("meta").requires_grad_(False)
    if hasattr(shapes, "routing"):
        shapes.routing = "argmax"  # drawing takes time, and no multiply-adds
    x = torch.empty(1, channels, *size, device="meta")
    flops = FlopCounterMode(display=False)
    # Counted with gradients on, where every product is torch's own; no weight wants one, so nothing is kept.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), flops, metered() as meter:
        shapes(x)
    return Count(flops.get_total_flops() // 2, meter.macs)


def count_model(spec: ModelSpec, sizes: Sequence[tuple[int, int]] = ()) -> tuple[int, ...]:
    """In total for inputs of these sizes; without any for 128x128 in and for 1280x720 out, shrunk by whole pixels."""
    with torch.device("meta"):
        network = archs.build(spec.arch, **spec.kwargs).eval()
    height, width = RESULT
    length = archs.find(spec.arch).padding.length
    sizes = sizes or (SQUARE, (height // spec.scale, width // spec.scale))
    return tuple(count(network, spec.channels, (length(high), length(wide))).total for high, wide in sizes)
