"""Who leads a team: gives out tasks, takes in results, and survives the death of workers.

Tasks are done at least once; that their results appear once is up to whoever writes them. Nothing is kept of a task
that is done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from mambair_cli.errors import MambairError
from mambair_cli.workers.team import WINDOW, Done, Lost, Ready, Refused, Team, WorkerDied

T = TypeVar("T")
PATIENCE = 3  # times that a worker may end before it has begun


@dataclass
class _Ticket(Generic[T]):
    """A task that was taken; `again`: a worker that had it died."""

    number: int
    task: T
    again: bool = False


@dataclass
class _Worker:
    """One of the team, and what it has."""

    tickets: dict[int, _Ticket[Any]] = field(default_factory=dict)
    ready: bool = False
    testing: bool = False  # a suspect, which gets a worker for itself
    failures: int = 0  # ends in a row before it had begun


class Driver(Generic[T]):
    """Yields every task with what came of it, in the order in which they are done.

    When a worker dies, each of its tasks may be the reason. They are suspects: each is tried again by a worker that
    has nothing else, and fails as WorkerDied if that one dies as well. The innocent are done.
    """

    def __init__(self, tasks: Iterable[T], team: Team) -> None:
        self._tasks, self._team = iter(tasks), team
        self._workers = [_Worker() for _ in range(team.size)]
        self._room: deque[int] = deque()  # workers that may take something; some of them more than once
        self._suspects: deque[_Ticket[T]] = deque()
        self._count = 0
        self._under_way = 0
        self._stopped = self._exhausted = False

    def stop(self) -> None:
        """Give out nothing more; what is under way still comes."""
        self._stopped = True

    def left(self) -> Iterator[T]:
        """The tasks that nobody has tried to the end."""
        yield from (ticket.task for ticket in self._suspects)
        yield from self._tasks

    def __iter__(self) -> Iterator[tuple[T, Any]]:
        for index in range(self._team.size):
            self._team.start(index)
        while True:
            self._give()
            if not self._under_way and (self._stopped or (self._exhausted and not self._suspects)):
                return
            for event in self._team.events():
                worker = self._workers[event.worker]
                if isinstance(event, Done):
                    ticket = worker.tickets.pop(event.ticket)
                    self._under_way -= 1
                    self._room.extend([event.worker] * (WINDOW if worker.testing else 1))
                    worker.testing = False
                    yield ticket.task, event.result
                elif isinstance(event, Ready):
                    worker.ready, worker.failures = True, 0
                    self._room.extend([event.worker] * WINDOW)
                elif isinstance(event, Lost):
                    yield from self._bury(event.worker, event.why)
                elif isinstance(event, Refused):
                    raise event.error

    def _give(self) -> None:
        """Give suspects to workers without any task, other tasks to all that have room."""
        for _ in range(len(self._room)):
            index = self._room.popleft()
            worker = self._workers[index]
            if not worker.ready or worker.testing or len(worker.tickets) >= WINDOW:
                continue
            if self._suspects and not worker.tickets and not self._stopped:
                worker.testing = True
                self._send(index, self._suspects.popleft())
                continue
            task = None if self._stopped else next(self._tasks, None)
            if task is None:
                self._exhausted = True
                self._room.append(index)  # for suspects to come
            else:
                self._count += 1
                self._send(index, _Ticket(self._count, task))

    def _send(self, index: int, ticket: _Ticket[T]) -> None:
        self._workers[index].tickets[ticket.number] = ticket
        self._under_way += 1
        self._team.send(index, ticket.number, ticket.task, ticket.again)

    def _bury(self, index: int, why: str) -> Iterator[tuple[T, WorkerDied]]:
        """Take back what a dead worker had, and begin it anew."""
        worker = self._workers[index]
        self._under_way -= len(worker.tickets)
        for ticket in worker.tickets.values():
            if worker.testing:
                yield ticket.task, WorkerDied(f"its worker ended twice: {why}")
            else:
                ticket.again = True
                self._suspects.append(ticket)
        failures = 0 if worker.ready else worker.failures + 1
        self._workers[index] = _Worker(failures=failures)
        if failures < PATIENCE:
            self._team.start(index)
        elif all(other.failures >= PATIENCE for other in self._workers):
            raise MambairError(f"all workers end before they begin: {why}", "One worker alone may say more.")
