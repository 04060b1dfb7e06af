"""`mambair train`: make a model from pictures of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mambair_cli import console
from mambair_cli.cli.options import RUNNING, Device, Quiet
from mambair_cli.errors import UsageError


def _complete_recipe(incomplete: str) -> list[tuple[str, str]]:
    from mambair_cli.train import recipe

    return [(name, recipe.load_recipe(name).summary) for name in recipe.names() if name.startswith(incomplete)]


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
Lq = Annotated[
    list[Path] | None,
    typer.Option(metavar="DIR", help="Low-quality pictures of pairs of your own; --hq has the others, named alike."),
]
Hq = Annotated[list[Path] | None, typer.Option(metavar="DIR", help="What the pictures of --lq ought to look like.")]
ValidationLq = Annotated[
    list[Path] | None,
    typer.Option(metavar="DIR", help="Inputs to the pictures of --val. Default: these are made worse by the recipe."),
]
Keys = Annotated[
    bool, typer.Option("--keys", help="Print what a recipe may hold: every key, what it does, its default.")
]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for what is made. Default: train-RECIPE.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out where it was stopped.")]
Init = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL|FILE", help="Take over the weights that fit, say an x4 from an x2.", show_default=False
    ),
]
Stage = Annotated[
    int, typer.Option(metavar="N", min=1, help="Begin with this stage of the recipe, say after --init.")
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
    lq: Lq = None,
    hq: Hq = None,
    val: Validation = None,
    val_lq: ValidationLq = None,
    out: Out = None,
    resume: Resume = False,
    init: Init = None,
    stage: Stage = 1,
    minutes: Minutes = None,
    device: Device = "auto",
    precision: Precision = "auto",
    workers: Workers = 1,
    quiet: Quiet = False,
    keys: Keys = False,
) -> None:
    """Train a model by a recipe. The folder gets the model, its card, a log, a curve and a checkpoint.

    Pictures are made worse by the recipe (--data), or come in pairs of your own (--lq and --hq), or both. On several
    GPUs start it with torchrun. docs/training.md tells more, --keys what a recipe may hold.

    [bold]Examples[/]

    \b
    mambair train                               the recipes there are
    mambair train upscale-x4 --data photos/ --minutes 60
    mambair train upscale-x4 --data photos/ --resume
    mambair train denoise --lq noisy/ --hq clean/ --init tiny-denoise --stage 2
    """
    from mambair_cli.train import recipe as recipes

    if keys:
        typer.echo(recipes.KEYS.read_text("utf-8"), nl=False)
        return
    if recipe is None:
        for name in recipes.names():
            typer.echo(f"{name:<17}{recipes.load_recipe(name).summary}")
        return
    console.set_up(quiet)
    wanted = recipes.load_recipe(recipe)
    if not (data or lq or hq):
        raise UsageError(
            "There are no pictures to train on.", "Name a folder with --data, or pairs with --lq and --hq."
        )
    from mambair_cli.train import train as training
    from mambair_cli.train.pictures import Folders

    folders = Folders(*(tuple(chosen or ()) for chosen in (data, lq, hq, val, val_lq)))
    options = training.Options(
        folders=folders,
        out=out or Path(f"train-{wanted.name}"),
        resume=resume,
        init=init,
        stage=stage,
        device=device,
        precision=precision,
        minutes=minutes,
        workers=workers,
        quiet=quiet,
    )
    typer.echo(training.train(wanted, options))
