"""Many pictures through one network: the next is decoded and the last encoded while one is being restored."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from itertools import islice
from typing import IO, Protocol

from mambair_cli import atomic, compare
from mambair_cli.atomic import DiskFullError, atomic_write
from mambair_cli.errors import BadImage, MambairError, Unavailable
from mambair_cli.files import Job
from mambair_cli.images import encode
from mambair_cli.images.decode import Picture, read_picture
from mambair_cli.images.encode import Encoding
from mambair_cli.images.formats import MAX_PIXELS, of_suffix
from mambair_cli.restoring.picture import Load, plan, restore
from mambair_cli.restoring.record import Record
from mambair_cli.restoring.request import Request
from mambair_cli.streams import write_stdout

READ_AHEAD = 2
WRITERS = 4
# Results waiting to be written: many small ones at once, but never two large ones beside the one being restored.
WAITING_PIXELS = 64_000_000
_LARGEST_SCALE = 4
DRY_RUN = "dry run"


@dataclass(frozen=True)
class Settings:
    """What holds for the whole batch."""

    encoding: Encoding = field(default_factory=Encoding)
    max_pixels: int = MAX_PIXELS
    force: bool = False
    fail_fast: bool = False


class Listener(Protocol):
    """Who wants to know. Called from the thread that called `run`."""

    def tiles(self, job: Job, done: int, total: int) -> None: ...
    def note(self, job: Job, text: str) -> None: ...
    def record(self, record: Record) -> None: ...


def run(jobs: Sequence[Job], request: Request, load: Load, settings: Settings, listener: Listener) -> None:
    """Restore all jobs in order and tell `listener` of each. One bad file stops nothing.

    A full disk ends it, a failure where that is asked for, and missing weights; what follows is told as not tried.
    Raises Unavailable where the weights of a model cannot be had.
    """
    atomic.sweep({job.target.parent for job in jobs if job.target})
    readers, writers = ThreadPoolExecutor(READ_AHEAD), ThreadPoolExecutor(WRITERS)
    outbox = Outbox(writers, settings, listener)
    try:
        for job, reading in _read_ahead(readers, jobs, settings):
            if outbox.full or (outbox.failed and settings.fail_fast):
                break
            try:
                picture, seconds = reading.result()
                if picture is None:
                    outbox.skip(job)
                else:
                    outbox.send(job, *_restore(job, picture, seconds, request, load, outbox))
            except Unavailable as error:
                outbox.collect(wait=True)
                _give_up(jobs[outbox.taken :], str(error), listener)
                raise
            except BrokenPipeError:  # nobody listens to the records any more
                raise
            except MambairError as error:
                outbox.put(job, Record.of(job, "failed", str(error)))
            except Exception as error:  # a picture that breaks a network must not break the batch
                outbox.put(job, Record.of(job, "failed", f"{type(error).__name__}: {error}"))
        outbox.collect(wait=True)
        _give_up(jobs[outbox.taken :], "the disk is full" if outbox.full else "another picture failed", listener)
    finally:
        try:
            outbox.collect()  # what is written by now is told, after an interrupt too
        finally:
            readers.shutdown(wait=False, cancel_futures=True)
            writers.shutdown(wait=False, cancel_futures=True)


def _give_up(jobs: Sequence[Job], reason: str, listener: Listener) -> None:
    for job in jobs:
        listener.record(Record.of(job, "not tried", reason))


# --- reading --------------------------------------------------------------------------------------------------

Reading = tuple[Picture | None, float]  # None: there is a result already; seconds


def _read_ahead(
    readers: ThreadPoolExecutor, jobs: Sequence[Job], settings: Settings
) -> Iterator[tuple[Job, Future[Reading]]]:
    upcoming = iter(jobs)
    queue = deque((job, readers.submit(_read, job, settings)) for job in islice(upcoming, READ_AHEAD))
    while queue:
        yield queue.popleft()
        queue.extend((job, readers.submit(_read, job, settings)) for job in islice(upcoming, 1))


def _read(job: Job, settings: Settings) -> Reading:
    started = time.perf_counter()
    if job.error:
        raise BadImage(job.error)
    if _is_there(job, settings):
        return None, 0.0
    source = sys.stdin.buffer if job.source is None else job.source
    picture = read_picture(source, settings.max_pixels)
    return picture, time.perf_counter() - started


def _is_there(job: Job, settings: Settings) -> bool:
    """Whether there is a result to keep."""
    # Not Path.exists: it raises where a folder is locked or a name too long; then reading or writing says so.
    return job.target is not None and not settings.force and os.path.exists(job.target)


# --- restoring ------------------------------------------------------------------------------------------------


def _restore(
    job: Job, picture: Picture, seconds: float, request: Request, load: Load, outbox: Outbox
) -> tuple[Picture, Record]:
    """The result and its record; `seconds` went into reading."""

    def say(text: str) -> None:
        outbox.listener.note(job, text)

    def tiles(done: int, total: int) -> None:
        outbox.listener.tiles(job, done, total)
        outbox.collect()

    for text in _misnamed(job, picture):
        say(text)
    result = restore(picture, request, load, form=job.format, progress=tiles, say=say)
    record = result.record
    return result.picture, replace(
        record, input=job.input, output=job.output, seconds=seconds + (record.seconds or 0.0)
    )


def rehearse(job: Job, request: Request, settings: Settings) -> Record:
    """What `run` would do with a job: `--dry-run`. Loads no network."""
    if not job.error and _is_there(job, settings):
        return Record.of(job, "skipped")
    if not job.error and job.source is None:  # reading it would take it away from the real run
        return Record.of(job, "skipped", DRY_RUN)
    try:
        picture, _ = _read(job, settings)
        assert picture is not None
        steps = plan(picture, request, job.format)
    except MambairError as error:
        return Record.of(job, "failed", str(error))
    record = Record.of(job, "skipped", DRY_RUN)
    if steps.spec:
        record = replace(record, model=steps.spec.name, scale=steps.spec.scale)
    return replace(record, input_size=picture.size, output_size=steps.size)


def _misnamed(job: Job, picture: Picture) -> Iterator[str]:
    """Where a lossless picture is to become a lossy one only because of its suffix. WebP can be either."""
    own = job.source and of_suffix(job.source)
    if picture.lossless and own == job.format and own.lossy and own.name not in (picture.format, "WEBP"):
        yield f"holds a {picture.format}; by its name the result is a {own.name}, with losses (--format png: without)"


# --- writing --------------------------------------------------------------------------------------------------


class Outbox:
    """Results on their way to the disk: a bounded queue, whose records come out in the order of the jobs."""

    def __init__(self, writers: ThreadPoolExecutor, settings: Settings, listener: Listener) -> None:
        self.listener = listener
        self.failed = self.full = False
        self.taken = 0  # jobs, in their order
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
        self._add(job, pixels, self._writers.submit(_write, job, result, record, self._settings))

    def skip(self, job: Job) -> None:
        """What is there already. If its comparison is not, that is made: one at a time, as the size is not known."""
        record = Record.of(job, "skipped")
        if job.comparison is None or os.path.exists(job.comparison):
            return self.put(job, record)
        return self._add(job, WAITING_PIXELS, self._writers.submit(_compare, job, Written(record), self._settings))

    def collect(self, wait: bool = False) -> None:
        """Tell of what is written by now, or of everything."""
        while self._queue and (wait or self._queue[0][2].done()):
            self._tell()

    def _add(self, job: Job, pixels: int, written: Future[Written]) -> None:
        self.taken += 1
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


@dataclass(frozen=True)
class Written:
    """How writing went."""

    record: Record
    notes: Sequence[str] = ()
    full: bool = False  # the disk


def _write(job: Job, result: Picture, record: Record, settings: Settings) -> Written:
    started = time.perf_counter()
    try:
        with atomic_write(job.target) if job.target else _stdout() as stream:
            notes = encode.write(result, stream, job.format, settings.encoding)
    except BrokenPipeError:
        raise
    except Exception as error:  # Pillow's encoders raise anything, too
        return Written(replace(record, status="failed", error=str(error)), full=isinstance(error, DiskFullError))
    seconds = (record.seconds or 0.0) + time.perf_counter() - started
    return _compare(job, Written(replace(record, seconds=round(seconds, 3)), notes), settings)


def _compare(job: Job, written: Written, settings: Settings) -> Written:
    """The comparison, where one is asked for; without it a job has not done what was asked."""
    if not (job.source and job.target and job.comparison):
        return written
    try:
        compare.compare(job.source, job.target, job.comparison, settings.max_pixels * _LARGEST_SCALE**2)
    except Exception as error:  # as in `_write`
        record = replace(written.record, status="failed", error=f"{job.target} is there, its comparison not: {error}")
        return Written(record, written.notes, full=isinstance(error, DiskFullError))
    return written


@contextmanager
def _stdout() -> Iterator[IO[bytes]]:
    stream = BytesIO()
    yield stream
    write_stdout(stream.getbuffer())
