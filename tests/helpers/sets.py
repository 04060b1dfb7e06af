"""Small sets of pictures, cut from one photo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from helpers.album import photo
from mambair_cli.bench.damage import Damage
from mambair_cli.tasks import TASKS


def put(path: Path, size: tuple[int, int] = (16, 12)) -> None:
    """The photo in another size (width, height), in a folder made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    photo().resize(size).save(path)


def parts(folder: Path) -> Path:
    """Three parts of the photo, 41x40, in a new folder."""
    folder.mkdir()
    for n in range(3):
        photo().crop((10 * n, 0, 10 * n + 41, 40)).save(folder / f"part{n}.png")
    return folder


def damage(task: str, scale: int = 1, **levels: Any) -> Damage:
    """What `bench` undoes for a task at a scale and a level (sigma or quality)."""
    degradation = TASKS[task].benchmark(levels)
    return Damage(task, degradation, scale, next(iter(levels.values()), None))
