"""One model on one set: degrade, restore, measure, picture by picture, so that a stopped run goes on."""

from __future__ import annotations

import platform
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image

from mambair_cli import __version__, checkpoints, degradations, metrics
from mambair_cli.bench.datasets import Dataset, Degradation, Item, read
from mambair_cli.bench.niqe import niqe
from mambair_cli.bench.perceptual import Perceptual
from mambair_cli.bench.plan import degradation_of
from mambair_cli.bench.records import Journal, Measured, Result, Score
from mambair_cli.errors import BadImage, MambairError
from mambair_cli.restorer import Restorer
from mambair_cli.zoo import Protocol

T = TypeVar("T")
TIMES_ONLY = ("platform", "processor", "python", "threads")  # of the environment: no score depends on them


@dataclass(frozen=True)
class Pair:
    """A picture ready to be restored: truth uint8, lq float32 on [0, 1], before (doing nothing) on 0-255."""

    truth: NDArray[np.uint8]
    lq: NDArray[np.float32]
    before: NDArray[Any]


@dataclass(frozen=True)
class Watcher:
    """Whom to tell: at the start how many pictures there are and how many are known, then every picture."""

    start: Callable[[int, int], None] = lambda total, known: None
    step: Callable[[Measured], None] = lambda image: None


def measure(
    restorer: Restorer,
    dataset: Dataset,
    degradation: Degradation,
    *,
    save: Path | None = None,
    keep: bool = False,
    fresh: bool = False,
    perceptual: bool = False,
    blind: bool = False,
    watcher: Watcher = Watcher(),
) -> Result:
    """Restore and measure every picture of the set; one that fails is reported and does not count.

    Scores go to a journal in the cache as they come; the same call again takes them from there, unless `fresh`.
    Restored pictures go to `save`, or with `keep` beside the journal. The next picture is read and degraded, and
    the last one scored, while the network is at work. `perceptual` adds LPIPS, DISTS and NIQE,
    `blind` NIQE alone.
    """
    blind = blind or perceptual
    protocol, environment = restorer.spec.protocol, describe(restorer) | {"perceptual": perceptual, "niqe": blind}
    distances = Perceptual() if perceptual else None

    def extra(picture: NDArray[Any], truth: NDArray[Any]) -> dict[str, float | None]:
        values: dict[str, float | None] = {"niqe": niqe(picture, crop=protocol.crop) if blind else None}
        return values | (distances(picture, truth) if distances else {})

    identity = {key: value for key, value in environment.items() if key not in TIMES_ONLY}
    identity |= {"dataset": dataset.name, "degradation": str(degradation), "protocol": asdict(protocol)}
    journal = Journal(checkpoints.cache_dir(), identity)
    if fresh:
        journal.clear()
    pictures = save or (journal.folder if keep else None)

    def place(item: Item) -> str:
        return str(pictures / f"{item.name}.png") if pictures else ""

    known = journal.read()
    images = {
        item.name: known[item.name]
        for item in dataset.items
        if item.name in known
        and known[item.name].stamp == _stamp(item)
        and (not pictures or (known[item.name].picture == place(item) and Path(place(item)).exists()))
    }
    watcher.start(len(dataset.items), len(images))

    def finish(item: Item, pair: Pair, restored: NDArray[np.float32], seconds: float) -> Measured:
        try:
            image = _score(item, pair, restored, protocol, seconds, extra)
        except ValueError as error:
            return Measured(item.name, error=str(error))
        if pictures:
            pictures.mkdir(parents=True, exist_ok=True)
            Image.fromarray(metrics.to_uint8(restored)).save(place(item))
            image = replace(image, picture=place(item))
        journal.append(image)
        return image

    def settle(pending: deque[Future[Measured]], most: int) -> None:
        while len(pending) > most:
            image = pending.popleft().result()
            images[image.name] = image
            watcher.step(image)

    todo = [item for item in dataset.items if item.name not in images]
    pending: deque[Future[Measured]] = deque()
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as scorer:
        for item, prepared in _ahead(reader, todo, lambda item: prepare(item, degradation, protocol)):
            try:
                pair = prepared.result()
                started = time.perf_counter()
                restored = restore(restorer, pair.lq)
                seconds = time.perf_counter() - started
            except MambairError as error:
                pending.append(scorer.submit(Measured, item.name, error=error.message))
            else:
                pending.append(scorer.submit(finish, item, pair, restored, seconds))
            settle(pending, most=1)
        settle(pending, most=0)
    return Result(
        dataset=dataset,
        spec=restorer.spec,
        degradation=degradation,
        images=tuple(images[item.name] for item in dataset.items),
        environment=environment,
        published=published(restorer, dataset, degradation),
        pictures=pictures,
    )


def prepare(item: Item, degradation: Degradation, protocol: Protocol) -> Pair:
    """Read a picture and its degraded half, or make it. Raises BadImage where that cannot be."""
    if item.problem:
        raise BadImage(item.problem)
    grey, scale = protocol.channel == "gray", degradation.scale
    truth = degradations.modcrop(read(item.truth, grey), scale)
    if 0 in truth.shape:
        raise BadImage(f"{item.truth.name} is smaller than {scale}x{scale}.")
    degraded: NDArray[Any] = read(item.degraded, grey) if item.degraded else degradation.apply(truth)
    height, width = (scale * n for n in degraded.shape[:2])
    if truth.shape[:2] != (height, width):
        raise BadImage(
            f"sizes differ: {item.truth.name} is {truth.shape[1]}x{truth.shape[0]}, the degraded one at x{scale} "
            f"{width}x{height}"
        )
    if degraded.dtype == np.float32:
        return Pair(truth, degraded, degraded * 255.0)
    before = degradations.bicubic(degraded, (height, width)) if scale > 1 else degraded
    return Pair(truth, degraded.astype(np.float32) / 255.0, before)


def restore(restorer: Restorer, lq: NDArray[np.float32]) -> NDArray[np.float32]:
    """(H, W) or (H, W, 3) on [0, 1] through the network, the same layout back."""
    planes = lq[None] if lq.ndim == 2 else np.moveaxis(lq, -1, 0)
    restored = restorer.restore(torch.from_numpy(np.ascontiguousarray(planes))).numpy()
    return restored[0] if lq.ndim == 2 else np.moveaxis(restored, 0, -1)


def published(restorer: Restorer, dataset: Dataset, degradation: Degradation) -> Score | None:
    """The authors' own score, if there is one for this set and degradation, without self-ensemble."""
    scores = restorer.spec.published.get(dataset.name)
    if scores is None or restorer.ensemble or degradation != degradation_of(restorer.spec):
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
        "tile": restorer.tile,
        "overlap": restorer.overlap,
        "ensemble": restorer.ensemble,
        "seed": restorer.seed,
    }


def _score(
    item: Item,
    pair: Pair,
    restored: NDArray[np.float32],
    protocol: Protocol,
    seconds: float,
    extra: Callable[[NDArray[Any], NDArray[Any]], Mapping[str, float | None]],
) -> Measured:
    result = restored * 255.0 if protocol.rounding == "none" else metrics.to_uint8(restored)
    how: dict[str, Any] = {
        "channel": protocol.channel,
        "crop": protocol.crop,
        "round_luma": protocol.rounding == "luma",
    }
    score, baseline = (
        Score(
            psnr=metrics.psnr(picture, pair.truth, **how),
            ssim=metrics.ssim(picture, pair.truth, **how),
            **extra(picture, pair.truth),
        )
        for picture in (result, pair.before)
    )
    height, width = pair.truth.shape[:2]
    return Measured(item.name, width, height, score, baseline, seconds, stamp=_stamp(item))


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
