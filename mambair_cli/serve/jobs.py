"""The queue: pictures that wait, run and are kept, and who wants to know of them.

Everything here happens in the thread of the event loop; only `Worker.restore` runs elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mambair_cli.errors import MambairError
from mambair_cli.serve.form import Asked
from mambair_cli.serve.limits import Limits
from mambair_cli.serve.spool import Spool
from mambair_cli.serve.worker import Cancelled, Made, Worker

State = Literal["waiting", "running", "done", "failed", "cancelled"]
log = logging.getLogger("mambair")

_SECONDS_AT_FIRST = 5.0  # that a picture takes, before one has been seen
_LONGEST_WAIT = 120  # seconds that a client is told to wait


class Busy(Exception):
    """The queue is full. `seconds`: when to come again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"{seconds} s")
        self.seconds = seconds


@dataclass(eq=False)
class Job:
    """One picture of one client."""

    client: str  # a page, or the address of a script
    asked: Asked
    name: str  # of the picture, made harmless; "" where none was given
    source: Path
    session: bool = False  # the client is a page: it has to stay
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    state: State = "waiting"
    tiles: tuple[int, int] = (0, 0)  # done, in all
    made: Made | None = None
    error: Exception | None = None
    seconds: float = 0.0  # that the work took
    ended: float = 0.0  # by the monotonic clock
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    stop: threading.Event = field(default_factory=threading.Event)
    viewing: asyncio.Lock = field(default_factory=asyncio.Lock)
    views: tuple[Path, ...] = ()  # before and after, as browsers show them

    @property
    def files(self) -> list[Path]:
        return [self.source, *([self.made.file] if self.made else []), *self.views]


class Line:
    """Who is next: first come, first served within a client, and clients take turns."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[Job]:
        """In the order in which they will be taken."""
        lines = [list(line) for line in self._waiting.values()]
        for turn in range(max(map(len, lines), default=0)):
            yield from (line[turn] for line in lines if turn < len(line))

    def add(self, job: Job) -> None:
        self._waiting.setdefault(job.client, deque()).append(job)

    def take(self) -> Job:
        client, line = next(iter(self._waiting.items()))
        job = line.popleft()
        self._waiting.move_to_end(client)
        if not line:
            del self._waiting[client]
        return job

    def remove(self, job: Job) -> None:
        line = self._waiting[job.client]
        line.remove(job)
        if not line:
            del self._waiting[job.client]


class Watch:
    """What has changed since it was last asked: a job at most once, however slow the reader."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._changed = {job.id: job for job in jobs}
        self._event = asyncio.Event()
        self._event.set()

    def tell(self, job: Job) -> None:
        self._changed[job.id] = job
        self._event.set()

    def wake(self) -> None:
        self._event.set()

    async def changes(self, seconds: float) -> list[Job]:
        """The jobs that changed, or none after so many seconds."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._event.wait(), seconds)
        self._event.clear()
        changed, self._changed = list(self._changed.values()), {}
        return changed


class Jobs:
    """All jobs of a server, and the tasks that feed its devices."""

    def __init__(self, workers: Sequence[Worker], spool: Spool, limits: Limits) -> None:
        self.limits, self.spool = limits, spool
        self.closing = False
        self._workers = workers
        self._jobs: dict[str, Job] = {}
        self._line = Line()
        self._arrived = asyncio.Semaphore(0)
        self._watches: dict[str, set[Watch]] = {}
        self._usual = _SECONDS_AT_FIRST
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._feed(worker)) for worker in self._workers]
        self._tasks.append(asyncio.create_task(self._sweep()))

    def hang_up(self) -> None:
        """Cancel everything and end all streams of events: the server is about to stop."""
        self.closing = True
        for job in list(self._jobs.values()):
            self.cancel(job)
        for watch in set().union(*self._watches.values()):
            watch.wake()

    async def close(self) -> None:
        """Wait until no device works any more: until the tiles that run are done."""
        self.hang_up()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- what clients ask ---

    def check_room(self) -> None:
        """Raises Busy where nothing more is taken in."""
        if len(self._line) >= self.limits.queue:
            each = self._usual / len(self._workers)
            raise Busy(min(_LONGEST_WAIT, max(1, round(each * len(self._line) / 2))))

    def make_room(self, count: int) -> None:
        """Take room for bytes on the disk; the oldest results make way. Raises Busy."""
        while not self.spool.take(count):
            oldest = min((job for job in self._jobs.values() if job.ended), key=lambda job: job.ended, default=None)
            if oldest is None:
                raise Busy(_LONGEST_WAIT)
            self.forget(oldest)

    def add(self, job: Job) -> None:
        """Put a job into the line. Raises Busy."""
        self.check_room()
        self._jobs[job.id] = job
        self._line.add(job)
        self._arrived.release()
        self._tell(job)
        if job.session and job.client not in self._watches:
            self._expect(job.client)

    def get(self, key: str) -> Job | None:
        return self._jobs.get(key)

    def ahead(self, job: Job) -> int:
        """How many are taken before it."""
        return next((place for place, other in enumerate(self._line) if other is job), 0)

    def cancel(self, job: Job) -> None:
        """End its work: at once if it waits, after its tile if it runs."""
        job.stop.set()
        if job.state == "waiting":
            self._line.remove(job)
            self._end(job, "cancelled")

    def forget(self, job: Job) -> None:
        """Cancel it, and remove all that there is of it once nothing works on it any more."""
        self.cancel(job)
        self._jobs.pop(job.id, None)
        if job.ended:
            self._remove(job)

    @contextmanager
    def watch(self, key: str) -> Iterator[Watch]:
        """Changes of one job, or of all jobs of a page; at first all there are. A page's work ends with its last
        watch."""
        watch = Watch([job for job in self._jobs.values() if key in (job.id, job.client)])
        self._watches.setdefault(key, set()).add(watch)
        try:
            yield watch
        finally:
            self._watches[key].discard(watch)
            if not self._watches[key]:
                del self._watches[key]
                self._expect(key)

    def counts(self) -> dict[str, int]:
        states = [job.state for job in self._jobs.values()]
        return {state: states.count(state) for state in ("waiting", "running")}

    # --- the work ---

    async def _feed(self, worker: Worker) -> None:
        """Give one device one picture after the other."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.acquire()
            if not len(self._line):  # it was cancelled
                continue
            job = self._line.take()
            job.state, started = "running", time.monotonic()
            self._tell(job)
            for waiting in self._line:
                self._tell(waiting)

            def tiles(done: int, total: int, job: Job = job) -> None:
                if job.stop.is_set():
                    raise Cancelled
                loop.call_soon_threadsafe(self._advance, job, (done, total))

            target = self.spool.new()
            try:
                job.made = await worker.run(job.asked, job.name, job.source, target, self.limits, tiles)
                if job.stop.is_set():
                    raise Cancelled
            except Cancelled:
                state: State = "cancelled"
            except MambairError as error:
                state, job.error = "failed", error
            except Exception as error:  # a picture that breaks a network must not break the server
                log.exception("%s failed", job.asked.request.task)
                state, job.error = "failed", error
            else:
                state = "done"
                self._usual += 0.2 * (time.monotonic() - started - self._usual)
            job.seconds = time.monotonic() - started
            self.spool.count(target)
            with suppress(Busy):
                self.make_room(0)
            self._end(job, state)

    def _advance(self, job: Job, tiles: tuple[int, int]) -> None:
        if job.state == "running":
            job.tiles = tiles
            self._tell(job)

    def _end(self, job: Job, state: State) -> None:
        job.state, job.ended = state, time.monotonic()
        job.finished.set()
        self._tell(job)
        if state != "done" or job.id not in self._jobs:
            self._remove(job)

    def _remove(self, job: Job) -> None:
        for file in job.files:
            self.spool.remove(file)

    def _tell(self, job: Job) -> None:
        for watch in (*self._watches.get(job.client, ()), *self._watches.get(job.id, ())):
            watch.tell(job)

    # --- what ends by itself ---

    def _expect(self, client: str) -> None:
        """End the work of a page that does not come back."""

        def check() -> None:
            if client not in self._watches:
                for job in [job for job in self._jobs.values() if job.session and job.client == client]:
                    self.forget(job)

        with suppress(RuntimeError):  # the loop has ended
            asyncio.get_running_loop().call_later(self.limits.grace, check)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(self.limits.kept / 2, 30.0))
            before = time.monotonic() - self.limits.kept
            for job in [job for job in self._jobs.values() if job.ended and job.ended < before]:
                self.forget(job)


def told(jobs: Jobs, job: Job) -> dict[str, Any]:
    """A job as its client sees it."""
    told: dict[str, Any] = {
        "id": job.id,
        "name": job.name,
        "task": job.asked.request.task,
        "state": job.state,
        "ahead": jobs.ahead(job) if job.state == "waiting" else 0,
        "tiles": job.tiles,
        "command": job.asked.command(job.name),
        "seconds": round(job.seconds, 3),
    }
    if isinstance(job.error, MambairError):
        told |= {"error": job.error.message, "hint": job.error.hint}
    elif job.error is not None:
        told |= {"error": f"{type(job.error).__name__}: {job.error}", "hint": ""}
    if job.made is not None:
        told |= {"result": job.made.told(), "command": job.made.command}
    return told
