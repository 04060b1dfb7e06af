"""One model on one set: degrade, restore, measure, picture by picture, so that a stopped run goes on."""

from __future__ import annotations

import platform
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image

from mambair_cli import __version__, metrics
from mambair_cli.atomic import atomic_write
from mambair_cli.bench.damage import Damage
from mambair_cli.bench.datasets import Dataset, Item
from mambair_cli.bench.perceptual import Perceptual
from mambair_cli.bench.plan import damage_for
from mambair_cli.bench.records import Journal, Measured, Result, Score
from mambair_cli.bench.scoring import Prepared, Scorer, prepare
from mambair_cli.errors import MambairError
from mambair_cli.images.decode import Frame, Picture
from mambair_cli.models import checkpoints
from mambair_cli.restoring.picture import restore
from mambair_cli.restoring.request import Request
from mambair_cli.restoring.restorer import Restorer

T = TypeVar("T")
# Pictures, and where restored ones are kept -> what was measured.
Spread = Callable[[Sequence[Item], Path | None], Generator[Measured, None, None]]
TIMES_ONLY = ("platform", "processor", "python", "threads")  # of the environment: no score depends on them


@dataclass(frozen=True)
class Watcher:
    """Whom to tell: at the start how many pictures there are and how many are known, then every picture."""

    start: Callable[[int, int], None] = lambda total, known: None
    step: Callable[[Measured], None] = lambda image: None


def measure(
    restorer: Restorer,
    dataset: Dataset,
    damage: Damage,
    *,
    save: Path | None = None,
    keep: bool = False,
    fresh: bool = False,
    perceptual: bool = False,
    blind: bool = False,
    gradient: bool = False,
    watcher: Watcher = Watcher(),
    spread: Spread | None = None,
) -> Result:
    """Restore and measure every picture of the set; one that fails is reported and does not count.

    Scores go to a journal in the cache as they come; the same call again takes them from there, unless `fresh`, and
    the times with them where they were taken in the same environment. Restored pictures go to `save`, or with `keep`
    beside the journal. `perceptual` adds LPIPS, DISTS and NIQE, `blind` NIQE alone, `gradient` how much of the
    truth's gradient is kept. `spread` has the pictures measured elsewhere, in any order. Raises MambairError where
    journal or pictures cannot be written.
    """
    extras = {"perceptual": perceptual, "niqe": blind or perceptual, "gradient": gradient}
    environment = describe(restorer) | extras
    identity = {key: value for key, value in environment.items() if key not in TIMES_ONLY}
    identity |= {"dataset": dataset.name, "degradation": str(damage)}
    identity |= {"protocol": asdict(restorer.spec.protocol)}
    journal = Journal(checkpoints.cache_dir(), identity)
    run = Meter(
        restorer,
        damage,
        pictures=save or (journal.folder if keep else None),
        timed=timed_as(environment),
        scorer=Scorer(restorer.spec.protocol, Perceptual() if perceptual else None, extras["niqe"], gradient),
        journal=journal,
    )
    if fresh:
        journal.clear()
    images = run.known(dataset.items, journal.read())
    watcher.start(len(dataset.items), len(images))
    left = [item for item in dataset.items if item.name not in images]
    with closing(spread(left, run.pictures) if spread else run.measured(left)) as measured:
        for image in measured:
            if spread and image.score:
                journal.append(image)
            images[image.name] = image
            watcher.step(image)
    return Result(
        dataset=dataset,
        name=restorer.spec.name,
        rules=restorer.spec.protocol,
        damage=damage,
        images=tuple(images[item.name] for item in dataset.items),
        environment=environment,
        published=published(restorer, dataset, damage),
    )


def timed_as(environment: Mapping[str, Any]) -> str:
    """What the times depend on, in words."""
    return ", ".join(str(environment[key]) for key in TIMES_ONLY)


@dataclass(frozen=True)
class Meter:
    """Restores and measures the pictures of one run."""

    restorer: Restorer
    damage: Damage
    pictures: Path | None  # where restored ones go
    timed: str
    scorer: Scorer
    journal: Journal | None = None  # where scores are noted down at once

    def known(self, items: Sequence[Item], before: Mapping[str, Measured]) -> dict[str, Measured]:
        """What an earlier run measured on the same files, and where pictures are kept, kept as well."""
        known = {}
        for item in items:
            image, place = before.get(item.name), self.place(item)
            if image is None or image.stamp != _stamp(item):
                continue
            if place and not (image.picture == place and Path(place).exists()):
                continue
            known[item.name] = image if image.timed == self.timed else replace(image, seconds=None)
        return known

    def place(self, item: Item) -> str:
        """The file of the restored picture; "" where none is kept."""
        return str(self.pictures / f"{item.name}.png") if self.pictures else ""

    def measured(self, items: Sequence[Item]) -> Generator[Measured, None, None]:
        """The pictures as they are done. While the network works, the next one is prepared and the last scored."""
        pending: deque[Future[Measured]] = deque()
        protocol = self.restorer.spec.protocol
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as finisher:
            for item, prepared in _ahead(reader, items, lambda item: prepare(item, self.damage, protocol)):
                try:
                    pair = prepared.result()
                    started = time.perf_counter()
                    result = restored(self.restorer, pair.lq)
                    seconds = time.perf_counter() - started
                except MambairError as error:
                    pending.append(finisher.submit(Measured, item.name, error=error.message))
                else:
                    pending.append(finisher.submit(self.finish, item, pair, result, seconds))
                if len(pending) > 1:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def finish(self, item: Item, pair: Prepared, restored: NDArray[np.float32], seconds: float) -> Measured:
        """Score a picture, keep it, note it down. Raises MambairError where it cannot be written."""
        rounding, place = self.restorer.spec.protocol.rounding, self.place(item)
        shown = restored * 255.0 if rounding == "none" else metrics.to_uint8(restored)
        try:
            score, baseline = (self.scorer(picture, pair.truth) for picture in (shown, pair.before))
        except ValueError as error:
            return Measured(item.name, error=str(error))
        height, width = pair.truth.shape[:2]
        image = Measured(
            *(item.name, width, height, score, baseline, seconds),
            timed=self.timed,
            stamp=_stamp(item),
            picture=place,
        )
        if place:
            with atomic_write(Path(place)) as file:
                Image.fromarray(metrics.to_uint8(restored)).save(file, "PNG")
        if self.journal:
            self.journal.append(image)
        return image


def restored(restorer: Restorer, lq: NDArray[np.float32]) -> NDArray[np.float32]:
    """(H, W) or (H, W, 3) on [0, 1] through the network, the same layout back."""
    frame = Frame(lq[..., None] if lq.ndim == 2 else lq)
    result = restore(Picture((frame,)), Request(restorer.spec.task, spec=restorer.spec), lambda spec: restorer)
    pixels = result.picture.frames[0].pixels
    return pixels[..., 0] if lq.ndim == 2 else pixels


def published(restorer: Restorer, dataset: Dataset, damage: Damage) -> Score | None:
    """The authors' own score, if there is one for this set and damage, without self-ensemble."""
    scores = restorer.spec.published.get(dataset.name)
    if scores is None or restorer.running.ensemble or damage != damage_for(restorer.spec):
        return None
    return Score(*scores)


def describe(restorer: Restorer) -> dict[str, Any]:
    """Everything the scores may depend on, and what the times depend on."""
    device = restorer.device
    cuda = device.type == "cuda"
    return {
        "model": restorer.spec.name,
        "sha256": restorer.sha256,
        "mambair": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if cuda else str(device),
        "precision": restorer.precision,
        "scan": restorer.scan,
        "tile": restorer.running.tile,
        "overlap": restorer.running.overlap,
        "ensemble": restorer.running.ensemble,
        "seed": restorer.running.seed,
    }


def _stamp(item: Item) -> str:
    """Size and time of the files, to notice that they changed."""
    stats = [path.stat() for path in (item.truth, item.degraded) if path and path.exists()]
    return " ".join(f"{stat.st_size}@{stat.st_mtime_ns}" for stat in stats)


def _ahead(
    pool: ThreadPoolExecutor, items: Iterable[Item], work: Callable[[Item], T]
) -> Iterator[tuple[Item, Future[T]]]:
    """Every item with its work, which has begun one item before it is asked for."""
    begun: deque[tuple[Item, Future[T]]] = deque()
    for item in items:
        begun.append((item, pool.submit(work, item)))
        if len(begun) > 1:
            yield begun.popleft()
    yield from begun
