"""A recipe: everything a training run depends on besides the pictures, read from TOML."""

from __future__ import annotations

import sys
from collections import abc
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from mambair_cli.degradations import Jpegs, Noises, Photo
from mambair_cli.errors import UsageError
from mambair_cli.task import Degradation
from mambair_cli.tasks import TASKS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).with_name("recipes")
KEYS = Path(__file__).with_name("keys.toml")  # every key with what it does and its default, for people
PARTS = ("data", "training", "teacher", "adversarial")  # what a stage may change
Span = tuple[float, float]


@dataclass(frozen=True)
class Data:
    """What a sample is."""

    degradation: str
    patch: int  # side at the network's input, pixels
    batch: int
    level: Span | None = None  # noise sigma on 0-255, or JPEG quality (drawn evenly in its logarithm)
    shrink: Span = (1.0, 1.0)  # the picture is first made smaller by a factor from this range: more detail per pixel
    noises: Noises = field(default_factory=Noises)  # kinds and ranges of "noises"
    jpegs: Jpegs = field(default_factory=Jpegs)  # ranges of "jpegs"
    photo: Photo = field(default_factory=Photo)  # ranges of "photo"
    grey: float = 0.0  # share of samples without colour, where samples are degraded one by one
    pairs: float = 0.5  # share of samples from pairs of one's own, where pictures are given as well

    def ranges_of(self, degradation: Degradation) -> Any:
        """The record of ranges that a degradation takes, if any."""
        return getattr(self, degradation.ranges) if degradation.ranges else None


@dataclass(frozen=True)
class Training:
    """How the weights move."""

    iterations: int
    rate: float  # peak learning rate
    share: float = 1.0  # of --minutes, in proportion to that of the other stages
    optimizer: str = "adamw"  # or "adam"
    betas: Span = (0.9, 0.99)
    weight_decay: float = 0.0
    schedule: str = "cosine"  # or "multistep"
    warmup: float = 0.02  # share of the stage during which the rate rises
    milestones: tuple[float, ...] = (
        0.5,
        0.8,
        0.9,
        0.95,
    )  # of multistep: shares of the stage at which the rate halves
    loss: str = "l1"  # or "charbonnier", "l2", "psnr"
    ema: float = 0.999
    clip: float = 1.0  # largest norm of the gradient
    seed: int = 0


@dataclass(frozen=True)
class Validation:
    """What PSNR is measured on, and how often."""

    every: int  # iterations
    originals: int = 8  # held out where no folder is given; one picture of each is measured
    side: int = 448  # of the centre that is measured, in pixels of the truth
    level: float | None = None  # of the degradation


@dataclass(frozen=True)
class Teacher:
    """A larger network to imitate, where whole pictures are degraded: what it makes of them is computed once."""

    model: str  # of the zoo, or a file
    weight: float  # share of the loss


@dataclass(frozen=True)
class Adversarial:
    """A discriminator that learns to tell results from truths, and how much its verdict counts."""

    weight: float  # of the verdict: how hard it pushes, where 1 is as hard as the L1 of the pixels
    features: float = 0.2  # likewise of the distance between what the discriminator's layers see in result and truth
    grid: float = 0.0  # likewise against a grid of the upsampler, times the nats by which it stands out
    pixels: float = 1.0  # of training.loss
    width: int = 32  # channels of the discriminator's first layer
    rate: float = 4e-4  # its peak learning rate
    alone: int = 100  # iterations during which it learns and the network waits


@dataclass(frozen=True)
class Recipe:
    """One training run. `network` holds `arch` and the constructor's arguments, without the scale.

    `stages` follow one another; each is a table of what it changes in the recipe: any keys of `PARTS`. Empty: the
    recipe is all there is.
    """

    name: str
    task: str
    summary: str
    network: Mapping[str, Any] = field(hash=False)
    data: Data
    training: Training
    validation: Validation
    scale: int = 1
    teacher: Teacher | None = None
    adversarial: Adversarial | None = None
    stages: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts, tuples, strings and numbers."""
        return asdict(self)

    @property
    def degradation(self) -> Degradation:
        """The task's degradation of that name."""
        return {d.name: d for d in TASKS[self.task].degradations}[self.data.degradation]

    def arguments(self) -> tuple[str, dict[str, Any]]:
        """Architecture and arguments for `archs.build`. Raises UsageError where it cannot enlarge by the scale."""
        from mambair_cli import archs

        architecture = archs.find(self.network["arch"])
        kwargs: dict[str, Any] = {architecture.channels: 3}
        if isinstance(architecture.scale, str):
            kwargs[architecture.scale] = self.scale
        kwargs |= {name: value for name, value in self.network.items() if name != "arch"}
        if architecture.scale_of(kwargs) != self.scale:
            raise UsageError(f"{architecture.name} does not enlarge x{self.scale}, as recipe {self.name} wants.")
        return architecture.name, kwargs

    def parts(self) -> tuple[Recipe, ...]:
        """The stages one by one, each as a recipe of its own."""
        if not self.stages:
            return (self,)
        base = {part: table for part, table in self.as_dict().items() if part in PARTS and table is not None}
        changed = (_merged(base, stage) for stage in self.stages)
        return tuple(
            replace(self, stages=(), **{part: _value(tables[part], KINDS[part], self.name) for part in tables})
            for tables in changed
        )


KINDS: dict[str, Any] = {"data": Data, "training": Training, "teacher": Teacher, "adversarial": Adversarial}


def names() -> list[str]:
    """The recipes in the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_recipe(name: str) -> Recipe:
    """A recipe of the package by name, or a TOML file. Raises UsageError on anything that makes no sense."""
    path = FOLDER / f"{name}.toml" if name in names() else Path(name)
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(
            f"There is no recipe {name!r}: {error.strerror}.",
            f"In the package: {', '.join(names())}. Or give a TOML file.",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}.") from error
    return parse(table, path.stem)


def parse(table: Mapping[str, Any], name: str) -> Recipe:
    """A recipe from the tables of a TOML file. Raises UsageError on anything that makes no sense."""
    recipe: Recipe = _read(Recipe, {"name": name, **table}, name)
    for number, stage in enumerate(recipe.stages, 1):
        if unknown := sorted(set(stage) - set(PARTS)):
            raise UsageError(
                f"Recipe {name}, stage {number}: cannot change {', '.join(unknown)}.", f"It can: {', '.join(PARTS)}."
            )
    for part in recipe.parts():
        check(part)
    return recipe


def check(recipe: Recipe) -> None:
    """Raise UsageError where the values of one stage contradict each other or make no sense."""
    name, data, training, validation = recipe.name, recipe.data, recipe.training, recipe.validation
    _one_of(name, "task", recipe.task, TASKS)
    task = TASKS[recipe.task]
    _one_of(name, "data.degradation", data.degradation, [d.name for d in task.degradations if d.make])
    how = recipe.degradation
    _one_of(name, "training.optimizer", training.optimizer, ("adam", "adamw"))
    _one_of(name, "training.schedule", training.schedule, ("cosine", "multistep"))
    _one_of(name, "training.loss", training.loss, ("l1", "l2", "charbonnier", "psnr"))
    whole = " or ".join(d.name for d in task.degradations if d.whole) or "none"
    leveled, level = how.level is not None, how.level or how.measured_at
    lowest, highest = (level.low, level.high) if level else (0, 0)
    noises, rival = data.noises, recipe.adversarial
    rules = {
        "network.arch is missing": "arch" in recipe.network,
        "scale is above 1 for upscaling, and only there": (recipe.scale > 1) == task.enlarges,
        "data.level belongs to noise and jpeg, and only to them": (data.level is not None) == leveled,
        "validation.level belongs to noise and jpeg, and to them always": (validation.level is not None) == leveled
        or how.measured_at is not None,
        f"data.level is [low, high], from {lowest} to {highest}": data.level is None
        or lowest <= data.level[0] <= data.level[1] <= highest,
        f"data.shrink is [low, high] above 0 and at most 1, and 1 for {whole}": 0
        < data.shrink[0]
        <= data.shrink[1]
        <= 1
        and (data.shrink[0] == 1 or not how.whole),
        "data.jpegs.quality is from 1 to 100": data.jpegs.quality[0] >= 1 and data.jpegs.quality[1] <= 100,
        "data.noises.white and data.noises.cameras add up to at most 1": 0 <= noises.white + noises.cameras <= 1,
        f"a teacher goes with {whole} only": recipe.teacher is None or how.whole,
        "teacher.weight is a share": recipe.teacher is None or 0 < recipe.teacher.weight <= 1,
        "data.patch and data.batch are at least 1": min(data.patch, data.batch) >= 1,
        f"data.grey is a share, and 0 for {whole}": 0 <= data.grey <= (not how.whole),
        "data.pairs is a share": 0 <= data.pairs <= 1,
        "training.iterations is at least 1": training.iterations >= 1,
        "training.rate, training.clip and training.share are above 0": min(
            training.rate, training.clip, training.share
        )
        > 0,
        "training.warmup and training.ema are shares below 1": all(
            0 <= x < 1 for x in (training.warmup, training.ema)
        ),
        "the weights of adversarial are not below 0": rival is None
        or min(rival.weight, rival.features, rival.grid, rival.pixels, rival.alone) >= 0,
        "adversarial.rate is above 0 and adversarial.width at least 4": rival is None
        or (rival.rate > 0 and rival.width >= 4),
        "a patch for a discriminator has at least 16 pixels in the truth": rival is None
        or data.patch * recipe.scale >= 16,
        "validation.every and validation.originals are at least 1": min(validation.every, validation.originals) >= 1,
        "validation.side is at least 64": validation.side >= 64,
    }
    broken = [rule for rule, kept in rules.items() if not kept]
    broken += [f"{key} is [low, high]" for key, (low, high) in _spans(data, "data") if low > high]
    if broken:
        raise UsageError(f"Recipe {name}: {'; '.join(broken)}.")


def _spans(table: Any, where: str) -> Iterator[tuple[str, Span]]:
    """Every range in a record and the records within, with its key."""
    for entry in fields(table):
        value, key = getattr(table, entry.name), f"{where}.{entry.name}"
        if is_dataclass(value):
            yield from _spans(value, key)
        elif isinstance(value, tuple):
            yield key, value


def _merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `change`, tables within tables too."""
    both = {
        key: _merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in change.items()
    }
    return {**base, **both}


def _read(kind: Any, table: Mapping[str, Any], where: str) -> Any:
    """A dataclass from a table: every key known, every needed one there, every value of its type."""
    known = {f.name: f for f in fields(kind)}
    hints = get_type_hints(kind)
    if unknown := sorted(set(table) - set(known)):
        raise UsageError(f"Recipe {where}: unknown {', '.join(unknown)}.", f"Known: {', '.join(known)}.")
    if missing := [
        key for key, f in known.items() if f.default is MISSING and f.default_factory is MISSING and key not in table
    ]:
        raise UsageError(f"Recipe {where}: {', '.join(missing)} missing.")
    given = {key: _completed(known[key], value) for key, value in table.items()}
    return kind(**{key: _value(value, hints[key], f"{where}, {key}") for key, value in given.items()})


def _completed(entry: Field[Any], value: Any) -> Any:
    """A table that stands for a record with defaults, with the values it leaves out."""
    if isinstance(value, dict) and entry.default_factory is not MISSING:
        return _merged(asdict(entry.default_factory()), value)
    return value


def _value(value: Any, hint: Any, where: str) -> Any:
    """`value` if it is what the annotation says; integers pass for floats, lists for tuples, tables for records."""
    if isinstance(hint, UnionType):  # X | None
        if value is None:
            return None
        hint = get_args(hint)[0]
    if is_dataclass(hint) and isinstance(value, dict):
        return _read(hint, value, where)
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        kinds = get_args(hint)
        if kinds[-1] is ... or len(kinds) == len(value):
            return tuple(_value(item, kinds[0], where) for item in value)
    if hint is float and type(value) in (int, float):
        return float(value)
    if type(value) is hint or (get_origin(hint) is abc.Mapping and isinstance(value, dict)):
        return value
    raise UsageError(f"Recipe {where}: {value!r} is not what belongs there.")


def _one_of(name: str, key: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise UsageError(f"Recipe {name}: {key} is {value!r}.", f"Possible: {', '.join(choices)}.")
