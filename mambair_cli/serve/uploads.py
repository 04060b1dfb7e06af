"""The body of a request, onto the disk: bounded in bytes and in time."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from starlette.requests import Request

from mambair_cli.images.formats import RAW_SUFFIXES, READABLE_SUFFIXES
from mambair_cli.serve.jobs import Jobs
from mambair_cli.serve.limits import MEGABYTE
from mambair_cli.serve.problems import Refused

_HOW = "Send the picture itself as the body: curl --data-binary @photo.jpg."


async def received(request: Request, jobs: Jobs, name: str) -> Path:
    """The picture in the body, as a file of the server's own.

    Raises Refused for one that is empty, too long or too slow, Busy where there is no room, ClientDisconnect where
    the client has gone: no file is left then.
    """
    limits = jobs.limits
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise Refused(415, "A form is not a picture.", _HOW)
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limits.upload:
        raise _too_long(limits.upload)
    suffix = Path(name).suffix.lower()
    file = jobs.spool.new(suffix if suffix in READABLE_SUFFIXES | RAW_SUFFIXES else "")
    try:
        count = await _write(request, jobs, file)
        if not count:
            raise Refused(400, "There is no picture in the request.", _HOW)
    except OSError as error:
        jobs.spool.remove(file)
        raise Refused(507, f"The picture cannot be kept: {error.strerror or error}.") from error
    except BaseException:
        jobs.spool.remove(file)
        raise
    return file


async def _write(request: Request, jobs: Jobs, file: Path) -> int:
    limits, count, started = jobs.limits, 0, time.monotonic()
    pieces = request.stream()
    with file.open("wb") as target:
        while True:
            left = limits.silence + count / limits.slowest - (time.monotonic() - started)
            try:
                piece = await asyncio.wait_for(anext(pieces), max(0.0, min(limits.silence, left)))
            except StopAsyncIteration:
                return count
            except asyncio.TimeoutError:
                raise Refused(408, f"The upload was too slow: {count:,} bytes came.", "Try again.") from None
            count += len(piece)
            if count > limits.upload:
                raise _too_long(limits.upload)
            jobs.make_room(len(piece))
            target.write(piece)
            target.flush()


def _too_long(most: int) -> Refused:
    return Refused(413, f"More than {most / MEGABYTE:,.0f} MB.", "Who runs the server may raise --max-megabytes.")
