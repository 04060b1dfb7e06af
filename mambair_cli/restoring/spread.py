"""Many pictures through many networks: a batch by a team of workers."""

from __future__ import annotations

from collections.abc import Iterable

from mambair_cli.errors import MambairError, Unavailable
from mambair_cli.files import Job
from mambair_cli.restoring.batch import FAILED, FULL, Listener, give_up
from mambair_cli.restoring.record import Record
from mambair_cli.restoring.steps import Settings, Written
from mambair_cli.workers.driver import Driver
from mambair_cli.workers.team import Team


def run(jobs: Iterable[Job], team: Team, settings: Settings, listener: Listener) -> None:
    """As `batch.run`, by workers that do `Restoring`: records come in the order in which pictures are done.

    Raises Unavailable where the weights of a model cannot be had, MambairError where no worker can begin.
    """
    driver = Driver(jobs, team)
    missing: Unavailable | None = None
    reason = FAILED
    try:
        for job, result in driver:
            if isinstance(result, Unavailable):
                missing, reason = result, str(result)
                listener.record(Record.of(job, "not tried", reason))
                driver.stop()
                continue
            written = Written(Record.of(job, "failed", str(result))) if isinstance(result, MambairError) else result
            for text in written.notes:
                listener.note(job, text)
            listener.record(written.record)
            if written.full or (settings.fail_fast and written.record.status == "failed"):
                reason = FULL if written.full else FAILED
                driver.stop()
        give_up(driver.left(), reason, listener)
    finally:
        team.close()
    if missing:
        raise missing
