"""One device at work: a thread of its own, through the same door as the command line."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambair_cli import compare
from mambair_cli.errors import MambairError
from mambair_cli.files import Naming, result_of
from mambair_cli.images import encode
from mambair_cli.images.decode import read_picture
from mambair_cli.images.formats import FORMATS, Format
from mambair_cli.models.spec import ModelSpec
from mambair_cli.restoring.picture import restore
from mambair_cli.restoring.record import Record
from mambair_cli.restoring.running import Running, TilesDone
from mambair_cli.serve.form import Asked
from mambair_cli.serve.limits import Limits

if TYPE_CHECKING:
    from mambair_cli.restoring.restorer import Restorer

NETWORKS = 4  # kept ready on a device
NAMELESS = "picture"  # what results are called of pictures without a name


class Cancelled(Exception):
    """Nobody wants the result any more."""


@dataclass(frozen=True)
class Made:
    """A result: its file, and what people and programs are told of it."""

    file: Path
    name: str
    format: Format
    record: Record
    notes: tuple[str, ...]
    command: str  # that makes the same bytes

    @property
    def media_type(self) -> str:
        return f"image/{self.format.name.lower()}"

    def told(self) -> dict[str, Any]:
        record = json.loads(self.record.json())
        return {"name": self.name, "type": self.media_type, "bytes": self.file_size, "record": record} | {
            "notes": self.notes
        }

    @property
    def file_size(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0


class Worker:
    """A device and the networks that are loaded on it, each once."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"mambair-{running.device}")
        self._networks = lru_cache(NETWORKS)(self._load)

    async def run(
        self, asked: Asked, name: str, source: Path, target: Path, limits: Limits, progress: TilesDone
    ) -> Made:
        """Restore a file into another, off the event loop. Raises MambairError, Cancelled."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self.restore, asked, name, source, target, limits, progress)

    def restore(
        self, asked: Asked, name: str, source: Path, target: Path, limits: Limits, progress: TilesDone
    ) -> Made:
        """As `run`, here and now."""
        progress(0, 0)  # it may have been cancelled while it waited
        result_name, form = placed(asked, name)
        notes: list[str] = []
        if note := asked.request.level_note(asked.request.nominal()):
            notes.append(note)
        result = restore(
            read_picture(source, limits.pixels),
            asked.request,
            self._networks,
            form=form,
            max_pixels=limits.result,
            progress=progress,
            say=notes.append,
        )
        try:
            with target.open("wb") as stream:
                notes += encode.write(result.picture, stream, form, asked.encoding)
        except OSError as error:
            raise MambairError(f"cannot write the result: {error.strerror or error}") from error
        record = replace(result.record, input=name or "-", output=result_name)
        return Made(target, result_name, form, record, tuple(notes), asked.command(name, *self._arguments(record)))

    def _load(self, spec: ModelSpec) -> Restorer:
        from mambair_cli.restoring.restorer import Restorers

        # Offline: what a server fetches is decided by who runs it (`mambair models download`).
        return Restorers(self.running, offline=True)(spec)

    def _arguments(self, record: Record) -> list[str]:
        """How it ran, where the command line would have to be told: the server's own options, and the size of the
        tiles, which follows the free memory."""
        own = self.running
        arguments = []
        if own.device != "auto":
            arguments += ["--device", own.device]
        if own.precision != "auto":
            arguments += ["--precision", own.precision]
        if isinstance(record.tile, int) and len(record.passes) < 2:
            arguments += ["--tile", str(record.tile)]
        elif own.tile != "auto":
            arguments += ["--tile", str(own.tile)]
        return arguments


def placed(asked: Asked, name: str) -> tuple[str, Format]:
    """What a result is called, and its format, as on the command line. Raises UsageError, Unavailable."""
    tag = asked.request.tag
    if not name:
        form = asked.format or FORMATS["PNG"]
        return f"{NAMELESS}_{tag}{form.suffixes[0]}", form
    return result_of(name, Naming(tag, format=asked.format))


def views(before: Path, after: Path, limits: Limits) -> tuple[tuple[bytes, str], tuple[bytes, str]]:
    """Before and after as a browser shows them, both at the larger one's size: bytes and media type of each."""
    small = compare.read_flat(before, limits.pixels)
    pair, _ = compare.aligned(small, compare.read_flat(after, limits.result))
    return compare.shown(pair[0]), compare.shown(pair[1])
