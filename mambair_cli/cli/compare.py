"""compare: before and after, for the eye."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from mambair_cli.errors import UsageError

Before = Annotated[Path, typer.Argument(metavar="BEFORE", help="A picture.")]
After = Annotated[Path, typer.Argument(metavar="AFTER", help="The same, restored. Sizes may differ.")]
Output = Annotated[
    Path,
    typer.Option(
        "-o", "--output", metavar="FILE.png|.html", help="A sheet of enlarged crops, or a page with a slider."
    ),
]

Force = Annotated[bool, typer.Option("-f", "--force", help="Replace the file if it is there.")]


def compare(before: Before, after: After, output: Output = Path("compare.html"), force: Force = False) -> None:
    """Show what a restoration did: a page with a draggable slider, or a sheet of crops.

    [bold]Examples[/]

    \b
    mambair compare photo.jpg photo_x4.jpg       compare.html, for a browser
    mambair compare noisy.png clean.png -o compare.png

    The page holds both pictures and needs no network. A smaller picture is enlarged (bicubic) to the other's size.
    """
    from mambair_cli import compare as comparison

    if output.exists() and not force:
        raise UsageError(f"{output} is there already.", "Give another name with -o, or --force to replace it.")
    comparison.compare(before, after, output)
    typer.echo(os.fsencode(output))  # bytes, as names need not be UTF-8
