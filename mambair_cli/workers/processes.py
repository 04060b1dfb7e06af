"""A team of processes on this machine, each with its own network: several GPUs, or the cores of a CPU divided."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, NoReturn

from mambair_cli import atomic
from mambair_cli.errors import MambairError
from mambair_cli.process import prepare
from mambair_cli.workers.team import WINDOW, Do, Done, Event, Lost, Ready, Refused, Seat, Work

_GRACE = 5.0  # seconds to leave in
# Copies of one process that has loaded everything begin at once. macOS' frameworks do not survive copying.
_METHOD = "forkserver" if sys.platform == "linux" else "spawn"


class Processes:
    """A `Team`: one process for each seat."""

    def __init__(self, work: Work, seats: Sequence[Seat]) -> None:
        self.size = len(seats)
        self._work, self._seats = work, seats
        self._context: Any = multiprocessing.get_context(_METHOD)
        if _METHOD == "forkserver":
            self._context.set_forkserver_preload([__name__, *work.modules])
        self._processes: dict[int, BaseProcess] = {}
        self._lines: dict[int, Connection] = {}

    def start(self, worker: int) -> None:
        ours, theirs = self._context.Pipe()
        args = (theirs, self._work, self._seats[worker], dict(os.environ))
        process = self._context.Process(target=_serve, args=args, daemon=True, name=f"mambair-{worker}")
        process.start()
        theirs.close()
        self._processes[worker], self._lines[worker] = process, ours

    def send(self, worker: int, ticket: int, task: Any, again: bool) -> None:
        with suppress(OSError):  # it has just died: `events` will tell, and of all that it had
            self._lines[worker].send((ticket, task, again))

    def events(self) -> Iterator[Event]:
        lines = {line: worker for worker, line in self._lines.items()}
        for line in wait(list(lines)):
            assert isinstance(line, Connection)
            worker = lines[line]
            try:
                while line.poll():
                    yield _event(worker, line.recv())
            except (EOFError, OSError):
                self._lines.pop(worker).close()
                yield Lost(worker, _end_of(self._processes.pop(worker)))

    def close(self) -> None:
        for line in self._lines.values():
            line.close()  # a worker whose driver is gone leaves
        for process in self._processes.values():
            process.join(_GRACE)
            if process.is_alive():
                process.kill()


def _event(worker: int, message: Any) -> Event:
    if message is None:
        return Ready(worker)
    if isinstance(message, MambairError):
        return Refused(worker, message)
    return Done(worker, *message)


def _end_of(process: BaseProcess) -> str:
    process.join(_GRACE)
    code = process.exitcode
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
    return f"exit status {code}"


# --- in the worker ---


def _serve(line: Connection, work: Work, seat: Seat, environment: Mapping[str, str]) -> None:
    """Do tasks until the driver is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C the driver hears as well
    signal.signal(signal.SIGTERM, _leave)
    os.environ.update(environment)
    prepare()
    telling = threading.Lock()

    def tell(message: Any) -> None:
        with telling:
            line.send(message)

    try:
        do = work.begin(seat)
    except MambairError as error:
        return tell(error)
    tell(None)
    with ThreadPoolExecutor(WINDOW) as pool:
        while True:
            try:
                ticket, task, again = line.recv()
            except (EOFError, OSError):
                _leave()
            pool.submit(_one, tell, do, ticket, task, again)


def _one(tell: Callable[[Any], None], do: Do, ticket: int, task: Any, again: bool) -> None:
    try:
        result = do(task, again)
    except BaseException:  # a worker that cannot go on must be seen to end
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    try:
        tell((ticket, result))
    except OSError:
        _leave()


def _leave(number: int = 0, frame: FrameType | None = None) -> NoReturn:
    """End at once and leave nothing half-written."""
    atomic.abandon()
    os._exit(0)
