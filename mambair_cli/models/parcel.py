"""Weights on their way to machines that may not have them. Nothing is used before its hash is checked there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from mambair_cli.atomic import atomic_write
from mambair_cli.errors import BadCheckpoint
from mambair_cli.models import checkpoints
from mambair_cli.models.download import sha256_of
from mambair_cli.models.spec import ModelSpec


@dataclass(frozen=True)
class Parcel:
    """A file of weights: a model's own (`spec`), or one that the user named. `data` brings its bytes."""

    file: Path  # where the run was started
    sha256: str
    data: Callable[[], bytes]
    spec: ModelSpec | None = None


def pack(file: Path, spec: ModelSpec | None, put: Callable[[bytes], Callable[[], bytes]]) -> Parcel:
    """`put` stores bytes where the workers can get them, and returns how."""
    return Parcel(file, sha256_of(file), put(file.read_bytes()), spec)


def unpack(parcel: Parcel) -> Path:
    """The file on this machine: where it was, from the cache, or brought. Raises BadCheckpoint for other bytes."""
    own = checkpoints.path(parcel.spec) if parcel.spec else None
    kept = checkpoints.cache_dir() / "sent" / parcel.sha256 / parcel.file.name
    for file in (own, parcel.file, kept):
        if file and file.is_file() and sha256_of(file) == parcel.sha256:
            return file
    with atomic_write(kept) as stream:
        stream.write(parcel.data())
    if sha256_of(kept) != parcel.sha256:
        kept.unlink()
        raise BadCheckpoint(f"{parcel.file.name} did not arrive as it was sent.", "Run again.")
    if parcel.spec is None:
        return kept
    spec = replace(parcel.spec, source=replace(parcel.spec.source, sha256=parcel.sha256))
    adopted = checkpoints.adopt(kept, spec)
    kept.unlink(missing_ok=True)
    return adopted
