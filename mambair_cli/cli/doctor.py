"""`mambair doctor`: what this machine has, what will be used, and why the rest will not."""

from __future__ import annotations

import json as jsonlib
import os
import platform
from collections.abc import Callable
from functools import partial
from io import StringIO
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from mambair_cli import __version__
from mambair_cli.atomic import atomic_write
from mambair_cli.cli import bundle as bundles
from mambair_cli.cli.options import Json
from mambair_cli.errors import MambairError, UsageError
from mambair_cli.models import checkpoints, zoo

# What changes the behaviour of the program or of the libraries under it.
VARIABLES = (
    *("MAMBAIR_CACHE", "MAMBAIR_DATA", "MAMBAIR_DEVICE", "MAMBAIR_MODEL", "MAMBAIR_OFFLINE", "MAMBAIR_SCAN"),
    *("MAMBAIR_ZOO", "CUDA_VISIBLE_DEVICES", "NO_COLOR", "OMP_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF"),
)
SECRETS = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")  # may hold a password: only that they are set


Bundle = Annotated[
    bool, typer.Option("--bundle", help="Write a text file for a report of a bug, without private paths and names.")
]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The file that --bundle writes.")]
Force = Annotated[bool, typer.Option("-f", "--force", help="Replace that file if it is there.")]


def doctor(
    json: Json = False, bundle: Bundle = False, output: Output = Path("mambair-report.txt"), force: Force = False
) -> None:
    """Say what this machine has, what will be used, and why the rest will not.

    [bold]Examples[/]

    \b
    mambair doctor                              for reading
    mambair doctor --json | jq .scan.chosen     for programs
    mambair doctor --bundle                     mambair-report.txt, to be sent with a report of a bug

    --bundle also checks the scan against plain PyTorch. It cuts paths down to their last part and leaves out the
    names of the user and the machine, addresses, and files that are no published model.
    """
    if json and bundle:
        raise UsageError("--json and --bundle are two reports.", "Ask for one of them.")
    if bundle and output.exists() and not force:
        raise UsageError(f"{output} is there already.", "Give another name with -o, or --force to replace it.")
    report = survey()
    if json:
        print(jsonlib.dumps(report, ensure_ascii=False))
    elif bundle:
        published = {spec.source.filename for spec in zoo.zoo().values()}
        shown = StringIO()
        _show(bundles.public(report, published | {f"{name}.json" for name in published}), shown)
        with atomic_write(output) as file:
            file.write(bundles.text(report, shown.getvalue()).encode())
        typer.echo(os.fsencode(output))  # bytes, as names need not be UTF-8
    else:
        _show(report)


def survey() -> dict[str, Any]:
    """Everything `doctor` knows, ready for JSON. Settings that make no sense are reported, not raised."""
    import numpy as np
    import PIL
    import torch

    from mambair_cli import scan
    from mambair_cli.restoring import restorer
    from mambair_cli.scan import causal, cpu

    devices = restorer.available_devices()
    return {
        "schema": 1,
        "versions": {
            "mambair": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        },
        "system": {
            "os": platform.platform(),
            "cpu": _processor(),
            "instruction_set": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "devices": [_device(name) for name in devices],
        "default_device": _answer(lambda: str(restorer.pick_device("auto"))),
        "scan": {
            "backends": [vars(backend) for backend in scan.backends()],
            "convolutions": [
                {
                    "name": "causal_conv1d",
                    "available": not causal.missing(),
                    "reason": causal.missing() or "the published CUDA kernel",
                }
            ],
            "chosen": {name: _answer(partial(scan.chosen_backend, name)) for name in devices},
            "hints": [cpu.INSTALL_HINT] if cpu.missing else [],
        },
        "cache": _cache(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ}
        | {name: "(set)" for name in SECRETS if name in os.environ},
    }


def _answer(question: Callable[[], str]) -> str:
    """The answer, or what is wrong with the setting that it depends on."""
    try:
        return question()
    except MambairError as error:
        return f"error: {error.message}"


def _processor() -> str:
    """The processor's name; Linux tells it in a file only."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _device(name: str) -> dict[str, Any]:
    import torch

    from mambair_cli.restoring import tiling

    device = torch.device(name)
    model = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    return {"name": name, "model": model, "total_bytes": total, "free_bytes": tiling.free_memory(device)}


def _cache() -> dict[str, Any]:
    try:
        folder = checkpoints.cache_dir()
    except MambairError as error:
        return {"path": "", "error": f"{error.message} {error.hint}", "files": [], "bytes": 0}
    try:
        files = [
            {"name": str(file.relative_to(folder)), "bytes": file.stat().st_size}
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        ]
    except OSError as error:
        return {"path": str(folder), "error": error.strerror, "files": [], "bytes": 0}
    return {"path": str(folder), "files": files, "bytes": sum(file["bytes"] for file in files)}


def _show(report: dict[str, Any], file: IO[str] | None = None) -> None:
    """For reading, on stdout or in a file."""
    from rich.console import Console
    from rich.markup import escape

    # Never wrapped: paths and reasons are there to be copied.
    console = Console(highlight=False, soft_wrap=True, file=file)

    def section(title: str, rows: list[tuple[str, str]]) -> None:
        console.print(f"[bold]{title}[/]")
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows or [("none", "")]:
            console.print(f"  {escape(name):{width}}  {value}".rstrip())
        console.print()

    system, scan, cache = report["system"], report["scan"], report["cache"]
    section("Versions", list(report["versions"].items()))
    section(
        "System",
        [
            ("os", escape(system["os"])),
            ("cpu", escape(f"{system['cpu']}, {system['instruction_set']}")),
            ("threads", f"{system['threads']} of {system['cores']} cores"),
        ],
    )
    section(
        "Devices",
        [
            (d["name"], escape(f"{d['model']}, {_size(d['free_bytes'])} free") + _of(d["total_bytes"]))
            for d in report["devices"]
        ]
        + [("used", escape(report["default_device"]))],
    )
    section(
        "Scan",
        [
            (b["name"], f"{'[green]available[/]' if b['available'] else '[red]missing[/]  '}  {escape(b['reason'])}")
            for b in scan["backends"] + scan["convolutions"]
        ]
        + [("used", escape(", ".join(f"{name} on {device}" for device, name in scan["chosen"].items())))]
        + [("hint", escape(hint)) for hint in scan["hints"]],
    )
    section(
        "Cache",
        [("folder", escape(cache["path"]) + (f" [red]{escape(cache['error'])}[/]" if "error" in cache else ""))]
        + [(file["name"], _size(file["bytes"])) for file in cache["files"]]
        + [("total", _size(cache["bytes"]))],
    )
    section("Environment", [(name, escape(value)) for name, value in report["environment"].items()])


def _of(total: int | None) -> str:
    return f" of {_size(total)}" if total else ""


def _size(count: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"
