"""Pictures that another program restored, scored as a model's own would be."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL

from mambair_cli import __version__
from mambair_cli.bench.damage import Damage
from mambair_cli.bench.datasets import Dataset, Item, known, pictures_in, read_8bit
from mambair_cli.bench.perceptual import Perceptual
from mambair_cli.bench.records import Measured, Result
from mambair_cli.bench.run import Watcher
from mambair_cli.bench.scoring import Scorer, prepare
from mambair_cli.errors import BadImage, MambairError, UsageError
from mambair_cli.pairing import restored_by_name
from mambair_cli.task import Protocol

DEPTHS = ("*", "*/*", "*/*/*")  # right in the folder, or by scene


def score_results(
    folder: Path,
    dataset: Dataset,
    damage: Damage,
    rules: Protocol,
    *,
    perceptual: bool = False,
    blind: bool = False,
    gradient: bool = False,
    watcher: Watcher = Watcher(),
) -> Result:
    """Score the pictures in `folder`, or in its subfolder of the set's name; one missing or of another size is
    reported and does not count.

    Raises UsageError where no picture there is named as one of the set, or where two are named alike.
    """
    place = _place(folder, dataset)
    files = pictures_in(place, DEPTHS)
    if not files:
        raise UsageError(f"There are no pictures in {place}.")
    truths = [item.truth for item in dataset.items]
    found = restored_by_name(truths, files, place, damage.scale)
    if truths and not any(found.values()):
        stem = truths[0].stem
        raise UsageError(
            f"No picture in {place} is named as one of {dataset.name}; {files[0].name} is the first of {len(files)}.",
            f"Names begin with that of the clean picture and end all alike: {stem}.png, {stem}x{damage.scale}.png, "
            f"{stem}_x{damage.scale}_NAME.png.",
        )
    rules = replace(rules, rounding="uint8" if rules.rounding == "none" else rules.rounding)  # files have 8 bits
    scorer = Scorer(rules, Perceptual() if perceptual else None, blind or perceptual, gradient)

    def images() -> Iterator[Measured]:
        watcher.start(len(dataset.items), 0)
        for item in dataset.items:
            image = _score(item, found[item.truth], place, damage, scorer)
            watcher.step(image)
            yield image

    return Result(
        dataset=dataset,
        name=label(folder),
        rules=rules,
        damage=damage,
        images=tuple(images()),
        environment={
            "pictures": str(place),
            "mambair": __version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
            "python": platform.python_version(),
            "tile": None,
            "ensemble": False,
            "perceptual": perceptual,
            "niqe": blind or perceptual,
            "gradient": gradient,
        },
    )


def label(folder: Path) -> str:
    """What to call the program: its folder, or the one above where that is called as the set is."""
    path = folder.resolve()
    return path.parent.name if known(path.name) and path.parent.name else path.name


def _place(folder: Path, dataset: Dataset) -> Path:
    below = (path for path in sorted(folder.iterdir()) if path.is_dir())
    return next((path for path in below if (known(path.name) or path.name) == dataset.name), folder)


def _score(item: Item, file: Path | None, place: Path, damage: Damage, scorer: Scorer) -> Measured:
    try:
        if file is None:
            raise BadImage(f"no picture for it in {place}")
        pair = prepare(item, damage, scorer.rules)
        picture = read_8bit(file, scorer.rules.channel == "gray")
        height, width = pair.truth.shape[:2]
        if picture.shape[:2] != (height, width):
            raise BadImage(f"{file} is {picture.shape[1]}x{picture.shape[0]}, and should be {width}x{height}")
        score, baseline = scorer(picture, pair.truth), scorer(pair.before, pair.truth)
    except MambairError as error:
        return Measured(item.name, error=error.message)
    except ValueError as error:  # too small to measure
        return Measured(item.name, error=str(error))
    return Measured(item.name, width, height, score, baseline, picture=str(file))
