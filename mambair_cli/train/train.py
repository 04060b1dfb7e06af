"""One training run, from a recipe and pictures to an exported model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from mambair_cli import archs
from mambair_cli.errors import UsageError
from mambair_cli.restoring.restorer import Restorer, pick_device
from mambair_cli.train import curve, data, init, loop
from mambair_cli.train.export import export
from mambair_cli.train.loop import State
from mambair_cli.train.recipe import Recipe
from mambair_cli.train.report import display, write_log
from mambair_cli.train.teacher import teach, teacher


@dataclass(frozen=True)
class Options:
    """What a person decides at the command line, beside the recipe."""

    data: tuple[Path, ...]
    out: Path
    validation: tuple[Path, ...] = ()
    resume: bool = False
    init: str | None = None  # a model of the zoo, or a file
    device: str = "auto"
    precision: str = "auto"  # fp32, bf16, or bf16 where a GPU is fast at it
    minutes: float | None = None  # instead of the recipe's iterations
    workers: int = 1  # processes that prepare batches
    quiet: bool = False


def train(recipe: Recipe, options: Options) -> Path:
    """Train, and return the exported model; beside it in `out` its card, checkpoint.pt, log.csv and curve.svg.

    Raises UsageError for options that make no sense together, Unavailable without enough pictures, MambairError where
    the numbers run away.
    """
    checkpoint, model = options.out / "checkpoint.pt", options.out / f"{recipe.name}.safetensors"
    if checkpoint.exists() and not options.resume:
        raise UsageError(f"{options.out} holds a run already.", "Continue it with --resume, or choose another --out.")
    if options.resume and options.init:
        raise UsageError("--init begins a run and --resume continues one.", "Leave one of them out.")
    if options.minutes is not None and not 0 < options.minutes < math.inf:
        raise UsageError(f"{options.minutes:g} minutes are no time to train.", "Give --minutes a number above 0.")
    device, say = pick_device(options.device), Console(stderr=True, quiet=options.quiet, highlight=False)
    bf16 = use_bf16(options.precision, device)
    found = data.find(options.data, options.validation, recipe.validation.originals)
    pairs = data.validation_pairs(recipe, found.validation)
    nothing = loop.baseline(recipe, pairs)
    state = begin(recipe, options, device, say)
    if options.resume:
        state.load(checkpoint, recipe, found.sha256)
    say.print(
        f"{recipe.name}: {len(found.training)} pictures to train on and {len(pairs)} to measure on, of which doing "
        f"nothing gets {nothing:.2f} dB; {device}, {'bf16' if bf16 else 'fp32'}",
        soft_wrap=True,
    )
    taught_by = teacher(recipe.teacher, recipe, device) if recipe.teacher else None
    batches = prepare(recipe, found, taught_by, options.out, say)

    def save(state: State) -> None:
        state.save(checkpoint, recipe, found.sha256)
        if state.history:
            write_log(options.out / "log.csv", state.history)
            points = [(row["iteration"], row["psnr"]) for row in state.history]
            curve.write(options.out / "curve.svg", recipe.name, points, nothing)

    with display(say, recipe.name) as report:
        feed = partial(batches.loader, workers=options.workers)
        loop.run(state, recipe, feed, pairs, save, report, device=device, bf16=bf16, minutes=options.minutes)
    facts = {
        "baseline": round(nothing, 3),
        "iterations": state.iteration,
        "seconds": round(state.seconds),
        "device": device.type,
        "precision": "bf16" if bf16 else "fp32",
        "init": state.init,
        "teacher": taught_by and {name: getattr(taught_by.spec, name) for name in ("name", "licence", "training")},
        "data": {
            "sha256": found.sha256,
            "training": len(found.training),
            "validation": [path.name for path in found.validation],
            "credits": data.credits(options.data),
        },
    }
    card = export(model, state.average.module, recipe, lambda net: loop.validate(net, recipe, pairs, device), facts)
    say.print(f"{card['psnr']:.2f} dB, {card['bytes']:,} bytes, {card['dtype']}", soft_wrap=True)
    return model


def begin(recipe: Recipe, options: Options, device: torch.device, say: Console) -> State:
    """The state before the first step, with what fits of another model's weights where one was named."""
    torch.manual_seed(recipe.training.seed)
    arch, kwargs = recipe.arguments()
    network = archs.build(arch, **kwargs)
    facts: dict[str, Any] = {}
    if options.init:
        taken = init.take_over(network, init.read(options.init))
        left = f"; these are new: {', '.join(taken.left)}" if taken.left else ""
        say.print(f"{options.init}: {taken.tensors} tensors taken over{left}", soft_wrap=True)
        facts = {"model": Path(options.init).name, "new": list(taken.left)}
    return State.fresh(network.to(device), recipe.training, facts)


def prepare(recipe: Recipe, found: data.Files, taught_by: Restorer | None, out: Path, say: Console) -> data.Batches:
    """Decode, downscale and teach, whatever the recipe needs, once for all iterations."""
    with say.status("decoding"):
        pictures = data.decode(found.training, data.smallest_side(recipe))
    if recipe.data.degradation != "bicubic":
        return data.Batches(recipe, pictures)
    with say.status("downscaling"):
        small = data.downscaled(pictures, recipe.scale)
    if taught_by is None:
        return data.Batches(recipe, pictures, small)
    with Progress(console=say) as bar:
        task = bar.add_task(f"{taught_by.spec.name} teaches", total=len(small))
        taught = teach(taught_by, small, out, found.sha256, lambda done, total: bar.update(task, completed=done))
    return data.Batches(recipe, pictures, small, taught)


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to train under bfloat16 autocast (the scan's state stays float32)."""
    if precision not in ("auto", "fp32", "bf16"):
        raise UsageError(f"Cannot train in {precision}.", "Possible: auto, fp32, bf16.")
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16" or (precision == "auto" and fast)
