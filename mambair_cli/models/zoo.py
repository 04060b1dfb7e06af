"""weights.toml as records: which models there are, what each is for, and which one a request means.

The manifest stands beside this file in an installed package and at the top of a checkout. The environment variable
`MAMBAIR_ZOO` names another one, with private models, say; it replaces ours and has the same form.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from mambair_cli.errors import Unavailable, UsageError
from mambair_cli.models.manifest import read_manifest
from mambair_cli.models.spec import ModelSpec
from mambair_cli.task import Level, Value
from mambair_cli.tasks import TASKS


def zoo() -> Mapping[str, ModelSpec]:
    """Every model by name, in order of recommendation. Raises MambairError on a manifest that makes no sense."""
    return read_manifest(manifest())[0]


def bibtex(spec: ModelSpec) -> str:
    """The BibTeX entry of the paper, "" where there is none."""
    return read_manifest(manifest())[1].get(spec.citation or "", "")


def manifest() -> Path:
    """The weights.toml in use."""
    if other := os.environ.get("MAMBAIR_ZOO"):
        return Path(other)
    package = Path(__file__).parent.parent
    installed = package / "weights.toml"
    return installed if installed.exists() else package.parent / "weights.toml"


def behind(alias: str) -> list[ModelSpec]:
    """The models with this alias, in order of recommendation; none where it is a model's name, or nobody's."""
    return [] if alias in zoo() else [spec for spec in zoo().values() if alias in spec.aliases]


def find(name: str, *, task: str | None = None, scale: int | None = None) -> ModelSpec:
    """The model of this name, or the best one with this alias (of the largest scale where none is given).

    "NAME@0.3" is the model with another sharpness than its usual one. Raises UsageError, with near names, where there
    is none, where it does another job, or where an alias stands for several jobs.
    """
    if "@" in name:
        name, _, share = name.partition("@")
        return sharpened(find(name, task=task, scale=scale), share)
    models = zoo()
    if name in models:
        return _fitting(models[name], task, scale)
    named = behind(name)
    if not named:
        raise UsageError(f"There is no model {name!r}.", _suggest(name, models))
    fits = [spec for spec in named if task in (None, spec.task) and scale in (None, spec.scale)]
    if not fits:
        job = f"{task or ''}{f' x{scale}' if scale else ''}".strip()
        raise UsageError(f"No {name!r} model does {job}.", f"{name!r} stands for {_names(named)}.")
    if len({spec.task for spec in fits}) > 1:
        raise UsageError(f"{name!r} stands for several models.", f"Name one of {_names(fits)}.")
    return max(fits, key=lambda spec: spec.scale)  # the first of equals


def sharpened(spec: ModelSpec, share: float | str) -> ModelSpec:
    """The model with a share (0 to 1) of the weights of its sharper one. Raises UsageError where it has none."""
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"a sharpness of {share} makes no sense", "A number from 0 to 1.")
    if spec.sharper is None:
        others = _names(s for s in zoo().values() if s.sharper)
        raise UsageError(
            f"{spec.name} has no sharpness to choose.", f"Only {others} has." if others else "No model here has."
        )
    return replace(spec, name=f"{spec.name}@{value:g}", sharpness=value, published={})


def resolve(
    task: str,
    *,
    scale: int | None = None,
    sigma: Value = None,
    quality: Value = None,
    model: str | None = None,
    compressed: bool = False,
) -> ModelSpec:
    """The model that a request means.

    Without `model`, the bundled one of the task; an alias (`light`, `base`, ...) gives the best published one of that
    kind. Noise: the nearest trained level at or above `sigma` (0 to 255), else the highest; "real" is its own kind.
    JPEG: the nearest quality, the stronger of two equals. A full model name always wins, and so does a level that
    nobody trained for: compare `spec.sigma` or `spec.quality` with what was asked for, to tell the user.

    Raises UsageError for a request that makes no sense, Unavailable where no bundled model can do it; its hint says
    how to get one.
    """
    if model is not None:
        spec = _named(model, task, scale, sigma, quality)
        if compressed and not spec.compressed:
            others = _names(s for s in zoo().values() if s.compressed and s.scale == spec.scale)
            raise UsageError(
                f"{spec.name} is not made for compressed pictures.",
                f"Leave --compressed out{others and f', or take one of {others}'}.",
            )
        return spec

    candidates = [s for s in zoo().values() if s.task == task and s.compressed == compressed]
    job = f"{task}{' --compressed' if compressed else ''}"
    if scale is not None:
        candidates = [s for s in candidates if s.scale == scale]
    if not candidates:
        raise UsageError(f"No model does {job} x{scale}.", "`mambair models list` shows what there is.")
    value = _value(task, sigma, quality)
    if bundled := _of_kind([s for s in candidates if s.source.bundled], task, value):
        return _nearest(bundled, task, value)
    largest = max(s.scale for s in candidates)
    spec = _nearest([s for s in candidates if s.scale == largest], task, value)
    raise Unavailable(
        f"No bundled model does {job} {spec.level}".rstrip() + ".",
        f"Add `-m {spec.name}`, or fetch it first: `mambair models download {spec.name}`."
        if spec.source.urls
        else f"Add `-m {spec.name}`. Its file can only be fetched by hand, once:\n{by_hand(spec)}",
    )


def by_hand(spec: ModelSpec) -> str:
    """How to get the file of a model that is published in a shared folder only, and has no URL."""
    return (
        f"Open {spec.source.folder}\nand download its file ({spec.source.called or spec.source.filename}), then run\n"
        f"  mambair models import FILE --as {spec.name}"
    )


def complete(incomplete: str) -> list[tuple[str, str]]:
    """Shell completion: names and aliases that start so, each with a line of help."""
    models = zoo()
    names = [(spec.name, f"{spec.task} {spec.level}, {spec.params / 1e6:.1f} M") for spec in models.values()]
    aliases = dict.fromkeys(alias for spec in models.values() for alias in spec.aliases)
    names += [(alias, _names(s for s in models.values() if alias in s.aliases)) for alias in aliases]
    return [(name, help) for name, help in names if name.startswith(incomplete)]


# ------------------------------------------------------------------------------------------------ choosing


def _named(model: str, task: str, scale: int | None, sigma: Value, quality: Value) -> ModelSpec:
    """The model of this name, or the one with this alias that is nearest in level."""
    best = find(model, task=task, scale=scale)
    if model in zoo() or "@" in model:
        return best
    candidates = [s for s in zoo().values() if model in s.aliases and (s.task, s.scale) == (task, best.scale)]
    return _nearest(candidates, task, _value(task, sigma, quality))


def _fitting(spec: ModelSpec, task: str | None, scale: int | None) -> ModelSpec:
    for what, asked, has in (("task", task, spec.task), ("scale", scale, spec.scale)):
        if asked not in (None, has):
            others = [s for s in zoo().values() if s.task == (task or s.task) and s.scale == (scale or s.scale)]
            raise UsageError(
                f"{' '.join([spec.name, 'does', spec.task, spec.level]).rstrip()}, not {what} {asked}.",
                f"Models for that: {_names(others)}." if others else "`mambair models list` shows what there is.",
            )
    return spec


def _value(task: str, sigma: Value, quality: Value) -> Value:
    """Of these, the one that is the task's level."""
    level = TASKS[task].level
    return {"sigma": sigma, "quality": quality}[level.name] if level else None


def _of_kind(candidates: list[ModelSpec], task: str, value: Value) -> list[ModelSpec]:
    """Real and synthetic noise are different kinds: neither stands in for the other, blind models for both."""
    level = TASKS[task].level
    return [s for s in candidates if level is None or s.blind or level.is_kind(value, TASKS[task].level_of(s))]


def _nearest(candidates: list[ModelSpec], task: str, value: Value) -> ModelSpec:
    """The best by scale, then by level; the first of equals, as the manifest stands in order of recommendation."""
    level = TASKS[task].level
    if level is None:
        return max(candidates, key=lambda s: s.scale)
    fits = _of_kind(candidates, task, value)
    if not fits:
        raise UsageError(f"None of these is for {level.text} {value!r}.", f"They are {_names(candidates)}.")
    return _by_level(fits, level, value)


def _by_level(candidates: list[ModelSpec], level: Level, value: Value) -> ModelSpec:
    """The model whose level (or nearest end of its range) is the least distance from `value`."""
    if isinstance(value, str):
        return candidates[0]
    if value is None:
        ranges = [spec for spec in candidates if isinstance(getattr(spec, level.name), tuple)]
        if not ranges and len({getattr(spec, level.name) for spec in candidates}) > 1:
            raise UsageError(f"Which of {_names(candidates)}?", f"Say so with `-m`, or give --{level.name}.")
        return max(ranges or candidates, key=lambda spec: spec.blind)
    wanted: int = value

    def badness(spec: ModelSpec) -> tuple[float, float, bool]:
        """Those made for numbers come before those that know everything."""
        has = getattr(spec, level.name)
        if isinstance(has, tuple):
            has = min(max(wanted, has[0]), has[1])
        return (*(level.distance(has, wanted) if isinstance(has, int) else (float("inf"), 0)), spec.blind)

    return min(candidates, key=badness)


def _suggest(name: str, models: Mapping[str, ModelSpec]) -> str:
    known = [*models, *dict.fromkeys(alias for spec in models.values() for alias in spec.aliases)]
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(near)}?" if near else "`mambair models list` shows the names."


def _names(specs: Iterable[ModelSpec]) -> str:
    return ", ".join(spec.name for spec in specs)
