"""What a task is: a record of its levels and degradations. The tasks themselves are in `tasks.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mambair_cli.images.decode import Picture

    Bytes = NDArray[np.uint8]  # (H, W) or (H, W, 3)
    Rng = np.random.Generator | None
    # A clean picture -> the degraded one (uint8, or float32 in [0, 1]) and what is to come of it, mostly the clean
    # one. Without a generator it is done as for benchmarks, in the same way for every call.
    Make = Callable[["Bytes", "Setting", "Rng"], tuple[NDArray[Any], "Bytes"]]

Value = int | str | None  # of a level: a number, a word ("real", "auto"), or not given


@dataclass(frozen=True)
class Protocol:
    """How PSNR and SSIM are measured: channel "y" (BT.601), "rgb" or "gray", `crop` pixels cut off each side.

    `rounding`: "uint8" (of the picture, as saved), "luma" (of the picture, then of its Y, as MATLAB's rgb2ycbcr does)
    or "none" (of neither).
    """

    channel: Literal["y", "rgb", "gray"]
    crop: int
    note: str = ""
    rounding: str = "uint8"


@dataclass(frozen=True)
class Level:
    """How strong the damage is, as one number or a word: what it is called, and which trained level suits it."""

    name: str  # of the option, and of the field in a request and in a model's record
    sign: str  # before the number in names: σ25, q10
    text: str  # in messages: "noise 25"
    low: int
    high: int
    help: str  # of the option
    assumed: int  # where it will be read off the picture, or a model knows any
    # How far a trained level is from the one wanted: the nearest model is taken.
    distance: Callable[[int, int], tuple[float, float]]
    # Read off a picture, with words for it ("noise of about 12.3"): values, the best first; None where none shows.
    measure: Callable[[Picture], tuple[tuple[Value, ...], str] | None] | None = None
    measured_as: Value = None  # the value that asks for that
    words: tuple[str, ...] = ()  # values that are a kind of their own, for which no other model stands in
    # Whether a picture comes out better if it goes through this task before it is enlarged: at what level, and what
    # was seen of it.
    before: Callable[[Picture], tuple[Value, str] | None] | None = None
    logarithmic: bool = False  # training draws it evenly in its logarithm

    @property
    def metavar(self) -> str:
        return "|".join((f"{self.low}-{self.high}", *self.words, *([str(self.measured_as)] * bool(self.measured_as))))

    def is_kind(self, value: Value, has: object) -> bool:
        """Whether a model trained for `has` may be taken for `value`: words and numbers do not stand in for each
        other."""
        return value is None or (value if value in self.words else None) == (has if has in self.words else None)

    def draw(self, low: float, high: float, rng: np.random.Generator) -> float:
        """A level from a range, for training."""
        return round(low * (high / low) ** rng.random()) if self.logarithmic else float(rng.uniform(low, high))


@dataclass(frozen=True)
class Share:
    """How much of something, from 0 to 1: an option, and the field of a request that has its name."""

    name: str
    help: str  # of the option
    # What it is where it is not given, by a picture and its result of that size, and what was seen. None: all.
    judge: Callable[[NDArray[Any], NDArray[Any]], tuple[float, str]] | None = None


@dataclass(frozen=True)
class Setting:
    """How a picture is made worse: by what factor smaller, at what level, with which ranges of a recipe."""

    scale: int = 1
    level: float | None = None
    ranges: Any = None  # the record of that name in `degradations`; None: its defaults


@dataclass(frozen=True)
class Degradation:
    """One way in which clean pictures are made worse: for benchmarks, for training and for validation alike."""

    name: str  # in recipes
    text: str  # in tables; {scale} and {level} are filled in
    make: Make | None = None
    how: str = ""  # it is made, for reports
    level: Level | None = None  # that it takes
    word: str | None = None  # the one value of the level that it stands for; None: all numbers
    standard: bool = True  # made as the field makes it, so a benchmark may; else a benchmark only reads those of sets
    role: str = "LQ"  # folder of such pictures in the sets that can be fetched; {s}: scale
    layouts: tuple[str, ...] = ()  # where else sets keep them; {s}: scale, {q}: level
    seeded: bool = False  # a benchmark draws it from the picture's name, the same every time
    compressed: bool = False  # its small pictures went through JPEG, and so models that undo it are for such
    # --- for training ---
    ranges: str | None = None  # the table of a recipe's [data] that it takes
    measured_at: Level | None = None  # a level at which it may be validated, though it draws its own
    margin: int = 0  # input pixels that a patch is wider: room for grids of blocks and blurred borders
    whole: bool = False  # made once from whole pictures: then patches are exact up to their borders

    def is_for(self, values: Mapping[str, Value]) -> bool:
        """Whether it is what the values of the options (by name) describe."""
        value = values.get(self.level.name) if self.level else None
        if value is None:
            return False
        return value == self.word if isinstance(value, str) else self.word is None


@dataclass(frozen=True)
class Task:
    """What a command does, and all that depends on it."""

    name: str  # the command
    about: str  # its help: a sentence, examples, remarks
    tag: str  # of result files, {scale} filled in
    channel: Literal["y", "rgb"]  # in which the field measures PSNR
    degradations: tuple[Degradation, ...]  # the first is the benchmarks' where nothing else is said
    enlarges: bool = False
    level: Level | None = None  # by which its models differ
    plain: str = ""  # what it does, in two words for people who know no commands
    share: Share | None = None  # what of it can be had in part

    def protocol(self, scale: int) -> Protocol:
        """The usual one of the field, for models that come without."""
        return Protocol(self.channel, scale if self.enlarges else 0)

    @property
    def title(self) -> str:
        """Its name on a page."""
        return self.plain or self.name.capitalize()

    @property
    def sentence(self) -> str:
        """What it does, in one sentence."""
        return " ".join(self.about.split("\n\n")[0].split())

    @property
    def baseline(self) -> str:
        """What doing nothing means."""
        return "bicubic" if self.enlarges else "input"

    @property
    def options(self) -> dict[str, Level]:
        """The levels of its degradations, by the name of the option that sets them."""
        return {d.level.name: d.level for d in self.degradations if d.level}

    def level_of(self, record: object) -> Any:
        """The value of the task's level in a request or in a model's record; None where the task has none."""
        return getattr(record, self.level.name) if self.level else None

    @property
    def measured(self) -> dict[str, Degradation]:
        """The degradations that a benchmark can make or read, by name."""
        return {d.name: d for d in self.degradations if (d.make and d.how) or d.layouts}

    def benchmark(self, values: Mapping[str, Value]) -> Degradation:
        """The degradation that the values of the options (by name) describe, else the usual one."""
        return next((d for d in self.degradations if d.is_for(values)), self.degradations[0])
