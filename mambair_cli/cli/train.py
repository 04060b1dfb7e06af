"""`mambair train`: make a model from pictures of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mambair_cli.cli.options import RUNNING, Device, Quiet
from mambair_cli.errors import UsageError


def _complete_recipe(incomplete: str) -> list[tuple[str, str]]:
    from mambair_cli.train import recipe

    return [(name, recipe.load(name).summary) for name in recipe.names() if name.startswith(incomplete)]


RecipeName = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe of the package by name, or a TOML file. Without one the recipes are listed.",
        autocompletion=_complete_recipe,
        show_default=False,
    ),
]
Data = Annotated[
    list[Path] | None, typer.Option(metavar="DIR", help="Pictures to train on. Repeat for several folders.")
]
Validation = Annotated[
    list[Path] | None,
    typer.Option(metavar="DIR", help="Pictures to measure on. Default: some of --data are set aside."),
]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for what is made. Default: train-RECIPE.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out where it was stopped.")]
Init = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL|FILE", help="Take over the weights that fit, say an x4 from an x2.", show_default=False
    ),
]
Minutes = Annotated[
    float | None, typer.Option(metavar="N", help="End after so much work instead of the recipe's iterations.")
]
Precision = Annotated[
    str,
    typer.Option(
        metavar="auto|fp32|bf16", help="auto: bf16 on a GPU that is fast at it, else fp32.", rich_help_panel=RUNNING
    ),
]
Workers = Annotated[
    int, typer.Option(metavar="N", min=0, help="Processes that prepare batches.", rich_help_panel=RUNNING)
]


def train(
    recipe: RecipeName = None,
    data: Data = None,
    val: Validation = None,
    out: Out = None,
    resume: Resume = False,
    init: Init = None,
    minutes: Minutes = None,
    device: Device = "auto",
    precision: Precision = "auto",
    workers: Workers = 1,
    quiet: Quiet = False,
) -> None:
    """Train a model by a recipe. The folder gets the model, its card, a log, a curve and a checkpoint.

    [bold]Examples[/]

    \b
    mambair train                               the recipes there are
    mambair train upscale-x4 --data photos/ --minutes 60
    mambair train upscale-x4 --data photos/ --resume
    """
    from mambair_cli.train import recipe as recipes

    if recipe is None:
        for name in recipes.names():
            typer.echo(f"{name:<17}{recipes.load(name).summary}")
        return
    wanted = recipes.load(recipe)
    if not data:
        raise UsageError("There are no pictures to train on.", "Name a folder with --data.")
    from mambair_cli.train import train as training

    options = training.Options(
        data=tuple(data),
        out=out or Path(f"train-{wanted.name}"),
        validation=tuple(val or ()),
        resume=resume,
        init=init,
        device=device,
        precision=precision,
        minutes=minutes,
        workers=workers,
        quiet=quiet,
    )
    typer.echo(training.train(wanted, options))
