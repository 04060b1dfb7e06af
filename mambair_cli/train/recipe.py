"""A recipe: everything a training run depends on besides the pictures, read from TOML."""

from __future__ import annotations

import sys
from collections import abc
from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from mambair_cli.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).with_name("recipes")
DEGRADATIONS = {  # of degradations.py, by task
    "upscale": ("bicubic", "realistic"),
    "denoise": ("noise",),
    "decompress": ("jpeg",),
    "derain": ("rain",),
}


@dataclass(frozen=True)
class Data:
    """What a sample is."""

    degradation: str
    patch: int  # side at the network's input, pixels
    batch: int
    level: tuple[float, float] | None = None  # noise sigma on 0-255, or JPEG quality (drawn evenly in its logarithm)
    grey: float = 0.0  # share of samples without colour, where samples are degraded one by one


@dataclass(frozen=True)
class Training:
    """How the weights move."""

    iterations: int
    rate: float  # peak learning rate
    optimizer: str = "adamw"  # or "adam"
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    schedule: str = "cosine"  # or "multistep"
    warmup: float = 0.02  # share of the run during which the rate rises
    milestones: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95)  # of multistep: shares of the run at which the rate halves
    loss: str = "l1"  # or "charbonnier"
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
    """A larger network to imitate; for "bicubic" only, where what it makes of a picture can be computed once."""

    model: str  # of the zoo, or a file
    weight: float  # share of the loss


@dataclass(frozen=True)
class Recipe:
    """One training run. `network` holds `arch` and the constructor's arguments, without the scale."""

    name: str
    task: str
    summary: str
    network: Mapping[str, Any] = field(hash=False)
    data: Data
    training: Training
    validation: Validation
    scale: int = 1
    teacher: Teacher | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts, tuples, strings and numbers."""
        return asdict(self)

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


def names() -> list[str]:
    """The recipes in the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Recipe:
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
    data, training, validation = recipe.data, recipe.training, recipe.validation
    _one_of(name, "task", recipe.task, DEGRADATIONS)
    _one_of(name, "data.degradation", data.degradation, DEGRADATIONS[recipe.task])
    _one_of(name, "training.optimizer", training.optimizer, ("adam", "adamw"))
    _one_of(name, "training.schedule", training.schedule, ("cosine", "multistep"))
    _one_of(name, "training.loss", training.loss, ("l1", "charbonnier"))
    leveled = data.degradation in ("noise", "jpeg")
    rules = {
        "network.arch is missing": "arch" in recipe.network,
        "scale is above 1 for upscaling, and only there": (recipe.scale > 1) == (recipe.task == "upscale"),
        "data.level belongs to noise and jpeg, and only to them": (data.level is not None) == leveled,
        "validation.level belongs to noise and jpeg, and only to them": (validation.level is not None) == leveled,
        "data.level is [low, high], not below 0": data.level is None or 0 <= data.level[0] <= data.level[1],
        "data.level of jpeg is from 1 to 100": data.degradation != "jpeg"
        or data.level is None
        or 1 <= data.level[0] <= data.level[1] <= 100,
        "a teacher goes with bicubic only": recipe.teacher is None or data.degradation == "bicubic",
        "teacher.weight is a share": recipe.teacher is None or 0 < recipe.teacher.weight <= 1,
        "data.patch and data.batch are at least 1": min(data.patch, data.batch) >= 1,
        "data.grey is a share, and 0 for bicubic": 0 <= data.grey <= (data.degradation != "bicubic"),
        "training.iterations is at least 1": training.iterations >= 1,
        "training.rate and training.clip are above 0": min(training.rate, training.clip) > 0,
        "training.warmup and training.ema are shares below 1": all(
            0 <= x < 1 for x in (training.warmup, training.ema)
        ),
        "validation.every and validation.originals are at least 1": min(validation.every, validation.originals) >= 1,
        "validation.side is at least 64": validation.side >= 64,
    }
    if broken := [rule for rule, kept in rules.items() if not kept]:
        raise UsageError(f"Recipe {name}: {'; '.join(broken)}.")
    return recipe


def _read(kind: Any, table: Mapping[str, Any], where: str) -> Any:
    """A dataclass from a table: every key known, every needed one there, every value of its type."""
    known = {f.name: f for f in fields(kind)}
    hints = get_type_hints(kind)
    if unknown := sorted(set(table) - set(known)):
        raise UsageError(f"Recipe {where}: unknown {', '.join(unknown)}.", f"Known: {', '.join(known)}.")
    if missing := [key for key, f in known.items() if f.default is MISSING and key not in table]:
        raise UsageError(f"Recipe {where}: {', '.join(missing)} missing.")
    return kind(**{key: _value(value, hints[key], f"{where}, {key}") for key, value in table.items()})


def _value(value: Any, hint: Any, where: str) -> Any:
    """`value` if it is what the annotation says; integers pass for floats, lists for tuples, tables for records."""
    if isinstance(hint, UnionType):  # X | None
        hint = get_args(hint)[0]
    if is_dataclass(hint) and isinstance(value, dict):
        return _read(hint, value, where)
    if get_origin(hint) is tuple and isinstance(value, list):
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
