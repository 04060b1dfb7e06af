"""What is known of a model: a record. Code reads it; nothing branches on a model's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mambair_cli.task import Protocol
from mambair_cli.tasks import TASKS

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
    macs: tuple[int, int] | None = None  # multiply-adds for 128x128 in and for 1280x720 out (`tools/count_macs.py`)
    scale: int = 1
    sigma: Sigma = None  # noise level of 255, "real", or a (low, high) range
    quality: Quality = None  # JPEG quality, or a range
    blind: bool = False  # knows every kind of the task's level, words too: taken where none is asked for
    sharper: str | None = None  # the model of the same network that was sharpened, whose weights mix with its own
    sharpness: float = 0.0  # share of those
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
