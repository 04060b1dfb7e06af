"""A team of actors in a Ray cluster, or on this machine where there is none. Ray is imported once it is asked for.

Pixels do not travel: actors read and write where the driver would. Jobs, records and, where a machine lacks them, the
weights do.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from mambair_cli.errors import MambairError, UsageError
from mambair_cli.workers.team import WINDOW, Do, Done, Event, Lost, Ready, Refused, Seat, Work

log = logging.getLogger("mambair")
_PATIENCE = 30.0  # seconds without any worker after which that is said
_GRACE = 2.0  # seconds to leave in
_SENT = ("OMP_WAIT_POLICY", "MAMBAIR_SCAN", "MAMBAIR_OFFLINE")  # settings that workers take from the driver


@dataclass(frozen=True)
class Size:
    """How many actors, and what each takes of the cluster."""

    workers: int
    seat: Seat
    cpus: float
    gpus: float


class Cluster:
    """A `Team` of actors. A machine that goes takes its actors along; new ones begin wherever there is room."""

    def __init__(
        self, work: Work, workers: int | None, device: str, threads: int | None, address: str | None
    ) -> None:
        self._ray, self._own = connected(address)
        self._actor = self._ray.remote(Actor)
        try:
            self._plan = sized(self._ray.cluster_resources(), workers, device, threads)
            settings = {name: os.environ[name] for name in _SENT if name in os.environ}
            packed = pickle.dumps(work.packed(self._put))
            self._work = self._ray.put((settings, packed))
        except BaseException:
            self._disconnect()
            raise
        self.size = self._plan.workers
        self._actors: dict[int, Any] = {}
        self._pending: dict[Any, tuple[int, int | None]] = {}  # answer to come -> worker, ticket; None: it begins
        self._begun = False

    def start(self, worker: int) -> None:
        plan = self._plan
        actor = self._actor.options(
            num_cpus=plan.cpus, num_gpus=plan.gpus, max_restarts=0, max_concurrency=WINDOW + 1
        )
        self._actors[worker] = actor.remote(self._work, plan.seat)
        self._pending[self._actors[worker].begin.remote()] = worker, None

    def send(self, worker: int, ticket: int, task: Any, again: bool) -> None:
        self._pending[self._actors[worker].do.remote(task, again)] = worker, ticket

    def events(self) -> Iterator[Event]:
        answers = list(self._pending)
        first, _ = self._ray.wait(answers, num_returns=1, timeout=None if self._begun else _PATIENCE)
        if not first:
            self._begun = True
            log.warning("no worker has begun yet: waiting for the cluster to have room")
            return
        for answer in self._ray.wait(answers, num_returns=len(answers), timeout=0)[0]:
            if answer in self._pending:  # its actor may have been lost by an answer before
                yield self._event(answer, *self._pending.pop(answer))

    def close(self) -> None:
        leaving = [actor.leave.remote() for actor in self._actors.values()]
        if leaving:
            self._ray.wait(leaving, num_returns=len(leaving), timeout=_GRACE)
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._disconnect()

    def _event(self, answer: Any, worker: int, ticket: int | None) -> Event:
        try:
            result = self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:  # one of ours that is none of a picture
            raise MambairError(f"a worker failed: {error.cause!r}") from error
        except self._ray.exceptions.RayError as error:
            self._pending = {key: value for key, value in self._pending.items() if value[0] != worker}
            del self._actors[worker]
            return Lost(worker, _first_line(error))
        if ticket is not None:
            return Done(worker, ticket, result)
        self._begun = True
        return Refused(worker, result) if isinstance(result, MambairError) else Ready(worker)

    def _put(self, data: bytes) -> Callable[[], bytes]:
        return partial(_get, self._ray.put(data))

    def _disconnect(self) -> None:
        if self._own:
            self._ray.shutdown()


class Actor:
    """A worker, in a process of Ray's."""

    def __init__(self, packed: tuple[Mapping[str, str], bytes], seat: Seat) -> None:
        from mambair_cli.process import prepare

        settings, self._packed = packed
        self._seat = seat
        os.environ.update(settings)
        prepare()  # before the work is unpacked, which imports torch
        self._do: Do | None = None

    def begin(self) -> MambairError | None:
        try:
            self._do = pickle.loads(self._packed).begin(self._seat)
        except MambairError as error:
            return error
        return None

    def do(self, task: Any, again: bool) -> Any:
        assert self._do
        return self._do(task, again)

    def leave(self) -> None:
        """Remove what is half-written: the end is near."""
        from mambair_cli import atomic

        atomic.abandon()


def connected(address: str | None) -> tuple[Any, bool]:
    """Ray, connected to a cluster; whether it was this call that connected it. Raises MambairError."""
    try:
        import ray
    except ImportError as error:
        raise UsageError("--engine ray needs Ray", "pip install 'mambair[ray]'") from error
    if ray.is_initialized():
        return ray, False
    there = address or os.environ.get("RAY_ADDRESS")
    local: dict[str, Any] = {} if there else {"include_dashboard": False}
    try:
        with _own_signals():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except Exception as error:  # ConnectionError, RuntimeError, ValueError, ... by the kind of address
        raise MambairError(
            f"no Ray cluster at {address or 'this machine'}: {_first_line(error)}", "`ray start --head` begins one."
        ) from error
    return ray, True


def sized(resources: Mapping[str, float], workers: int | None, device: str, threads: int | None) -> Size:
    """One actor for each GPU, unless the CPU is asked for or there is none; else one for `threads` cores (1)."""
    gpus = int(resources.get("GPU", 0))
    cores = threads or 1
    if device != "cpu" and (gpus or device != "auto"):
        return Size(workers or max(gpus, 1), Seat("cuda" if device == "auto" else device, threads), cores, 1)
    return Size(workers or max(int(resources.get("CPU", 1)) // cores, 1), Seat("cpu", cores), cores, 0)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray sets a handler of its own for SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _get(stored: Any) -> bytes:
    import ray

    data: bytes = ray.get(stored)
    return data


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
