"""What a worker does with one job: all steps, reading and writing beside the network on another one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from mambair_cli import __version__, scan
from mambair_cli.errors import MambairError, Unavailable
from mambair_cli.files import Job
from mambair_cli.models import checkpoints, parcel, zoo
from mambair_cli.models.parcel import Parcel
from mambair_cli.models.spec import ModelSpec
from mambair_cli.restoring import steps
from mambair_cli.restoring.record import Record
from mambair_cli.restoring.request import Request
from mambair_cli.restoring.restorer import Restorer, Restorers, pick_device
from mambair_cli.restoring.steps import Settings, Written
from mambair_cli.workers.team import Do, Seat


@dataclass(frozen=True)
class Networks:
    """Networks by model for a worker, wherever it runs. Plain data."""

    restorers: Restorers
    version: str = __version__
    parcel: Parcel | None = None  # the weights for machines that may not have them
    # SHA-256 by model, of those of which none is published, as known here; None: whatever the worker itself trusts
    hashes: Mapping[str, str] | None = field(default=None, hash=False)

    def packed(self, put: Callable[[bytes], Callable[[], bytes]], nominal: ModelSpec) -> Networks:
        """For machines without this one's files. Fetches the weights of the model that is most likely needed."""
        file, spec = self.restorers.weights, None
        if file is None and not nominal.source.bundled:
            file, spec = checkpoints.fetch(nominal, offline=self.restorers.offline), nominal
        hashes = {name: known for name, spec in zoo.zoo().items() if (known := checkpoints.known_hash(spec))}
        return replace(self, parcel=parcel.pack(file, spec, put) if file else None, hashes=hashes)

    def begin(self, seat: Seat) -> Callable[[ModelSpec], Restorer]:
        """In the worker. Raises MambairError where its program, its device or its weights are not what they should
        be."""
        if self.version != __version__:
            raise MambairError(
                f"a worker runs mambair {__version__}, this is {self.version}", "Install the same on all machines."
            )
        if seat.threads:
            torch.set_num_threads(seat.threads)
        scan.chosen_backend(pick_device(seat.device))
        restorers = replace(self.restorers, running=replace(self.restorers.running, device=seat.device))
        if self.parcel:
            file = parcel.unpack(self.parcel)
            restorers = replace(restorers, weights=restorers.weights and file)
        return lambda spec: restorers(self._certain(spec, restorers.weights))

    def _certain(self, spec: ModelSpec, weights: Path | None) -> ModelSpec:
        """The model with the hash that its file must have. Raises Unavailable where none is known."""
        if self.hashes is None or weights or spec.source.bundled:
            return spec
        if spec.name not in self.hashes:
            raise Unavailable(
                f"{spec.name}: no hash of its file is published, and none known where the run was started.",
                f"There: mambair models download {spec.name}",
            )
        return replace(spec, source=replace(spec.source, sha256=self.hashes[spec.name]))


@dataclass(frozen=True)
class Restoring:
    """The `Work` of a batch."""

    request: Request
    networks: Networks
    settings: Settings
    since: float  # when the batch began, in seconds since 1970
    modules: tuple[str, ...] = (__name__,)

    def packed(self, put: Callable[[bytes], Callable[[], bytes]]) -> Restoring:
        return replace(self, networks=self.networks.packed(put, self.request.nominal()))

    def begin(self, seat: Seat) -> Do:
        return Hand(self, self.networks.begin(seat), seat.threads)


class Hand:
    """Restores one job after the other; several threads may call it."""

    def __init__(self, work: Restoring, load: Callable[[ModelSpec], Restorer], threads: int | None) -> None:
        self._work, self._load, self._threads = work, load, threads
        self._network = threading.Lock()
        self._heard = _Heard()
        logging.getLogger("mambair").addHandler(self._heard)

    def __call__(self, job: Job, again: bool) -> Written | MambairError:
        notes: list[str] = []
        settings = self._work.settings
        try:
            read = steps.read(job, settings)
            if read[0] is None:
                return self._there(job, again)
            with self._network:
                if self._threads:
                    torch.set_num_threads(self._threads)  # OpenMP keeps a number for each thread that calls
                picture, record = steps.restored(job, read, self._work.request, self._load, notes.append)
        except Unavailable as error:
            return error
        except Exception as error:
            return Written(steps.failure(job, error), notes)
        written = steps.write(job, picture, record, settings)
        return replace(written, notes=[*notes, *self._heard.taken(), *written.notes])

    def _there(self, job: Job, again: bool) -> Written:
        """A result that is there: skipped, unless a worker of this batch made it and died before it could tell."""
        written = steps.compared(job, Written(Record.of(job, "skipped")), self._work.settings)
        if again and steps.is_newer(job, self._work.since) and written.record.status == "skipped":
            return Written(Record.of(job, "done"))
        return written


class _Heard(logging.Handler):
    """What the package's logger says in a worker: notes of the next picture, each once."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()
        self._new: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._said:
            self._said.add(text)
            self._new.append(text)

    def taken(self) -> list[str]:
        new, self._new = self._new, []
        return new
