"""Many pictures through one network: the next is decoded and the last encoded while one is being restored."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from itertools import islice
from typing import IO, TYPE_CHECKING, Protocol

import numpy as np
import torch

from mambair_cli import atomic, compare
from mambair_cli.atomic import DiskFullError, atomic_write
from mambair_cli.errors import BadImage, MambairError, Unavailable
from mambair_cli.files import Job
from mambair_cli.images import color, encode
from mambair_cli.images.decode import Frame, Picture, read_picture
from mambair_cli.images.encode import Encoding
from mambair_cli.images.formats import MAX_PIXELS, Format, of_suffix
from mambair_cli.models.zoo import ModelSpec
from mambair_cli.restoring.fit import NO_FIT, Fit
from mambair_cli.restoring.record import Record

if TYPE_CHECKING:
    from mambair_cli.restoring.restorer import Restorer

READ_AHEAD = 2
WRITERS = 4
# Results waiting to be written: many small ones at once, but never two large ones beside the one being restored.
WAITING_PIXELS = 64_000_000
_LARGEST_SCALE = 4


@dataclass(frozen=True)
class Settings:
    """What holds for the whole batch."""

    encoding: Encoding = field(default_factory=Encoding)
    max_pixels: int = MAX_PIXELS
    fit: Fit = NO_FIT
    force: bool = False
    fail_fast: bool = False


class Listener(Protocol):
    """Who wants to know. Called from the thread that called `run`."""

    def tiles(self, job: Job, done: int, total: int) -> None: ...
    def note(self, job: Job, text: str) -> None: ...
    def record(self, record: Record) -> None: ...


# What there is to say goes into the callable; None: the picture is large enough, no network need run.
Choose = Callable[[Picture, Callable[[str], None]], ModelSpec | None]
Load = Callable[[ModelSpec], "Restorer"]
Progress = Callable[[int, int], None]  # tiles done, tiles in all


def run(jobs: Sequence[Job], choose: Choose, load: Load, settings: Settings, listener: Listener) -> None:
    """Restore all jobs in order and tell `listener` of each. One bad file stops nothing.

    A full disk ends it, a failure where that is wished, and missing weights; what follows is told as not tried.
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
                    outbox.send(job, *_restore_job(job, picture, seconds, choose, load, settings.fit, outbox))
            except Unavailable as error:
                outbox.collect(wait=True)
                _give_up(jobs[outbox.taken :], str(error), listener)
                raise
            except BrokenPipeError:  # nobody listens to the records any more
                raise
            except MambairError as error:
                outbox.put(job, Record(job.input, job.output, "failed", str(error)))
            except Exception as error:  # a picture that breaks a network must not break the batch
                outbox.put(job, Record(job.input, job.output, "failed", f"{type(error).__name__}: {error}"))
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
        listener.record(Record(job.input, job.output, "not tried", reason))


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
    # Not Path.exists: it raises where a folder is locked or a name too long; then reading or writing says so.
    if job.target is not None and not settings.force and os.path.exists(job.target):
        return None, 0.0
    source = sys.stdin.buffer.read() if job.source is None else job.source
    picture = read_picture(source, settings.max_pixels)
    return picture, time.perf_counter() - started


# --- restoring ------------------------------------------------------------------------------------------------


def _restore_job(
    job: Job, picture: Picture, seconds: float, choose: Choose, load: Load, fit: Fit, outbox: Outbox
) -> tuple[Picture, Record]:
    """The result and its record; `seconds` went into reading."""
    for text in (*picture.warnings, *_misnamed(job, picture)):
        outbox.listener.note(job, text)
    spec = choose(picture, lambda text: outbox.listener.note(job, text))
    restorer = load(spec) if spec else None

    def tiles(done: int, total: int) -> None:
        outbox.listener.tiles(job, done, total)
        outbox.collect()

    started = time.perf_counter()
    if restorer:
        result = restore(picture, job.format, restorer, fit, tiles)
    else:
        result = resize(picture, job.format, fit)
    record = Record(
        job.input,
        job.output,
        "done",
        input_size=picture.size,
        output_size=result.size,
        seconds=seconds + time.perf_counter() - started,
    )
    return result, _signed(record, restorer) if restorer else record


def _misnamed(job: Job, picture: Picture) -> Iterator[str]:
    """Where a lossless picture is to become a lossy one only because of its suffix. WebP can be either."""
    own = job.source and of_suffix(job.source)
    if picture.lossless and own == job.format and own.lossy and own.name not in (picture.format, "WEBP"):
        yield f"holds a {picture.format}; by its name the result is a {own.name}, with losses (--format png: without)"


def _signed(record: Record, restorer: Restorer) -> Record:
    """With what it was made."""
    return replace(
        record,
        model=restorer.spec.name,
        sha256=restorer.sha256,
        scale=restorer.spec.scale,
        device=str(restorer.device),
        precision=restorer.precision_used,
        scan=restorer.scan,
        tile=restorer.tile_used,
        ensemble=restorer.ensemble,
        seed=restorer.seed,
    )


def restore(
    picture: Picture, form: Format, restorer: Restorer, fit: Fit = NO_FIT, progress: Progress | None = None
) -> Picture:
    """Every frame through the network, at the wished size. Raises BadImage if `form` cannot hold the result."""
    scale, count = restorer.spec.scale, len(picture.frames)
    largest = max(picture.frames, key=lambda frame: max(frame.size)).size
    encode.check(form, fit.size(largest) if fit else (largest[0] * scale, largest[1] * scale), count)
    frames = []
    for index, frame in enumerate(picture.frames):

        def tiles(done: int, total: int, before: int = index) -> None:
            if progress:
                progress(before * total + done, count * total)

        result = restore_frame(frame, picture.space, restorer, tiles)
        frames.append(_resized(result, fit.size(frame.size)) if fit else result)
    return replace(picture, frames=tuple(frames))


def resize(picture: Picture, form: Format, fit: Fit) -> Picture:
    """Every frame at the wished size, without a network. Raises BadImage if `form` cannot hold the result."""
    encode.check(form, max((fit.size(frame.size) for frame in picture.frames), key=max), len(picture.frames))
    bled = (
        frame if frame.alpha is None else replace(frame, pixels=color.bleed(frame.pixels, frame.alpha))
        for frame in picture.frames
    )
    return replace(picture, frames=tuple(_resized(frame, fit.size(frame.size)) for frame in bled))


def restore_frame(
    frame: Frame, space: color.Space | None, restorer: Restorer, progress: Progress | None = None
) -> Frame:
    """A frame through the network: in sRGB and back, transparency apart, at the depth it came in."""
    original = frame.pixels if frame.alpha is None else color.bleed(frame.pixels, frame.alpha)
    view = original if space is None else color.apply(space.to_srgb, original)
    height, width = (side * restorer.spec.scale for side in view.shape[:2])
    result = np.empty((height, width, view.shape[2]), view.dtype)
    lq = torch.from_numpy(color.as_float(view)).permute(2, 0, 1)
    for y, band in restorer.restore_bands(lq, progress):
        for channel, plane in enumerate(band.numpy()):  # one at a time: bands of large pictures are large
            result[y : y + band.shape[1], :, channel] = color.quantise(plane, view.dtype)
    if space is not None:
        result = color.restore_gamut(result, original, space)
    alpha = None if frame.alpha is None else color.resample(frame.alpha, (width, height))
    return Frame(result, alpha, frame.duration)


def _resized(frame: Frame, size: tuple[int, int]) -> Frame:
    alpha = None if frame.alpha is None else color.resample(frame.alpha, size)
    return replace(frame, pixels=color.resample(frame.pixels, size), alpha=alpha)


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
        record = Record(job.input, job.output, "skipped")
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
    """The comparison, where one is wished; without it a job has not done what was asked."""
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
    sys.stdout.buffer.write(stream.getbuffer())
    sys.stdout.buffer.flush()
