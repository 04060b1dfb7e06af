"""Which degraded or restored picture belongs to which clean one, by the names that sets and programs give them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mambair_cli.errors import UsageError


def paired(truths: Sequence[Path], inputs: Sequence[Path], scale: int) -> dict[Path, Path | None]:
    """Each clean picture with its degraded one. A set names all of them in one way: that which pairs the most."""
    if len({path.stem for path in inputs}) < len(inputs):  # as in sets of scenes: SCENE/blur/1.png, SCENE/sharp/1.png
        return _paired_by_scene(truths, inputs, scale)
    stems = {path.stem: path for path in inputs}
    cores = {_core(stem): path for stem, path in stems.items()}
    unscaled = {re.sub(r"(?<=.)[_-]?x[2348]m?$", "", core): path for core, path in cores.items()}
    ways = (
        {truth: stems.get(f"{truth.stem}x{scale}") for truth in truths},
        {truth: stems.get(truth.stem) for truth in truths},
        {truth: cores.get(_core(truth.stem)) for truth in truths},
        {truth: unscaled.get(_core(truth.stem)) for truth in truths},
    )
    return max(ways, key=lambda way: len({*way.values()} - {None}))


def restored_by_name(
    truths: Sequence[Path], files: Sequence[Path], folder: Path, scale: int
) -> dict[Path, Path | None]:
    """Each clean picture with what a program made of it: names in `folder` begin with its name and end all alike.

    baby.png, babyx4.png, baby_x4_SwinIR.png. Of several endings the one counts that most pictures have, of equals
    that which names the scale, then the shortest. Where scenes share names, SCENE/1.png and SCENE_1.png are meant.
    Raises UsageError for two files of one name.
    """
    scenes = len({truth.stem for truth in truths}) < len(truths)
    made: dict[str, Path] = {}
    for file in files:
        name = _even("_".join((*file.relative_to(folder).parent.parts, _core(file.stem))))
        if name in made:
            raise UsageError(f"{made[name]} and {file} are named alike.", "Keep one of them.")
        made[name] = file
    endings: dict[str, dict[Path, Path]] = {}
    for truth in truths:
        own = _even(f"{truth.parents[1].name}_{truth.stem}" if scenes else _core(truth.stem))
        for name, file in made.items():
            if name.startswith(own) and re.fullmatch(r"(_.*|x\d.*)?", ending := name[len(own) :]):
                endings.setdefault(ending, {})[truth] = file
    best = max(endings, key=lambda text: (len(endings[text]), f"x{scale}" in text, -len(text)), default="")
    return {truth: endings.get(best, {}).get(truth) for truth in truths}


def _even(name: str) -> str:
    """With one kind of separator."""
    return re.sub(r"[-. ]", "_", name)


def _paired_by_scene(truths: Sequence[Path], inputs: Sequence[Path], scale: int) -> dict[Path, Path | None]:
    """Pictures pair within the scene, the folder above that of the clean or the degraded ones."""
    pairs: dict[Path, Path | None] = dict.fromkeys(truths)
    for scene in {truth.parents[1] for truth in truths}:
        own, degraded = ([path for path in paths if path.parents[1] == scene] for paths in (truths, inputs))
        if len({path.stem for path in degraded}) == len(degraded):
            pairs |= paired(own, degraded, scale)
    return pairs


def _core(stem: str) -> str:
    """A picture's own name, without what marks it as clean or degraded: 001_SRF_4_LR, norain-001, gt_1, x_mean."""
    stem = re.sub(r"(_SRF_\d)?_(HR|LR|GT|LQ|mean|real)$", "", stem)
    return re.sub(r"^((no)?rain-|blur_|gt_)(?=\d)", "", stem)
