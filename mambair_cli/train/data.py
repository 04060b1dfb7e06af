"""Pictures and what becomes of them: decoded once, split by original, cropped, flipped and made worse on the fly.

A sample depends on nothing but the seed, the iteration and its place in the batch. So a resumed run sees what an
uninterrupted one sees, with any number of workers.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, count
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
from mambair_cli.errors import BadImage, Unavailable, UsageError
from mambair_cli.train.recipe import Recipe

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})
# Pixels of the network's input that a patch is wider than what is kept of it: room to shift the grid of JPEG blocks
# (16 for 4:2:0), and real surroundings for blur and resizing.
MARGIN = {"jpeg": 16, "realistic": 16}
DRY = 0.1  # share of derain's samples without rain: bright lines in a dry picture are to stay

Pixels = NDArray[Any]  # (h, w) or (h, w, 3), uint8 or float32 in [0, 1]
Degradation = Callable[[Bytes, np.random.Generator], tuple[Pixels, Bytes]]


@dataclass(frozen=True)
class Files:
    """The pictures to train on and those to validate on, and a hash over the names and contents of all of them."""

    training: tuple[Path, ...]
    validation: tuple[Path, ...]
    sha256: str


def find(folders: Sequence[Path], validation: Sequence[Path], held_out: int) -> Files:
    """The pictures below the folders. Without folders for validation, `held_out` originals are set aside.

    All crops of one original stay together, and the first of each that is set aside is measured. `manifest.json` in
    a folder tells which belong together ("file", "original"), or else names that differ in "_s001" only, as those of
    BasicSR's crops. Which are held out depends on their names alone. Raises Unavailable if too few are there.
    """
    groups: dict[str, list[Path]] = {}
    for folder in folders:
        originals = _originals(folder)
        for path in _pictures(folder):
            name = originals.get(path.name) or re.sub(r"_s\d{3}$", "", path.stem)
            groups.setdefault(name, []).append(path)
    kept = [path for folder in validation for path in _pictures(folder)]
    if not validation:
        for name in sorted(groups, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())[:held_out]:
            kept.append(groups.pop(name)[0])
    training = [path for paths in groups.values() for path in paths]
    if not training or not kept:
        raise Unavailable(
            f"In {', '.join(map(str, [*folders, *validation]))} are {len(training)} pictures to train on and "
            f"{len(kept)} to validate on.",
            f"{held_out} originals are held out for validation; more are needed, or a folder given as --val.",
        )
    return Files(tuple(training), tuple(kept), _fingerprint([*training, *kept]))


def credits(folders: Sequence[Path]) -> list[str]:
    """The lines of every SOURCES.tsv, where folders say whose pictures they hold and under which licence."""
    tables = [folder / "SOURCES.tsv" for folder in folders]
    return [line for table in tables if table.is_file() for line in table.read_text("utf-8").splitlines()]


def decode(paths: Iterable[Path], smallest: int) -> list[Bytes]:
    """Pictures as (H, W, 3). Raises BadImage for what is none, or has a side of under `smallest` pixels."""

    def read(path: Path) -> Bytes:
        try:
            with Image.open(path) as image:
                pixels = np.array(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise BadImage(f"Cannot read {path}: {error}.") from error
        if min(pixels.shape[:2]) < smallest:
            raise BadImage(
                f"{path} has {pixels.shape[1]}x{pixels.shape[0]} pixels; the recipe needs {smallest}x{smallest}.",
                "Remove it, or take a smaller data.patch.",
            )
        return pixels

    return store(_threaded(read, list(paths)))


def downscaled(pictures: Sequence[Bytes], scale: int) -> list[Bytes]:
    """The bicubic small versions of whole pictures: what is cropped from them is exact up to its border."""
    return store(_threaded(lambda picture: degradations.downscale(picture, scale), pictures))


def store(pictures: Iterable[Bytes]) -> list[Bytes]:
    """Read-only copies in one temporary memory-mapped file: workers share it, and it may exceed the memory."""
    with tempfile.TemporaryFile() as file:
        shapes = [(file.write(picture.tobytes()), picture.shape)[1] for picture in pictures]
        file.flush()
        flat = np.memmap(file, np.uint8, "r")
    return views(flat, shapes)


def views(flat: Bytes, shapes: Sequence[tuple[int, ...]]) -> list[Bytes]:
    """The pictures that lie one after the other in a flat array."""
    ends = accumulate(math.prod(shape) for shape in shapes)
    return [flat[end - math.prod(shape) : end].reshape(shape) for shape, end in zip(shapes, ends, strict=True)]


def smallest_side(recipe: Recipe) -> int:
    """The shortest side that a training picture may have."""
    return (recipe.data.patch + MARGIN.get(recipe.data.degradation, 0)) * recipe.scale


class Batches(Dataset[tuple[Tensor, ...]]):
    """Batch number i: lq (B, 3, p, p), hq (B, 3, p*s, p*s) and, with a teacher, its hq; float32 in [0, 1].

    `small`: the pictures downscaled, for bicubic; `taught`: what the teacher makes of these.
    """

    def __init__(
        self,
        recipe: Recipe,
        pictures: Sequence[Bytes],
        small: Sequence[Bytes] = (),
        taught: Sequence[Bytes] = (),
    ) -> None:
        self.data, self.scale, self.seed = recipe.data, recipe.scale, recipe.training.seed
        self.pictures, self.small, self.taught = pictures, small, taught
        self.degrade = None if small else degradation(recipe)

    def __getitem__(self, iteration: int) -> tuple[Tensor, ...]:
        samples = [self.sample(np.random.default_rng((self.seed, iteration, i))) for i in range(self.data.batch)]
        return tuple(to_tensor(np.stack(arrays)) for arrays in zip(*samples, strict=True))

    def sample(self, rng: np.random.Generator) -> list[Pixels]:
        """One random patch in one of its eight symmetries: lq, hq[, taught], each (h, w, 3)."""
        index, symmetry = int(rng.integers(len(self.pictures))), int(rng.integers(8))
        if self.degrade is None:
            sources = [self.small[index], self.pictures[index], *self.taught[index : index + 1]]
            patches = aligned(sources, (1, self.scale, self.scale), self.data.patch, rng)
            return [turn(patch, symmetry) for patch in patches]
        (patch,) = aligned([self.pictures[index]], (self.scale,), self._wide, rng)
        patch = turn(patch, symmetry)
        if rng.random() < self.data.grey:
            patch = np.array(Image.fromarray(patch).convert("L"))
        return [p if p.ndim == 3 else np.repeat(p[..., None], 3, axis=2) for p in self.degrade(patch, rng)]

    @property
    def _wide(self) -> int:
        return self.data.patch + MARGIN.get(self.data.degradation, 0)

    def loader(self, start: int, workers: int) -> Iterator[tuple[Tensor, ...]]:
        """The batches from number `start` on, without end; prepared by `workers` processes if the system can fork."""
        if not workers or "fork" not in multiprocessing.get_all_start_methods():
            return map(self.__getitem__, count(start))
        order = cast(Iterable[int], count(start))
        return iter(
            DataLoader(
                self, None, sampler=order, num_workers=workers, multiprocessing_context="fork", prefetch_factor=4
            )
        )


def aligned(pictures: Sequence[Bytes], scales: Sequence[int], side: int, rng: np.random.Generator) -> list[Bytes]:
    """The same random square of each picture; `side` and position in units of a picture of scale 1."""
    y, x = (int(rng.integers(n // scales[0] - side + 1)) for n in pictures[0].shape[:2])
    return [p[y * s : (y + side) * s, x * s : (x + side) * s] for p, s in zip(pictures, scales, strict=False)]


def turn(patch: Pixels, symmetry: int) -> Pixels:
    """One of the eight flips and transposes of a (h, w, ...) array."""
    if symmetry & 1:
        patch = patch[::-1]
    if symmetry & 2:
        patch = patch[:, ::-1]
    return np.ascontiguousarray(np.swapaxes(patch, 0, 1) if symmetry & 4 else patch)


def degradation(recipe: Recipe) -> Degradation:
    """What makes a pair (lq, hq) out of a patch that is wider than both by `MARGIN`."""
    data, scale = recipe.data, recipe.scale
    low, high = data.level or (0.0, 0.0)

    def noise(hq: Bytes, rng: np.random.Generator) -> tuple[Pixels, Bytes]:
        return degradations.gaussian_noise(hq, rng.uniform(low, high), rng), hq

    def jpeg(hq: Bytes, rng: np.random.Generator) -> tuple[Pixels, Bytes]:
        # Evenly over the logarithm: from 80 to 90 little changes, from 10 to 20 the error halves.
        lq = degradations.jpeg(hq, round(low * (high / low) ** rng.random()))
        lq, hq = aligned([lq, hq], (1, 1), data.patch, rng)
        return lq, hq

    def realistic(hq: Bytes, rng: np.random.Generator) -> tuple[Pixels, Bytes]:
        lq, edge = degradations.realistic(hq, rng, scale), MARGIN["realistic"] // 2
        return lq[edge:-edge, edge:-edge], hq[edge * scale : -edge * scale, edge * scale : -edge * scale]

    def rain(hq: Bytes, rng: np.random.Generator) -> tuple[Pixels, Bytes]:
        return (hq if rng.random() < DRY else degradations.rain(hq, rng)), hq

    return {"noise": noise, "jpeg": jpeg, "realistic": realistic, "rain": rain}[data.degradation]


def validation_pairs(recipe: Recipe, paths: Sequence[Path]) -> list[tuple[Tensor, Bytes]]:
    """Whole centres, made worse once and always in the same way: lq (1, 3, h, w) and the truth (H, W, 3)."""
    side, scale, level = recipe.validation.side, recipe.scale, recipe.validation.level or 0.0
    pairs = []
    for number, picture in enumerate(decode(paths, 16 * scale)):
        top, left = (max(0, n - side) // 2 for n in picture.shape[:2])
        hq = degradations.modcrop(picture[top : top + side, left : left + side], scale)
        rng = np.random.default_rng((recipe.training.seed, number))
        lq: Pixels
        match recipe.data.degradation:
            case "bicubic":
                lq = degradations.downscale(hq, scale)
            case "realistic":
                lq = degradations.realistic(hq, rng, scale)
            case "noise":
                lq = degradations.gaussian_noise(hq, level, rng)
            case "jpeg":
                lq = degradations.jpeg(hq, round(level))
            case _:
                lq = degradations.rain(hq, rng)
        pairs.append((to_tensor(lq[None]), hq))
    return pairs


def to_tensor(pixels: Pixels) -> Tensor:
    """(B, h, w, 3), uint8 or float -> (B, 3, h, w), float32 in [0, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    return tensor if tensor.is_floating_point() else tensor.float() / 255


def _originals(folder: Path) -> dict[str, str]:
    """File name -> original, from the folder's manifest."""
    try:
        entries = json.loads((folder / "manifest.json").read_text("utf-8"))
        return {entry["file"]: entry["original"] for entry in entries}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f'{folder}/manifest.json is not a list of {{"file": ..., "original": ...}}.') from error


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder.")
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _fingerprint(paths: Sequence[Path]) -> str:
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        total.update(os.fsencode(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n"))
    return total.hexdigest()


def _threaded(function: Callable[[Any], Bytes], items: Sequence[Any]) -> Iterator[Bytes]:
    """`map` on all cores, a few at a time, so that results do not pile up in memory."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(items), 64):
            yield from pool.map(function, items[start : start + 64])
