"""export: a network for other programs."""

from __future__ import annotations

import os
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from mambair_cli import console
from mambair_cli.cli.options import Json, Model, Offline, Quiet, Weights
from mambair_cli.errors import UsageError

File = Annotated[Path, typer.Argument(metavar="FILE.onnx|.pt2", help="What to write.", show_default=False)]
Side = Annotated[
    int, typer.Option(metavar="N", min=1, help="Side of the pictures that the file will take, in pixels.")
]
Force = Annotated[bool, typer.Option("-f", "--force", help="Replace the file if it is there.")]


def export(
    file: File,
    model: Model = None,
    weights: Weights = None,
    tile: Side = 256,
    offline: Offline = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a network as ONNX or as torch.export's .pt2, for programs without mambair.

    [bold]Examples[/]

    \b
    mambair export tiny-x4.onnx                      the network that upscale runs
    mambair export -m light --tile 128 light.onnx    a published one, for pictures of 128x128
    mambair export --weights mine.safetensors mine.pt2

    The file takes pictures of one size; how to tile larger ones around it is written in it and in docs/export.md. It
    is run and compared with the network before it appears. Networks of MambaIR and MambaIRv2; ONNX needs
    `pip install 'mambair\\[export]'`.
    """
    voice = console.set_up(quiet)
    if file.exists() and not force:
        raise UsageError(f"{file} is there already.", "Give another name, or --force to replace it.")
    from mambair_cli import export as exporting
    from mambair_cli.models import checkpoints, zoo

    name, local = checkpoints.named(model, weights)
    if name is not None:
        spec = zoo.find(name)
    else:
        spec = checkpoints.spec_for_file(local) if local else zoo.resolve("upscale")
    with voice.status(f"{spec.name}: tracing, writing and comparing; this takes a minute or more"):
        done = exporting.export(spec, file, tile, weights=local, offline=offline)
    if json:
        print(dumps({"file": str(done.file), **done.card}))
        return
    voice.say(
        f"{spec.name} for {tile}x{tile} pixels; differs from the network by {done.card['largest_difference']:.1e}."
    )
    typer.echo(os.fsencode(done.file))  # bytes, as names need not be UTF-8
