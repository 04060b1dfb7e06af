"""weights.toml, read and checked: a manifest that makes no sense is told, whatever is wrong with it."""

from __future__ import annotations

import re
import sys
from collections import abc
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from mambair_cli.errors import MambairError
from mambair_cli.models.spec import ModelSpec, Source
from mambair_cli.task import Protocol
from mambair_cli.tasks import TASKS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DRIVE = "https://drive.google.com/uc?export=download&id={id}"
LARGEST_NUMBER = 1e15  # number in a manifest: beyond it something is wrong, and arithmetic is not exact


@cache
def read_manifest(path: Path) -> tuple[Mapping[str, ModelSpec], Mapping[str, str]]:
    """The models by name and the citations by key. Raises MambairError where they are not well described."""
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
    for name, spec in models.items():
        if spec.sharper is not None and not _same_network(spec, models.get(spec.sharper)):
            raise MambairError(f"{path}: model {name!r} is not well described: {spec.sharper!r} is not of its kind.")
    return MappingProxyType(models), MappingProxyType(tables["citations"])


def _same_network(spec: ModelSpec, other: ModelSpec | None) -> bool:
    return other is not None and (spec.arch, spec.kwargs, spec.scale) == (other.arch, other.kwargs, other.scale)


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
    for key in ("sigma", "quality", "macs"):
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
        return type(value) in (int, hint) and abs(value) < LARGEST_NUMBER
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
        f"sharpness = {spec.sharpness}": 0 <= spec.sharpness <= 1
        and (spec.sharper is not None or not spec.sharpness),
        f"{source.sha256!r} is no sha256": re.fullmatch(r"[0-9a-f]{64}", source.sha256 or "0" * 64),
        f"{', '.join(positive)} are at least 1": min(positive.values()) >= 1,
        f"crop = {protocol.crop}": protocol.crop >= 0,
        f"macs = {spec.macs}": min(spec.macs or (1,)) >= 1,
        f"rounding {protocol.rounding!r}": protocol.rounding in ("uint8", "luma", "none"),
        f"{' and '.join(ranges)}: low, then high": all(low <= high for low, high in ranges.values()),
    }
    if broken := [rule for rule, kept in rules.items() if not kept]:
        raise ValueError("; ".join(broken))
