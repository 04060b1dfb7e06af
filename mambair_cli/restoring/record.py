"""What became of an input: the lines of `--json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from mambair_cli.files import STREAM, Job

# skipped: it exists; not tried: the batch ended before; planned: what --dry-run says of the rest
Status = Literal["done", "skipped", "failed", "not tried", "planned"]


@dataclass(frozen=True)
class Pass:
    """One network that a picture went through."""

    model: str
    sha256: str | None
    scale: int


@dataclass(frozen=True)
class Record:
    """What became of one input; a line of `--json`."""

    input: str = STREAM
    output: str | None = None
    status: Status = "done"
    error: str | None = None
    model: str | None = None
    sha256: str | None = None
    scale: int | None = None
    input_size: tuple[int, int] | None = None
    output_size: tuple[int, int] | None = None
    device: str | None = None
    precision: str | None = None
    scan: str | None = None
    tile: int | str | None = None
    ensemble: bool | None = None
    seed: int | None = None
    seconds: float | None = None  # reading, restoring and writing it
    passes: tuple[Pass, ...] = ()  # the networks, one after the other; `scale` is that of all together
    resampled: bool | None = None  # in the end, as no networks give exactly the size

    @classmethod
    def of(cls, job: Job, status: Status, error: str | None = None) -> Record:
        """Of a job of which nothing else is known."""
        return cls(job.input, job.output, status, error)

    def json(self) -> str:
        return json.dumps({"schema": 1, **asdict(self)})
