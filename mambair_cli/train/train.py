"""One training run, from a recipe and pictures to an exported model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

from mambair_cli import archs
from mambair_cli.console import Voice
from mambair_cli.errors import UsageError
from mambair_cli.restoring.restorer import Restorer, pick_device
from mambair_cli.train import curve, data, init, loop, pictures
from mambair_cli.train.export import export
from mambair_cli.train.loop import AfterStep
from mambair_cli.train.pictures import Files, Folders
from mambair_cli.train.processes import Processes, connected
from mambair_cli.train.recipe import Recipe
from mambair_cli.train.report import display, write_log
from mambair_cli.train.state import State
from mambair_cli.train.teacher import teach, teacher

SHARP = "That is the price of sharpness, so judge by eye."
SHORT = "It did not learn enough: train longer, begin with --init, or check that pictures and task agree."
UPSAMPLERS = 'Give network.upsampler, for instance "pixelshuffledirect".'


@dataclass(frozen=True)
class Options:
    """What a person decides at the command line, beside the recipe."""

    folders: Folders
    out: Path
    resume: bool = False
    init: str | None = None  # a model of the zoo, or a file
    stage: int = 1  # of the recipe to begin with
    device: str = "auto"
    precision: str = "auto"  # fp32, bf16, or bf16 where a GPU is fast at it
    minutes: float | None = None  # instead of the recipe's iterations
    workers: int = 1  # processes that prepare batches
    quiet: bool = False


@dataclass(frozen=True)
class Place:
    """Where a run takes place."""

    device: torch.device
    bf16: bool
    processes: Processes
    voice: Voice


def train(recipe: Recipe, options: Options) -> Path:
    """Train, and return the exported model; beside it in `out` its card, checkpoint.pt, log.csv and curve.svg.

    Raises UsageError for options that make no sense together, Unavailable without enough pictures, MambairError where
    the numbers run away.
    """
    if (options.out / "checkpoint.pt").exists() and not options.resume:
        raise UsageError(f"{options.out} holds a run already.", "Continue it with --resume, or choose another --out.")
    if options.resume and options.init:
        raise UsageError("--init begins a run and --resume continues one.", "Leave one of them out.")
    if options.resume and options.stage > 1:
        raise UsageError("--stage begins a run and --resume continues one.", "Leave one of them out.")
    if options.minutes is not None and not 0 < options.minutes < math.inf:
        raise UsageError(f"{options.minutes:g} minutes are no time to train.", "Give --minutes a number above 0.")
    with connected(options.device) as (processes, name):
        device, quiet = pick_device(name), options.quiet or not processes.first
        return _train(recipe, options, Place(device, use_bf16(options.precision, device), processes, Voice(quiet)))


def _train(recipe: Recipe, options: Options, place: Place) -> Path:
    device, say = place.device, place.voice.say
    checkpoint, model = options.out / "checkpoint.pt", options.out / f"{recipe.name}.safetensors"
    found = pictures.find(options.folders, recipe.scale, recipe.validation.originals)
    parts = recipe.parts()
    pairs = data.validation_pairs(parts[-1], found.validation)
    nothing = loop.baseline(recipe, pairs)
    state = begin(recipe, options, place, found.sha256)
    place.processes.share(state.network)
    count = len(found.training) + len(found.pairs)
    say(
        f"{recipe.name}: {count} pictures to train on and {len(pairs)} to measure on, of which doing "
        f"nothing gets {nothing:.2f} dB; {device}, {'bf16' if place.bf16 else 'fp32'}",
        None,
    )
    taught_by = next((teacher(part.teacher, part, device) for part in parts if part.teacher), None)

    def save(state: State) -> None:
        state.save(checkpoint, recipe, found.sha256)
        if state.history:
            write_log(options.out / "log.csv", state.history)
            points = [(row["iteration"], row["psnr"]) for row in state.history]
            curve.write(options.out / "curve.svg", recipe.name, points, nothing)

    shares = [part.training.share * (number >= state.first) for number, part in enumerate(parts)]
    shares = [share / sum(shares) for share in shares]
    with display(place.voice, recipe.name) as report:
        for number in range(state.stage, len(parts)):
            part = parts[number]
            if number > state.stage:
                state.advance(part)
            batches = prepare(part, found, taught_by, options.out, place)
            loop.run(
                state,
                part,
                partial(batches.loader, workers=options.workers, pinned=device.type == "cuda"),
                pairs,
                save,
                overall(report, sum(shares[:number]), shares[number]),
                device=device,
                bf16=place.bf16,
                minutes=options.minutes and options.minutes * shares[number],
                processes=place.processes,
            )
    if not place.processes.first:
        return model
    told = facts(state, options, place, found, nothing, taught_by)
    card = export(model, state.average.module, recipe, lambda net: loop.validate(net, recipe, pairs, device), told)
    say(f"{card['psnr']:.2f} dB, {card['bytes']:,} bytes, {card['dtype']}", None)
    if card["psnr"] < nothing:
        why = SHARP if parts[-1].adversarial else SHORT
        say(f"That is {nothing - card['psnr']:.2f} dB below doing nothing. {why}", None)
    return model


def facts(
    state: State, options: Options, place: Place, found: Files, nothing: float, taught_by: Restorer | None
) -> dict[str, Any]:
    """What the card says of the run, beside the recipe."""
    return {
        "baseline": round(nothing, 3),
        "iterations": state.iteration,
        "seconds": round(state.seconds),
        "device": place.device.type,
        "processes": place.processes.size,
        "precision": "bf16" if place.bf16 else "fp32",
        "init": state.init,
        "teacher": taught_by and {name: getattr(taught_by.spec, name) for name in ("name", "licence", "training")},
        "data": {
            "sha256": found.sha256,
            "training": len(found.training),
            "pairs": len(found.pairs),
            "validation": [(one[1] if isinstance(one, tuple) else one).name for one in found.validation],
            "credits": pictures.credits([*options.folders.clean, *options.folders.hq]),
        },
    }


def begin(recipe: Recipe, options: Options, place: Place, pictures_hash: str) -> State:
    """The state before the next step: of the checkpoint, or fresh, with what fits of another model's weights."""
    parts = recipe.parts()
    if not 1 <= options.stage <= len(parts):
        raise UsageError(f"Recipe {recipe.name} has no stage {options.stage}.", f"It has {len(parts)}.")
    part = parts[options.stage - 1]
    torch.manual_seed(part.training.seed)
    arch, kwargs = recipe.arguments()
    try:
        network = archs.build(arch, **kwargs).to(place.device)
    except ValueError as error:
        raise UsageError(
            f"Recipe {recipe.name}, network: {error}.", UPSAMPLERS if recipe.scale > 1 else ""
        ) from error
    if options.resume:
        return State.load(options.out / "checkpoint.pt", network, recipe, pictures_hash)
    facts: dict[str, Any] = {}
    if options.init:
        taken = init.take_over(network, init.read_weights(options.init))
        left = f"; these are new: {', '.join(taken.left)}" if taken.left else ""
        place.voice.say(f"{options.init}: {taken.tensors} tensors taken over{left}", None)
        facts = {"model": Path(options.init).name, "new": list(taken.left)}
    state = State.fresh(network, part, facts)
    state.first = state.stage = options.stage - 1
    return state


def overall(report: AfterStep, done: float, share: float) -> AfterStep:
    """The report of a stage as one of the whole run."""
    return lambda state, progress, loss: report(state, min(1.0, done + share * progress), loss)


def prepare(part: Recipe, found: Files, taught_by: Restorer | None, out: Path, place: Place) -> data.Batches:
    """Decode, downscale and teach, whatever the stage needs, once for all its iterations."""
    voice, rank = place.voice, place.processes.rank
    with voice.status("decoding"):
        clean = pictures.decode(found.training, data.smallest_side(part))
        own = pictures.decode_pairs(found.pairs, part.data.patch, part.scale)
    if not part.degradation.whole:
        return data.Batches(part, clean, pairs=own, rank=rank)
    with voice.status("downscaling"):
        small = pictures.made_worse(clean, lambda hq: data.degraded(hq, part, np.random.default_rng(0))[0])
    if not part.teacher or taught_by is None:
        return data.Batches(part, clean, small, pairs=own, rank=rank)
    if own:
        raise UsageError("A teacher and pairs of one's own do not go together.", "Leave out one of them.")
    with voice.progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(f"{taught_by.spec.name} teaches", total=len(small))
        taught = teach(taught_by, small, out, found.sha256, lambda done, total: bar.update(task, completed=done))
    return data.Batches(part, clean, small, taught, rank=rank)


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to train under bfloat16 autocast (the scan's state stays float32)."""
    if precision not in ("auto", "fp32", "bf16"):
        raise UsageError(f"Cannot train in {precision}.", "Possible: auto, fp32, bf16.")
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16" or (precision == "auto" and fast)
