"""A folder that is watched: what is in it and what arrives is restored once, as soon as it is complete."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from importlib.util import find_spec
from pathlib import Path

from mambair_cli.atomic import atomic_write
from mambair_cli.errors import MambairError, UsageError
from mambair_cli.files import Job
from mambair_cli.restoring import batch
from mambair_cli.restoring.batch import Listener
from mambair_cli.restoring.picture import Load
from mambair_cli.restoring.record import Record
from mambair_cli.restoring.request import Request
from mambair_cli.restoring.steps import Settings

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

JOURNAL = ".mambair-watched.jsonl"
SETTLED = 2.0  # seconds without a change after which a new file counts as complete
OLD = 10.0  # seconds since its last change after which a file is not new: it was moved here, or was here before
LOOK = 0.25  # seconds between looks while files arrive
IDLE = 10.0  # and while none does: no system tells of what other machines do in a shared folder

State = tuple[int, int]  # bytes, time of the last change in nanoseconds


def check(folder: Path) -> None:
    """Raise UsageError where a folder cannot be watched."""
    if find_spec("watchfiles") is None:
        raise UsageError("watching a folder needs watchfiles", "pip install 'mambair[watch]'")
    if not os.path.isdir(folder):
        raise UsageError(f"there is no folder {folder} to watch", "Make it first.")


def watch(
    folder: Path,
    look: Callable[[], Sequence[Job]],
    journal: Journal,
    request: Request,
    load: Load,
    settings: Settings,
    listener: Listener,
) -> None:
    """Restore what `look` finds in the folder, now and whenever something changes, until an exception (a signal) ends
    it, a full disk, or a failure where `settings` say so.

    Raises MambairError where the folder is gone, else as `batch.run`.
    """
    arrivals = Arrivals(journal)
    with Bell(folder) as bell:
        while True:
            bell.hush()
            if not os.path.isdir(folder):
                raise MambairError(f"{folder} is gone", "Is the disk mounted?")
            ready = arrivals.ready(look())
            if ready:
                told = _Told(listener, journal, arrivals, ready)
                batch.run([job for job, _ in ready], request, load, settings, told)
                if told.ended or (told.failed and settings.fail_fast):
                    return
            else:
                bell.wait(arrivals.pause)


# --- what has arrived -----------------------------------------------------------------------------------------


class Arrivals:
    """Which files are complete: those that do not change any more, and that nobody writes, as far as one can tell."""

    def __init__(self, journal: Journal) -> None:
        self.pause = IDLE  # seconds until it is worth to look again
        self.tried: dict[str, State] = {}  # in this run, whatever came of it
        self._journal = journal
        self._leases = Leases()
        self._leases.refused(str(journal.path))  # nobody writes it now: shows whether leases are given there
        self._seen: dict[str, tuple[State, float]] = {}  # since when they are so

    def ready(self, jobs: Iterable[Job]) -> list[tuple[Job, State]]:
        """Those of the jobs that can be done and were not, with the state of their files."""
        ready, seen, now = [], {}, time.monotonic()
        for job in jobs:
            state = state_of(job.input)
            if state is None or self.tried.get(job.input) == state or self._journal.has(job, state):
                continue
            before, since = self._seen.get(job.input, (state, now))
            since = since if before == state else now
            seen[job.input] = state, since
            quiet = LOOK if time.time() - state[1] / 1e9 > OLD else SETTLED
            if now - since >= quiet and not self._leases.refused(job.input):
                ready.append((job, state))
        self._seen = seen
        last = max((since for _, since in seen.values()), default=now)
        self.pause = IDLE if len(seen) == len(ready) else LOOK if now - last < 2 * SETTLED else SETTLED
        return ready


def state_of(path: str) -> State | None:
    """What changes when a file does; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


class Leases:
    """Whether a process of this machine has a file open for writing: Linux tells its owner, by refusing a lease."""

    def __init__(self) -> None:
        self._given: set[int] = set()  # devices that gave one; others (NFS) may refuse whatever is asked

    def refused(self, path: str) -> bool:
        """Whether it is being written; False where that cannot be known."""
        if not hasattr(fcntl, "F_SETLEASE"):
            return False
        with suppress(OSError):  # not ours, gone, no leases here
            number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            device = os.fstat(number).st_dev
            try:
                fcntl.fcntl(number, fcntl.F_SETLEASE, fcntl.F_RDLCK)
                fcntl.fcntl(number, fcntl.F_SETLEASE, fcntl.F_UNLCK)
                self._given.add(device)
            except BlockingIOError:
                return device in self._given
            finally:
                os.close(number)
        return False


class Bell:
    """Rings when something changes in a folder. A context manager.

    The listening is done in a thread of its own, so that the waiting one hears signals.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rung, self._over = threading.Event(), threading.Event()

    def __enter__(self) -> Bell:
        if hasattr(signal, "SIGIO"):  # sent where a file is opened for writing in the moment of a lease; deadly else
            with suppress(ValueError):  # not the main thread
                signal.signal(signal.SIGIO, signal.SIG_IGN)
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def hush(self) -> None:
        """From now on only what changes later rings."""
        self._rung.clear()

    def wait(self, seconds: float) -> None:
        """Until it rings, at most for so long."""
        self._rung.wait(seconds)

    def _listen(self) -> None:
        from watchfiles import watch

        with suppress(OSError):  # too many are watched already, or it is gone: looking now and then has to do
            for _ in watch(
                self._folder,
                watch_filter=None,
                debounce=200,
                stop_event=self._over,
                rust_timeout=500,
                raise_interrupt=False,
                ignore_permission_denied=True,
            ):
                self._rung.set()


# --- what was taken -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A file that was taken."""

    input: str  # its name below the folder that is watched
    output: str  # that of its result below the folder of the results
    bytes: int
    changed: int  # nanoseconds
    failed: str = ""  # under which command, as another one may do better


class Journal:
    """Which files were taken, also by earlier runs: a line of JSON each, hidden in the folder of the results.

    A file that changes is another one. Raises MambairError where it cannot be written.
    """

    def __init__(self, folder: Path, watched: Path, command: str, fresh: bool = False) -> None:
        """`command`: all that decides what fails. `fresh`: what earlier runs took is forgotten."""
        self.path, self._folder = folder / JOURNAL, folder
        self._command = hashlib.sha256(command.encode()).hexdigest()[:16]
        self._entries = {
            (entry.input, entry.output): entry
            for entry in ([] if fresh else _read(self.path))
            if entry.failed in ("", self._command)
            and (os.path.exists(watched / entry.input) or os.path.exists(folder / entry.output))
        }
        self._results = {output for _, output in self._entries}
        with atomic_write(self.path) as stream:
            stream.writelines(map(_line, self._entries.values()))

    def has(self, job: Job, state: State) -> bool:
        """Whether the file was taken as it is, or is a result itself."""
        entry = self._entries.get(self._names(job))
        was_taken = entry is not None and (entry.bytes, entry.changed) == state
        return was_taken or os.path.relpath(job.input, self._folder) in self._results

    def knows(self, job: Job) -> bool:
        """Whether a file of this name was taken, in whatever state."""
        return self._names(job) in self._entries

    def add(self, job: Job, state: State, failed: bool) -> None:
        names = self._names(job)
        self._entries[names] = entry = Entry(*names, *state, failed=self._command if failed else "")
        self._results.add(entry.output)
        try:
            with open(self.path, "ab") as stream:
                stream.write(_line(entry))
        except OSError as error:
            raise MambairError(f"cannot write {self.path}: {error.strerror}") from error

    def _names(self, job: Job) -> tuple[str, str]:
        return job.name, os.path.relpath(str(job.target), self._folder) if job.target else ""


def _line(entry: Entry) -> bytes:
    return json.dumps(asdict(entry)).encode() + b"\n"


def _read(path: Path) -> Iterator[Entry]:
    """The lines that are whole."""
    types = [str, str, int, int, str]
    with suppress(OSError):
        for text in path.read_bytes().splitlines():
            with suppress(ValueError, TypeError):
                entry = Entry(**json.loads(text))
                if [type(value) for value in astuple(entry)] == types:
                    yield entry


class _Told:
    """Listens to a batch: writes down what was taken before it is told on."""

    def __init__(
        self, listener: Listener, journal: Journal, arrivals: Arrivals, ready: Sequence[tuple[Job, State]]
    ) -> None:
        self.ended = self.failed = False
        self.tiles, self.note = listener.tiles, listener.note
        self._listener, self._journal, self._arrivals = listener, journal, arrivals
        self._ready = {job.input: (job, state) for job, state in ready}

    def record(self, record: Record) -> None:
        job, state = self._ready[record.input]
        self.failed |= record.status == "failed"
        if record.status == "not tried":
            self.ended = True
        else:
            self._arrivals.tried[job.input] = state
            if record.status == "skipped" and self._journal.knows(job):
                self.note(job, f"has changed, but {record.output} is there already: --force makes it anew")
            # A picture that could not be read will not be until it changes; a result that could not be written may.
            if record.status != "failed" or (record.input_size is None and not job.error):
                self._journal.add(job, state, record.status == "failed")
        self._listener.record(record)
