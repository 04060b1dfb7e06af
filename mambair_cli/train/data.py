"""What becomes of the pictures: cropped, flipped and made worse on the fly.

A sample depends on nothing but the seed, the iteration and its place in the batch. So a resumed run sees what an
uninterrupted one sees, with any number of workers.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mambair_cli import degradations
from mambair_cli.degradations import Bytes
from mambair_cli.task import Setting
from mambair_cli.train.pictures import PathPair, decode, decode_pairs
from mambair_cli.train.recipe import Recipe

Pixels = NDArray[Any]  # (h, w) or (h, w, 3), uint8 or float32 in [0, 1]


def smallest_side(recipe: Recipe) -> int:
    """The shortest side that a training picture may have."""
    return (recipe.data.patch + recipe.degradation.margin) * recipe.scale


class Batches(Dataset[tuple[Tensor, ...]]):
    """Batch number i: lq (B, 3, p, p), hq (B, 3, p*s, p*s) and, with a teacher, its hq; float32 in [0, 1].

    `small`: what the pictures were made into as wholes; `taught`: what the teacher makes of these.
    """

    def __init__(
        self,
        recipe: Recipe,
        pictures: Sequence[Bytes],
        small: Sequence[Bytes] = (),
        taught: Sequence[Bytes] = (),
        pairs: Sequence[tuple[Bytes, Bytes]] = (),
        rank: int = 0,
    ) -> None:
        self.data, self.scale, self.seed = recipe.data, recipe.scale, recipe.training.seed
        self.pictures, self.small, self.taught, self.pairs = pictures, small, taught, pairs
        self.degradation = recipe.degradation
        self.places = range(rank * self.data.batch, (rank + 1) * self.data.batch)

    def __getitem__(self, iteration: int) -> tuple[Tensor, ...]:
        samples = [self.sample(np.random.default_rng((self.seed, iteration, place))) for place in self.places]
        return tuple(torch.cat([to_tensor(p[None]) for p in parts]) for parts in zip(*samples, strict=True))

    def sample(self, rng: np.random.Generator) -> list[Pixels]:
        """One random patch in one of its eight symmetries: lq, hq[, taught], each (h, w, 3)."""
        if self.pairs and (not self.pictures or rng.random() < self.data.pairs):
            pair, symmetry = self.pairs[int(rng.integers(len(self.pairs)))], int(rng.integers(8))
            return [turn(patch, symmetry) for patch in aligned(pair, (1, self.scale), self.data.patch, rng)]
        index, symmetry = int(rng.integers(len(self.pictures))), int(rng.integers(8))
        if self.small:
            sources = [self.small[index], self.pictures[index], *self.taught[index : index + 1]]
            patches = aligned(sources, (1, self.scale, self.scale), self.data.patch, rng)
            return [turn(patch, symmetry) for patch in patches]
        patch = turn(self._cut(self.pictures[index], rng), symmetry)
        if rng.random() < self.data.grey:
            patch = np.array(Image.fromarray(patch).convert("L"))
        return [in_colour(p) for p in self._degraded(patch, rng)]

    def _degraded(self, patch: Bytes, rng: np.random.Generator) -> Sequence[Pixels]:
        """lq and hq out of a patch that is wider than both."""
        how, data = self.degradation, self.data
        level = how.level.draw(*data.level, rng) if how.level and data.level else None
        assert how.make is not None
        pair = how.make(patch, Setting(self.scale, level, data.ranges_of(how)), rng)
        return aligned(pair, (1, self.scale), data.patch, rng) if how.margin else pair

    def _cut(self, picture: Bytes, rng: np.random.Generator) -> Bytes:
        """A square of the picture, or of the picture made smaller, wide enough for what is cut off later."""
        wide = self.data.patch + self.degradation.margin
        if self.data.shrink == (1.0, 1.0):
            return aligned([picture], (self.scale,), wide, rng)[0]
        side = wide * self.scale
        large = min(round(side / rng.uniform(*self.data.shrink)), *picture.shape[:2])
        (patch,) = aligned([picture], (1,), large, rng)
        return np.array(Image.fromarray(patch).resize((side, side), Image.Resampling.LANCZOS))

    def loader(self, start: int, workers: int, pinned: bool = False) -> Iterator[tuple[Tensor, ...]]:
        """The batches from number `start` on, without end; prepared by `workers` processes if the system can fork.

        `pinned`: in memory that a GPU reads by itself, while the host goes on.
        """
        if not workers or "fork" not in multiprocessing.get_all_start_methods():
            batches = map(self.__getitem__, count(start))
            return (tuple(t.pin_memory() for t in batch) for batch in batches) if pinned else batches
        loader = DataLoader(
            self,
            None,
            sampler=cast(Iterable[int], count(start)),
            num_workers=workers,
            multiprocessing_context="fork",
            prefetch_factor=4,
            worker_init_fn=outlive_the_stop,
            pin_memory=pinned,
        )
        return iter(loader)


def outlive_the_stop(worker: int) -> None:
    """A SIGTERM to all processes of a run is for the main one: it ends the step at hand, saves, and ends the workers.

    Workers that died at once would break the step, and the checkpoint that is being written.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def aligned(pictures: Sequence[Bytes], scales: Sequence[int], side: int, rng: np.random.Generator) -> list[Bytes]:
    """The same random square of each picture; `side` and position in units of a picture of scale 1."""
    y, x = (int(rng.integers(n // scales[0] - side + 1)) for n in pictures[0].shape[:2])
    return [p[y * s : (y + side) * s, x * s : (x + side) * s] for p, s in zip(pictures, scales, strict=False)]


def in_colour(picture: Pixels) -> Pixels:
    """(h, w, 3) of (h, w) or (h, w, 3)."""
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)


def turn(patch: Pixels, symmetry: int) -> Pixels:
    """One of the eight flips and transposes of a (h, w, ...) array."""
    if symmetry & 1:
        patch = patch[::-1]
    if symmetry & 2:
        patch = patch[:, ::-1]
    return np.ascontiguousarray(np.swapaxes(patch, 0, 1) if symmetry & 4 else patch)


def validation_pairs(recipe: Recipe, chosen: Sequence[Path | PathPair]) -> list[tuple[Tensor, Bytes]]:
    """Whole centres, lq (1, 3, h, w) and the truth (H, W, 3): read, or made worse once and always in the same way."""
    side, scale = recipe.validation.side // recipe.scale, recipe.scale
    own = [one for one in chosen if isinstance(one, tuple)]
    sources: list[tuple[Bytes | None, Bytes]] = [*decode_pairs(own, 16, scale)]
    sources += [(None, hq) for hq in decode([one for one in chosen if isinstance(one, Path)], 16 * scale)]
    result = []
    lq: Pixels | None
    for number, (lq, whole) in enumerate(sources):
        hq = degradations.modcrop(whole, scale)
        height, width = (n // scale for n in hq.shape[:2])
        top, left = (max(0, n - side) // 2 for n in (height, width))
        hq = hq[top * scale : (top + side) * scale, left * scale : (left + side) * scale]
        if lq is None:
            lq, hq = _damaged(hq, recipe, np.random.default_rng((recipe.training.seed, number)))
        else:
            lq = lq[top : top + side, left : left + side]
        result.append((to_tensor(lq[None]), hq))
    return result


def _damaged(hq: Bytes, recipe: Recipe, rng: np.random.Generator) -> tuple[Pixels, Bytes]:
    """`degraded`, drawn again if nothing happened: of a picture without rain doing nothing is perfect."""
    for _ in range(20):  # a flat picture stays what it is
        lq, truth = degraded(hq, recipe, rng)
        if lq.shape != truth.shape or (lq != truth).any():
            break
    return lq, truth


def degraded(hq: Bytes, recipe: Recipe, rng: np.random.Generator) -> tuple[Pixels, Bytes]:
    """A whole picture made worse, and its truth; at `validation.level` where there is one."""
    how = recipe.degradation
    assert how.make is not None
    return how.make(hq, Setting(recipe.scale, recipe.validation.level, recipe.data.ranges_of(how)), rng)


def to_tensor(pixels: Pixels) -> Tensor:
    """(B, h, w, 3), uint8 or float -> (B, 3, h, w), float32 in [0, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    return tensor if tensor.is_floating_point() else tensor.float() / 255
