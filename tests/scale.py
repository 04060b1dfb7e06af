"""What the driver costs, with workers that do nothing: python tests/scale.py [JOBS] [alone|processes|ray] [WORKERS]

Not a test: it prints times. `alone`: workers in this process that answer at once, so all time is the driver's. The
jobs are those of a bucket, made as they are asked for; the records go where those of `--json` go, into a file.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # for actors
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

from helpers.work import Nothing

from mambair_cli.files import Job
from mambair_cli.images.formats import FORMATS
from mambair_cli.places import Place
from mambair_cli.restoring import spread
from mambair_cli.restoring.record import Record
from mambair_cli.restoring.steps import Settings
from mambair_cli.workers.cluster import Cluster
from mambair_cli.workers.processes import Processes
from mambair_cli.workers.team import Do, Done, Event, Ready, Seat, Team


class Alone:
    """A team that answers as soon as it is asked."""

    def __init__(self, size: int) -> None:
        self.size, self._do = size, Nothing().begin(Seat())
        self._told: deque[Event] = deque()

    def start(self, worker: int) -> None:
        self._told.append(Ready(worker))

    def send(self, worker: int, ticket: int, task: Job, again: bool) -> None:
        do: Do = self._do
        self._told.append(Done(worker, ticket, do(task, again)))

    def events(self) -> Iterator[Event]:
        while self._told:
            yield self._told.popleft()

    def close(self) -> None: ...


class Ledger:
    """Writes records, and notes memory on the way."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w")
        self.count, self.first = 0, 0.0
        self.memory: list[int] = []

    def tiles(self, job: Job, done: int, total: int) -> None: ...
    def note(self, job: Job, text: str) -> None: ...
    def record(self, record: Record) -> None:
        self._file.write(record.json() + "\n")
        self.first = self.first or time.perf_counter()
        self.count += 1
        if self.count % 10_000 == 0:
            self.memory.append(resident())


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def jobs(count: int) -> Iterator[Job]:
    for index in range(count):
        name = f"{index // 1000:04}/{index:07}.jpg"
        yield Job(Place(f"s3://pictures/{name}"), Place(f"s3://large/{name}"), FORMATS["JPEG"], name=name)


def team(kind: str, workers: int) -> Team:
    if kind == "alone":
        return Alone(workers)
    if kind == "processes":
        return Processes(Nothing(), [Seat("cpu", 1)] * workers)
    return Cluster(Nothing(), workers, "cpu", 1, None)


def main(count: str = "100000", kind: str = "alone", workers: str = "2") -> None:
    with tempfile.TemporaryDirectory() as folder:
        began, used, ledger = time.perf_counter(), time.process_time(), Ledger(Path(folder, "records.jsonl"))
        spread.run(jobs(int(count)), team(kind, int(workers)), Settings(), ledger)
        seconds, own = time.perf_counter() - began, time.process_time() - used
    assert ledger.count == int(count)
    print(f"{count} jobs, {workers} workers, {kind}: driver {1000 * own / ledger.count:.3f} ms of CPU a job")
    print(f"first result after {ledger.first - began:.2f} s, all after {seconds:.1f} s")
    if ledger.memory:
        print("memory after every 10,000 jobs, MB: " + " ".join(f"{size / 1e6:.0f}" for size in ledger.memory))


if __name__ == "__main__":
    main(*sys.argv[1:])
