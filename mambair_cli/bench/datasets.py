"""Benchmark sets: where their pictures are, how clean and degraded ones pair up, how the missing half is made."""

from __future__ import annotations

import difflib
import json
import logging
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from mambair_cli import console, metrics
from mambair_cli.bench.damage import Damage
from mambair_cli.errors import BadImage, Unavailable, UsageError
from mambair_cli.images.decode import read_picture
from mambair_cli.images.formats import READABLE_SUFFIXES
from mambair_cli.models import checkpoints
from mambair_cli.models.download import download, sha256_of
from mambair_cli.pairing import paired
from mambair_cli.shards import WHOLE, Shard

log = logging.getLogger("mambair")

CONNECTIONS = 4  # files fetched at a time: the sets are on free hosts

# Where papers and their repositories keep clean pictures; {s} is the scale.
CLEAN = (
    "HR/*",
    "GTmod12/*",
    "GT/*",
    "image_SRF_{s}/*_HR.*",
    "norain/*",
    "norain-*",
    "target/*",
    "clean/*",
    "clear/*",
    "sharp/*",
    "*/sharp/*",
    "gt/*",
    "*/gt/*",
    "groundtruth/*",
    "CroppedImages/*_mean.*",
    "*",
)


@dataclass(frozen=True)
class Item:
    """One picture of a set. Without `degraded` its degraded half is made; `problem` says why it has none."""

    name: str
    truth: Path
    degraded: Path | None = None
    problem: str = ""


@dataclass(frozen=True)
class Dataset:
    """Pictures of a set; `size` is how many the whole set has, `foreign` which are not the files of the known set."""

    name: str
    folder: Path
    items: tuple[Item, ...]
    size: int
    foreign: tuple[Path, ...] = ()

    @property
    def read(self) -> bool:
        """Whether the degraded pictures are files."""
        return any(item.degraded for item in self.items)


@dataclass(frozen=True)
class Selection:
    """Which pictures of a set: the first `limit`, after shuffling by `seed` if it is given; of those one part."""

    limit: int | None = None
    seed: int | None = None
    shard: Shard = WHOLE

    def __call__(self, items: Iterable[Item]) -> tuple[Item, ...]:
        chosen = list(items)
        if self.seed is not None:
            random.Random(self.seed).shuffle(chosen)
        return tuple(item for item in chosen[: self.limit] if self.shard.holds(item.name))


@cache
def registry() -> Mapping[str, Mapping[str, Any]]:
    """The known sets: task, and either pinned files (role, path, bytes, sha256) below `base`, or their source."""
    return json.loads(files(__package__).joinpath("datasets.json").read_text(encoding="utf-8"))


def known(name: str) -> str | None:
    """The customary name of a set, however written: "b100" is BSD100. None if it is none of them."""
    for canonical, entry in registry().items():
        if _plain(name) in map(_plain, (canonical, *entry.get("aliases", ()))):
            return canonical
    return None


def check(name: str) -> None:
    """Raise UsageError, with near names, where `name` is neither a known set nor a folder."""
    if known(name) or Path(name).is_dir():
        return
    near = difflib.get_close_matches(name.lower(), by_name := {set.lower(): set for set in registry()}, 3, 0.6)
    meant = f"Did you mean {' or '.join(by_name[close] for close in near)}? " if near else ""
    raise UsageError(f"There is no set and no folder {name!r}.", f"{meant}Known: {', '.join(registry())}.")


def load_dataset(
    name: str,
    damage: Damage,
    *,
    root: Path | None = None,
    select: Selection = Selection(),
    offline: bool = False,
) -> Dataset:
    """A set by name (below `root` in any usual layout, else fetched), or any folder of pictures.

    Files of a known set are compared with its hashes: those of the cache must agree, of those below `root` the ones
    that do not are `foreign`, and told. Raises UsageError for an unknown name and Unavailable where pictures are
    missing and cannot be had.
    """
    canonical = known(name)
    if canonical:
        folder = _below(root, canonical) if root else None
        if folder is None:
            return _fetch(canonical, damage, root, select, offline)
    else:
        check(name)
        folder = Path(name)
    items = select(whole := scan(folder, damage))
    pinned = _pinned(canonical) if canonical else []
    size = sum(file.role == "HR" for file in pinned) or len(whole)
    foreign = _foreign(items, pinned) if pinned else ()
    if foreign:
        log.warning(
            "%s below %s is not quite the field's: %d files differ, of which %s is the first; the tables say so",
            *(canonical, root, len(foreign), foreign[0].relative_to(folder)),
        )
    return Dataset(canonical or folder.resolve().name, folder, items, size, foreign)


def scan(folder: Path, damage: Damage) -> list[Item]:
    """Pair the pictures of a folder in any of the usual layouts, in the natural order of their names.

    A clean picture without its degraded one is an item with a problem. Raises Unavailable if there are no
    clean pictures, or no degraded ones that would have to be read.
    """
    clean = [pattern.format(s=damage.scale) for pattern in CLEAN]
    truths = pictures_in(folder, clean)
    if not truths:
        raise Unavailable(f"No pictures in {folder}.", f"Looked for {_listing(clean)}.")
    inputs = pictures_in(folder, damage.patterns)
    if not inputs:
        if not damage.can_be_made:
            raise Unavailable(
                f"No degraded pictures in {folder}: {damage} cannot be made, only read.",
                f"Looked for {_listing(damage.patterns)}.",
            )
        return [Item(name, path) for name, path in zip(_names(truths), truths, strict=True)]
    halves, problem = paired(truths, inputs, damage.scale), f"no degraded picture for it in {inputs[0].parent}"
    return [
        Item(name, truth, halves[truth], "" if halves[truth] else problem)
        for name, truth in zip(_names(truths), truths, strict=True)
    ]


def read_8bit(path: Path, grey: bool) -> NDArray[np.uint8]:
    """A picture as `uint8` (H, W, 3), or (H, W) if `grey`: luma of BT.601 studio swing, rounded, as in the papers.

    Grey pictures become colour ones with equal channels. Raises BadImage for what cannot be read, has more depth or
    is transparent.
    """
    frame = read_picture(path).frames[0]
    pixels = frame.pixels
    if pixels.dtype != np.uint8:
        raise BadImage(f"{path.name} has more than 8 bits a channel.", "The published protocols are for 8 bits.")
    if frame.alpha is not None and (frame.alpha < 255).any():
        raise BadImage(f"{path.name} is transparent in parts, and the protocols measure colours only.")
    if grey:
        return pixels[..., 0] if pixels.shape[2] == 1 else metrics.to_uint8(metrics.studio_luma(pixels) / 255.0)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


@dataclass(frozen=True)
class _Pinned:
    """A file of a set that can be fetched."""

    role: str  # HR, LRx2, ..., LQ
    url: str
    bytes: int
    sha256: str

    @property
    def place(self) -> Path:
        """Below the folder of the set: one of the usual layouts."""
        return Path(self.role, unquote(self.url.rsplit("/", 1)[1]))


def _pinned(name: str) -> list[_Pinned]:
    entry = registry()[name]
    found = [_Pinned(role, entry["base"] + quote(path), *rest) for role, path, *rest in entry.get("files", ())]
    return sorted(found, key=lambda file: _natural(file.place))


def _fetch(name: str, damage: Damage, root: Path | None, select: Selection, offline: bool) -> Dataset:
    """The set from its pinned source, kept in the cache. Raises Unavailable if it may not be redistributed."""
    pinned = _pinned(name)
    if not pinned:
        looked = f" It is not below {root} either." if root else ""
        raise Unavailable(
            f"{name} must not be redistributed, so it cannot be fetched.{looked}",
            f"Get it from {registry()[name]['source']}; then pass --data-root with the folder that holds {name}/.",
        )
    folder = checkpoints.cache_dir() / "datasets" / name
    inputs = [folder / file.place for file in pinned if file.role == damage.role]
    if not inputs and not damage.can_be_made:
        raise Unavailable(f"{name} has no pictures degraded by {damage}.", "Choose another set, or another task.")
    truths = [folder / file.place for file in pinned if file.role == "HR"]
    halves = paired(truths, inputs, damage.scale)
    items = select(Item(path.stem, path, halves[path]) for path in truths)
    wanted = {path for item in items for path in (item.truth, item.degraded) if path}
    missing = [file for file in pinned if folder / file.place in wanted and not (folder / file.place).exists()]

    def fetch(file: _Pinned) -> None:
        download([file.url], folder / file.place, sha256=file.sha256, bytes=file.bytes, bar=False, offline=offline)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        fetched = [pool.submit(fetch, file) for file in missing]
        try:
            with console.voice.progress(*columns) as bar:
                task = bar.add_task(f"Fetching {name}", total=len(fetched))
                for done in fetched:
                    done.result()
                    bar.update(task, advance=1)
        except Unavailable as error:
            raise Unavailable(
                f"{name} cannot be fetched. {error.message}",
                f"Run it again to go on, or pass --data-root with a folder that holds {name}/.\n{error.hint}",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    if wrong := _foreign(items, pinned):
        raise Unavailable(
            f"{wrong[0]} is not the file of {name}: its sha256 is another"
            f"{f' (and {len(wrong) - 1} more)' if len(wrong) > 1 else ''}.",
            "Remove it, and it is fetched again; sets of your own go below --data-root.",
        )
    return Dataset(name, folder, items, len(truths))


def _foreign(items: Iterable[Item], pinned: Iterable[_Pinned]) -> tuple[Path, ...]:
    """The files that the set does not have, by content: they may be called and sorted in another way."""
    truths, inputs = ({file.sha256 for file in pinned if (file.role == "HR") == clean} for clean in (True, False))
    foreign = [item.truth for item in items if _hash(item.truth) not in truths]
    return (*foreign, *(item.degraded for item in items if item.degraded and _hash(item.degraded) not in inputs))


def _hash(path: Path) -> str:
    """Reckoned once for every version of the file."""
    try:
        stat = path.stat()
        return _hash_of(path, stat.st_size, stat.st_mtime_ns)
    except OSError:
        return ""  # whoever reads it will say why


@cache
def _hash_of(path: Path, size: int, changed: int) -> str:
    return sha256_of(path)


def _below(root: Path, name: str) -> Path | None:
    """The folder of the set in `root`, however its name is written."""
    if not root.is_dir():
        raise UsageError(f"The data root {root} is not a folder.", "See --data-root and MAMBAIR_DATA.")
    return next((path for path in sorted(root.iterdir()) if path.is_dir() and known(path.name) == name), None)


def pictures_in(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The pictures of the first pattern that has any, in natural order."""
    for pattern in patterns:
        found = [p for p in folder.glob(pattern) if p.suffix.lower() in READABLE_SUFFIXES and p.is_file()]
        if found:
            return sorted(found, key=_natural)
    return []


def _natural(path: Path) -> tuple[Any, ...]:
    """2.png before 10.png."""
    parts = re.split(r"(\d+)", path.stem)
    return (*((int(part), "") if part.isdecimal() else (-1, part) for part in parts), path.name)


def _names(paths: Sequence[Path]) -> list[str]:
    """The stems; full names where two pictures share a stem, with the scene where they share that too."""
    stems, names = Counter(path.stem for path in paths), Counter(path.name for path in paths)
    return [
        path.stem
        if stems[path.stem] == 1
        else path.name
        if names[path.name] == 1
        else f"{path.parents[1].name}_{path.name}"
        for path in paths
    ]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _listing(patterns: Iterable[str]) -> str:
    return ", ".join(pattern.removesuffix("*") or "pictures right in it" for pattern in patterns)
