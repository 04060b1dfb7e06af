"""Restore images with the published state-space models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mambair_cli.restoring.restorer import Restorer, load_model

__version__ = "0.1.0"
__all__ = ["Restorer", "__version__", "load_model"]


def __getattr__(name: str) -> Any:
    # Lazy: `mambair --help` must not pay for torch.
    if name in ("Restorer", "load_model"):
        from mambair_cli.restoring import restorer

        return getattr(restorer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
