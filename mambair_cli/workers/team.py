"""A team of workers: processes of this machine or actors of a cluster, which all do the same work."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from mambair_cli.errors import MambairError

# Tasks that a worker has at a time: one being read, one in the network, one being written. No more, so that the slow
# and the late get no queue of their own, and little is repeated when a worker dies.
WINDOW = 3

Do = Callable[[Any, bool], Any]  # a task, and whether it was begun before by a worker that died; what came of it


class WorkerDied(MambairError):
    """The worker that had a task ended, twice, without having done it: the task is to blame."""


@dataclass(frozen=True)
class Seat:
    """What one worker may use: a device as in `Running`, and CPU threads (None: as torch likes)."""

    device: str = "auto"
    threads: int | None = None


class Work(Protocol):
    """What is to be done, as plain data that travels to workers."""

    @property
    def modules(self) -> tuple[str, ...]:
        """What a worker will import: loaded once where workers are copies of one process."""
        ...

    def begin(self, seat: Seat) -> Do:
        """In the worker, before its first task. What it returns is called by several threads at once, and returns a
        MambairError that concerns more than its task. Raises MambairError where nothing can be done on this seat."""
        ...

    def packed(self, put: Callable[[bytes], Callable[[], bytes]]) -> Work:
        """The same for machines without this one's files; `put` stores bytes and returns how to get them."""
        ...


# --- what a team tells ---


@dataclass(frozen=True)
class Ready:
    """A worker has begun."""

    worker: int


@dataclass(frozen=True)
class Done:
    """A task is done."""

    worker: int
    ticket: int
    result: Any


@dataclass(frozen=True)
class Lost:
    """A worker is gone, with all tasks that it had."""

    worker: int
    why: str


@dataclass(frozen=True)
class Refused:
    """A worker cannot begin, for a reason that the user must know."""

    worker: int
    error: MambairError


Event = Ready | Done | Lost | Refused


class Team(Protocol):
    """Workers by number, 0 to `size` - 1."""

    size: int

    def start(self, worker: int) -> None:
        """Begin, or begin again after a loss. Ready, Refused or Lost will tell."""

    def send(self, worker: int, ticket: int, task: Any, again: bool) -> None:
        """Give a task to a worker that is ready."""

    def events(self) -> Iterable[Event]:
        """What has happened; waits until something has."""

    def close(self) -> None:
        """End all workers at once; what they have not finished leaves nothing behind."""
