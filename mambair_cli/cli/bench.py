"""bench: the field's tables in one command, and the speed of this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mambair_cli.cli.options import (
    BATCH,
    MODEL,
    RESULT,
    RUNNING,
    Device,
    Ensemble,
    Json,
    Offline,
    Overlap,
    Precision,
    Quiet,
    Seed,
    Weights,
)
from mambair_cli.cli.options import _complete_model as complete_model
from mambair_cli.errors import UsageError

if TYPE_CHECKING:
    from mambair_cli.bench.records import Measured, Result
    from mambair_cli.bench.run import Watcher

DATA = "Data"
SPEED = "Speed"

Datasets = Annotated[
    list[str] | None,
    typer.Option("-d", "--dataset", metavar="NAME|DIR", help="Set5, Urban100, ... or a folder. Repeat for several."),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "-m",
        "--model",
        metavar="NAME",
        help="Models or aliases; repeat for several. Default: the bundled one of the task.",
        autocompletion=complete_model,
        rich_help_panel=MODEL,
    ),
]
Task = Annotated[
    Literal["upscale", "denoise", "derain", "decompress"] | None,
    typer.Option(help="Default: that of the model or the set.", rich_help_panel=DATA),
]
Scale = Annotated[int | None, typer.Option("-s", "--scale", metavar="2|3|4", rich_help_panel=DATA)]
Sigma = Annotated[
    str | None,
    typer.Option(metavar="0-255|real", help="Noise to add; real noise is read from pairs.", rich_help_panel=DATA),
]
Quality = Annotated[
    int | None, typer.Option(metavar="1-100", min=1, max=100, help="JPEG to make.", rich_help_panel=DATA)
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        envvar="MAMBAIR_DATA",
        help="Folder of sets in any usual layout. What is not in it is downloaded to the cache.",
        rich_help_panel=DATA,
    ),
]
Limit = Annotated[int | None, typer.Option(metavar="N", min=1, help="Only so many pictures.", rich_help_panel=DATA)]
Shuffle = Annotated[
    bool, typer.Option("--shuffle", help="In random order, by --seed; with --limit a sample.", rich_help_panel=DATA)
]
Tile = Annotated[
    str,
    typer.Option(
        metavar="auto|N|off|paper",
        help="Side of the tiles in input pixels; paper: cut and pasted as for the published scores.",
        rich_help_panel=RUNNING,
    ),
]
Fresh = Annotated[
    bool,
    typer.Option("--fresh", help="Measure again what an earlier run has measured.", rich_help_panel=BATCH),
]
Perceptual = Annotated[
    bool,
    typer.Option(
        "--perceptual",
        help="LPIPS, DISTS and NIQE too. Needs the extra: pip install 'mambair\\[perceptual]'.",
        rich_help_panel=DATA,
    ),
]
Niqe = Annotated[bool, typer.Option("--niqe", help="NIQE too, without any extra.", rich_help_panel=DATA)]
Report = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="Write .html, .md, .csv or .json. Repeat for several.", rich_help_panel=RESULT),
]
Save = Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the restored pictures.", rich_help_panel=RESULT)]
Speed = Annotated[bool, typer.Option("--speed", help="Time models on this machine.", rich_help_panel=SPEED)]
Scan = Annotated[bool, typer.Option("--scan", help="Time the selective scan alone.", rich_help_panel=SPEED)]
Size = Annotated[
    list[str] | None,
    typer.Option(metavar="WxH", help="Input sizes for --speed. Repeat for several.", rich_help_panel=SPEED),
]
Backward = Annotated[
    bool, typer.Option("--backward", help="With --speed: time the gradients too.", rich_help_panel=SPEED)
]
Threads = Annotated[int | None, typer.Option(metavar="N", min=1, help="CPU threads.", rich_help_panel=SPEED)]


def bench(
    dataset: Datasets = None,
    task: Task = None,
    scale: Scale = None,
    sigma: Sigma = None,
    quality: Quality = None,
    data_root: DataRoot = None,
    limit: Limit = None,
    shuffle: Shuffle = False,
    perceptual: Perceptual = False,
    niqe: Niqe = False,
    model: Models = None,
    weights: Weights = None,
    offline: Offline = False,
    ensemble: Ensemble = False,
    tile: Tile = "auto",
    overlap: Overlap = None,
    device: Device = "auto",
    precision: Precision = "fp32",  # as published
    seed: Seed = 0,
    report: Report = None,
    save: Save = None,
    fresh: Fresh = False,
    json: Json = False,
    quiet: Quiet = False,
    speed: Speed = False,
    scan: Scan = False,
    size: Size = None,
    backward: Backward = False,
    threads: Threads = None,
) -> None:
    """Measure models on the field's test sets, by the protocol of their papers, or time them.

    [bold]Examples[/]

    \b
    mambair bench --dataset Set5 -s 4            the bundled model
    mambair bench -m light -m base -s 4 -d Set5 -d Set14
    mambair bench -d CBSD68 --sigma 25 --report cbsd68.html
    mambair bench -d photos/ -s 2 --limit 20 --shuffle
    mambair bench -d Set5 -m light -s 4 --tile paper
    mambair bench --speed -m light --size 256x256

    Under each score stand the published one and that of doing nothing (bicubic, or the degraded picture).
    The same command again goes on where it stopped.
    """
    if speed or scan:
        from mambair_cli.bench.speed import run_scan, run_speed

        if scan:
            run_scan(threads, device, json)
        else:
            run_speed(model or [], weights, [_size(text) for text in size or ()], threads, device, backward, json)
        return
    if not dataset:
        raise UsageError("Which test set?", "For example --dataset Set5; or --speed to time models.")

    from rich.console import Console

    from mambair_cli.bench import datasets, plan
    from mambair_cli.bench import report as reports
    from mambair_cli.bench.run import measure
    from mambair_cli.restorer import load_model

    reports.check(report or ())
    wish = plan.Wish(task, scale, _sigma(sigma), quality)
    specs = plan.choose(wish, model or [], weights, dataset)
    select = datasets.Selection(limit, seed if shuffle else None)
    runs = [
        (
            spec,
            degradation,
            datasets.load(name, degradation, root=data_root, select=select, offline=offline, quiet=quiet),
        )
        for spec in specs
        for degradation in [plan.degradation_of(spec, wish)]
        for name in dataset
    ]
    if threads:
        import torch

        torch.set_num_threads(threads)

    keep = any(target.suffix.lower() == ".html" for target in report or ())
    results: list[Result] = []
    for spec, group in groupby(runs, key=lambda run: run[0]):
        restorer = load_model(
            spec.name if model or not weights else None,
            weights=weights,
            device=device,
            precision=precision,
            tile=int(tile) if tile.isdecimal() else tile,
            overlap=overlap,
            ensemble=ensemble,
            seed=seed,
            offline=offline,
        )
        for _, degradation, pictures in group:
            folder = save / f"{pictures.name}-{degradation}".replace(" ", "-") / spec.name if save else None
            with _watching(f"{spec.name} on {pictures.name}", quiet) as watcher:
                results.append(
                    measure(
                        restorer,
                        pictures,
                        degradation,
                        save=folder,
                        keep=keep,
                        fresh=fresh,
                        perceptual=perceptual,
                        blind=niqe,
                        watcher=watcher,
                    )
                )
            if json:
                print(reports.documents(results[-1:]), end="", flush=True)
    for target in report or ():
        reports.write(results, target)
    if not json:
        reports.show(results, Console(highlight=False))
    if any(result.failed for result in results):
        raise typer.Exit(1)


@contextmanager
def _watching(title: str, quiet: bool) -> Iterator[Watcher]:
    """Progress on stderr: a bar with the mean gain on a terminal, else a line a picture."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mambair_cli.bench.run import Watcher

    console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
    plain = not console.is_terminal or os.environ.get("TERM") == "dumb" or bool(os.environ.get("CI"))
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    gains: list[float] = []

    def start(total: int, known: int) -> None:
        bar.update(task, total=total, completed=known)
        if known:
            console.print(f"{title}: {known} of {total} pictures were measured before; --fresh measures them again")

    def step(image: Measured) -> None:
        if image.score:
            gains.append(image.gain)
            result = f"{image.score.psnr:.2f} dB ({image.gain:+.2f}) in {image.seconds:.2f} s"
        else:
            result = image.error
        if plain or image.error:
            console.print(f"{title}: {image.name}: {result}", markup=False)
        mean = f" {sum(gains) / len(gains):+.2f} dB" if gains else ""
        bar.update(task, advance=1, description=title + mean)

    with Progress(*columns, console=console, transient=True, disable=plain or quiet) as bar:
        task = bar.add_task(title)
        yield Watcher(start, step)


def _sigma(text: str | None) -> int | str | None:
    """0 to 255, or "real"."""
    if text is None or text == "real":
        return text
    if text.isdecimal() and int(text) <= 255:
        return int(text)
    raise UsageError(f"--sigma {text} is no noise level.", "It is 0 to 255, or real.")


def _size(text: str) -> tuple[int, int]:
    """128x96 (width first) as (height, width)."""
    match = re.fullmatch(r"(\d+)x(\d+)", text.lower())
    if not match:
        raise UsageError(f"--size {text} is no size.", "For example --size 128x128, width first.")
    return int(match[2]), int(match[1])
