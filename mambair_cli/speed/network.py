"""One network on one size of picture: how fast it is, and how fast it could be.

The **floor** of a network is what its arithmetic would cost if nothing else did: the multiply-adds of its products,
convolutions and attention, and those of its scans (`ScanInputs.multiply_adds`), at the rate at which the machine does
multiply-adds in registers, measured in the same run. Nothing can be quicker, and the ratio `time / floor` can be
compared between machines; seconds cannot. Products in half precision, on a GPU, are not bound by it.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mambair_cli.scan.meter import metered
from mambair_cli.speed.count import count
from mambair_cli.speed.machine import Rates, median_seconds, peak_memory, seconds_of, synchronize


@dataclass(frozen=True)
class NetworkSpeed:
    """One network on one size. Rates in megapixels of input and output; memory in bytes, at its peak.

    `seconds` is the median of several runs, `best` the shortest; the ratio is `best / floor`, both of them times
    that other work on the machine adds least to. `work_ratio` takes the seconds that the processor worked, shared
    among the threads: other work hardly adds to them, but they do not see threads that wait; None on a GPU.

    `macs` are those of the products and `scan_macs` those of the scan as the floor takes them; `total_macs` are both
    as the papers count them (`speed/count.py`).

    `backward`: seconds of the gradients of all weights, and `backward_ratio` that to the forward which kept what they
    need; both None unless asked for.
    """

    model: str
    size: tuple[int, int]
    seconds: float
    best: float
    input_mp_per_s: float
    output_mp_per_s: float
    peak_memory: int
    scan_share: float
    updates: int
    macs: int
    scan_macs: int
    total_macs: int
    floor: float
    ratio: float
    work_ratio: float | None
    backward: float | None = None
    backward_ratio: float | None = None

    @property
    def pixels(self) -> int:
        """Of the input."""
        return self.size[0] * self.size[1]


def measure_network(
    name: str, network: nn.Module, channels: int, size: tuple[int, int], rates: Rates, backward: bool = False
) -> NetworkSpeed:
    """Time one network on one LQ size (height, width) against its floor; with `backward` its training too."""
    device = next(network.parameters()).device
    counted = count(network, channels, size)
    x = torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.inference_mode():
        with peak_memory(device) as peak:
            times = seconds_of(lambda: network(x), device)
        work_seconds = []
        for _ in range(3):
            begin = time.process_time()
            network(x)
            work_seconds.append(time.process_time() - begin)
        begin = time.perf_counter()
        with metered() as meter:
            y = network(x)
            synchronize(device)
        metered_seconds = time.perf_counter() - begin
    floor = (counted.products + meter.multiply_adds) / rates.peak
    seconds, best = statistics.median(times), min(times)
    work = min(work_seconds) / torch.get_num_threads()
    pixels_in, pixels_out = size[0] * size[1], y.shape[-2] * y.shape[-1]
    there, back = _training_seconds(network, x) if backward else (None, None)
    return NetworkSpeed(
        model=name,
        size=size,
        seconds=seconds,
        best=best,
        input_mp_per_s=pixels_in / 1e6 / seconds,
        output_mp_per_s=pixels_out / 1e6 / seconds,
        peak_memory=peak[0],
        scan_share=meter.seconds / metered_seconds,
        updates=meter.updates,
        macs=counted.products,
        scan_macs=meter.multiply_adds,
        total_macs=counted.total,
        floor=floor,
        ratio=best / floor,
        work_ratio=work / floor if device.type == "cpu" else None,
        backward=back,
        backward_ratio=back / there if back and there else None,
    )


def _training_seconds(network: nn.Module, x: Tensor) -> tuple[float, float]:
    """Median seconds of the forward that autograd follows, and of the backward, taken turn about."""
    losses: list[Tensor] = []
    network.requires_grad_()

    def forward() -> None:
        losses[:] = [network(x).mean()]

    def backward() -> None:
        network.zero_grad(set_to_none=True)
        losses[0].backward(retain_graph=True)

    there, back = [], []
    for _ in range(3):
        there.append(median_seconds(forward, x.device))
        back.append(median_seconds(backward, x.device))
    return statistics.median(there), statistics.median(back)
