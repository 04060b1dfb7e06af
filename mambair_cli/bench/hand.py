"""What a worker does with one picture of a benchmark; the journal stays with the driver."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mambair_cli.bench.damage import Damage
from mambair_cli.bench.datasets import Item
from mambair_cli.bench.perceptual import Perceptual
from mambair_cli.bench.records import Measured
from mambair_cli.bench.run import Meter, Spread, describe, restored, timed_as
from mambair_cli.bench.scoring import Scorer, prepare
from mambair_cli.errors import MambairError
from mambair_cli.models.spec import ModelSpec
from mambair_cli.restoring.hand import Networks
from mambair_cli.workers.driver import Driver
from mambair_cli.workers.team import Do, Seat, Team, Work, WorkerDied


@dataclass(frozen=True)
class Measuring:
    """The `Work` of one model on one set."""

    networks: Networks
    spec: ModelSpec
    damage: Damage
    perceptual: bool = False
    blind: bool = False
    gradient: bool = False
    pictures: Path | None = None  # where restored ones go
    modules: tuple[str, ...] = (__name__,)

    def packed(self, put: Callable[[bytes], Callable[[], bytes]]) -> Measuring:
        return replace(self, networks=self.networks.packed(put, self.spec))

    def begin(self, seat: Seat) -> Do:
        restorer = self.networks.begin(seat)(self.spec)
        distances = Perceptual() if self.perceptual else None
        scorer = Scorer(self.spec.protocol, distances, self.blind or self.perceptual, self.gradient)
        timed = f"{timed_as(describe(restorer))}, a worker of several"
        meter = Meter(restorer, self.damage, self.pictures, timed, scorer)
        network = threading.Lock()

        def do(item: Item, again: bool) -> Measured | MambairError:
            try:
                pair = prepare(item, self.damage, self.spec.protocol)
                with network:
                    started = time.perf_counter()
                    result = restored(restorer, pair.lq)
                    seconds = time.perf_counter() - started
            except MambairError as error:
                return Measured(item.name, error=error.message)
            try:
                return meter.finish(item, pair, result, seconds)
            except MambairError as error:  # no picture can be kept: that concerns the others, too
                return error

        return do


def spread(work: Measuring, make: Callable[[Work], Team]) -> Spread:
    """Has pictures measured by a team, in the order in which they are done. Raises MambairError where they cannot be
    written."""

    def measured(items: Sequence[Item], pictures: Path | None) -> Generator[Measured, None, None]:
        if not items:
            return
        team = make(replace(work, pictures=pictures))
        try:
            for item, result in Driver(items, team):
                if isinstance(result, MambairError) and not isinstance(result, WorkerDied):
                    raise result
                yield Measured(item.name, error=result.message) if isinstance(result, WorkerDied) else result
        finally:
            team.close()

    return measured
