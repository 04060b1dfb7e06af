"""A recipe: everything a training run depends on besides the pictures, read from TOML."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from mambair_cli.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).with_name("recipes")
TASKS = {  # which degradations make sense for a task
    "upscale": ("bicubic", "realistic"),
    "denoise": ("noise",),
    "decompress": ("jpeg",),
    "derain": ("rain",),
}
Table = TypeVar("Table")


@dataclass(frozen=True)
class Data:
    """What a sample is."""

    degradation: str  # of degradations.py: bicubic, realistic, noise, jpeg, rain
    patch: int  # side at the network's input, pixels
    batch: int
    level: tuple[float, float] | None = None  # noise sigma on 0-255 or JPEG quality, drawn evenly
    grey: float = 0.0  # share of samples without colour


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
    """A larger network whose results are imitated; for "bicubic" only, where its results can be computed once."""

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
        """Plain dicts, lists, strings and numbers, for JSON."""
        return asdict(self)

    def arguments(self) -> tuple[str, dict[str, Any]]:
        """Architecture and arguments for `archs.build`."""
        kwargs = {"in_chans": 3, "upscale": self.scale, **self.network}
        return kwargs.pop("arch"), kwargs


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
    """A recipe from the tables of a TOML file; errors as in `load`."""
    recipe = _read(Recipe, {"name": name, **table}, name)
    data, training = recipe.data, recipe.training
    _among(name, "task", recipe.task, TASKS)
    _among(name, "data.degradation", data.degradation, TASKS[recipe.task])
    _among(name, "training.optimizer", training.optimizer, ("adam", "adamw"))
    _among(name, "training.schedule", training.schedule, ("cosine", "multistep"))
    _among(name, "training.loss", training.loss, ("l1", "charbonnier"))
    if "arch" not in recipe.network:
        raise UsageError(f"Recipe {name}: network.arch is missing.")
    if (recipe.scale > 1) != (recipe.task == "upscale"):
        raise UsageError(f"Recipe {name}: task {recipe.task} does not go with scale {recipe.scale}.")
    if (data.level is not None) != (data.degradation in ("noise", "jpeg")):
        raise UsageError(f"Recipe {name}: data.level belongs to noise and jpeg, and only to them.")
    if (recipe.validation.level is not None) != (data.level is not None):
        raise UsageError(f"Recipe {name}: validation.level goes with data.level.")
    if recipe.teacher and data.degradation != "bicubic":
        raise UsageError(f"Recipe {name}: a teacher can be imitated for bicubic downscaling only.")
    for what, value in {"patch": data.patch, "batch": data.batch, "iterations": training.iterations}.items():
        if value < 1:
            raise UsageError(f"Recipe {name}: {what} must be at least 1, not {value}.")
    return recipe


def _read(cls: type[Table], table: Mapping[str, Any], where: str) -> Table:
    """A dataclass from a table: every key known, every needed one there, every value of its type."""
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    if unknown := sorted(set(table) - set(known)):
        raise UsageError(f"Recipe {where}: unknown {', '.join(unknown)}.", f"Known: {', '.join(known)}.")
    if missing := [k for k, f in known.items() if f.default is MISSING and k not in table]:
        raise UsageError(f"Recipe {where}: {', '.join(missing)} missing.")
    return cls(**{key: _value(value, hints[key], f"{where}, {key}") for key, value in table.items()})


def _value(value: Any, hint: Any, where: str) -> Any:
    for nested in (Data, Training, Validation, Teacher):
        if hint in (nested, nested | None) and isinstance(value, dict):
            return _read(nested, value, where)
    text = str(hint)
    if "tuple" in text and isinstance(value, list):
        numbers = all(isinstance(v, (int, float)) for v in value)
        if numbers and ("..." in text or len(value) == 2):
            return tuple(float(v) for v in value)
    elif hint in (float, float | None) and isinstance(value, (int, float)):
        return float(value)
    elif (hint in (int, str) and type(value) is hint) or (isinstance(value, dict) and "Mapping" in text):
        return value
    raise UsageError(f"Recipe {where}: {value!r} is not what belongs there.")


def _among(name: str, key: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise UsageError(f"Recipe {name}: {key} is {value!r}.", f"Possible: {', '.join(choices)}.")
