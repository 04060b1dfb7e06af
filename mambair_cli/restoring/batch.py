"""Many pictures through one network: the next is decoded and the last encoded while one is being restored."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Protocol

from mambair_cli import atomic
from mambair_cli.errors import MambairError, Unavailable
from mambair_cli.files import Job
from mambair_cli.images.decode import Picture
from mambair_cli.restoring import steps
from mambair_cli.restoring.picture import Load, plan
from mambair_cli.restoring.record import Pass, Record
from mambair_cli.restoring.request import Request
from mambair_cli.restoring.steps import Reading, Settings, Written

READ_AHEAD = 2
WRITERS = 4
# Results waiting to be written: many small ones at once, but never two large ones beside the one being restored.
WAITING_PIXELS = 64_000_000
FULL, FAILED = "the disk is full", "another picture failed"  # why others are not tried


class Listener(Protocol):
    """Who wants to know. Called from the thread that called `run`."""

    def tiles(self, job: Job, done: int, total: int) -> None: ...
    def note(self, job: Job, text: str) -> None: ...
    def record(self, record: Record) -> None: ...


def run(jobs: Iterable[Job], request: Request, load: Load, settings: Settings, listener: Listener) -> None:
    """Restore all jobs in order and tell `listener` of each. One bad file stops nothing.

    A full disk ends it, a failure where that is asked for, and missing weights; what follows is told as not tried.
    Jobs are taken as they are needed. Raises Unavailable where the weights of a model cannot be had.
    """
    readers, writers = ThreadPoolExecutor(READ_AHEAD), ThreadPoolExecutor(WRITERS)
    outbox = Outbox(writers, settings, listener)
    upcoming = _Upcoming(jobs, readers, settings)

    def tiles(done: int, total: int) -> None:
        listener.tiles(job, done, total)
        outbox.collect()

    try:
        for job, reading in upcoming:
            if outbox.full or (outbox.failed and settings.fail_fast):
                break
            try:
                if (read := reading.result())[0] is None:
                    outbox.skip(job)
                else:
                    say = partial(listener.note, job)
                    outbox.send(job, *steps.restored(job, read, request, load, say, tiles, settings.max_pixels))
            except Unavailable as error:
                outbox.collect(wait=True)
                give_up(upcoming.left(), str(error), listener)
                raise
            except Exception as error:
                outbox.put(job, steps.failure(job, error))
        outbox.collect(wait=True)
        give_up(upcoming.left(), FULL if outbox.full else FAILED, listener)
    finally:
        try:
            outbox.collect()  # what is written by now is told, after an interrupt too
        finally:
            readers.shutdown(wait=False, cancel_futures=True)
            writers.shutdown(wait=False, cancel_futures=True)


def give_up(jobs: Iterable[Job], reason: str, listener: Listener) -> None:
    """Tell of jobs that nobody will try."""
    for job in jobs:
        listener.record(Record.of(job, "not tried", reason))


class _Upcoming:
    """Jobs in their order, each with its picture, the next of which is being read."""

    def __init__(self, jobs: Iterable[Job], readers: ThreadPoolExecutor, settings: Settings) -> None:
        self._jobs, self._readers, self._settings = iter(jobs), readers, settings
        self._queue: deque[tuple[Job, Future[Reading]]] = deque()
        self._swept: set[Path] = set()

    def __iter__(self) -> Iterator[tuple[Job, Future[Reading]]]:
        self._fill()
        while self._queue:
            yield self._queue[0]
            self._queue.popleft()
            self._fill()

    def left(self) -> Iterator[Job]:
        """The one that was given out last, if it is not done, and all after it."""
        return chain((job for job, _ in self._queue), self._jobs)

    def _fill(self) -> None:
        while len(self._queue) < READ_AHEAD and (job := next(self._jobs, None)):
            if isinstance(job.target, Path) and job.target.parent not in self._swept:
                self._swept.add(job.target.parent)
                atomic.sweep([job.target.parent])
            self._queue.append((job, self._readers.submit(steps.read, job, self._settings)))


def rehearse(job: Job, request: Request, settings: Settings) -> Record:
    """What `run` would do with a job: `--dry-run`. Loads no network."""
    if not job.error and steps.is_there(job, settings):
        return steps.skipped(job, settings)
    if not job.error and job.source is None:  # reading it would take it away from the real run
        return Record.of(job, "planned")
    try:
        picture, _ = steps.read(job, settings)
        assert picture is not None
        planned = plan(picture, request, job.format, settings.max_pixels)
    except MambairError as error:
        return Record.of(job, "failed", str(error))
    return replace(
        Record.of(job, "planned"),
        model=planned.model,
        scale=planned.scale,
        input_size=picture.size,
        output_size=planned.size,
        passes=tuple(Pass(spec.name, None, spec.scale) for spec in planned.models),
        resampled=planned.resampled,
    )


# --- writing --------------------------------------------------------------------------------------------------


class Outbox:
    """Results on their way to the disk: a bounded queue, whose records come out in the order of the jobs."""

    def __init__(self, writers: ThreadPoolExecutor, settings: Settings, listener: Listener) -> None:
        self.listener = listener
        self.failed = self.full = False
        self._writers = writers
        self._settings = settings
        self._queue: deque[tuple[Job, int, Future[Written]]] = deque()

    def put(self, job: Job, record: Record) -> None:
        """A record of nothing to write."""
        written: Future[Written] = Future()
        written.set_result(Written(record))
        self._add(job, 0, written)

    def send(self, job: Job, result: Picture, record: Record) -> None:
        """A result to write. Waits while too much is waiting."""
        pixels = sum(frame.pixels.shape[0] * frame.pixels.shape[1] for frame in result.frames)
        self._add(job, pixels, self._writers.submit(steps.write, job, result, record, self._settings))

    def skip(self, job: Job) -> None:
        """What is there already. If its comparison is not, that is made: one at a time, as the size is not known."""
        record = steps.skipped(job, self._settings)
        if job.comparison is None or os.path.exists(job.comparison):
            return self.put(job, record)
        return self._add(
            job, WAITING_PIXELS, self._writers.submit(steps.compared, job, Written(record), self._settings)
        )

    def collect(self, wait: bool = False) -> None:
        """Tell of what is written by now, or of everything."""
        while self._queue and (wait or self._queue[0][2].done()):
            self._tell()

    def _add(self, job: Job, pixels: int, written: Future[Written]) -> None:
        self._queue.append((job, pixels, written))
        self.collect()
        while len(self._queue) > 1 and (len(self._queue) > WRITERS or self._pixels() > WAITING_PIXELS):
            self._tell()

    def _pixels(self) -> int:
        return sum(pixels for _, pixels, _ in self._queue)

    def _tell(self) -> None:
        job, _, future = self._queue.popleft()
        written = future.result()
        for text in written.notes:
            self.listener.note(job, text)
        self.failed |= written.record.status == "failed"
        self.full |= written.full
        self.listener.record(written.record)
