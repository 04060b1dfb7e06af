"""What is done with one job: read, restore, write. Each step says how it went; none knows of other jobs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import IO

from PIL import Image

from mambair_cli import compare
from mambair_cli.atomic import DiskFullError, atomic_write
from mambair_cli.errors import AlreadyThere, BadImage, MambairError, Unavailable
from mambair_cli.files import Job
from mambair_cli.images import encode
from mambair_cli.images.decode import Picture, Source, longest, read_picture, size_of
from mambair_cli.images.encode import Encoding
from mambair_cli.images.formats import MAX_PIXELS, MAX_RESULT_PIXELS, of_suffix
from mambair_cli.images.software import made_by
from mambair_cli.places import Place
from mambair_cli.restoring.picture import Load, Say, restore
from mambair_cli.restoring.record import Record
from mambair_cli.restoring.request import Request
from mambair_cli.restoring.running import TilesDone
from mambair_cli.streams import write_stdout

_CLOCKS = 1.0  # seconds by which those of machines and stores may differ; some stores know no fractions
Reading = tuple[Picture | None, float]  # None: there is a result already; seconds


@dataclass(frozen=True)
class Settings:
    """What holds for the whole batch."""

    encoding: Encoding = field(default_factory=Encoding)
    max_pixels: int | None = None  # of inputs and results, instead of the usual
    force: bool = False
    fail_fast: bool = False
    describe: bool = False  # results that are there already: their records say what they are, which takes reading


@dataclass(frozen=True)
class Written:
    """How it went with a job."""

    record: Record
    notes: Sequence[str] = ()
    full: bool = False  # the disk


def read(job: Job, settings: Settings) -> Reading:
    """The picture of a job. Raises BadImage."""
    started = time.perf_counter()
    if job.error:
        raise BadImage(job.error)
    if is_there(job, settings):
        return None, 0.0
    limit = settings.max_pixels or MAX_PIXELS
    source: Source | Place = sys.stdin.buffer if job.source is None else job.source
    picture = read_picture(source.read(longest(limit)) if isinstance(source, Place) else source, limit)
    return picture, time.perf_counter() - started


def is_there(job: Job, settings: Settings) -> bool:
    """Whether there is a result to keep. Raises MambairError where a store does not answer."""
    # Not Path.exists: it raises where a folder is locked or a name too long; then reading or writing says so.
    if job.target is None or settings.force:
        return False
    return job.target.exists() if isinstance(job.target, Place) else os.path.exists(job.target)


def is_newer(job: Job, since: float) -> bool:
    """Whether the result was written after a moment, in seconds since 1970, as far as the clocks agree."""
    try:
        written = job.target.modified() if isinstance(job.target, Place) else os.path.getmtime(job.target or "")
    except OSError:
        return False
    return written is not None and written >= since - _CLOCKS


def skipped(job: Job, settings: Settings) -> Record:
    """The record of a job whose result is there already; with its sizes and model where the files tell them."""
    record = Record.of(job, "skipped")
    if not (settings.describe and isinstance(job.source, Path) and isinstance(job.target, Path)):
        return record  # what lies in a store would have to be fetched
    started = time.perf_counter()
    sizes, made = [size_of(path) for path in (job.source, job.target)], made_by(job.target)
    seconds = round(time.perf_counter() - started, 3)
    return replace(
        record, model=made.model if made else None, input_size=sizes[0], output_size=sizes[1], seconds=seconds
    )


def restored(
    job: Job,
    reading: Reading,
    request: Request,
    load: Load,
    say: Say,
    tiles: TilesDone | None = None,
    max_pixels: int | None = None,
) -> tuple[Picture, Record]:
    """The result and its record. Raises as `picture.restore`."""
    picture, seconds = reading
    assert picture is not None
    for text in _misnamed(job, picture):
        say(text)
    result = restore(picture, request, load, form=job.format, max_pixels=max_pixels, progress=tiles, say=say)
    record = result.record
    return result.picture, replace(
        record, input=job.input, output=job.output, seconds=seconds + (record.seconds or 0.0)
    )


def failure(job: Job, error: Exception) -> Record:
    """The record of what a step raised. What no picture is to blame for is raised again: missing weights, and a pipe
    that nobody reads any more."""
    if isinstance(error, Unavailable | BrokenPipeError):
        raise error
    # Else a picture that breaks a network, which must not break the batch.
    why = str(error) if isinstance(error, MambairError) else f"{type(error).__name__}: {error}"
    return Record.of(job, "failed", why)


def _misnamed(job: Job, picture: Picture) -> Iterator[str]:
    """Where a lossless picture is to become a lossy one only because of its suffix. WebP can be either."""
    own = job.source and of_suffix(job.source)
    if picture.lossless and own == job.format and own.lossy and own.name not in (picture.format, "WEBP"):
        yield f"holds a {picture.format}; by its name the result is a {own.name}, with losses (--format png: without)"


def write(job: Job, result: Picture, record: Record, settings: Settings) -> Written:
    """Write a result. One that appeared meanwhile stays, unless it is to be redone: then this one is not needed."""
    started = time.perf_counter()
    try:
        with _result(job, exclusive=not settings.force) as stream:
            notes = encode.write(result, stream, job.format, settings.encoding)
    except BrokenPipeError:
        raise
    except AlreadyThere:
        return Written(skipped(job, settings))
    except Exception as error:  # Pillow's encoders raise anything, too
        return Written(replace(record, status="failed", error=str(error)), full=isinstance(error, DiskFullError))
    seconds = (record.seconds or 0.0) + time.perf_counter() - started
    return compared(job, Written(replace(record, seconds=round(seconds, 3)), notes), settings)


def compared(job: Job, written: Written, settings: Settings) -> Written:
    """The comparison, where one is asked for; without it a job has not done what was asked."""
    if not (isinstance(job.source, Path) and isinstance(job.target, Path) and job.comparison):
        return written
    try:
        compare.compare(job.source, job.target, job.comparison, max(settings.max_pixels or 0, MAX_RESULT_PIXELS))
    except Exception as error:  # as in `write`
        record = replace(written.record, status="failed", error=f"{job.target} is there, its comparison not: {error}")
        return Written(record, written.notes, full=isinstance(error, DiskFullError))
    return written


@contextmanager
def _result(job: Job, exclusive: bool) -> Iterator[IO[bytes]]:
    """What the result is written to, and appears from at once in the end."""
    if isinstance(job.target, Path):
        with atomic_write(job.target, exclusive) as file:
            yield file
        return
    stream = BytesIO()
    yield stream
    if job.target:
        job.target.write(stream.getvalue(), Image.MIME[job.format.name], exclusive)
    else:
        write_stdout(stream.getbuffer())
