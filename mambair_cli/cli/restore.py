"""upscale, denoise, derain, decompress: one flow, one set of options."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Annotated

import typer

from mambair_cli.cli.options import MODEL, RestoreOptions, with_restore_options
from mambair_cli.errors import MambairError, UsageError

if TYPE_CHECKING:
    import torch

    from mambair_cli.cli.progress import Reporter
    from mambair_cli.files import Job
    from mambair_cli.models.zoo import ModelSpec
    from mambair_cli.restoring.batch import Load, Settings
    from mambair_cli.restoring.record import Record
    from mambair_cli.restoring.request import Request
    from mambair_cli.restoring.restorer import Restorer

SIZE = "Target size"

Scale = Annotated[
    int | None, typer.Option("-s", "--scale", metavar="2|3|4", help="Default: the model's.", show_default=False)
]
Compressed = Annotated[
    bool | None,
    typer.Option(
        "--compressed/--clean",
        help="For pictures that went through JPEG, or did not. Default: as the file's format says.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
Width = Annotated[int | None, typer.Option(metavar="N", min=1, help="In pixels.", rich_help_panel=SIZE)]
Height = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="With --width: fit into the box.", rich_help_panel=SIZE)
]
LongEdge = Annotated[int | None, typer.Option(metavar="N", min=1, help="In pixels.", rich_help_panel=SIZE)]
Megapixels = Annotated[float | None, typer.Option(metavar="N", min=0.01, help="In all.", rich_help_panel=SIZE)]
Sigma = Annotated[
    str | None,
    typer.Option(
        metavar="0-255|real|auto",
        help="Standard deviation of the noise, real for a camera's, auto to measure it. Default: any noise.",
        show_default=False,
    ),
]
Quality = Annotated[
    int | None,
    typer.Option(
        metavar="1-100", min=1, max=100, help="Of the JPEG. Default: read off the file.", show_default=False
    ),
]


@with_restore_options
def upscale(
    scale: Scale = None,
    compressed: Compressed = None,
    width: Width = None,
    height: Height = None,
    long_edge: LongEdge = None,
    megapixels: Megapixels = None,
    *,
    options: RestoreOptions,
) -> None:
    """Enlarge pictures 2, 3 or 4 times, or to a size.

    [bold]Examples[/]

    \b
    mambair upscale photo.jpg                   photo_x4.jpg, next to it
    mambair upscale -s 2 -m base *.png -o big/  another model, into a folder
    mambair upscale --long-edge 3840 photo.jpg  enough for a 4K screen
    mambair upscale --compare photo.jpg         and a page that shows the gain
    mambair upscale -r album/ -o big/           a tree; again: go on with it
    cat a.png | mambair upscale - > b.png       through pipes

    Without -m, JPEG, WebP, HEIC and AVIF go through a model that knows
    noise and artefacts, PNG and TIFF through one for clean pictures;
    [bold]--clean[/] and [bold]--compressed[/] say otherwise. Most published models are
    for clean ones: for noisy photos try [bold]-m real[/].
    Orientation, colour profile, transparency and metadata are kept.
    For a target size the smallest scale that is enough runs, then the result
    is shrunk; pictures that are large enough are shrunk only, unless -s is
    given: then they are restored first.
    """
    from mambair_cli.restoring.fit import Fit
    from mambair_cli.restoring.request import SCALES, Request

    if scale not in (None, *SCALES):
        raise UsageError(f"no model enlarges x{scale}", f"Scales: {', '.join(map(str, SCALES))}.")
    fit = Fit(width, height, long_edge, megapixels)
    _restore(Request("upscale", scale=scale, compressed=compressed, fit=fit), fit.tag if fit else "x{scale}", options)


@with_restore_options
def denoise(sigma: Sigma = None, *, options: RestoreOptions) -> None:
    """Remove noise.

    [bold]Examples[/]

    \b
    mambair denoise scan.png                    scan_denoised.png
    mambair denoise --sigma 25 scan.png         noise of a known strength
    mambair denoise --sigma auto *.png -o out/  measured, picture by picture
    mambair denoise --sigma real photo.jpg      a camera's noise

    Where nobody trained for the strength, the nearest one above is taken,
    and named.
    """
    from mambair_cli.restoring.request import Request

    _restore(Request("denoise", sigma=noise_wish(sigma)), "denoised", options)


@with_restore_options
def derain(*, options: RestoreOptions) -> None:
    """Remove rain streaks.

    [bold]Examples[/]

    \b
    mambair derain street.jpg                   street_derained.jpg
    mambair derain -r frames/ -o dry/           a tree, mirrored
    """
    from mambair_cli.restoring.request import Request

    _restore(Request("derain"), "derained", options)


@with_restore_options
def decompress(quality: Quality = None, *, options: RestoreOptions) -> None:
    """Remove JPEG artefacts.

    [bold]Examples[/]

    \b
    mambair decompress old.jpg                  old_decompressed.jpg
    mambair decompress old.jpg --format png     without a new loss
    mambair decompress --quality 10 shot.png    a JPEG that became a PNG

    The quality is read off the JPEG's own quantisation tables. Grey models
    restore the luma of colour pictures and keep their chroma, as is usual
    in the field.
    """
    from mambair_cli.restoring.request import Request

    _restore(Request("decompress", quality=quality), "decompressed", options)


def noise_wish(text: str | None) -> int | str | None:
    if text in (None, "real", "auto"):
        return text
    try:
        value = float(str(text))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 255:
        raise UsageError(f"--sigma {text} makes no sense", "A number from 0 to 255, real, or auto.")
    return round(value)


# --- the flow, from options to exit status --------------------------------------------------------------------


def _restore(request: Request, tag: str, options: RestoreOptions) -> None:
    request, jobs, notes = _prepare(request, tag, options)
    if options.dry_run:
        return _rehearse(request, jobs, notes, options)

    from mambair_cli import scan
    from mambair_cli.cli.progress import Reporter
    from mambair_cli.restoring import batch
    from mambair_cli.restoring.restorer import pick_device

    device = pick_device(options.device)
    scan.chosen_backend(device)  # raises where MAMBAIR_SCAN makes no sense
    stdout_is_free = all(job.target or job.error for job in jobs)
    with Reporter(len(jobs), quiet=options.quiet, json=options.json, paths=stdout_is_free) as reporter:
        for note in notes:
            reporter.say(note)
        load = _loader(device, options, reporter)
        batch.run(jobs, request.model_for, load, _settings(request, options), reporter)
    raise typer.Exit(1 if reporter.counts["failed"] else 0)


def _prepare(request: Request, tag: str, options: RestoreOptions) -> tuple[Request, list[Job], list[str]]:
    """All that can be wrong before a network is loaded, and what the user should know. Raises UsageError or
    Unavailable."""
    from mambair_cli import files
    from mambair_cli.images import formats
    from mambair_cli.restoring import running
    from mambair_cli.restoring.request import level_note

    running.check_device(options.device)
    running.check_precision(options.precision)
    running.check_tile(options.tile, options.overlap)
    inputs, listed = list(options.inputs or ()), []
    if options.files_from:
        listed = files.read_list(options.files_from)
        if options.files_from == files.STREAM and files.STREAM in inputs + listed:
            raise UsageError("stdin cannot be a picture and a list", "Leave out one of the two.")
    if not inputs + listed:
        raise UsageError("no pictures given", f"For example: mambair {request.task} photo.jpg")
    _check_streams(inputs + listed, options)
    form = formats.of_choice(options.format) if options.format else None
    request = replace(request, model=options.model, spec=_spec_of_weights(request, options))
    nominal = request.nominal()
    naming = files.Naming(tag.format(scale=nominal.scale), options.output, form, options.name, options.compare)
    sources = files.find(inputs, options.recursive, listed)
    jobs = files.plan(sources, naming, options.force)
    notes = [level_note(request, nominal)]
    if left_out := len(sources) - len(jobs):
        notes.append(f"{left_out} left out, as results of an earlier run")
    return request, jobs, [note for note in notes if note]


def _check_streams(inputs: list[str], options: RestoreOptions) -> None:
    """stdin and stdout can carry one thing each, and no terminal wants a picture's bytes."""
    if "-" in inputs and sys.stdin.isatty():
        raise UsageError("stdin is a terminal, not a picture", "Redirect a file into it: < photo.jpg")
    if not options.dry_run and (options.output == "-" or (options.output is None and inputs == ["-"])):
        if options.json:
            raise UsageError("the picture and --json cannot share stdout", "Write the picture with -o FILE.")
        if sys.stdout.isatty():
            raise UsageError("a picture is nothing to show as text", "Redirect it (> out.png), or use -o FILE.")


def _spec_of_weights(request: Request, options: RestoreOptions) -> ModelSpec | None:
    """What `--weights` alone means: the architecture is read off the file."""
    if options.weights is None or options.model is not None:
        return None
    from mambair_cli.models import checkpoints

    spec = checkpoints.spec_for_file(options.weights)
    if (spec.scale > 1) != (request.task == "upscale") or request.scale not in (None, spec.scale):
        raise UsageError(
            f"{options.weights} enlarges x{spec.scale}: it cannot {request.task}"
            + (f" x{request.scale}" if request.scale else ""),
            "Choose the command and the scale that it was trained for.",
        )
    if request.compressed and not spec.compressed:
        raise UsageError(f"{options.weights} is not made for compressed pictures.", "Leave --compressed out.")
    return spec


def _loader(device: torch.device, options: RestoreOptions, reporter: Reporter) -> Load:
    """Networks by spec, each loaded once."""
    from mambair_cli.models import checkpoints
    from mambair_cli.restoring.restorer import Restorer

    @cache
    def load(spec: ModelSpec) -> Restorer:
        with reporter.paused():
            network, sha256 = checkpoints.load(spec, options.weights, offline=options.offline, quiet=options.quiet)
        return Restorer(
            spec,
            network,
            device=device,
            precision=options.precision,
            tile=options.tile,
            overlap=options.overlap,
            ensemble=options.ensemble,
            seed=options.seed,
            sha256=sha256,
        )

    return load


def _settings(request: Request, options: RestoreOptions) -> Settings:
    from mambair_cli.images.encode import Encoding
    from mambair_cli.restoring.batch import Settings

    return Settings(
        encoding=Encoding(options.png_level, options.output_quality, options.strip_metadata),
        max_pixels=options.max_pixels,
        fit=request.fit,
        force=options.force,
        fail_fast=options.fail_fast,
    )


def _rehearse(request: Request, jobs: list[Job], notes: list[str], options: RestoreOptions) -> None:
    """`--dry-run`: what would be done, on stdout. Loads no torch."""
    for note in () if options.quiet else notes:
        print(note, file=sys.stderr)
    failed = False
    for job in jobs:
        record, reason = _rehearsal(job, request, options)
        failed |= record.status == "failed"
        sizes = f"{_by(record.input_size)} -> {_by(record.output_size)}"
        size = f" ({record.model or 'resampled'}, {sizes})" if record.output_size else ""
        target = f" -> {job.output}" if job.output else ""
        print(record.json() if options.json else f"{job.input}{target}{size}{reason}", flush=True)
    raise typer.Exit(1 if failed else 0)


def _rehearsal(job: Job, request: Request, options: RestoreOptions) -> tuple[Record, str]:
    from mambair_cli.images import encode
    from mambair_cli.images.decode import read_picture
    from mambair_cli.restoring.record import Record

    if job.error:
        return Record(job.input, None, "failed", job.error), f": fails: {job.error}"
    if job.target is not None and os.path.exists(job.target) and not options.force:
        return Record(job.input, job.output, "skipped"), ": exists, skipped"
    if job.source is None:  # reading it would take it away from the real run
        return Record(job.input, job.output, "skipped", "dry run"), ""
    try:
        picture = read_picture(job.source, options.max_pixels)
        spec = request.model_for(picture, lambda text: None)
        size = request.result_size(picture.size, spec)
        encode.check(job.format, size, len(picture.frames))
    except MambairError as error:
        return Record(job.input, job.output, "failed", str(error)), f": fails: {error.message}"
    record = Record(
        job.input,
        job.output,
        "skipped",
        "dry run",
        model=spec.name if spec else None,
        scale=spec.scale if spec else None,
        input_size=picture.size,
        output_size=size,
    )
    return record, ""


def _by(size: tuple[int, int] | None) -> str:
    return "x".join(map(str, size or ()))
