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


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe of the package by name, or a TOML file. Without one the recipes are listed.",
            autocompletion=_complete_recipe,
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Pictures to train on. Repeat for several folders.")
    ] = None,
    val: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Pictures to measure on. Default: some of --data are set aside."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for what is made. Default: train-RECIPE.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out where it was stopped.")] = False,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|FILE", help="Take over the weights that fit, say an x4 from an x2.", show_default=False
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0, metavar="N", help="End after so much work instead of the recipe's iterations."),
    ] = None,
    device: Device = "auto",
    precision: Annotated[
        str,
        typer.Option(
            metavar="auto|fp32|bf16",
            help="auto: bf16 on a GPU that is fast at it, else fp32.",
            rich_help_panel=RUNNING,
        ),
    ] = "auto",
    workers: Annotated[
        int, typer.Option(metavar="N", min=0, help="Processes that prepare batches.", rich_help_panel=RUNNING)
    ] = 1,
    quiet: Quiet = False,
) -> None:
    """Train a model by a recipe. The folder gets the model, its card, a log, a curve and a checkpoint.

    Example: mambair train upscale-x4 --data photos/ --out runs/x4 --minutes 120
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
