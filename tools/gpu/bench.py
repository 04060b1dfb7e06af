"""A part of the run of the tool: where it runs, what it has found, and how it takes time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from findings import Findings


@dataclass
class Bench:
    device: torch.device
    end: float  # by time.monotonic
    found: Findings
    small: bool = False  # tiny shapes, which only try the tool

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def left(self) -> float:
        return self.end - time.monotonic()

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object], at_least: float = 0.2, most: int = 50) -> float:
        """Median seconds by events, after three runs to warm up."""
        if not self.cuda:
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
        if not self.cuda:
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
        """What one run had the device do, and how long it takes when nobody looks on."""
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        run()
        self.synchronize()
        begin = time.perf_counter()
        run()
        self.synchronize()
        wall = time.perf_counter() - begin
        kind = self.device.type.upper()
        with profile(activities=[getattr(ProfilerActivity, kind)]) as profiler:
            run()
            self.synchronize()
        there = getattr(DeviceType, kind)
        spans = [(e.time_range.start, e.time_range.end) for e in profiler.events() if e.device_type == there]
        return Kernels(len(spans), union(spans) / 1e6, wall)


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
