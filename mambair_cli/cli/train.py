"""`mambair train`: make a model from pictures of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mambair_cli.errors import UsageError


def _recipes(incomplete: str) -> list[str]:
    from mambair_cli.train import recipe

    return [name for name in recipe.names() if name.startswith(incomplete)]


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe of the package by name, or a TOML file.", autocompletion=_recipes, show_default=False
        ),
    ] = "",
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Folder of pictures to train on; may be repeated.", show_default=False),
    ] = None,
    val: Annotated[
        list[Path] | None,
        typer.Option(
            "--val", help="Folder of pictures to measure on; without it some are set aside.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the run.  [default: train-RECIPE]", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out, exactly.")] = False,
    init: Annotated[
        str | None,
        typer.Option("--init", help="Begin with the weights of a model (name or file): what fits is taken over."),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", min=0, help="End on time, the schedule with it, instead of on the iteration."),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.", envvar="MAMBAIR_DEVICE")
    ] = "auto",
    precision: Annotated[
        str, typer.Option("--precision", help="auto, fp32 or bf16; the scan's state is float32 always.")
    ] = "auto",
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that prepare batches.")] = 1,
    list_: Annotated[bool, typer.Option("--list", help="Show the recipes and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.")] = False,
) -> None:
    """Train a model by a recipe; in --out: the model, its card, a log, a curve and a checkpoint.

    Example: mambair train upscale-x4 --data photos/ --out runs/x4 --minutes 60
    """
    from mambair_cli.train import recipe as recipes

    if list_:
        for name in recipes.names():
            typer.echo(f"{name:<16} {recipes.load(name).summary}")
        return
    if not recipe:
        raise UsageError("Which recipe?", f"In the package: {', '.join(recipes.names())}. Or give a TOML file.")
    wanted = recipes.load(recipe)
    if not data:
        raise UsageError("No pictures to train on.", "Name a folder with --data.")
    from mambair_cli.train.train import Options
    from mambair_cli.train.train import train as begin

    options = Options(
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
    typer.echo(begin(wanted, options))
