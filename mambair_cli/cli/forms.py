"""Forms for `serve`, made from the declarations of the commands' options and read by the commands' own parser."""

from __future__ import annotations

import difflib
import inspect
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, get_args

import typer
from typer.main import get_command

from mambair_cli.cli.options import RestoreOptions
from mambair_cli.cli.restore import command_of, request_of
from mambair_cli.errors import UsageError
from mambair_cli.images import formats
from mambair_cli.images.encode import Encoding
from mambair_cli.models import zoo
from mambair_cli.serve.form import Asked, Field, Form
from mambair_cli.task import Task

# Of the options that all tasks share: those that say what the result is to be. Devices, folders and files are the
# server's own affair.
SHARED = ("format", "model", "output_quality", "strip_metadata")
FIRST = ("format",)  # of them, what most people want to choose

# click's own base class of what is wrong with a command line, or that of the copy that newer versions of typer hold
_ClickError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(?:-|\.\.)(\d+(?:\.\d+)?)")
_PLACE = re.compile(r"[A-Z]+")  # N, NAME: what stands for a value in help


def form_of(task: Task) -> Form:
    """The form of a task: its own options, and those of `SHARED`."""
    command = command_of(task)
    one = typer.Typer(add_completion=False)
    one.command()(command)
    parser = get_command(one)
    offered = {field.name: field for field in _fields(command)}

    def ask(values: Mapping[str, str]) -> Asked:
        given = {name.replace("_", "-"): value for name, value in values.items() if value != ""}
        if task_model := os.environ.get("MAMBAIR_MODEL"):
            given.setdefault("model", task_model)  # as the command would; the line to copy then says so
        if unknown := sorted(given.keys() - offered.keys()):
            near = difflib.get_close_matches(unknown[0], offered, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(offered)}."
            raise UsageError(f"{task.name} has no option {unknown[0]!r}.", hint)
        arguments = tuple(part for name in offered if name in given for part in offered[name].arguments(given[name]))
        if "model" in given:
            zoo.find(given["model"], task=task.name)  # a name, never a file: those of the server are not for others
        try:
            values = parser.make_context(task.name, list(arguments)).params
        except _ClickError as error:
            raise UsageError(error.format_message(), f"`mambair {task.name} --help` explains it.") from error
        options = RestoreOptions(**{f.name: values.pop(f.name) for f in fields(RestoreOptions)})
        return Asked(
            request_of(task, values, options),
            arguments,
            formats.of_choice(options.format) if options.format else None,
            Encoding(options.png_level, options.output_quality, options.strip_metadata),
        )

    return Form(task.name, task.title, task.sentence, tuple(offered.values()), ask)


def _fields(command: Any) -> Iterator[Field]:
    """The options of a command that a form offers, the first ones first."""
    shared = {field.name for field in fields(RestoreOptions)}
    parameters = inspect.signature(command).parameters
    offered = [name for name in parameters if name not in shared or name in SHARED]
    made = [_field(parameters[name]) for name in offered]
    yield from (field for field in made if not field.group)
    yield from (field for field in made if field.group)


def _field(parameter: inspect.Parameter) -> Field:
    """An option's annotation, Annotated[type, typer.Option(...)], as a field."""
    kind, info = get_args(parameter.annotation)[:2]
    kinds = set(get_args(kind)) or {kind}
    declared = [text for text in (info.default, *(info.param_decls or ())) if str(text).startswith("--")]
    on, _, off = (declared[0] if declared else "--" + parameter.name.replace("_", "-")).partition("/")
    low, high, words, free = _values(info.metavar or "")
    number = bool(kinds & {int, float})
    if number and free and info.autocompletion:
        words = tuple(info.autocompletion(""))
    return Field(
        name=on.removeprefix("--"),
        on=on,
        off=off,
        switch=bool in kinds,
        words=words,
        low=info.min if info.min is not None else low,
        high=info.max if info.max is not None else high,
        free=free,
        number=number or low is not None,
        whole=int in kinds,
        group="" if parameter.name in FIRST else info.rich_help_panel or "",
        help=info.help or "",
    )


def _values(metavar: str) -> tuple[float | None, float | None, tuple[str, ...], bool]:
    """What help says that an option takes, "0-255|real|auto": a span, words, and whether anything else."""
    low = high = None
    words, free = [], False
    for part in filter(None, metavar.split("|")):
        if span := _SPAN.fullmatch(part):
            low, high = float(span[1]), float(span[2])
        elif _PLACE.fullmatch(part):
            free = True
        else:
            words.append(part)
    return low, high, tuple(words), free or low is not None
