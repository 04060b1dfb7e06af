"""A CUDA graph for each shape of tile: the host hands over one graph instead of a thousand kernels."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mambair_cli.restoring.tiling import out_of_memory

log = logging.getLogger("mambair")

Run = Callable[..., Tensor]
LARGEST = 1 << 18  # pixels of a batch; with more the kernels take longer than it takes to launch them
KEPT = 8  # graphs; each holds the memory of its inputs and its result


class Graphs:
    """Runs a function of tensors, from the second call with the same shapes on as a graph.

    The function may do nothing but work on the device, and what it does may depend on nothing but shapes and `kind`.
    Where it cannot be captured it runs as it is, once and for all. Several threads may call.
    """

    def __init__(self, capture: Callable[[Run, tuple[Tensor, ...]], Run] | None = None) -> None:
        self._capture = capture or record
        self._graphs: OrderedDict[Hashable, Run | None] = OrderedDict()  # None: seen once
        self._lock = threading.Lock()
        self.refused = ""  # why there are none

    def __call__(self, run: Run, kind: Hashable, *inputs: Tensor) -> Tensor:
        """`run(*inputs)`, a tensor that no later call writes to."""
        shapes = kind, *((t.shape, t.dtype, t.device) for t in inputs)
        with self._lock:
            known, graph = shapes in self._graphs, self._graphs.get(shapes)
            if self.refused or not known:
                self._keep(shapes, None)
                return run(*inputs)
            if graph is None:
                try:
                    graph = self._capture(run, inputs)
                except RuntimeError as error:
                    if out_of_memory(error):
                        raise
                    self.refused = str(error)
                    log.info("No CUDA graphs: %s", error)
                    return run(*inputs)
            self._keep(shapes, graph)
            return graph(*inputs).clone()

    def _keep(self, shapes: Hashable, graph: Run | None) -> None:
        self._graphs[shapes] = graph
        self._graphs.move_to_end(shapes)
        while len(self._graphs) > KEPT:
            self._graphs.popitem(last=False)

    def forget(self) -> None:
        """Free what they hold."""
        with self._lock:
            self._graphs.clear()


@cache
def _pool() -> Any:
    """Memory that all graphs share: they run one after the other, and only their results outlive them."""
    return torch.cuda.graph_pool_handle()


def record(run: Run, inputs: tuple[Tensor, ...]) -> Run:
    """Capture `run(*inputs)`; the function returned writes its result to the same tensor in every call."""
    held = tuple(t.clone() for t in inputs)
    device = held[0].device
    with torch.cuda.device(device):
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):  # kernels are compiled and libraries set up before
            run(*held)
        torch.cuda.current_stream(device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=_pool(), capture_error_mode="thread_local"):
            result = run(*held)

    def replay(*new: Tensor) -> Tensor:
        for ours, theirs in zip(held, new, strict=True):
            ours.copy_(theirs)
        graph.replay()
        return result

    return replay
