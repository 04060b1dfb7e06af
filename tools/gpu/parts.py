"""The parts of the tool, by name, in the order in which they begin."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import checks
import times
from bench import Bench


class Part(NamedTuple):
    run: Callable[[Bench], None]
    limit: float  # seconds
    alone: bool  # nothing else runs meanwhile


PARTS = {
    **{f"scan {name}": Part(partial(checks.scans, name=name), 150, False) for name in checks.CASES},
    **{f"tiles of {name}": Part(partial(checks.tiles, name=name), 150, False) for name in times.NETWORKS},
    **{f"compiled {arch}": Part(partial(checks.compiled, arch=arch), 150, False) for arch in checks.SMALL},
    "streams and graphs": Part(checks.streams, 100, False),
    "around the scan": Part(checks.around, 100, False),
    "environment": Part(times.environment, 60, True),
    "large": Part(checks.large, 60, True),  # it needs most of the memory
    "op": Part(times.op, 120, True),
    "busy": Part(times.busy, 90, True),
    **{f"network {name}": Part(partial(times.networks, name=name), 100, True) for name in times.NETWORKS},
    "torch.compile": Part(times.compiled, 120, True),
}


def run_part(name: str, bench: Bench) -> None:
    """What it finds is in `bench.found`, an error too."""
    bench.found.say(f"--- {name}")
    try:
        PARTS[name].run(bench)
    except Exception as error:
        traceback.print_exc(limit=6)
        bench.found.broke(name, f"{type(error).__name__}: {error}")
