"""The pictures of a run: found, paired, split by original, and decoded once."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from mambair_cli import degradations
from mambair_cli.degradations import Bytes
from mambair_cli.errors import BadImage, Unavailable, UsageError
from mambair_cli.images.decode import read_rgb
from mambair_cli.images.formats import READABLE_SUFFIXES
from mambair_cli.models.download import sha256_of
from mambair_cli.pairing import paired

PathPair = tuple[Path, Path]  # input, truth


@dataclass(frozen=True)
class Folders:
    """Where the pictures lie: clean ones, pairs of one's own (`lq` and `hq`), and what to measure on."""

    clean: tuple[Path, ...] = ()
    lq: tuple[Path, ...] = ()
    hq: tuple[Path, ...] = ()
    validation: tuple[Path, ...] = ()
    validation_lq: tuple[Path, ...] = ()  # without it the pictures of `validation` are made worse by the recipe


@dataclass(frozen=True)
class Files:
    """The pictures to train on and those to validate on, and a hash over the names and contents of all of them."""

    training: tuple[Path, ...]
    pairs: tuple[PathPair, ...]
    validation: tuple[Path | PathPair, ...]
    sha256: str


def find(folders: Folders, scale: int, held_out: int) -> Files:
    """The pictures below the folders. Without folders for validation, `held_out` originals are set aside.

    All crops of one original stay together, and the first of each that is set aside is measured. `manifest.json` in
    a folder tells which belong together ("file", "original"), or else names that differ in "_s001" only, as those of
    BasicSR's crops. Which are held out depends on their names alone; they come from the clean pictures if there are
    any, else from the pairs. Raises Unavailable if too few are there, UsageError for folders that belong to nothing.
    """
    if bool(folders.lq) != bool(folders.hq):
        raise UsageError("Pairs need --lq and --hq, the pictures before and after.", "Name both folders.")
    if folders.validation_lq and not folders.validation:
        raise UsageError("--val-lq needs the truths to its pictures.", "Name their folder with --val.")
    clean = _groups(folders.clean, lambda path: path)
    own = match(_all(folders.lq), _all(folders.hq), scale)
    pairs = _groups(folders.hq, lambda path: (own[path], path) if path in own else None)
    kept: list[Path | PathPair] = list(_all(folders.validation))
    if folders.validation_lq:
        kept = [
            (low, high) for high, low in match(_all(folders.validation_lq), _all(folders.validation), scale).items()
        ]
    if not folders.validation:
        source: dict[str, list[Any]] = clean or pairs
        for name in sorted(source, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())[:held_out]:
            kept.append(source.pop(name)[0])
    training = tuple(path for paths in clean.values() for path in paths)
    couples = tuple(pair for several in pairs.values() for pair in several)
    if not (training or couples) or not kept:
        every = [*folders.clean, *folders.lq, *folders.hq, *folders.validation]
        raise Unavailable(
            f"In {', '.join(map(str, every))} are {len(training) + len(couples)} pictures to train on and "
            f"{len(kept)} to validate on.",
            f"{held_out} originals are held out for validation; more are needed, or a folder given as --val.",
        )
    together = [*training, *(p for pair in couples for p in pair)]
    together += [p for one in kept for p in (one if isinstance(one, tuple) else (one,))]
    return Files(training, couples, tuple(kept), _fingerprint(together))


def match(low: Sequence[Path], high: Sequence[Path], scale: int) -> dict[Path, Path]:
    """Truth -> input, by their names, as `mambair bench` does. Raises Unavailable for inputs of no truth."""
    found = {truth: path for truth, path in paired(high, low, scale).items() if path}
    if left := sorted(set(low) - set(found.values())):
        raise Unavailable(
            f"{left[0]} belongs to no picture in --hq or --val; {len(left)} of {len(low)} do not.",
            "The names of a pair are the same, or differ in a mark such as x4, _LR, _HR.",
        )
    return found


def credits(folders: Iterable[Path]) -> list[str]:
    """The lines of every SOURCES.tsv, where folders say whose pictures they hold and under which licence."""
    tables = [folder / "SOURCES.tsv" for folder in folders]
    return [line for table in tables if table.is_file() for line in table.read_text("utf-8").splitlines()]


def decode(paths: Iterable[Path], smallest: int) -> list[Bytes]:
    """Pictures as (H, W, 3). Raises BadImage for what is none, or has a side of under `smallest` pixels."""

    def read(path: Path) -> Bytes:
        try:
            pixels = read_rgb(path)
        except BadImage as error:
            raise BadImage(f"Cannot read {path}: {error.message}.", error.hint) from error
        if min(pixels.shape[:2]) < smallest:
            raise BadImage(
                f"{path} has {pixels.shape[1]}x{pixels.shape[0]} pixels; the recipe needs {smallest}x{smallest}.",
                "Remove it, or take a smaller data.patch.",
            )
        return pixels

    return store(_threaded(read, list(paths)))


def decode_pairs(pairs: Sequence[PathPair], smallest: int, scale: int) -> list[tuple[Bytes, Bytes]]:
    """Inputs and truths. Raises BadImage also where a truth has not `scale` times the size of its input."""
    low, high = (decode([pair[side] for pair in pairs], smallest) for side in (0, 1))
    for (_, path), lq, hq in zip(pairs, low, high, strict=True):
        if any(large // scale != small for large, small in zip(hq.shape[:2], lq.shape[:2], strict=True)):
            sizes = [f"{picture.shape[1]}x{picture.shape[0]}" for picture in (hq, lq)]
            raise BadImage(f"{path} has {sizes[0]} pixels and its input {sizes[1]}: that is not x{scale}.")
    return [(lq, degradations.modcrop(hq, scale)) for lq, hq in zip(low, high, strict=True)]


def made_worse(pictures: Sequence[Bytes], degrade: Callable[[Bytes], Bytes]) -> list[Bytes]:
    """Whole pictures, degraded once: what is cropped from them is exact up to its border."""
    return store(_threaded(degrade, pictures))


def store(pictures: Iterable[Bytes]) -> list[Bytes]:
    """Read-only copies in one temporary memory-mapped file: workers share it, and it may exceed the memory."""
    with tempfile.TemporaryFile() as file:
        shapes = [(file.write(picture.tobytes()), picture.shape)[1] for picture in pictures]
        if not shapes:
            return []
        file.flush()
        flat = np.memmap(file, np.uint8, "r")
    return views(flat, shapes)


def views(flat: Bytes, shapes: Sequence[tuple[int, ...]]) -> list[Bytes]:
    """The pictures that lie one after the other in a flat array."""
    ends = accumulate(math.prod(shape) for shape in shapes)
    return [flat[end - math.prod(shape) : end].reshape(shape) for shape, end in zip(shapes, ends, strict=True)]


def _originals(folder: Path) -> dict[str, str]:
    """File name -> original, from the folder's manifest."""
    try:
        entries = json.loads((folder / "manifest.json").read_text("utf-8"))
        return {entry["file"]: entry["original"] for entry in entries}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f'{folder}/manifest.json is not a list of {{"file": ..., "original": ...}}.') from error


def _groups(folders: Sequence[Path], entry: Callable[[Path], Any]) -> dict[str, list[Any]]:
    """What `entry` makes of the pictures (None: leave it out), by the original they were cut from."""
    groups: dict[str, list[Any]] = {}
    for folder in folders:
        originals = _originals(folder)
        for path in _pictures(folder):
            if (made := entry(path)) is not None:
                name = originals.get(path.name) or re.sub(r"_s\d{3}$", "", path.stem)
                groups.setdefault(name, []).append(made)
    return groups


def _all(folders: Sequence[Path]) -> list[Path]:
    return [path for folder in folders for path in _pictures(folder)]


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder.")
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in READABLE_SUFFIXES and path.is_file())


def _fingerprint(paths: Sequence[Path]) -> str:
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        total.update(os.fsencode(f"{path.name} {sha256_of(path)}\n"))
    return total.hexdigest()


def _threaded(function: Callable[[Any], Bytes], items: Sequence[Any]) -> Iterator[Bytes]:
    """`map` on all cores, a few at a time, so that results do not pile up in memory."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(items), 64):
            yield from pool.map(function, items[start : start + 64])
