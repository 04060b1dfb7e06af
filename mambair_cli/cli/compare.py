"""compare: before and after, for the eye."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Before = Annotated[Path, typer.Argument(metavar="BEFORE", help="A picture.")]
After = Annotated[Path, typer.Argument(metavar="AFTER", help="The same, restored. Sizes may differ.")]
Output = Annotated[
    Path,
    typer.Option(
        "-o", "--output", metavar="FILE.png|.html", help="A sheet of enlarged crops, or a page with a slider."
    ),
]


def compare(before: Before, after: After, output: Output = Path("compare.html")) -> None:
    """Show what a restoration did: a page with a draggable slider, or a sheet of crops.

    [bold]Examples[/]

    \b
    mambair compare photo.jpg photo_x4.jpg                 compare.html, to open in a browser
    mambair compare noisy.png clean.png -o compare.png     crops side by side

    The page holds both pictures and needs no network. A smaller picture is enlarged (bicubic) to the other's size.
    """
    from mambair_cli import compare as comparison

    comparison.compare(before, after, output)
    print(output)
