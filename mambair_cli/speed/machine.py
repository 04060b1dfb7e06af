"""What this machine can do, and how time and memory are measured on it."""

from __future__ import annotations

import ctypes
import importlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mambair_cli import scan
from mambair_cli.scan import cpu, gpu


@dataclass(frozen=True)
class Rates:
    """What the machine can do in a second."""

    exps: float  # `torch.exp` on cached data; on a GPU exponentials that touch registers only
    macs: float  # multiply-adds of a large float32 matrix product
    peak: float  # multiply-adds that touch registers only; without the native kernels those of the product

    def __str__(self) -> str:
        return (
            f"exp {self.exps / 1e9:.2f} G/s, float32 matmul {self.macs / 1e9:.0f} GMAC/s, "
            f"registers {self.peak / 1e9:.0f} GMAC/s"
        )


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(
    run: Callable[[], object], device: torch.device, *, at_least: float = 0.3, most: int = 20
) -> list[float]:
    """Seconds of several runs, after one to warm up; on CUDA by events."""
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
    return times


def median_seconds(run: Callable[[], object], device: torch.device) -> float:
    return statistics.median(seconds_of(run, device))


def measure_rates(device: torch.device) -> Rates:
    """The machine's exp and float32 multiply-add rates, on a CPU at the current number of threads."""
    on_gpu = device.type != "cpu"
    side = 4096 if on_gpu else 1024
    a, b = torch.rand(2, side, side, device=device)
    c = torch.empty_like(a)
    macs = side**3 / median_seconds(lambda: torch.mm(a, b, out=c), device)
    if device.type == "cuda" and not gpu.missing():
        rates = importlib.import_module("mambair_cli.scan.gpu_rates")
        exps, peak = (
            rates.per_second(device, exponential, lambda run: min(seconds_of(run, device)))
            for exponential in (True, False)
        )
        return Rates(exps=exps, macs=macs, peak=max(macs, peak))
    # On a CPU what fits each core's cache, yet enough of it that waking the threads does not count.
    x = -torch.rand(2**24 if on_gpu else 2**16 * torch.get_num_threads(), device=device)
    y, repeats = torch.empty_like(x), 1 if on_gpu else 100

    def exps_of_torch() -> None:
        for _ in range(repeats):
            torch.exp(x, out=y)

    peak = macs if on_gpu else max(macs, _peak(torch.get_num_threads()))
    return Rates(exps=x.numel() * repeats / median_seconds(exps_of_torch, device), macs=macs, peak=peak)


def _peak(threads: int) -> float:
    """Multiply-adds per second in registers: the best of several tries, for a floor is what nothing goes below."""
    if cpu.missing:
        return 0.0
    best = 0.0
    for _ in range(20):
        begin = time.perf_counter()
        count = cpu._cpu.multiply_adds(100_000, threads)
        best = max(best, count / (time.perf_counter() - begin))
    return best


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
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


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe(device: torch.device, rates: Rates) -> dict[str, object]:
    """The device, the back end of the scan, torch's version and the rates, for reports."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"
    chosen = scan.chosen_backend(device)
    about = scan.BACKENDS[chosen].about
    return {"device": name, "scan": f"{chosen}: {about}", "torch": torch.__version__, **asdict(rates)}
