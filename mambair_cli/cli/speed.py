"""speed: how fast this machine runs the networks, against the floor of their arithmetic."""

from __future__ import annotations

import re
import sys
from json import dumps
from typing import Annotated

import typer

from mambair_cli.cli.options import MODEL, Device, Json, Weights, complete_model
from mambair_cli.errors import UsageError

Models = Annotated[
    list[str] | None,
    typer.Option(
        "-m",
        "--model",
        metavar="NAME",
        help="Models or aliases; repeat for several. Default: the one that upscale runs.",
        autocompletion=complete_model,
        rich_help_panel=MODEL,
    ),
]
Scan = Annotated[bool, typer.Option("--scan", help="Time the selective scan alone, on every back end.")]
Ops = Annotated[
    bool, typer.Option("--ops", help="Where the time goes, op by op, and what more cores make of it (CPU).")
]
Size = Annotated[
    list[str] | None, typer.Option(metavar="WxH", help="Input sizes. Repeat for several. Default: 64x64 to 512x512.")
]
Backward = Annotated[bool, typer.Option("--backward", help="Time the gradients too.")]
Threads = Annotated[int | None, typer.Option(metavar="N", min=1, help="CPU threads.")]


def speed(
    model: Models = None,
    weights: Weights = None,
    scan: Scan = False,
    size: Size = None,
    backward: Backward = False,
    threads: Threads = None,
    device: Device = "auto",
    json: Json = False,
    ops: Ops = False,
) -> None:
    """Time models, or the scan alone, on this machine, and compare with the floor of their arithmetic.

    [bold]Examples[/]

    \b
    mambair speed                               the model that upscale runs
    mambair speed -m light -m base --size 256x256
    mambair speed -m light --backward           what a step of training takes
    mambair speed --scan --threads 1            the scan alone
    mambair speed --ops -m light --size 128x128 op by op, and on 2 to 64 cores

    The floor is what the network's arithmetic would take at the rates measured in the same run:
    time / floor can be compared between machines, seconds cannot. GMAC are multiply-adds as papers count them.
    [bold]mambair models list[/] shows the times of this machine.
    """
    networks_only = {"--model": model, "--weights": weights, "--size": size, "--backward": backward, "--ops": ops}
    idle = [option for option, value in networks_only.items() if value]
    if scan and idle:
        raise UsageError(f"{idle[0]} means nothing beside --scan.", "Leave one of them out.")
    if ops and backward:
        raise UsageError("--ops looks at restoring, not at training.", "Leave --backward out.")
    sizes = [_size(text) for text in size or ()]

    from rich.console import Console

    from mambair_cli import speed as speeds
    from mambair_cli.models import checkpoints, timings, zoo
    from mambair_cli.restoring.restorer import pick_device

    where = pick_device(device)
    report: speeds.OpsReport | speeds.SpeedReport
    if scan:
        report = speeds.measure_scans(where, threads)
    else:
        specs = [zoo.find(name) for name in model or ()]
        specs = specs or [checkpoints.spec_for_file(weights) if weights else zoo.resolve("upscale")]
        if ops:
            report = speeds.measure_all_ops(specs, sizes or [(128, 128)], where, threads)
        else:
            report = speeds.measure_speed(specs, sizes or speeds.DEFAULT_SIZES, where, threads, backward)
            if threads is None and where == pick_device("auto") and not weights:  # as the other commands run
                timings.note(report.seconds_per_megapixel)
    if json:
        print(dumps(report.document()))
    else:  # as wide as the terminal, and in a pipe as the tables need
        Console(width=None if sys.stdout.isatty() else 120).print(*report.tables(), sep="\n\n")


def _size(text: str) -> tuple[int, int]:
    """128x96 (width first) as (height, width)."""
    match = re.fullmatch(r"(\d+)x(\d+)", text.lower())
    if not match or 0 in map(int, match.groups()):
        raise UsageError(f"--size {text} is no size.", "For example --size 128x128, width first.")
    return int(match[2]), int(match[1])
