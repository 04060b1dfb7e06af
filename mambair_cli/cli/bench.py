"""bench: the tables of the papers in one command."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from inspect import signature
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mambair_cli import console
from mambair_cli.cli import speed as speeds
from mambair_cli.cli.options import (
    BATCH,
    MODEL,
    RESULT,
    RUNNING,
    Address,
    Device,
    Engine,
    Ensemble,
    Json,
    Offline,
    Overlap,
    Precision,
    Quiet,
    Seed,
    Shard,
    Weights,
    Workers,
    complete_model,
)
from mambair_cli.cli.progress import measuring
from mambair_cli.cli.restore import read_level
from mambair_cli.errors import UsageError
from mambair_cli.task import Protocol, Value
from mambair_cli.tasks import SIGMA, TASKS
from mambair_cli.workers import engines

if TYPE_CHECKING:
    from mambair_cli.bench.damage import Damage
    from mambair_cli.bench.datasets import Dataset
    from mambair_cli.bench.records import Result
    from mambair_cli.cli.restore import MakeTeam
    from mambair_cli.console import Voice
    from mambair_cli.models.spec import ModelSpec
    from mambair_cli.restoring.restorer import Restorers

    Run = tuple[ModelSpec, Damage, Dataset]

DATA = "Data"
SPEED = "Speed"
RUNNING_ONLY = {"save", "fresh", "ensemble", "tile", "overlap", "precision", "engine", "workers"}  # options of models


def _complete_dataset(incomplete: str) -> list[str]:
    from mambair_cli.bench import datasets

    return [name for name in datasets.registry() if name.startswith(incomplete)]


Datasets = Annotated[
    list[str] | None,
    typer.Option(
        "-d",
        "--dataset",
        metavar="NAME|DIR",
        help="Set5, Urban100, ... or a folder. Repeat for several.",
        autocompletion=_complete_dataset,
    ),
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
    str | None,
    typer.Option(metavar="|".join(TASKS), help="Default: that of the model or the set.", rich_help_panel=DATA),
]
Scale = Annotated[int | None, typer.Option("-s", "--scale", metavar="2|3|4", rich_help_panel=DATA)]
Sigma = Annotated[
    str | None,
    typer.Option(metavar="0-255|real", help="Noise to add; real noise is read from pairs.", rich_help_panel=DATA),
]
Quality = Annotated[
    int | None, typer.Option(metavar="1-100", min=1, max=100, help="JPEG to make.", rich_help_panel=DATA)
]
Results = Annotated[
    list[Path] | None,
    typer.Option(
        "--results",
        metavar="DIR",
        exists=True,
        file_okay=False,
        help="Score the pictures that another program made of the set, by the same protocol. Repeat for several.",
        rich_help_panel=DATA,
    ),
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
Gradient = Annotated[
    bool,
    typer.Option("--gradient", help="How much of the truth's gradient is kept, too.", rich_help_panel=DATA),
]
DegradationName = Annotated[
    str | None,
    typer.Option(
        "--degradation",
        metavar="NAME",
        help="Photographs as users have them: web, phone, night, old (upscale x4); camera, camera_night, blotch "
        "(denoise).",
        rich_help_panel=DATA,
    ),
]
Report = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="Write .html, .md, .tex, .csv or .json, over an earlier report if there is one. Repeat for several.",
        rich_help_panel=RESULT,
    ),
]
Force = Annotated[
    bool,
    typer.Option("-f", "--force", help="Write --report over whatever file is there.", rich_help_panel=RESULT),
]
Save = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Keep the restored pictures, over those of an earlier run.", rich_help_panel=RESULT
    ),
]
Speed = Annotated[
    bool,
    typer.Option("--speed", help="The same as [bold]mambair speed[/].", rich_help_panel=SPEED),
]
Scan = Annotated[
    bool, typer.Option("--scan", help="The same as [bold]mambair speed --scan[/].", rich_help_panel=SPEED)
]
Size = Annotated[
    list[str] | None,
    typer.Option(metavar="WxH", help="With --speed: input sizes. Repeat for several.", rich_help_panel=SPEED),
]
Backward = Annotated[
    bool, typer.Option("--backward", help="With --speed: time the gradients too.", rich_help_panel=SPEED)
]
Threads = Annotated[int | None, typer.Option(metavar="N", min=1, help="CPU threads, each.", rich_help_panel=SPEED)]


def bench(
    context: typer.Context,
    dataset: Datasets = None,
    task: Task = None,
    scale: Scale = None,
    sigma: Sigma = None,
    quality: Quality = None,
    degradation: DegradationName = None,
    results: Results = None,
    data_root: DataRoot = None,
    limit: Limit = None,
    shuffle: Shuffle = False,
    perceptual: Perceptual = False,
    niqe: Niqe = False,
    gradient: Gradient = False,
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
    force: Force = False,
    fresh: Fresh = False,
    shard: Shard = None,
    engine: Engine = "local",
    workers: Workers = None,
    address: Address = None,
    json: Json = False,
    quiet: Quiet = False,
    speed: Speed = False,
    scan: Scan = False,
    size: Size = None,
    backward: Backward = False,
    threads: Threads = None,
) -> None:
    """Measure models on the usual test sets, by the protocol of their papers.

    [bold]Examples[/]

    \b
    mambair bench --dataset Set5 -s 4            the bundled model
    mambair bench -m light -m base -s 4 -d Set5 -d Set14
    mambair bench -d CBSD68 --sigma 25 -m mambair --report cbsd68.html
    mambair bench -d photos/ -s 2 --limit 20 --shuffle
    mambair bench -d Kodak24 --task upscale --degradation web --niqe --gradient
    mambair bench -d Set5 -m light -s 4 --tile paper
    mambair bench -d Set5 --results swinir/ --results edsr/ --report table.tex

    Under each score stand the published one and that of doing nothing (bicubic, or the degraded picture).
    The same command again goes on where it stopped.
    """
    mode = "--scan" if scan else "--speed" if speed else None
    _refuse_idle(context, mode, scored=bool(results) and not model and not weights)
    if mode:
        console.set_up(quiet).say(f"bench {mode} is now `mambair speed{' --scan' * scan}`")
        speeds.speed(model, weights, scan, size, backward, threads, device, json)
        return
    if not dataset:
        raise UsageError("Which test set?", "For example --dataset Set5; `mambair speed` times models.")

    from mambair_cli import shards
    from mambair_cli.bench import datasets, plan
    from mambair_cli.bench import report as reports
    from mambair_cli.restoring.restorer import Restorers

    voice = console.set_up(quiet)
    for name in dataset:
        datasets.check(name)
    if task not in (None, *TASKS):
        raise UsageError(f"There is no task {task!r}.", f"Tasks: {', '.join(TASKS)}.")
    running = engines.running(device, precision, tile, overlap, ensemble, seed)
    crew = engines.Wanted(device, workers, threads, address)
    chosen = engines.find(engine)
    reports.check(report or (), force)
    if save:
        reports.check_folder(save)
    models, file = _named(model or [], weights)
    wanted = plan.Criteria(task, scale, _noise(sigma), quality, degradation)
    find = partial(datasets.load_dataset, root=data_root, offline=offline)
    part = shards.parse(shard, os.environ) if shard else shards.WHOLE
    select = datasets.Selection(limit, seed if shuffle else None, part)
    specs = plan.choose(wanted, models, file, dataset) if models or file or not results else []
    runs = [
        (spec, damage, find(name, damage, select=select))
        for spec in specs
        for damage in [plan.damage_for(spec, wanted)]
        for name in dataset
    ]
    judge = specs[0] if specs else plan.judge(wanted, dataset)
    damage = plan.damage_for(judge, wanted)
    made = [(folder, find(name, damage, select=select)) for folder in results or () for name in dataset]
    if threads:
        import torch

        torch.set_num_threads(threads)
    keep = any(target.suffix.lower() == ".html" for target in report or ())
    how = {"perceptual": perceptual, "blind": niqe, "gradient": gradient}
    scored = (_scored(folder, pictures, damage, judge.protocol, voice, how) for folder, pictures in made)
    load = Restorers(running, file, offline)
    make = (lambda work: chosen.team(work, crew)) if chosen.needed(crew) else None
    _tell(chain(scored, _measure(runs, load, make, save, voice, keep=keep, fresh=fresh, **how)), report or [], json)


def _refuse_idle(context: typer.Context, mode: str | None, scored: bool) -> None:
    """Raise UsageError where an option was given that does nothing beside `mode`, or where no model runs but
    pictures are only scored; the environment may hold any."""
    for parameter in context.command.params:
        source, name = context.get_parameter_source(parameter.name or ""), parameter.name
        if source is None or source.name != "COMMANDLINE":
            continue
        if mode and name not in {mode[2:], "quiet", *signature(speeds.speed).parameters}:
            raise UsageError(f"{parameter.opts[-1]} means nothing beside {mode}.", "Leave one of them out.")
        if scored and name in RUNNING_ONLY:
            raise UsageError(
                f"{parameter.opts[-1]} means nothing where --results are scored.", "Add a model with -m."
            )
        if not mode and name in ("size", "backward"):
            raise UsageError(f"{parameter.opts[-1]} belongs to --speed.", "Add it, or leave the other out.")


def _scored(
    folder: Path, pictures: Dataset, damage: Damage, rules: Protocol, voice: Voice, how: dict[str, bool]
) -> Result:
    """Another program's pictures of one set."""
    from mambair_cli.bench.results import label, score_results

    with measuring(f"{label(folder)} on {pictures.name}", voice) as watcher:
        return score_results(folder, pictures, damage, rules, watcher=watcher, **how)


def _measure(
    runs: Sequence[Run], load: Restorers, make: MakeTeam | None, save: Path | None, voice: Voice, **how: bool
) -> Iterator[Result]:
    """The results of all runs, each as soon as it is there. Every model is loaded once, by workers once a set."""
    from mambair_cli.bench import hand
    from mambair_cli.bench.run import measure
    from mambair_cli.restoring.hand import Networks

    for spec, group in groupby(runs, key=lambda run: run[0]):
        restorer = load(spec)
        for _, damage, pictures in group:
            work = hand.Measuring(Networks(load), spec, damage, how["perceptual"], how["blind"], how["gradient"])
            spread = hand.spread(work, make) if make else None
            folder = save / f"{pictures.name}-{damage}".replace(" ", "-") / spec.name if save else None
            with measuring(f"{spec.name} on {pictures.name}", voice) as watcher:
                result = measure(restorer, pictures, damage, save=folder, watcher=watcher, spread=spread, **how)
            yield result


def _tell(measured: Iterable[Result], targets: Sequence[Path], json: bool) -> None:
    """Results on stdout, as JSON one by one, and in the reports. Leaves with status 1 if a picture failed."""
    from rich.console import Console

    from mambair_cli.bench import report as reports

    results = []
    for result in measured:
        results.append(result)
        if json:
            print(reports.documents([result]), end="", flush=True)
    for target in targets:
        reports.write(results, target)
    if not json:
        reports.show(results, Console(highlight=False))
    if any(result.failed for result in results):
        raise typer.Exit(1)


def _named(models: list[str], weights: Path | None) -> tuple[list[str], Path | None]:
    """Models by name, and a file of weights, which may stand in the place of the only name."""
    from mambair_cli.models import checkpoints

    pairs = [checkpoints.named(model, weights) for model in models]
    names, files = [name for name, _ in pairs if name], [file for _, file in pairs if file]
    if len(files) > 1 and files[0] != weights:
        raise UsageError("One file of weights can be measured at a time.", "Give a single -m.")
    return names, files[0] if files else weights


def _noise(text: str | None) -> Value:
    """0 to 255, or "real": what denoise takes, but for measuring the noise."""
    if text == "auto":
        raise UsageError("--sigma auto is for pictures with noise; here noise is added.", "It is 0 to 255, or real.")
    return read_level(SIGMA, text)
