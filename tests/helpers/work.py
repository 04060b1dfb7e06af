"""Work for teams in tests: pictures that end their worker, and tasks that cost nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from mambair_cli.files import Job
from mambair_cli.restoring.hand import Restoring
from mambair_cli.restoring.record import Record
from mambair_cli.restoring.steps import Written
from mambair_cli.workers.team import Do, Seat


@dataclass(frozen=True)
class Fatal:
    """`Restoring` in which some jobs, by name, end the process: always, or once (a file remembers)."""

    work: Restoring
    memory: Path
    once: tuple[str, ...] = ()
    always: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()

    def packed(self, put: Callable[[bytes], Callable[[], bytes]]) -> Fatal:
        return replace(self, work=self.work.packed(put))

    def begin(self, seat: Seat) -> Do:
        do = self.work.begin(seat)

        def fatal(job: Job, again: bool) -> object:
            if job.name in self.always:
                os.kill(os.getpid(), signal.SIGKILL)
            if job.name in self.once and not (self.memory / job.name).exists():
                (self.memory / job.name).touch()
                os._exit(7)
            return do(job, again)

        return fatal


@dataclass(frozen=True)
class Nothing:
    """Says of every job that it is done."""

    modules: tuple[str, ...] = ()

    def packed(self, put: Callable[[bytes], Callable[[], bytes]]) -> Nothing:
        return self

    def begin(self, seat: Seat) -> Do:
        return lambda job, again: Written(Record.of(job, "done"))
