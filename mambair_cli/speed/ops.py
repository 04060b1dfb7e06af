"""Where the time of a network goes on a CPU, op by op, and what more cores would make of it.

A network makes the same calls in the same order on every run. So each call counts with the shortest of its times over
several runs, to which other work on the machine adds least, and an op with the sum of those of its calls. Times are
seconds of the processor, on one thread.

The **floor** of an op is that of `speed/network.py`: its multiply-adds at the rate of the registers. Its **bound** is
what it could not do without on this machine: the floor, or the bytes that it reads and writes at the rate of a copy,
whichever is more.

The **cores** are a model from the times of one thread and the number of tasks that each call is cut into: n tasks
take ceil(n / cores) rounds; what runs between the calls (Python, torch's bookkeeping) takes as long on any number.
Waking and waiting for threads, and cores that share caches and memory, are not in it: it says what the division of
the work allows, at most.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mambair_cli.scan import cpu
from mambair_cli.scan.backend import ScanInputs
from mambair_cli.speed.machine import Rates

CORES = (2, 8, 16, 64)
TORCH_GRAIN = 32768  # values that torch gives to a thread at least


def _inputs(args: Sequence[Any]) -> ScanInputs:
    u, delta, proj, _, dt_weight, dt_bias, A, D, orders, softplus, _, _, reduce, *_ = args
    return ScanInputs(u, delta, proj, dt_weight, dt_bias, A, D, orders, softplus, reduce)


# By the name of the function in `scan/_cpu`: what to call it, and its multiply-adds.
NATIVE: dict[str, tuple[str, Callable[..., int]]] = {
    "forward": ("scan", lambda *a: _inputs(a).multiply_adds),
    "linear": ("linear", lambda x, *a: x.shape[1] * a[-2].numel()),
    "attention": ("window attention", lambda qkv, table, window, *a: 2 * a[-2].numel() * window**2),
    "depthwise": ("depthwise 3x3", lambda x, *a: 9 * x.numel()),
    "filter": ("depthwise, gated", lambda x, row, side, *a: side**2 * x.numel()),
    "norm_gate": ("norm, gate", lambda *a: 0),
    "attend": ("channel attention", lambda *a: 0),
    "route": ("random routes", lambda *a: 0),
    "visit": ("sort by category", lambda *a: 0),
}


@dataclass(frozen=True)
class Call:
    """One call of an op on one thread: multiply-adds, bytes read and written, seconds at best, tasks that it is cut
    into, and what share of its time it takes on each of `CORES`, by the tasks."""

    op: str
    macs: int
    moved: int
    seconds: float
    tasks: int
    shares: tuple[float, ...]


def _shares(tasks: int) -> tuple[float, ...]:
    return tuple(math.ceil(max(tasks, 1) / cores) / max(tasks, 1) for cores in CORES)


def _scan_shares(u: Tensor, A: Tensor, steps: int) -> tuple[float, ...]:
    """Of a scan: its pieces keep all threads busy; where it goes twice through a sequence, once is shorter."""
    batch, (directions, channels, _) = u.shape[0], A.shape
    plans = [cpu._cpu.scan_tasks(batch, directions, steps, channels, cores) for cores in CORES]
    return tuple((1, 1.8)[p - 1] / min(tasks, cores) for (tasks, p), cores in zip(plans, CORES, strict=True))


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


class _Native:
    """Stands in for the compiled extension and notes every call."""

    def __init__(self, kernel: Any, calls: list[Call]) -> None:
        self.kernel, self.calls = kernel, calls

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.kernel, name)
        if name not in NATIVE:
            return function
        op, macs = NATIVE[name]

        def timed(*args: Any) -> Any:
            begin = time.thread_time()
            function(*args)
            seconds = time.thread_time() - begin
            tasks = self.kernel.last_tasks()
            shares = _shares(tasks)
            if name == "forward":
                inputs = _inputs(args)
                tasks = self.kernel.scan_tasks(
                    len(inputs.u), *inputs.A.shape[:1], inputs.steps, inputs.A.shape[1], 64
                )[0]
                shares = _scan_shares(inputs.u, inputs.A, inputs.steps)
            self.calls.append(Call(op, macs(*args), _bytes(args), seconds, tasks, shares))

        return timed


class _Torch(TorchDispatchMode):
    """Notes every call of torch's own operators."""

    def __init__(self, calls: list[Call]) -> None:
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inside = len(self.calls)
        begin = time.thread_time()
        result = func(*args, **(kwargs or {}))
        seconds = time.thread_time() - begin
        if len(self.calls) > inside:  # the operator of the scan, whose inside is noted already
            return result
        name, macs = func.overloadpacket.__name__, 0
        values = result.numel() if isinstance(result, Tensor) else 0
        if name.startswith("conv"):
            macs = values * args[1][0].numel()
            name = f"convolution {'x'.join(map(str, args[1].shape[2:]))}"
        elif name in ("mm", "addmm", "bmm"):
            macs = values * args[-1].shape[-2]
        tasks = max(1, math.ceil(values / TORCH_GRAIN)) if seconds > 1e-5 else 1
        self.calls.append(Call(f"torch: {name}", macs, _bytes(args) + _bytes(result), seconds, tasks, _shares(tasks)))
        return result


@contextmanager
def noted() -> Iterator[list[Call]]:
    """Yields a list to which every call inside the block is added."""
    calls: list[Call] = []
    kernel = getattr(cpu, "_cpu", None)
    if kernel is not None:
        cpu._cpu = _Native(kernel, calls)  # type: ignore[assignment]
    try:
        with _Torch(calls):
            yield calls
    finally:
        if kernel is not None:
            cpu._cpu = kernel


@dataclass(frozen=True)
class Ops:
    """The calls of one run of a network on one thread, each at its best; `seconds`, of the whole run when nothing is
    noted; `copying`, bytes read and written per second by a copy; `threads` of this machine, and what the run took on
    them in times of that on one."""

    name: str
    calls: Sequence[Call]
    seconds: float
    rates: Rates
    copying: float
    threads: int
    measured: float

    def bound(self, calls: Sequence[Call]) -> float:
        return sum(max(c.macs / self.rates.peak, c.moved / self.copying) for c in calls if c.seconds > 1e-5)

    def floor(self, calls: Sequence[Call]) -> float:
        return sum(c.macs for c in calls) / self.rates.peak

    @property
    def between(self) -> float:
        """Seconds between the calls."""
        return max(0.0, self.seconds - sum(c.seconds for c in self.calls))

    def speedup(self, cores: int) -> float:
        """Of one run, by the model."""
        i = CORES.index(cores)
        return self.seconds / (self.between + sum(c.seconds * c.shares[i] for c in self.calls))

    @property
    def groups(self) -> list[tuple[str, list[Call]]]:
        """The calls of each op, those that take the most time first."""
        ordered = sorted(self.calls, key=lambda c: c.op)
        groups = [(op, list(calls)) for op, calls in groupby(ordered, lambda c: c.op)]
        return sorted(groups, key=lambda item: -sum(c.seconds for c in item[1]))

    def document(self) -> dict[str, object]:
        """Ready for JSON."""
        ops = [
            {"op": op, "calls": len(calls), "tasks": sorted({c.tasks for c in calls})}
            | {"seconds": sum(c.seconds for c in calls), "floor": self.floor(calls), "bound": self.bound(calls)}
            for op, calls in self.groups
        ]
        model = {str(cores): self.speedup(cores) for cores in CORES}
        measured = {str(self.threads): 1 / self.measured}
        whole = {"name": self.name, "seconds": self.seconds, "between": self.between}
        return whole | {"ops": ops, "speedup_by_cores": model, "speedup_measured": measured}

    def table(self) -> Table:
        floor = self.floor(self.calls)
        table = Table(box=None, padding=(0, 1, 0, 0), title=f"{self.name} on one thread: {self.seconds * 1e3:.1f} ms")
        table.add_column("op")
        for heading in ("calls", "tasks", "ms", "share", "floor", "time/floor", "bound", "GB/s"):
            table.add_column(heading, justify="right", no_wrap=True)
        shown = [(op, calls) for op, calls in self.groups if sum(c.seconds for c in calls) > 0.005 * self.seconds]
        rest = [c for op, calls in self.groups[len(shown) :] for c in calls]
        for op, calls in [*shown, ("others", rest)]:
            seconds, own = sum(c.seconds for c in calls), self.floor(calls)
            counts = sorted({c.tasks for c in calls})
            cells = [op, str(len(calls)), " to ".join(str(n) for n in dict.fromkeys((*counts[:1], *counts[-1:])))]
            cells += [f"{seconds * 1e3:.1f}", f"{seconds / self.seconds:.0%}"]
            cells += [f"{own * 1e3:.1f}", f"{seconds / own:.2f}"] if own > 1e-5 else ["", ""]
            cells += [f"{self.bound(calls) * 1e3:.1f}"]
            cells += [f"{sum(c.moved for c in calls) / seconds / 1e9:.0f}" if seconds else ""]
            table.add_row(*cells)
        table.add_row("between", "", "1", f"{self.between * 1e3:.1f}", f"{self.between / self.seconds:.0%}")
        bound = self.bound(self.calls)
        model = ", ".join(f"{self.speedup(n):.1f} on {n} ({self.speedup(n) / n:.0%})" for n in CORES)
        table.caption = (
            f"time / floor {self.seconds / floor:.2f}; were every op at its bound {bound / floor:.2f} "
            f"(copies {self.copying / 1e9:.0f} GB/s, registers {self.rates.peak / 1e9:.0f} GMAC/s)\n"
            f"cores, by the division of the work: {model}\n"
            f"measured: {1 / self.measured:.2f} times as fast on {self.threads} threads"
        )
        return table


def measure_ops(
    name: str, network: nn.Module, channels: int, size: tuple[int, int], rates: Rates, rounds: int
) -> Ops:
    """The calls of a network on one picture of (height, width), and its time on one thread and on all of torch's."""
    x = torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(0))
    threads, best, work = torch.get_num_threads(), list[Call](), math.inf
    times = {1: math.inf, threads: math.inf}

    def seconds(clock: Callable[[], float], run: Callable[[], object]) -> float:
        begin = clock()
        run()
        return clock() - begin

    with torch.inference_mode():
        try:
            for turn in range(rounds + 1):  # the first is to warm up
                for count in times:
                    torch.set_num_threads(count)
                    took = seconds(time.perf_counter, lambda: network(x))
                    times[count] = min(times[count], took) if turn else math.inf
                torch.set_num_threads(1)
                work = min(work, seconds(time.thread_time, lambda: network(x)))
                with noted() as calls:
                    network(x)
                if turn > 1:
                    calls = [min(pair, key=lambda c: c.seconds) for pair in zip(best, calls, strict=True)]
                best = calls
            maps = torch.rand(2, 2**20)
            copies = [seconds(time.thread_time, lambda: maps[1].copy_(maps[0])) for _ in range(50)]
        finally:
            torch.set_num_threads(threads)
    copying = 2 * maps[0].nbytes / min(copies)
    return Ops(name, best, work, rates, copying, threads, times[threads] / times[1])
