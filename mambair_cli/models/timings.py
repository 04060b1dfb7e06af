"""What `mambair speed` measured on this machine, for `mambair models list`: a small file in the cache."""

from __future__ import annotations

import json
import logging
import math
import platform
from collections.abc import Mapping

from mambair_cli.atomic import atomic_write
from mambair_cli.errors import MambairError
from mambair_cli.models.checkpoints import cache_dir

log = logging.getLogger("mambair")

FILE = "speed.json"


def known() -> dict[str, float]:
    """Seconds for a megapixel of input, by model. The cache may be shared: only what this machine measured."""
    times = _read().get(platform.node())
    if not isinstance(times, dict):
        return {}
    return {name: float(s) for name, s in times.items() if type(s) in (int, float) and math.isfinite(s) and s > 0}


def note(seconds: Mapping[str, float]) -> None:
    """Keep seconds for a megapixel of input, by model, in the place of earlier ones. Says so where it cannot."""
    try:
        every = _read() | {platform.node(): known() | dict(seconds)}
        cache_dir().mkdir(parents=True, exist_ok=True)
        with atomic_write(cache_dir() / FILE) as stream:
            stream.write(json.dumps(every, indent=1).encode())
    except (OSError, MambairError) as error:
        log.warning("`mambair models list` will not show these times: %s", error)


def _read() -> dict[str, object]:
    try:
        every = json.loads((cache_dir() / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, MambairError):
        return {}
    return every if isinstance(every, dict) else {}
