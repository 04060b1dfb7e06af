"""Restore images with the published state-space models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mambair_cli.process import prepare

if TYPE_CHECKING:
    from mambair_cli.restoring.picture import restore
    from mambair_cli.restoring.request import Request
    from mambair_cli.restoring.restorer import Restorer, Restorers, load_model
    from mambair_cli.restoring.running import Running

__version__ = "0.1.0"
__all__ = ["Request", "Restorer", "Restorers", "Running", "__version__", "load_model", "prepare", "restore"]

_HOMES = {
    "Request": "request",
    "Restorer": "restorer",
    "Restorers": "restorer",
    "Running": "running",
    "load_model": "restorer",
    "restore": "picture",
}


def __getattr__(name: str) -> Any:
    # Lazy: `mambair --help` must not pay for torch.
    if name in _HOMES:
        prepare()  # before torch is imported
        return getattr(importlib.import_module(f"mambair_cli.restoring.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
