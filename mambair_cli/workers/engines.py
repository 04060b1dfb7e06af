"""What runs a team: processes of this machine, or a Ray cluster. An engine is a record."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from mambair_cli.errors import UsageError
from mambair_cli.restoring.running import Running
from mambair_cli.workers.team import Seat, Team, Work


@dataclass(frozen=True)
class Wanted:
    """What the user says of workers; None: as the engine sees fit."""

    device: str = "auto"  # as in `Running`, several with commas between, or "all"
    workers: int | None = None
    threads: int | None = None  # of each
    address: str | None = None  # of a cluster


@dataclass(frozen=True)
class Engine:
    """`team` makes one for some work; without one (`needed`) this process does the work itself."""

    needed: Callable[[Wanted], bool]
    team: Callable[[Work, Wanted], Team]


def _processes(work: Work, wanted: Wanted) -> Team:
    from mambair_cli.workers.processes import Processes

    if wanted.address:
        raise UsageError("--address is of a cluster", "It goes with --engine ray.")
    found = devices(wanted.device)
    count = wanted.workers or len(found)
    threads = wanted.threads or max(cores() // count, 1)
    return Processes(work, [Seat(device, threads) for device in islice(cycle(found), count)])


def _cluster(work: Work, wanted: Wanted) -> Team:
    from mambair_cli.workers.cluster import Cluster

    if wanted.device == "all" or "," in wanted.device:
        raise UsageError("a cluster gives each worker one device", "Leave --device out, or say cpu or cuda.")
    return Cluster(work, wanted.workers, wanted.device, wanted.threads, wanted.address)


ENGINES = {
    "local": Engine(lambda wanted: (wanted.workers or 1) > 1 or len(devices(wanted.device)) > 1, _processes),
    "ray": Engine(lambda wanted: True, _cluster),
}


def find(name: str) -> Engine:
    """The engine of that name. Raises UsageError."""
    if name not in ENGINES:
        raise UsageError(f"there is no engine {name!r}", f"Engines: {', '.join(ENGINES)}.")
    return ENGINES[name]


def running(device: str, *how: Any) -> Running:
    """How networks run, on the first of several devices. Raises UsageError for any that cannot be."""
    names = ["auto"] if device == "all" else device.split(",")
    first, *_ = [Running(name.strip(), *how) for name in names]
    return first


def devices(text: str) -> list[str]:
    """The devices that `--device` names: several with commas between, "all" for all GPUs. Raises UsageError."""
    if text != "all":
        return [name.strip() for name in text.split(",")]
    from mambair_cli.restoring.restorer import available_devices

    there = available_devices()
    return [name for name in there if name.startswith("cuda")] or there[:1]


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
