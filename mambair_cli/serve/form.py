"""What a page and a query may ask for, and what was asked: plain records, filled by `cli.forms`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mambair_cli.images.encode import Encoding
from mambair_cli.images.formats import Format
from mambair_cli.restoring.request import Request


@dataclass(frozen=True)
class Field:
    """One option of the command line, as a form shows it and as a query names it."""

    name: str  # its long name without dashes: "long-edge"
    on: str  # the flag: "--long-edge"
    off: str = ""  # the opposite flag, where there is one: "--clean" of "--compressed"
    switch: bool = False  # it takes no value
    words: tuple[str, ...] = ()  # values that are words, all that there are, or those that are offered
    low: float | None = None
    high: float | None = None
    free: bool = False  # other values than the words make sense
    number: bool = False  # what is no word is a number,
    whole: bool = False  # without a fraction
    group: str = ""  # the heading that it stands under; "": among the first
    help: str = ""

    @property
    def label(self) -> str:
        """Its name for people."""
        return self.name.replace("-", " ").capitalize()

    def arguments(self, value: str) -> tuple[str, ...]:
        """What stands for a value on the command line."""
        if self.switch:
            flag = {"true": self.on, "false": self.off}.get(value, f"{self.on}={value}")
            return (flag,) if flag else ()
        return (f"{self.on}={value}",) if value.startswith("-") else (self.on, value)


@dataclass(frozen=True)
class Asked:
    """What is to be done with a picture: the same as a command line."""

    request: Request
    arguments: tuple[str, ...]  # of that command line, but for the picture
    format: Format | None = None
    encoding: Encoding = field(default_factory=Encoding)

    def command(self, name: str, *more: str) -> str:
        """The command line that makes the same bytes of the file of this name ("": of stdin), to be pasted."""
        picture = f"./{name}" if name.startswith("-") else name or "-"
        return shlex.join(["mambair", self.request.task, *self.arguments, *more, picture])


@dataclass(frozen=True)
class Form:
    """A task as a page shows it. `ask` turns values by name into what is asked for; raises UsageError."""

    task: str
    title: str
    sentence: str
    fields: tuple[Field, ...]
    ask: Callable[[Mapping[str, str]], Asked]
