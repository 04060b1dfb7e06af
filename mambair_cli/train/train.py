"""One training run from a recipe to an exported model, with everything a person wants to see on the way."""

from __future__ import annotations

import csv
import io
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import nn

from mambair_cli import archs, files
from mambair_cli.errors import UsageError
from mambair_cli.restorer import pick_device
from mambair_cli.train import curve, data, init, loop
from mambair_cli.train.export import export
from mambair_cli.train.loop import State
from mambair_cli.train.recipe import Recipe
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
    precision: str = "auto"  # fp32, bf16, or bf16 where the device is faster with it
    minutes: float | None = None  # instead of the recipe's iterations
    workers: int = 1  # processes that prepare batches
    quiet: bool = False


def train(recipe: Recipe, options: Options) -> Path:
    """Train, and return the exported model; beside it in `out`: its card, checkpoint.pt, log.csv and curve.svg.

    Raises UsageError for options that make no sense together, Unavailable without enough pictures, MambairError where
    the numbers run away.
    """
    checkpoint, model = options.out / "checkpoint.pt", options.out / f"{recipe.name}.safetensors"
    if checkpoint.exists() and not options.resume:
        raise UsageError(f"{options.out} holds a run already.", "Continue it with --resume, or choose another --out.")
    if options.resume and options.init:
        raise UsageError("--init begins a run and --resume continues one.", "Leave one of them out.")
    device, say = pick_device(options.device), Console(stderr=True, quiet=options.quiet, highlight=False)
    bf16 = use_bf16(options.precision, device)
    found = data.find(options.data, options.validation, recipe.validation.originals)
    pairs = data.validation_pairs(recipe, found.validation)
    nothing = loop.baseline(recipe, pairs)

    torch.manual_seed(recipe.training.seed)
    arch, kwargs = recipe.arguments()
    network = archs.build(arch, **kwargs).to(device)
    facts = initialise(network, options.init, say) if options.init and not options.resume else {}
    state = State.fresh(network, recipe.training)
    if options.resume:
        state.load(checkpoint, recipe, found.sha256)
    size = sum(parameter.numel() for parameter in network.parameters())
    say.print(
        f"{recipe.name}: {size:,} parameters, {len(found.training)} pictures, {len(pairs)} for validation "
        f"(doing nothing: {nothing:.2f} dB), {device}, {'bf16' if bf16 else 'fp32'}",
        soft_wrap=True,
    )

    def save(state: State) -> None:
        state.save(checkpoint, recipe, found.sha256)
        if state.history:
            write_log(options.out / "log.csv", state.history)
            points = [(row["iteration"], row["psnr"]) for row in state.history]
            curve.write(options.out / "curve.svg", f"{recipe.name}: PSNR in dB", points, nothing)

    batches = prepare(recipe, found, device, say)
    with display(say, recipe.name) as shown:
        loop.run(
            state,
            recipe,
            lambda start: batches.loader(start, options.workers),
            pairs,
            save,
            shown,
            device=device,
            bf16=bf16,
            minutes=options.minutes,
        )
    facts |= {
        "iterations": state.iteration,
        "seconds": round(state.seconds),
        "device": str(device),
        "precision": "bf16" if bf16 else "fp32",
        "baseline": round(nothing, 3),
        "data": {
            "sha256": found.sha256,
            "training": len(found.training),
            "validation": [path.name for path in found.validation],
        },
    }
    card = export(model, state.average.module, recipe, lambda net: loop.validate(net, recipe, pairs, device), facts)
    say.print(f"{model}: {card['psnr']:.2f} dB, {card['bytes']:,} bytes, {card['dtype']}")
    return model


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to train under bfloat16 autocast (the scan's state stays float32)."""
    if precision not in ("auto", "fp32", "bf16"):
        raise UsageError(f"Cannot train in {precision}.", "Possible: auto, fp32, bf16.")
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16" or (precision == "auto" and fast)


def initialise(network: nn.Module, model: str, say: Console) -> dict[str, Any]:
    """Take over what fits from another model and say what did not."""
    taken = init.take_over(network, init.read(model))
    left = f"; left as they were: {', '.join(taken.left)}" if taken.left else ""
    say.print(f"from {model}: {taken.tensors} tensors{left}")
    return {"init": {"model": model, "left": list(taken.left)}}


def prepare(recipe: Recipe, found: data.Files, device: torch.device, say: Console) -> data.Batches:
    """Decode, downscale and teach, whatever the recipe needs, once for all iterations."""
    with say.status("decoding"):
        pictures = data.decode(found.training, data.smallest_side(recipe))
    if recipe.data.degradation != "bicubic":
        return data.Batches(recipe, pictures)
    with say.status("downscaling"):
        small = data.downscaled(pictures, recipe.scale)
    if recipe.teacher is None:
        return data.Batches(recipe, pictures, small)
    restorer = teacher(recipe.teacher, recipe, device)
    with Progress(console=say) as bar:
        task = bar.add_task(f"{restorer.spec.name} at work", total=len(small))
        taught = teach(restorer, small, lambda done, total: bar.update(task, completed=done))
    return data.Batches(recipe, pictures, small, taught)


@contextmanager
def display(say: Console, name: str) -> Iterator[loop.Report]:
    """A live line on a terminal: speed, loss, PSNR, time left; elsewhere a line per validation."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[line]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=say) as bar:
        task, began, first = bar.add_task(name, total=1.0, line=""), time.monotonic(), None
        recent: deque[float] = deque(maxlen=100)

        def report(state: State, progress: float, loss: float) -> None:
            nonlocal first
            first = state.iteration if first is None else first
            recent.append(loss)
            speed = (state.iteration - first) / (time.monotonic() - began)
            psnr = f"{state.history[-1]['psnr']:.3f} dB" if state.history else "- dB"
            line = f"{state.iteration} · {speed:.1f} it/s · loss {sum(recent) / len(recent):.4f} · {psnr}"
            bar.update(task, completed=progress, line=line)
            if state.history and state.history[-1]["iteration"] == state.iteration and not say.is_terminal:
                say.print(f"{progress:4.0%} {line}")

        yield report


def write_log(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """A CSV with a row per validation."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(history[0]))
    writer.writeheader()
    writer.writerows(history)
    with files.atomic(path) as file:
        file.write(text.getvalue().encode())
