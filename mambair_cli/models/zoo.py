"""weights.toml as records: which models there are, what each is for, and which one a request means.

The manifest stands beside this file in an installed package and at the top of a checkout. The environment variable
`MAMBAIR_ZOO` names another one, with private models, say; it replaces ours and has the same form.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections import abc
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from mambair_cli.errors import MambairError, Unavailable, UsageError
from mambair_cli.tasks import TASKS, Level, Protocol, Value

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DRIVE = "https://drive.google.com/uc?export=download&id={id}"
LARGEST = 1e15  # number in a manifest: beyond it something is wrong, and arithmetic is not exact

Sigma = int | str | tuple[int, int] | None
Quality = int | tuple[int, int] | None


@dataclass(frozen=True)
class Source:
    """Where a checkpoint is, and how to tell that it is the right one."""

    filename: str
    urls: tuple[str, ...] = ()  # tried in order; Google Drive's comes first where there is one
    folder: str | None = None  # a shared folder: the file can only be fetched by hand
    bundled: bool = False  # shipped in mambair_cli/models/
    sha256: str | None = None
    bytes: int | None = None
    key: str | None = None  # container inside the file: "params" or "params_ema"
    called: str | None = None  # by its authors, where its name in the folder is not known


@dataclass(frozen=True)
class ModelSpec:
    """All that is known of a model. Code reads it; nothing branches on a model's name."""

    name: str
    family: str
    arch: str  # for archs.build, with kwargs
    kwargs: Mapping[str, Any] = field(hash=False)  # a dict: records travel to other processes
    task: str
    source: Source
    protocol: Protocol
    params: int  # number of trained values
    scale: int = 1
    sigma: Sigma = None  # noise level of 255, "real", or a (low, high) range
    quality: Quality = None  # JPEG quality, or a range
    compressed: bool = False  # for low-resolution input that went through JPEG
    channels: int = 3
    licence: str = "unknown"
    training: str = "unknown"
    good_for: str = ""
    not_for: str = ""
    remarks: str = ""
    published: Mapping[str, tuple[float, float | None]] = field(default_factory=dict, hash=False)
    aliases: tuple[str, ...] = ()
    citation: str | None = None

    @property
    def bytes(self) -> int:
        """Size of the checkpoint, estimated from the parameters where it is not known."""
        return self.source.bytes or 4 * self.params

    @property
    def level(self) -> str:
        """The job in a word: "x4", "σ25", "real", "q10", or "" where the task says it all."""
        if self.scale > 1:
            return f"x{self.scale}"
        level, value = TASKS[self.task].level, TASKS[self.task].level_of(self)
        if level is None or value is None or isinstance(value, str):
            return value or ""
        return level.sign + ("-".join(map(str, value)) if isinstance(value, tuple) else str(value))


def zoo() -> Mapping[str, ModelSpec]:
    """Every model by name, in order of recommendation. Raises MambairError on a manifest that makes no sense."""
    return _read(manifest())[0]


def bibtex(spec: ModelSpec) -> str:
    """The BibTeX entry of the paper, "" where there is none."""
    return _read(manifest())[1].get(spec.citation or "", "")


def manifest() -> Path:
    """The weights.toml in use."""
    if other := os.environ.get("MAMBAIR_ZOO"):
        return Path(other)
    package = Path(__file__).parent.parent
    installed = package / "weights.toml"
    return installed if installed.exists() else package.parent / "weights.toml"


def find(name: str, *, task: str | None = None, scale: int | None = None) -> ModelSpec:
    """The model of this name, or the best one with this alias (of the largest scale where none is given).

    Raises UsageError, with near names, where there is none, where it does another job, or where an alias stands for
    several jobs.
    """
    models = zoo()
    if name in models:
        return _fitting(models[name], task, scale)
    named = [spec for spec in models.values() if name in spec.aliases]
    if not named:
        raise UsageError(f"There is no model {name!r}.", _suggest(name, models))
    fits = [spec for spec in named if task in (None, spec.task) and scale in (None, spec.scale)]
    if not fits:
        job = f"{task or ''}{f' x{scale}' if scale else ''}".strip()
        raise UsageError(f"No {name!r} model does {job}.", f"{name!r} stands for {_names(named)}.")
    if len({spec.task for spec in fits}) > 1:
        raise UsageError(f"{name!r} stands for several models.", f"Name one of {_names(fits)}.")
    return max(fits, key=lambda spec: spec.scale)  # the first of equals


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
    if model in zoo():
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
    """Real and synthetic noise are different kinds: neither stands in for the other."""
    level = TASKS[task].level
    return [s for s in candidates if level is None or level.is_kind(value, TASKS[task].level_of(s))]


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
    trained = [getattr(spec, level.name) for spec in candidates]
    if isinstance(value, str) or len(set(trained)) == 1:
        return candidates[0]
    if value is None:
        blind = [spec for spec, has in zip(candidates, trained, strict=True) if isinstance(has, tuple)]
        if not blind:
            raise UsageError(f"Which of {_names(candidates)}?", f"Say so with `-m`, or give --{level.name}.")
        return blind[0]
    wanted: int = value

    def badness(spec: ModelSpec) -> tuple[float, float]:
        has = getattr(spec, level.name)
        if isinstance(has, tuple):
            return level.distance(min(max(wanted, has[0]), has[1]), wanted)
        return level.distance(has, wanted) if isinstance(has, int) else (float("inf"), 0)

    return min(candidates, key=badness)


def _suggest(name: str, models: Mapping[str, ModelSpec]) -> str:
    known = [*models, *dict.fromkeys(alias for spec in models.values() for alias in spec.aliases)]
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(near)}?" if near else "`mambair models list` shows the names."


def _names(specs: Iterable[ModelSpec]) -> str:
    return ", ".join(spec.name for spec in specs)


# ------------------------------------------------------------------------------------------------- reading


@cache
def _read(path: Path) -> tuple[Mapping[str, ModelSpec], Mapping[str, str]]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MambairError(f"Cannot read the list of models {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise MambairError(f"{path} is not a list of models: {error}.") from error
    tables = {name: data.get(name, {}) for name in ("models", "defaults", "protocols", "citations")}
    shapes: dict[str, Any] = dict.fromkeys(tables, Mapping[str, Mapping[str, Any]]) | {"citations": Mapping[str, str]}
    for name, table in tables.items():
        if not _fits(table, shapes[name]):
            raise MambairError(f"{path} is not a list of models: {name} is not made of tables [{name}.NAME].")
    models = {}
    for name, entry in tables["models"].items():
        try:
            models[name] = _spec(name, _inherit(entry, tables["defaults"]), tables["protocols"])
        except (KeyError, TypeError, ValueError) as error:
            why = f"{error} is missing" if isinstance(error, KeyError) else error
            raise MambairError(f"{path}: model {name!r} is not well described: {why}.") from error
    return MappingProxyType(models), MappingProxyType(tables["citations"])


def _inherit(entry: Mapping[str, Any], defaults: Mapping[str, Any], *before: str) -> dict[str, Any]:
    """`entry` over the defaults it is `like`; tables merge, other values replace."""
    base, like = {}, entry.get("like")
    if like is not None:
        if not isinstance(like, str) or like in before or len(before) > 99:
            raise ValueError(f"like = {like!r} leads nowhere")
        base = _inherit(defaults[like], defaults, *before, like)
    own = {key: value for key, value in entry.items() if key != "like"}
    return base | {k: base.get(k, {}) | v if isinstance(v, dict) else v for k, v in own.items()}


def _spec(name: str, entry: Mapping[str, Any], protocols: Mapping[str, Any]) -> ModelSpec:
    entry = dict(entry)
    kwargs, source, protocol = (entry.pop(key) for key in ("kwargs", "source", "protocol"))
    aliases, published = entry.pop("aliases", []), entry.pop("published", {})
    for key, value in (("kwargs", kwargs), ("source", source), ("published", published)):
        if not isinstance(value, dict):
            raise TypeError(f"{key} is {value!r:.60}, and no table")
    scored = Protocol(**protocols[protocol])
    if scored.crop == "scale":
        scored = replace(scored, crop=entry.get("scale", 1))
    for key in ("sigma", "quality"):
        if isinstance(entry.get(key), list):
            entry[key] = tuple(entry[key])
    scores = {k: (*v, *[None] * (2 - len(v))) if isinstance(v, list) else v for k, v in published.items()}
    spec = ModelSpec(
        name=name,
        kwargs=dict(kwargs),
        source=_source(**source),
        protocol=scored,
        published=scores,
        aliases=tuple(aliases),
        **entry,
    )
    for record in (spec.protocol, spec.source, spec):
        _check_types(record)
    _check_values(spec)
    return spec


def _source(filename: str, urls: Iterable[str] = (), drive_id: str | None = None, **more: Any) -> Source:
    if not isinstance(urls, list | tuple) or not all(isinstance(text, str) for text in (filename, *urls)):
        raise TypeError("source.filename is a string, source.urls a list of them")
    if not isinstance(drive_id, str | None):
        raise TypeError(f"drive_id is {drive_id!r:.60}")
    drive = (DRIVE.format(id=drive_id),) if drive_id else ()
    every = drive + tuple(url.replace("{filename}", filename) for url in urls)
    return Source(filename, every, **more)


def _check_types(record: Any) -> None:
    """Raise TypeError where a value is not what its annotation says, or is text that a terminal would obey."""
    for key, hint in get_type_hints(type(record)).items():
        value = getattr(record, key)
        if not _fits(value, hint):
            raise TypeError(f"{key} is {value!r:.60}")


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin is tuple:
        kinds = parts[:1] * len(value) if isinstance(value, tuple) and parts[-1] is ... else parts
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if origin is abc.Mapping:
        return isinstance(value, abc.Mapping) and all(
            _fits(k, parts[0]) and _fits(v, parts[1]) for k, v in value.items()
        )
    if hint is str:
        return isinstance(value, str) and all(c.isprintable() or c in "\n\t" for c in value)
    if hint in (int, float):
        return type(value) in (int, hint) and abs(value) < LARGEST
    return hint is Any or type(value) is hint


def _check_values(spec: ModelSpec) -> None:
    source, protocol = spec.source, spec.protocol
    # Folders of results are called by the name, a file of the cache by the file name: neither may lead elsewhere.
    if not re.fullmatch(r"\w[\w.+-]*", spec.name):
        raise ValueError("its name is made of letters, digits, dots, dashes and underscores")
    if source.filename != Path(source.filename).name or set(source.filename) & set("/\\:\n\t"):
        raise ValueError(f"{source.filename!r} is not a plain file name")
    if source.filename in ("", ".", "..") or source.filename.endswith((".json", ".part")):
        raise ValueError(f"{source.filename!r} is not a plain file name, or one that the cache needs itself")
    for url in source.urls:
        if urlsplit(url).scheme not in ("http", "https") or not url.isprintable():
            raise ValueError(f"{url!r} is not an address that can be fetched")
    ranges = {key: value for key in ("sigma", "quality") if isinstance(value := getattr(spec, key), tuple)}
    positive = {key: getattr(spec, key) for key in ("params", "scale", "channels", "bytes")}
    rules = {
        f"task {spec.task!r}": spec.task in TASKS,
        f"{source.sha256!r} is no sha256": re.fullmatch(r"[0-9a-f]{64}", source.sha256 or "0" * 64),
        f"{', '.join(positive)} are at least 1": min(positive.values()) >= 1,
        f"crop = {protocol.crop}": protocol.crop >= 0,
        f"rounding {protocol.rounding!r}": protocol.rounding in ("uint8", "luma", "none"),
        f"{' and '.join(ranges)}: low, then high": all(low <= high for low, high in ranges.values()),
    }
    if broken := [rule for rule, kept in rules.items() if not kept]:
        raise ValueError("; ".join(broken))
