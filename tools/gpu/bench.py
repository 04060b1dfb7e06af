"""A run of the tool: what it has found, and how it takes time."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch


class Check(NamedTuple):
    name: str
    ok: bool
    detail: str


class Target(NamedTuple):
    """What was measured against what was wanted, the same or less of it but for `at_least`."""

    name: str
    measured: float
    wanted: float
    unit: str
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.measured >= self.wanted if self.at_least else self.measured <= self.wanted


@dataclass
class Bench:
    device: torch.device
    end: float  # by time.monotonic
    facts: dict[str, str] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    failed: bool = False
    began: float = field(default_factory=time.monotonic)

    @property
    def dry(self) -> bool:
        return self.device.type == "cpu"

    def left(self) -> float:
        return self.end - time.monotonic()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.began:6.1f} s] {text}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.say(text)

    def broke(self, part: str, error: Exception) -> None:
        self.failed = True
        self.note(f"{part} broke off: {type(error).__name__}: {' '.join(str(error).split())[:300]}")

    def check(self, name: str, ok: bool, detail: str = "") -> None:
        self.checks.append(Check(name, bool(ok), detail))
        self.failed |= not ok
        self.say(f"{'ok' if ok else 'FAILED':6} {name} {detail}")

    def target(self, name: str, measured: float, wanted: float, unit: str, at_least: bool = False) -> None:
        self.targets.append(Target(name, measured, wanted, unit, at_least))
        self.say(f"{name}: {measured:.3g} {unit}, wanted {wanted:g}")

    def row(self, table: str, **values: Any) -> None:
        self.tables.setdefault(table, []).append(values)
        self.say(f"{table}: {values}")

    def synchronize(self) -> None:
        if not self.dry:
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], object], at_least: float = 0.2, most: int = 50) -> float:
        """Median seconds by events, after three runs to warm up."""
        if self.dry:
            begin = time.perf_counter()
            run()
            return time.perf_counter() - begin
        for _ in range(3):
            run()
        times: list[float] = []
        while len(times) < 5 or (sum(times) < at_least and len(times) < most):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1000)
        return statistics.median(times)

    def graph_seconds(self, run: Callable[[], object]) -> float | None:
        """Of replays of a CUDA graph of it."""
        if self.dry:
            return None
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            run()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return self.seconds(graph.replay)

    def kernels(self, run: Callable[[], object]) -> Kernels:
        """What one run had the device do."""
        if self.dry:
            run()
            return Kernels(0, 0.0, 0.0)
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        run()
        self.synchronize()
        begin = time.perf_counter()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            begin = time.perf_counter()
            run()
            self.synchronize()
            wall = time.perf_counter() - begin
        spans = [e.time_range for e in profiler.events() if e.device_type == DeviceType.CUDA]
        return Kernels(len(spans), union([(span.start, span.end) for span in spans]) / 1e6, wall)


class Kernels(NamedTuple):
    launches: int
    busy: float  # seconds in which at least one of them ran
    wall: float


def union(spans: list[tuple[float, float]]) -> float:
    """The length of what spans of time cover."""
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered
