"""What became of an input: the lines of `--json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Record:
    """What became of one input; a line of `--json`."""

    input: str
    output: str | None
    status: str  # "done", "skipped" (it exists), "failed", "not tried" (the batch ended before)
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

    def json(self) -> str:
        return json.dumps({"schema": 1, **asdict(self)})
