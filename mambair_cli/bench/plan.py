"""What a benchmark's options mean: which models, and which degradation each of them is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mambair_cli.bench.datasets import Degradation, known, registry
from mambair_cli.errors import UsageError
from mambair_cli.models import checkpoints, zoo
from mambair_cli.models.zoo import ModelSpec

BLIND_SIGMA, BLIND_QUALITY = 25, 10  # what a model without a level of its own is measured at


@dataclass(frozen=True)
class Wish:
    """The options that say what is to be undone; what is None follows from the model or the set."""

    task: str | None = None
    scale: int | None = None
    sigma: int | str | None = None  # 0 to 255 or "real"
    quality: int | None = None


def choose(wish: Wish, models: Sequence[str], weights: Path | None, datasets: Sequence[str]) -> list[ModelSpec]:
    """The models by name or alias, the one in a file of weights, or the bundled one of the task.

    Raises UsageError where the options contradict each other or leave the task open, Unavailable where there is
    no bundled model.
    """
    if weights and len(models) > 1:
        raise UsageError("One file of weights cannot be several models.", "Give a single -m with --weights.")
    if weights and not models:
        specs = [checkpoints.spec_for_file(weights)]
    else:
        specs = [_resolve(wish, name, datasets) for name in models] or [_resolve(wish, None, datasets)]
    for spec in specs:
        for option, wanted, has in (("--task", wish.task, spec.task), ("--scale", wish.scale, spec.scale)):
            if wanted not in (None, has):
                raise UsageError(
                    f"{option} {wanted} is not for {spec.name}, a model for {spec.task} {spec.level}".rstrip() + ".",
                    "With -m NAME the file is measured as weights of that model." if weights else "",
                )
        for option, value, tasks in (
            ("--sigma", wish.sigma, ("denoise",)),
            ("--quality", wish.quality, ("decompress", "upscale")),  # for upscale: JPEG after shrinking
        ):
            if value is not None and spec.task not in tasks:
                raise UsageError(f"{option} is not for {spec.name}, a model for {spec.task}.")
    return specs


def degradation_of(spec: ModelSpec, wish: Wish = Wish()) -> Degradation:
    """What a model undoes, at the level wished for or else its own."""
    if spec.task == "denoise":
        if "real" in (spec.sigma, wish.sigma):
            return Degradation("denoise", sigma="real")
        own = spec.sigma if isinstance(spec.sigma, int) else BLIND_SIGMA
        return Degradation("denoise", sigma=float(own if wish.sigma is None else wish.sigma))
    if spec.task == "decompress" or spec.compressed:
        return Degradation(spec.task, spec.scale, quality=wish.quality or _quality(spec))
    return Degradation(spec.task, spec.scale, quality=wish.quality)


def _resolve(wish: Wish, model: str | None, datasets: Sequence[str]) -> ModelSpec:
    if model in zoo.zoo():
        return zoo.find(str(model), task=wish.task, scale=wish.scale)
    task = wish.task or _implied(wish) or _task_of(datasets)
    if task is None and model:
        task = zoo.find(model, scale=wish.scale).task
    if task is None:
        raise UsageError("What is to be undone on these pictures?", "Give --task, or a model with -m.")
    compressed = task == "upscale" and wish.quality is not None and model is None
    return zoo.resolve(
        task, scale=wish.scale, sigma=wish.sigma, quality=wish.quality, model=model, compressed=compressed
    )


def _quality(spec: ModelSpec) -> int:
    """The JPEG quality to measure a model at that was given none: its own, or the hardest usual one of its range."""
    low, high = spec.quality if isinstance(spec.quality, tuple) else (spec.quality or BLIND_QUALITY,) * 2
    return min(max(BLIND_QUALITY, low), high)


def _implied(wish: Wish) -> str | None:
    """The task that an option belongs to."""
    tasks = {"upscale": wish.scale, "denoise": wish.sigma, "decompress": wish.quality}
    return next((task for task, value in tasks.items() if value is not None), None)


def _task_of(datasets: Sequence[str]) -> str | None:
    """What the first known set is customary for."""
    return next((registry()[name]["task"] for name in map(known, datasets) if name), None)
