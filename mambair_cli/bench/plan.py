"""What a benchmark's options mean: which models, and what each of them is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mambair_cli.bench.damage import Damage
from mambair_cli.bench.datasets import known, registry
from mambair_cli.errors import Unavailable, UsageError
from mambair_cli.models import checkpoints, zoo
from mambair_cli.models.spec import ModelSpec
from mambair_cli.task import Degradation, Level, Value
from mambair_cli.tasks import TASKS


@dataclass(frozen=True)
class Criteria:
    """The options that say what is to be undone; what is None follows from the model or the set."""

    task: str | None = None
    scale: int | None = None
    sigma: Value = None  # 0 to 255 or "real"
    quality: Value = None
    degradation: str | None = None  # by name, where it is not the field's usual one

    @property
    def levels(self) -> dict[str, Value]:
        """The levels by the name of their option."""
        return {"sigma": self.sigma, "quality": self.quality}


def choose(wanted: Criteria, models: Sequence[str], weights: Path | None, datasets: Sequence[str]) -> list[ModelSpec]:
    """The models by name or alias, the one in a file of weights, or the bundled one of the task.

    Raises UsageError where the options contradict each other or leave the task open, Unavailable where there is
    no bundled model.
    """
    if weights and len(models) > 1:
        raise UsageError("One file of weights cannot be several models.", "Give a single -m with --weights.")
    if weights and not models:
        specs = [checkpoints.spec_for_file(weights)]
    else:
        specs = [_resolve(wanted, name, datasets) for name in models] or [_resolve(wanted, None, datasets)]
    for spec in specs:
        for option, value, has in (("--task", wanted.task, spec.task), ("--scale", wanted.scale, spec.scale)):
            if value not in (None, has):
                raise UsageError(
                    f"{option} {value} is not for {spec.name}, a model for {spec.task} {spec.level}".rstrip() + ".",
                    "With -m NAME the file is measured as weights of that model." if weights else "",
                )
        for option, level in wanted.levels.items():
            if level is not None and option not in TASKS[spec.task].options:
                raise UsageError(f"--{option} is not for {spec.name}, a model for {spec.task}.")
    return specs


def judge(wanted: Criteria, datasets: Sequence[str]) -> ModelSpec:
    """The model by whose protocol pictures of other programs are scored: the bundled one, else the first published.

    Raises UsageError where the options leave the task open.
    """
    try:
        return choose(wanted, [], None, datasets)[0]
    except Unavailable:
        task = wanted.task or _implied(wanted) or _task_of(datasets)
        return next(s for s in zoo.zoo().values() if s.task == task and wanted.scale in (None, s.scale))


def damage_for(spec: ModelSpec, wanted: Criteria = Criteria()) -> Damage:
    """What a model undoes, at the level asked for or else its own."""
    task = TASKS[spec.task]
    if wanted.degradation:
        return Damage(spec.task, _named(wanted.degradation, spec), spec.scale)
    levels = dict(wanted.levels)
    for name, level in task.options.items():
        if task.level or spec.compressed:  # else it is only undone where it is asked for
            levels[name] = _own_level(spec, level, levels[name])
    degradation = task.benchmark(levels)
    value = levels[degradation.level.name] if degradation.level else None
    return Damage(
        spec.task, degradation, spec.scale, value if value is None or isinstance(value, str) else float(value)
    )


def _named(name: str, spec: ModelSpec) -> Degradation:
    """A degradation of the model's task by name. Raises UsageError where there is none."""
    known = {d.name: d for d in TASKS[spec.task].measured.values() if d.level is None}
    if name not in known:
        raise UsageError(f"{spec.task} has no degradation {name!r}.", f"There are: {', '.join(known)}.")
    return known[name]


def _own_level(spec: ModelSpec, level: Level, wanted: Value) -> Value:
    """The level asked for, or the model's own: of a range the usual one, or its nearest end. Words stay by
    themselves."""
    own = getattr(spec, level.name)
    if own in level.words or wanted is None:
        if isinstance(own, tuple):
            return min(max(level.assumed, own[0]), own[1])
        return level.assumed if own is None else own
    return wanted


def _resolve(wanted: Criteria, model: str | None, datasets: Sequence[str]) -> ModelSpec:
    if model in zoo.zoo():
        return zoo.find(str(model), task=wanted.task, scale=wanted.scale)
    task = wanted.task or _implied(wanted) or _task_of(datasets)
    if task is None and model:
        task = zoo.find(model, scale=wanted.scale).task
    if task is None:
        raise UsageError("What is to be undone on these pictures?", "Give --task, or a model with -m.")
    record = TASKS[task]
    if wanted.degradation and model is None and record.enlarges:  # they are all of photographs as they are
        usual = record.degradations[0].name
        return zoo.resolve(task, scale=wanted.scale, compressed=wanted.degradation != usual)
    extra = record.level is None and any(wanted.levels[name] is not None for name in record.options)
    compressed = model is None and extra
    return zoo.resolve(
        task, scale=wanted.scale, sigma=wanted.sigma, quality=wanted.quality, model=model, compressed=compressed
    )


def _implied(wanted: Criteria) -> str | None:
    """The task that an option belongs to."""
    if wanted.scale is not None:
        return next(task.name for task in TASKS.values() if task.enlarges)
    given = [name for name, value in wanted.levels.items() if value is not None]
    return next((t.name for name in given for t in TASKS.values() if t.level and t.level.name == name), None)


def _task_of(datasets: Sequence[str]) -> str | None:
    """What the first known set is customary for."""
    return next((registry()[name]["task"] for name in map(known, datasets) if name), None)
