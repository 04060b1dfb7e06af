"""From a model or a file to a network with its weights: what is cached where, how it is read, whom to trust.

A model without a published hash is trusted when it is first used: the hash is written down beside the file, and
another file under that name is refused from then on.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mambair_cli.atomic import atomic_write
from mambair_cli.errors import BadCheckpoint, MambairError, Unavailable, UsageError
from mambair_cli.models.download import download, only_process, sha256_of
from mambair_cli.models.spec import ModelSpec, Source
from mambair_cli.models.tensors import check_sums, note, read_tensors
from mambair_cli.models.zoo import by_hand, find, zoo
from mambair_cli.tasks import TASKS

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger("mambair")

BUNDLED = Path(__file__).parent / "bundled"
SUFFIXES = frozenset({".pth", ".pt", ".ckpt", ".safetensors"})  # of files of weights
MOST = 6  # times the weights of a model: raw, averaged and an optimizer's are in some files
UNREADABLE = "(its note is damaged)"  # in the place of a hash that was written down


# ------------------------------------------------------------------------------------------------------ the cache


def cache_dir() -> Path:
    """The folder of downloaded weights: MAMBAIR_CACHE, or the system's place for caches.

    Raises UsageError where there is none: for users without a home.
    """
    from platformdirs import user_cache_path

    try:
        chosen = os.environ.get("MAMBAIR_CACHE")
        return Path(chosen).expanduser() if chosen else user_cache_path("mambair", appauthor=False)
    except (RuntimeError, KeyError) as error:
        raise UsageError(
            "This user has no home folder, so there is no place for a cache.", "Set MAMBAIR_CACHE to a folder."
        ) from error


def place(spec: ModelSpec) -> Path:
    """Where the model's file is or would be."""
    return (BUNDLED if spec.source.bundled else cache_dir()) / spec.source.filename


def path(spec: ModelSpec) -> Path | None:
    """The model's file where it is on this machine, else None. Nothing is verified."""
    try:
        file = place(spec)
    except UsageError:  # no cache at all
        return None
    return file if file.is_file() else None


def known_hash(spec: ModelSpec) -> str | None:
    """The published SHA-256, else the one written down when the file was first used.

    A damaged note is no reason to trust again: UNREADABLE, which no file agrees with, until the model is forgotten.
    """
    if spec.source.sha256:
        return spec.source.sha256
    try:
        digest = json.loads(_note(spec).read_text())["sha256"]
    except (FileNotFoundError, UsageError):  # no note, or no cache at all
        return None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return UNREADABLE
    return digest if isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest) else UNREADABLE


def fetch(spec: ModelSpec, *, offline: bool = False) -> Path:
    """The model's file, downloaded if need be, its hash verified. Raises Unavailable; the hint says what to do."""
    return _obtain(spec, offline=offline)[0]


def forget(spec: ModelSpec) -> bool:
    """Remove the model's file and its recorded hash from the cache; whether there was any. Bundled files stay."""
    if spec.source.bundled:
        raise UsageError(f"{spec.name} is part of mambair; it stays.")
    files = [file for file in (place(spec), _note(spec)) if file.exists()]
    for file in files:
        file.unlink()
    return bool(files)


def adopt(file: Path, spec: ModelSpec) -> Path:
    """Copy a file fetched by hand into the cache as the model's. Raises BadCheckpoint where it is not that."""
    target = place(spec)
    copy = target.with_name(f".{target.name}.import")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with only_process(target):
            try:
                shutil.copyfile(file, copy)
                _check(copy, spec, file.name)
                _trust(spec, copy, file)
                os.replace(copy, target)
            finally:
                copy.unlink(missing_ok=True)
    except OSError as error:
        raise Unavailable(f"Cannot copy {file} to {target}: {error.strerror or error}.") from error
    return target


def identify(file: Path) -> list[ModelSpec]:
    """The published models that a file may be: by hash, else by keys and shapes, told apart by its name.

    Raises BadCheckpoint where it is none of them.
    """
    published = [spec for spec in zoo().values() if not spec.source.bundled]
    state = read_tensors(file)
    digest = sha256_of(file)
    if certain := [spec for spec in published if spec.source.sha256 == digest]:
        return certain
    arch, size = _kind(state)
    fits = [spec for spec in published if (spec.arch, spec.params) == (arch, size)]
    if not fits:
        raise BadCheckpoint(
            f"{file.name} is a {arch} network of {size:,} parameters; no published model is.",
            f"Use it where it is: --weights {file}",
        )
    said = _words(file.stem)
    return [spec for spec in fits if _own_words(spec, fits) & said] or fits


# -------------------------------------------------------------------------------------------------------- loading


def named(model: str | Path | None, weights: str | Path | None) -> tuple[str | None, Path | None]:
    """The model's name and the file of weights; a path in the place of a name is the file. Raises UsageError."""
    file = None if weights is None else Path(weights)
    if model is None or model in zoo():
        return None if model is None else str(model), file
    if isinstance(model, str) and Path(model).suffix not in SUFFIXES:
        return model, file
    if file is not None:
        raise UsageError(f"{model} and {file} are both files of weights.", "Name one of them.")
    return None, Path(model)


def load_network(
    spec: ModelSpec, weights: Path | None = None, *, offline: bool = False, quiet: bool = False
) -> tuple[nn.Module, str]:
    """The network in evaluation mode, float32, on the CPU, and the SHA-256 of the file it came from.

    `weights` is used instead of the model's own file. Raises Unavailable where there is no file, BadCheckpoint where
    its keys or shapes are not exactly the network's.
    """
    from mambair_cli import archs

    if weights is None:
        sharper = find(spec.sharper) if spec.sharper and spec.sharpness else None
        # At 1 nothing of the faithful weights is left: the file that is told of is the other.
        own = sharper if sharper and spec.sharpness == 1 else spec
        file, digest, checked = _obtain(own, offline=offline)
        state = checked or read_tensors(file, own.source.key)
        if sharper and own is spec:
            from mambair_cli.models.mixing import mixed

            other = read_tensors(_obtain(sharper, offline=offline)[0], sharper.source.key)
            state = mixed(state, other, spec.sharpness)
    else:
        file, state = weights, read_tensors(weights, spec.source.key)
        digest = sha256_of(weights)
    network = archs.build(spec.arch, **spec.kwargs)
    _fill(network, state, spec, file)
    return network.eval(), digest


def spec_for_file(weights: Path) -> ModelSpec:
    """A record for a checkpoint of unknown origin: the architecture is read off its keys and shapes.

    What those do not show (protocol, for 1:1 networks the task) is taken from the model that is most like it;
    `mambair train` writes the task into its files. Raises BadCheckpoint, which says how near the known ones come.
    """
    from mambair_cli import archs

    state = read_tensors(weights)
    arch, kwargs = archs.infer(state)
    architecture = archs.find(arch)
    channels, scale = architecture.channels_of(kwargs), architecture.scale_of(kwargs)
    if channels not in (1, 3):
        raise BadCheckpoint(f"{weights} is a {arch} network for {channels} channels; pictures have 1 or 3.")

    def unlike(spec: ModelSpec) -> tuple[bool, ...]:
        enlarges = (spec.scale > 1) != (scale > 1)
        return enlarges, spec.arch != arch, spec.channels != channels, spec.scale != scale, spec.source.bundled

    if not zoo():
        raise MambairError(f"{weights} is a {arch} network; the list of models has nothing to compare it with.")
    like = min(zoo().values(), key=unlike)
    told = note(weights, "mambair")  # by `mambair train`
    task = trained if isinstance(trained := told.get("task"), str) and trained in TASKS else like.task
    if task != like.task and scale == 1:
        like = replace(like, task=task, protocol=TASKS[task].protocol(scale))
    return replace(
        like,
        name=weights.stem,
        family=like.family if like.arch == arch else arch,
        arch=arch,
        kwargs=kwargs,
        source=Source(weights.name),
        protocol=replace(like.protocol, crop=scale if scale > 1 else like.protocol.crop),
        params=_count(state),
        scale=scale,
        sigma=None,
        quality=None,
        compressed=told.get("compressed") is True,
        channels=channels,
        licence="unknown",
        training="unknown",
        good_for="",
        not_for="",
        remarks="",
        published={},
        aliases=(),
    )


# ------------------------------------------------------------------------------------------------------ the inside


def _note(spec: ModelSpec) -> Path:
    """Where the hash of a file trusted on first use is written down."""
    return cache_dir() / f"{spec.source.filename}.json"


def _obtain(spec: ModelSpec, *, offline: bool) -> tuple[Path, str, dict[str, Tensor] | None]:
    """The model's file, its verified hash, and its tensors where they were just read to check a download."""
    source, file = spec.source, path(spec)
    if file is None and source.bundled:
        raise Unavailable(f"{place(spec)} is missing, though it is part of mambair.", "Install mambair again.")
    if file is None and not source.urls:
        raise Unavailable(
            f"{spec.name} is published in a shared folder only, from which files must be taken by hand.",
            by_hand(spec),
        )
    known, checked = known_hash(spec), None

    def check(part: Path) -> None:
        nonlocal checked
        checked = _check(part, spec, source.filename)

    if file is None:
        file = download(
            source.urls,
            place(spec),
            sha256=known,
            bytes=source.bytes,
            most=MOST * spec.bytes + (1 << 26),
            offline=offline,
            check=check,
        )
    elif known is None and not source.bundled:  # put there by hand
        check(file)
    if known is None or checked is None:  # else the download has compared it
        known = _trust(spec, file, file)
    return file, known, checked


def _trust(spec: ModelSpec, file: Path, shown: Path) -> str:
    """The file's hash, which must be the known one; an unknown one is written down from now on."""
    digest, known = sha256_of(file), known_hash(spec)
    if known is None and not spec.source.bundled:
        log.warning("%s: no hash is published; this file is trusted from now on: sha256 %s", spec.name, digest)
        with atomic_write(_note(spec)) as stream:
            stream.write(json.dumps({"sha256": digest, "bytes": file.stat().st_size}).encode())
    elif known and digest != known:
        told = "published" if spec.source.sha256 else "recorded when it was first used"
        raise BadCheckpoint(
            f"{shown} is not {spec.name}: its sha256 is {digest}, {told} is {known}.",
            f"Remove it, and fetch the right one: mambair models rm {spec.name}",
        )
    return digest


def _check(file: Path, spec: ModelSpec, shown: str) -> dict[str, Tensor]:
    """The file's tensors. Raises BadCheckpoint where it is damaged, or not of the model's architecture and size."""
    state = read_tensors(file, spec.source.key)
    check_sums(file, shown)
    arch, size = _kind(state)
    if (arch, size) != (spec.arch, spec.params):
        raise BadCheckpoint(
            f"{shown} is a {arch} network of {size:,} parameters; {spec.name} is {spec.arch} of {spec.params:,}."
        )
    return state


def _kind(state: Mapping[str, Tensor]) -> tuple[str, int]:
    from mambair_cli import archs

    return archs.infer(state)[0], _count(state)


def _count(state: Mapping[str, Tensor]) -> int:
    """Trained values: index tables are integers and do not count."""
    return sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point())


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+|\d+", text.lower()))


def _own_words(spec: ModelSpec, among: list[ModelSpec]) -> set[str]:
    """The words in a model's name and file name that tell it from the others."""
    words = {s.name: _words(f"{s.name} {Path(s.source.filename).stem}") for s in among}
    return words[spec.name].difference(*(words[other.name] for other in among if other is not spec))


def _fill(network: nn.Module, state: Mapping[str, Tensor], spec: ModelSpec, file: Path) -> None:
    """Load strictly. Integer tables are computed by the network and may be absent from the file."""
    own = network.state_dict()
    trained = {name for name, tensor in own.items() if tensor.is_floating_point()}
    shapes = {name: (list(state[name].shape), list(own[name].shape)) for name in own if name in state}
    wrong = {
        "it lacks ": [name for name in own if name in trained and name not in state],
        "it has besides ": [name for name in state if name not in own],
        "it holds no real numbers but ": [
            f"{str(state[name].dtype).removeprefix('torch.')} in {name}"
            for name in own
            if name in trained and name in state and not state[name].is_floating_point()
        ],
        "": [f"{name} is {has}, not {must}" for name, (has, must) in shapes.items() if has != must],
    }
    if any(wrong.values()):
        told = (what + found[0] + _more(found) for what, found in wrong.items() if found)
        raise BadCheckpoint(f"{file} is no checkpoint of {spec.name}: {'; '.join(told)}.", _what_it_is(state))
    network.load_state_dict(own | {name: state[name] for name in trained})


def _more(found: list[str]) -> str:
    return f" (and {len(found) - 1} more)" if len(found) > 1 else ""


def _what_it_is(state: Mapping[str, Tensor]) -> str:
    try:
        arch, size = _kind(state)
    except MambairError as error:
        return error.hint
    names = [spec.name for spec in zoo().values() if (spec.arch, spec.params) == (arch, size)]
    return f"It is a {arch} network of {size:,} parameters" + (f", as {' and '.join(names)} are." if names else ".")
