"""Every option that commands share, declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from mambair_cli.images.formats import CHOICES, MAX_PIXELS, MAX_RESULT_PIXELS

MODEL = "Model"
RUNNING = "How it runs"
RESULT = "Result"
BATCH = "Batch"


def completion(*words: str) -> Callable[[str], list[str]]:
    """Shell completion of one of these words."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def complete_model(incomplete: str) -> list[tuple[str, str]]:
    from mambair_cli.models import zoo

    return zoo.complete(incomplete)


Model = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--model",
        metavar="NAME",
        envvar="MAMBAIR_MODEL",
        help="A model or alias: light, base, large, real, ... (`mambair models list`). Default: the bundled one.",
        autocompletion=complete_model,
        rich_help_panel=MODEL,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="A local checkpoint: with -m as that model, alone by the architecture that is read off it.",
        rich_help_panel=MODEL,
    ),
]
Offline = Annotated[
    bool,
    typer.Option("--offline", envvar="MAMBAIR_OFFLINE", help="Never use the network.", rich_help_panel=MODEL),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda[:i]|mps",
        envvar="MAMBAIR_DEVICE",
        help="Where to compute; cuda:0,cuda:1 or all: a worker on each.",
        autocompletion=completion("auto", "cpu", "cuda", "mps"),
        rich_help_panel=RUNNING,
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        metavar="auto|fp32|bf16|fp16",
        help="auto: bf16 where device and network gain by it, fp32 elsewhere.",
        autocompletion=completion("auto", "fp32", "bf16", "fp16"),
        rich_help_panel=RUNNING,
    ),
]
Tile = Annotated[
    str,
    typer.Option(
        metavar="auto|N|off",
        help="Side of the tiles in input pixels; auto fits them to the free memory.",
        autocompletion=completion("auto", "off"),
        rich_help_panel=RUNNING,
    ),
]
Overlap = Annotated[
    int | None,
    typer.Option(metavar="N", min=0, help="Input pixels that neighbouring tiles share.", rich_help_panel=RUNNING),
]
Ensemble = Annotated[
    bool,
    typer.Option(
        "--ensemble",
        help="Mean over the eight flips and transposes: slightly better, eight times the work.",
        rich_help_panel=RUNNING,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        metavar="N", help="Of the random routes in MambaIRv2; same seed, same pixels.", rich_help_panel=RUNNING
    ),
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, and nothing else.", rich_help_panel=BATCH)]
Log = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Append all that is told to a file, with times and a line a picture.",
        rich_help_panel=BATCH,
    ),
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only errors.", rich_help_panel=BATCH)]

Inputs = Annotated[
    list[str] | None,
    typer.Argument(metavar="INPUT...", help="Pictures, folders, quoted globs, or - for stdin.", show_default=False),
]
Output = Annotated[
    str | None,
    typer.Option(
        "-o",
        "--output",
        metavar="PATH",
        help="A file, a folder (made if need be), or - for stdout. Default: next to the input.",
        rich_help_panel=RESULT,
    ),
]
FormatChoice = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="png|jpg|webp|tiff|avif",
        help="Default: that of the input where it can be written, PNG for the rest.",
        autocompletion=completion(*CHOICES),
        rich_help_panel=RESULT,
    ),
]
Name = Annotated[
    str | None,
    typer.Option(
        metavar="TEMPLATE",
        help=r"Of {stem}, {name}, {tag} and {ext}. Default: {stem}_{tag}{ext}, with -o FOLDER {stem}{ext}.",
        rich_help_panel=RESULT,
    ),
]
PngLevel = Annotated[
    int,
    typer.Option(
        metavar="0-9", min=0, max=9, help="PNG compression: 1 is fast, 9 is slow and small.", rich_help_panel=RESULT
    ),
]
OutputQuality = Annotated[
    int | None,
    typer.Option(
        metavar="1-100",
        min=1,
        max=100,
        help="Of JPEG, AVIF and lossy WebP. Default: the input's, at least 90.",
        rich_help_panel=RESULT,
    ),
]
StripMetadata = Annotated[
    bool,
    typer.Option(
        "--strip-metadata",
        help="Leave out EXIF, XMP, text and resolution. The colour profile stays.",
        rich_help_panel=RESULT,
    ),
]
Compare = Annotated[
    bool,
    typer.Option(
        "--compare",
        help="Beside each result a page with a slider between before and after: NAME_compare.html.",
        rich_help_panel=RESULT,
    ),
]
Recursive = Annotated[
    bool, typer.Option("-r", "--recursive", help="Folders within folders, mirrored with -o.", rich_help_panel=BATCH)
]
FilesFrom = Annotated[
    str | None,
    typer.Option(metavar="FILE|-", help="Inputs from a list, separated by newlines or NULs.", rich_help_panel=BATCH),
]
Base = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="With -o FOLDER: keep the tree of listed inputs below this folder. Default: the folder they share.",
        rich_help_panel=BATCH,
    ),
]
Watch = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        file_okay=False,
        help="Restore what is in a folder and what arrives there, each file once, until interrupted.",
        rich_help_panel=BATCH,
    ),
]
Force = Annotated[
    bool, typer.Option("-f", "--force", help="Redo what is there; by default it is skipped.", rich_help_panel=BATCH)
]
DryRun = Annotated[
    bool, typer.Option("-n", "--dry-run", help="Say what would be done, and do nothing.", rich_help_panel=BATCH)
]
FailFast = Annotated[
    bool, typer.Option("--fail-fast", help="Stop at the first picture that fails.", rich_help_panel=BATCH)
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help=f"Refuse larger inputs, which may be bombs, and larger results. Default: {MAX_PIXELS // 10**6} million "
        f"and {MAX_RESULT_PIXELS // 10**6} million.",
        show_default=False,
        rich_help_panel=BATCH,
    ),
]
Shard = Annotated[
    str | None,
    typer.Option(
        metavar="I/N|auto",
        help="Only the I-th of N parts, by the names of the pictures: one part a machine. "
        "auto: as SLURM, Kubernetes, torchrun, MPI, ... say; auto/N where they do not say N.",
        rich_help_panel=BATCH,
    ),
]
WORKERS = "Many workers"
Engine = Annotated[
    str,
    typer.Option(
        metavar="local|ray",
        help="Who runs them: this machine, or a Ray cluster (pip install 'mambair\\[ray]').",
        autocompletion=completion("local", "ray"),
        rich_help_panel=WORKERS,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Processes, each with its own network. Default: one for each device; in a cluster for each GPU, "
        "without any for each core.",
        rich_help_panel=WORKERS,
        show_default=False,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="CPU threads of each worker. Default: the cores divided; in a cluster one.",
        rich_help_panel=WORKERS,
        show_default=False,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Of the cluster: auto, HOST:PORT or ray://HOST:PORT. Default: RAY_ADDRESS, else one on this machine.",
        rich_help_panel=WORKERS,
    ),
]


@dataclass(frozen=True)
class RestoreOptions:
    """The options that all tasks share."""

    inputs: Inputs = None
    output: Output = None
    format: FormatChoice = None
    name: Name = None
    png_level: PngLevel = 1
    output_quality: OutputQuality = None
    strip_metadata: StripMetadata = False
    compare: Compare = False
    model: Model = None
    weights: Weights = None
    offline: Offline = False
    ensemble: Ensemble = False
    tile: Tile = "auto"
    overlap: Overlap = None
    device: Device = "auto"
    precision: Precision = "auto"
    seed: Seed = 0
    recursive: Recursive = False
    files_from: FilesFrom = None
    base: Base = None
    watch: Watch = None
    force: Force = False
    dry_run: DryRun = False
    fail_fast: FailFast = False
    shard: Shard = None
    engine: Engine = "local"
    workers: Workers = None
    threads: Threads = None
    address: Address = None
    max_pixels: MaxPixels = None
    json: Json = False
    log: Log = None
    quiet: Quiet = False


def with_options(command: Callable[..., None], own: Mapping[str, Any], shared: type[Any]) -> Callable[..., None]:
    """Turn `command(options, **own)` into a command with options of its own (by name, as annotations; all default to
    None) and all fields of a dataclass of `shared` ones."""
    hints = get_type_hints(shared, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(name, keyword, default=None, annotation=hint) for name, hint in own.items()]
    parameters += [
        inspect.Parameter(f.name, keyword, default=f.default, annotation=hints[f.name]) for f in fields(shared)
    ]

    @wraps(command)
    def collected(**values: Any) -> None:
        options = shared(**{f.name: values.pop(f.name) for f in fields(shared)})
        command(options, **values)

    collected.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    collected.__annotations__ = {p.name: p.annotation for p in parameters}
    return collected
