"""What is known about an architecture: one record, at the end of the file that implements it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

from torch import nn

from mambair_cli.errors import UsageError

Shapes = Mapping[str, tuple[int, ...]]  # of a state dict, by key
Arguments = Mapping[str, object]


@dataclass(frozen=True)
class Padding:
    """What a side of the input must be: a multiple, and at least the minimum, in pixels.

    `mode`: how the picture goes on beyond its edge, "reflect", or "symmetric" (the edge itself is repeated too).
    `extra`: a side that is a multiple already still gets a whole one more.
    """

    multiple: int = 1
    minimum: int = 1
    mode: str = "reflect"
    extra: bool = False

    def length(self, side: int) -> int:
        """What a side of that many pixels is extended to."""
        side = max(side, self.minimum)
        added = self.multiple if self.extra else -side % self.multiple
        return (side + added) // self.multiple * self.multiple

    def takes(self, side: int) -> bool:
        """Whether the network itself accepts such a side."""
        return side >= self.minimum and side % self.multiple == 0


@dataclass(frozen=True)
class Architecture:
    """A network: how to build it, how to recognise its state dict, and what it takes to run it.

    `builder` takes keyword arguments under their published names. `hyperparameters` reads them off the shapes of a
    state dict that has the `marks`; KeyError, ValueError and the like mean that it is no such network. The first
    record of the registry that fits wins, so marks are keys that no other network has.
    """

    name: str
    builder: Callable[..., nn.Module]
    marks: tuple[str, ...]
    hyperparameters: Callable[[Shapes], dict[str, object]]
    bytes_per_channel: (
        int  # peak memory per input pixel and channel of `width`, measured on a CPU with 256x256 pixels
    )
    width: str = "embed_dim"  # the argument with the channels of the widest map
    channels: str = "in_chans"  # the argument with the channels of the picture
    scale: str | int = "upscale"  # the argument with the factor of enlargement, or the only factor there is
    unmarked: tuple[str, ...] = ()  # keys that its state dicts never have
    computed: frozenset[str] = frozenset()  # keys that they may lack, as nothing in them is learned
    padding: Padding = Padding()
    paper_tiles: tuple[int, int] | None = (
        None  # (piece, overlap divisor) of the published scores; None: whole pictures
    )
    exports: bool = False  # whether `mambair export` writes it, which takes a golden test of the written file
    random: bool = False  # draws from its attribute `generator` while it runs
    without_effect: frozenset[str] = frozenset()  # published arguments that change nothing about the result
    only_value: Arguments = field(default_factory=dict, hash=False)  # published arguments with a single use
    hint: Callable[[Shapes], str] = lambda shapes: ""  # on a state dict that looks like this one, yet is none

    def build(self, arguments: Arguments) -> nn.Module:
        """A freshly initialised network, in training mode.

        Raises UsageError on an unknown argument and on values that no published model has and this package does not
        implement; ValueError where the values contradict each other.
        """
        taken = inspect.signature(self.builder).parameters
        for name, value in arguments.items():
            if name in taken or name in self.without_effect:
                continue
            if name not in self.only_value:
                raise UsageError(f"{self.name} has no argument {name!r}.", f"It takes {', '.join(taken)}.")
            if value != self.only_value[name]:
                only = self.only_value[name]
                raise UsageError(f"{self.name} is implemented for {name}={only!r} only, not {value!r}.")
        return self.builder(**{name: value for name, value in arguments.items() if name in taken})

    def argument(self, arguments: Arguments, name: str) -> int:
        """A number among the arguments, or its default."""
        given = arguments.get(name, inspect.signature(self.builder).parameters[name].default)
        return cast(int, given)

    def channels_of(self, arguments: Arguments) -> int:
        """How many channels its pictures have: 1 or 3."""
        return self.argument(arguments, self.channels)

    def scale_of(self, arguments: Arguments) -> int:
        """By how much it enlarges: 1, 2, 3, 4 or 8."""
        return self.scale if isinstance(self.scale, int) else self.argument(arguments, self.scale)

    def bytes_per_pixel(self, arguments: Arguments) -> int:
        """Peak memory per input pixel with a native scan, weights aside."""
        return self.bytes_per_channel * self.argument(arguments, self.width)


def count(shapes: Shapes, pattern: str) -> int:
    """How many different numbers `pattern`'s group matches at the start of a key."""
    matches = (re.match(pattern, key) for key in shapes)
    return len({match[1] for match in matches if match})


def ratio(pairs: Iterable[tuple[int, ...]]) -> float:
    """The shortest decimal r with int(r * width) == inner for every (width, inner)."""
    pairs = list(pairs)
    for scale in (10**digits for digits in range(7)):
        found = max(-(-inner * scale // width) for width, inner in pairs) / scale
        if all(int(found * width) == inner for width, inner in pairs):
            return found
    width, inner = pairs[0]
    return (inner + 0.5) / width
