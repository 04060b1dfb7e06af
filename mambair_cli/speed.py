"""How fast this machine runs the networks, and how fast it could: `mambair bench --speed` and `--scan`.

The **floor** of a network is what its arithmetic would cost if nothing else did: its state updates at the rate at
which `torch.exp` runs on cached data, plus its multiply-accumulates at the rate of a large float32 matrix product,
both measured in the same run. A ratio `time / floor` can be compared between machines; seconds cannot.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mambair_cli import archs, scan
from mambair_cli.errors import UsageError
from mambair_cli.models import zoo
from mambair_cli.scan import cpu, orders
from mambair_cli.scan.meter import metered

ScanArguments = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
DEFAULT_SIZES = ((64, 64), (128, 128), (256, 256), (512, 512))
# (height, width, channels, states, rank) of the layers of MambaIR-light and classic
LAYERS = {"light": (128, 128, 72, 10, 4), "classic": (64, 64, 360, 16, 12)}


@dataclass(frozen=True)
class Rates:
    """What the machine can do: exponentials and multiply-accumulates per second."""

    exps: float
    macs: float


@dataclass(frozen=True)
class SpeedRow:
    """One network on one size. Rates in megapixels of input and output; memory in bytes, at its peak.

    `backward`: seconds of the gradients of all weights, and `backward_ratio` that to the forward which kept what they
    need; both None unless asked for.
    """

    model: str
    size: tuple[int, int]
    seconds: float
    input_mp_per_s: float
    output_mp_per_s: float
    peak_memory: int
    scan_share: float
    updates: int
    macs: int
    floor: float
    ratio: float
    backward: float | None = None
    backward_ratio: float | None = None


@dataclass(frozen=True)
class ScanRow:
    """The op alone: state updates per second, forward and backward, and per `torch.exp`."""

    layer: str
    backend: str
    threads: int
    forward: float
    backward: float
    of_exp_rate: float


def _seconds(run: Callable[[], object], device: torch.device, *, at_least: float = 0.3, most: int = 20) -> float:
    """Median seconds of `run`, after one to warm up; on CUDA by events."""
    run()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < at_least and len(times) < most):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            torch.cuda.synchronize(device)
            times.append(start.elapsed_time(end) / 1000)
        else:
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def measure_rates(device: torch.device) -> Rates:
    """The machine's exp and float32 matmul rates, at the current number of threads."""
    on_gpu = device.type != "cpu"
    # On a CPU what fits each core's cache, yet enough of it that waking the threads does not count.
    x = -torch.rand(2**24 if on_gpu else 2**16 * torch.get_num_threads(), device=device)
    side = 4096 if on_gpu else 1024
    a, b = torch.rand(2, side, side, device=device)
    y, c, repeats = torch.empty_like(x), torch.empty_like(a), 1 if on_gpu else 100

    def exps() -> None:
        for _ in range(repeats):
            torch.exp(x, out=y)

    return Rates(
        exps=x.numel() * repeats / _seconds(exps, device),
        macs=side**3 / _seconds(lambda: torch.mm(a, b, out=c), device),
    )


@contextmanager
def _peak_memory(device: torch.device) -> Iterator[list[int]]:
    """Yields a list that holds the peak bytes once the block is left: device memory, or the process's."""
    peak: list[int] = []
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access(clear, os.W_OK):
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)  # what the allocator keeps from before is not of this run
        clear.write_text("5")  # resets the high-water mark
    yield peak
    if device.type == "cuda":
        peak.append(torch.cuda.max_memory_allocated(device))
    elif status.exists():
        high_water = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        peak.append(int(high_water.split()[1]) * 1024)
    else:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def measure_network(
    name: str, network: nn.Module, channels: int, size: tuple[int, int], rates: Rates, backward: bool = False
) -> SpeedRow:
    """Time one network on one LQ size (height, width) against its floor; with `backward` its training too."""
    device = next(network.parameters()).device
    network.requires_grad_(False)  # the counter trips over weights that are handed from one module to another
    x = torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.inference_mode():
        with FlopCounterMode(display=False) as flops, metered() as count:
            y = network(x)
        with _peak_memory(device) as peak:
            seconds = _seconds(lambda: network(x), device)
        begin = time.perf_counter()
        with metered() as share:
            network(x)
        metered_seconds = time.perf_counter() - begin
    macs = flops.get_total_flops() // 2
    floor = count.updates / rates.exps + macs / rates.macs
    pixels_in, pixels_out = size[0] * size[1], y.shape[-2] * y.shape[-1]
    there, back = _training_seconds(network, x) if backward else (None, None)
    return SpeedRow(
        model=name,
        size=size,
        seconds=seconds,
        input_mp_per_s=pixels_in / 1e6 / seconds,
        output_mp_per_s=pixels_out / 1e6 / seconds,
        peak_memory=peak[0],
        scan_share=share.seconds / metered_seconds,
        updates=count.updates,
        macs=macs,
        floor=floor,
        ratio=seconds / floor,
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
        there.append(_seconds(forward, x.device))
        back.append(_seconds(backward, x.device))
    return statistics.median(there), statistics.median(back)


def _layer(name: str, device: torch.device) -> tuple[ScanArguments, int]:
    """The tensors of one layer, in the order of `ordered_scan`'s arguments, and its state updates."""
    height, width, channels, states, rank = LAYERS[name]
    length, directions = height * width, 4
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(device)

    tensors = (
        normal(1, length, channels),  # x
        normal(1, length, directions, rank + 2 * states),  # proj
        normal(directions, channels, rank) / rank**0.5,  # dt_weight
        normal(directions, channels) - 3,  # dt_bias
        -torch.arange(1.0, states + 1, device=device).repeat(directions, channels, 1),  # A
        normal(directions, channels),  # D
        orders.cross(height, width, device),
    )
    return tensors, length * directions * channels * states


def measure_scan(layer: str, backend: str, device: torch.device, rates: Rates) -> ScanRow:
    """Time the op alone on one backend, forward and backward."""
    tensors, updates = _layer(layer, device)
    with _forced(backend):
        with torch.inference_mode():
            forward = _seconds(lambda: scan.ordered_scan(*tensors), device)
        for tensor in tensors[:-1]:
            tensor.requires_grad_()
        total = scan.ordered_scan(*tensors).sum()
        backward = _seconds(lambda: total.backward(retain_graph=True), device)
    return ScanRow(
        *(layer, backend, torch.get_num_threads(), updates / forward, updates / backward),
        of_exp_rate=updates / forward / rates.exps,
    )


@contextmanager
def _forced(backend: str) -> Iterator[None]:
    before = os.environ.get("MAMBAIR_SCAN")
    os.environ["MAMBAIR_SCAN"] = backend
    try:
        yield
    finally:
        if before is None:
            del os.environ["MAMBAIR_SCAN"]
        else:
            os.environ["MAMBAIR_SCAN"] = before


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _machine(device: torch.device, rates: Rates) -> dict[str, object]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"
    chosen = scan.chosen_backend(device)
    sets = cpu.instruction_sets()[:1] if chosen == "cpu" else []
    return {"device": name, "scan": " ".join([chosen, *sets]), "torch": torch.__version__, **asdict(rates)}


def run_speed(
    models: Sequence[str],
    weights: Path | None,
    sizes: Sequence[tuple[int, int]],
    threads: int | None,
    device: str,
    backward: bool,
    as_json: bool,
) -> None:
    """Print the speed table (or one JSON object) of the models, by default the one that `upscale` runs.

    The weights are random: speed does not depend on them. Raises UsageError for sizes that a network does not take.
    """
    from mambair_cli.models import checkpoints
    from mambair_cli.restoring.restorer import pick_device

    where = pick_device(device)
    specs = [zoo.find(name) for name in models]
    specs = specs or [checkpoints.spec_for_file(weights) if weights else zoo.resolve("upscale")]
    for spec, size in product(specs, sizes):
        padding = archs.find(spec.arch).padding
        if not all(padding.takes(side) for side in size):
            raise UsageError(
                f"{spec.name} takes no {size[1]}x{size[0]} as it is.",
                f"Sides are multiples of {padding.multiple}, at least {padding.minimum}.",
            )
    with _threads(threads):
        rates = measure_rates(where)
        rows = [
            measure_network(spec.name, network, spec.channels, size, rates, backward)
            for spec in specs
            for network in [archs.build(spec.arch, **spec.kwargs).eval().to(where)]
            for size in sizes or DEFAULT_SIZES
        ]
        machine = _machine(where, rates)
    if as_json:
        print(json.dumps({"schema": 1, "machine": machine, "rows": [asdict(row) for row in rows]}))
        return
    table = Table(title=f"{machine['device']}, scan: {machine['scan']}", box=None, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold")
    headings = ("input", "s/image", "MP/s in", "out", "us/px", "MB", "scan", "floor s", "time/floor")
    for heading in headings + ("bwd/fwd",) * backward:
        table.add_column(heading, justify="right", no_wrap=True)
    for r in rows:
        pixels = r.size[0] * r.size[1]
        table.add_row(
            *(r.model, f"{r.size[1]}x{r.size[0]}", f"{r.seconds:.3f}", f"{r.input_mp_per_s:.3f}"),
            *(f"{r.output_mp_per_s:.3f}", f"{r.seconds / pixels * 1e6:.1f}", f"{r.peak_memory / 1e6:.0f}"),
            *(f"{r.scan_share:.0%}", f"{r.floor:.3f}", f"[bold]{r.ratio:.2f}"),
            *([f"{r.backward_ratio:.2f}"] if r.backward_ratio else []),
        )
    console = _console()
    console.print(table)
    console.print(_rates_line(rates))


def _console() -> Console:
    """As wide as the terminal, and in a pipe as the tables need."""
    return Console(width=None if sys.stdout.isatty() else 120)


def _rates_line(rates: Rates) -> str:
    return f"this machine, in this run: exp {rates.exps / 1e9:.2f} G/s, float32 matmul {rates.macs / 1e9:.0f} GMAC/s"


def run_scan(threads: int | None, device: str, as_json: bool) -> None:
    """Print the table (or one JSON object) of the op alone: every backend, one thread and all."""
    from mambair_cli.restoring.restorer import pick_device

    where = pick_device(device)
    counts = [threads] if threads else sorted({1, torch.get_num_threads()}) if where.type == "cpu" else [None]
    rows, rates = [], None
    for count in counts:
        with _threads(count):
            rates = measure_rates(where)
            rows += [
                measure_scan(layer, b.name, where, rates)
                for layer in LAYERS
                for b in scan.backends()
                if b.available and b.name in ({"cpu", "torch"} if where.type == "cpu" else {"triton", "mamba_ssm"})
            ]
            machine = _machine(where, rates)
    if as_json:
        print(json.dumps({"schema": 1, "machine": machine, "rows": [asdict(row) for row in rows]}))
        return
    table = Table(title=f"the scan alone, G state updates/s ({machine['scan']})", box=None, padding=(0, 1, 0, 0))
    for heading in ("layer", "backend", "threads", "forward", "backward", "forward / exp rate"):
        table.add_column(heading, justify="left" if heading in ("layer", "backend") else "right", no_wrap=True)
    for row in rows:
        height, width, channels, states, _ = LAYERS[row.layer]
        table.add_row(
            *(f"{row.layer} {width}x{height}, D={channels} N={states}", row.backend, str(row.threads)),
            *(f"{row.forward / 1e9:.2f}", f"{row.backward / 1e9:.2f}", f"{row.of_exp_rate:.2f}"),
        )
    console = _console()
    console.print(table)
    if rates:
        console.print(_rates_line(rates))
