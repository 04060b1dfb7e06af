"""Help pages as people read them: options say what they take, flags and arguments need no type beside their name."""

from __future__ import annotations

from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup


def _hide_types(parameters: list[Any]) -> list[Any]:
    """Some versions of typer print <bool> beside every flag and <list[str]> beside every argument."""
    for parameter in parameters:
        if isinstance(parameter, TyperArgument) or getattr(parameter, "is_flag", False):
            parameter.display_type_rich = lambda ctx: None
    return parameters


class Command(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return _hide_types(super().get_params(ctx))


class Group(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return _hide_types(super().get_params(ctx))
