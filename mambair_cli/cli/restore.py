"""The commands of the tasks, made from their records: one flow, one set of options."""

from __future__ import annotations

import glob
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mambair_cli import __version__, console
from mambair_cli.cli import watching
from mambair_cli.cli.options import MODEL, RestoreOptions, completion, with_options
from mambair_cli.errors import UsageError, printable
from mambair_cli.streams import stdout_is_terminal
from mambair_cli.task import Level, Task, Value
from mambair_cli.workers import engines

if TYPE_CHECKING:
    from mambair_cli.cli.progress import Reporter
    from mambair_cli.files import Job, Naming
    from mambair_cli.restoring.record import Record
    from mambair_cli.restoring.request import Request
    from mambair_cli.restoring.restorer import Restorers
    from mambair_cli.restoring.steps import Settings
    from mambair_cli.workers import team as teams

    MakeTeam = Callable[[teams.Work], teams.Team]
    Run = Callable[[Reporter], None]

SIZE = "Target size"
STREAMS = (0, "stdin"), (1, "stdout")

# What a task that enlarges takes beside the shared options.
ENLARGING: dict[str, Any] = {
    "scale": Annotated[
        float | None,
        typer.Option(
            "-s",
            "--scale",
            metavar="N",
            help="2, 3, 4, or any: 8 and 1.5 too. Default: the model's.",
            autocompletion=completion("2", "3", "4", "1.5", "6", "8"),
            show_default=False,
        ),
    ],
    "compressed": Annotated[
        bool | None,
        typer.Option(
            "--compressed/--clean",
            help="For pictures that went through JPEG, or did not. Default: as the file's format says.",
            show_default=False,
            rich_help_panel=MODEL,
        ),
    ],
    "width": Annotated[int | None, typer.Option(metavar="N", min=1, help="In pixels.", rich_help_panel=SIZE)],
    "height": Annotated[
        int | None, typer.Option(metavar="N", min=1, help="With --width: fit into the box.", rich_help_panel=SIZE)
    ],
    "long_edge": Annotated[int | None, typer.Option(metavar="N", min=1, help="In pixels.", rich_help_panel=SIZE)],
    "megapixels": Annotated[float | None, typer.Option(metavar="N", min=0.01, help="In all.", rich_help_panel=SIZE)],
}
FIT = ("width", "height", "long_edge", "megapixels")


def command_of(task: Task) -> Callable[..., None]:
    """The command of a task: its own options and those that all tasks share."""
    own = dict(ENLARGING) if task.enlarges else {}
    if task.level:
        option = typer.Option(metavar=task.level.metavar, help=task.level.help, show_default=False)
        own[task.level.name] = Annotated[str | None, option]
    if task.share:
        option = typer.Option(metavar="0-1", min=0.0, max=1.0, help=task.share.help, show_default=False)
        own[task.share.name] = Annotated[float | None, option]

    def command(options: RestoreOptions, **values: Any) -> None:
        voice = console.set_up(options.quiet, _log(options))
        voice.note(f"mambair {__version__}: {shlex.join(sys.argv[1:])}")
        _restore(request_of(task, values, options), options)

    command.__name__, command.__doc__ = task.name, task.about
    return with_options(command, own, RestoreOptions)


def read_level(level: Level, text: str | None) -> Value:
    """The value of a level's option: a whole number, or one of its words. Raises UsageError."""
    words = (*level.words, *([level.measured_as] if level.measured_as else ()))
    if text is None or text in words:
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not level.low <= value <= level.high:
        also = "".join(f", {word}" for word in words[:-1]) + (f", or {words[-1]}" if words else "")
        raise UsageError(f"--{level.name} {text} makes no sense", f"A number from {level.low} to {level.high}{also}.")
    return round(value)


# --- the flow, from options to exit status --------------------------------------------------------------------


def request_of(task: Task, values: dict[str, Any], options: RestoreOptions) -> Request:
    """What the options ask for: a task's own `values` by name, and the shared ones. Raises UsageError."""
    from mambair_cli.models import checkpoints
    from mambair_cli.restoring.fit import Fit
    from mambair_cli.restoring.request import Request

    if task.level:
        values[task.level.name] = read_level(task.level, values[task.level.name])
    fit = Fit(**{name: values.pop(name) for name in FIT if name in values})
    return Request(task.name, fit=fit, model=checkpoints.named(options.model, options.weights)[0], **values)


def _restore(request: Request, options: RestoreOptions) -> None:
    from mambair_cli.models import checkpoints

    voice = console.voice
    options = watching.checked(_with_streams(options))
    how = (options.precision, options.tile, options.overlap, options.ensemble, options.seed)
    running = engines.running(options.device, *how)
    engine = engines.find(options.engine)
    file = checkpoints.named(options.model, options.weights)[1]
    work = _prepare(request, file, options)
    for note in work.notes:
        voice.say(note)
    if work.total == 0 and not options.watch:
        voice.say(_nothing(options), None)
        raise typer.Exit
    if options.dry_run:
        return _rehearse(work.request, work.jobs, options)

    from mambair_cli import files
    from mambair_cli.cli.progress import Reporter
    from mambair_cli.restoring.restorer import Restorers

    restorers = Restorers(running, file, options.offline)
    wanted = engines.Wanted(options.device, options.workers, options.threads, options.address)
    by = _by_workers if engine.needed(wanted) else _here
    run = by(work, restorers, lambda work: engine.team(work, wanted), options)
    total = None if options.watch else work.total
    with Reporter(voice, total, json=options.json, paths=work.stdout_is_free) as reporter:
        run(reporter)
    if not reporter.counts:
        voice.say(_nothing(options), None)
    if work.others:
        voice.say(files.left_alone(work.others))
    raise typer.Exit(1 if reporter.failed else 0)


def _here(work: Prepared, restorers: Restorers, make: MakeTeam, options: RestoreOptions) -> Run:
    """The work in this process. Raises UsageError where it cannot be done."""
    import torch

    from mambair_cli import scan
    from mambair_cli.restoring import batch
    from mambair_cli.restoring.restorer import pick_device

    if options.threads:
        torch.set_num_threads(options.threads)
    scan.chosen_backend(pick_device(restorers.running.device))  # raises where MAMBAIR_SCAN makes no sense
    if options.watch:
        naming = _naming(work.request, options)
        return lambda to: watching.watch(work.request, naming, restorers, _settings(options), options, to)
    return lambda to: batch.run(work.jobs, work.request, restorers, _settings(options), to)


def _by_workers(work: Prepared, restorers: Restorers, make: MakeTeam, options: RestoreOptions) -> Run:
    """The work by others, who take what they read and write from files and stores. Raises UsageError, Unavailable."""
    from mambair_cli.models import checkpoints
    from mambair_cli.restoring import spread
    from mambair_cli.restoring.hand import Networks, Restoring

    if options.watch:
        raise UsageError("--watch restores in one process", "Leave out --workers, --engine and all devices but one.")
    if "-" in (options.output, *(options.inputs or ())):
        raise UsageError("stdin and stdout belong to one process", "Name files, or leave out --workers and --engine.")
    nominal = work.request.nominal()
    if restorers.weights is None and not nominal.source.bundled:
        checkpoints.fetch(nominal, offline=restorers.offline)  # once, not by every worker
    restoring = Restoring(work.request, Networks(restorers), _settings(options), time.time())
    team = make(restoring)
    return lambda to: spread.run(work.jobs, team, restoring.settings, to)


@dataclass(frozen=True)
class Prepared:
    """What a command is to do."""

    request: Request
    jobs: Iterable[Job]
    total: int | None  # None: nobody has counted the pictures of a store
    notes: Sequence[str]
    stdout_is_free: bool
    others: Mapping[str, int]  # files of other kinds that are met only while the work is done


def _prepare(request: Request, file: Path | None, options: RestoreOptions) -> Prepared:
    """All that can be wrong before a network is loaded. Raises UsageError or Unavailable."""
    from mambair_cli import elsewhere, files, places, shards

    inputs, listed = [places.localised(name) for name in options.inputs or ()], []
    if options.files_from:
        listed = [places.localised(name) for name in files.read_list(options.files_from)]
        if options.files_from == files.STREAM and files.STREAM in inputs + listed:
            raise UsageError("stdin cannot be a picture and a list", "Leave out one of the two.")
    if not inputs and not options.files_from:
        raise UsageError("no pictures given", f"For example: mambair {request.task} photo.jpg")
    _check_streams(inputs + listed, options)
    _check_last(inputs, request.task, options)
    if file and request.model is None:
        request = request.for_weights(file)
    nominal = request.nominal()
    naming = _naming(request, options)
    shard = shards.parse(options.shard, os.environ) if options.shard else shards.WHOLE
    notes = [request.level_note(nominal)]
    search = elsewhere.Search(inputs, listed, naming, options.recursive, options.base)
    if search.needed:
        stream = (job for job in search.jobs() if shard.holds(job.name))
        free = naming.output != files.STREAM
        return Prepared(request, stream, None, [note for note in notes if note], free, search.others)
    sources = files.find(inputs, options.recursive, listed, options.base)
    whole = files.plan(sources, naming, options.force, strict=not options.watch)
    jobs = [job for job in whole if shard.holds(job.name)]
    if left_out := len(sources) - len(whole):
        notes.append(f"{left_out} left out, as results of an earlier run")
    if sources.others:
        notes.append(files.left_alone(sources.others))
    if options.shard:
        notes.append(f"part {shard.index} of {shard.count}: {len(jobs)} of {len(whole)} pictures")
    stdout_is_free = all(job.target or job.error for job in jobs)
    return Prepared(request, jobs, len(jobs), [note for note in notes if note], stdout_is_free, {})


def _naming(request: Request, options: RestoreOptions) -> Naming:
    """How results are called. Raises UsageError."""
    from mambair_cli import files, places
    from mambair_cli.images import formats

    form = formats.of_choice(options.format) if options.format else None
    output = places.localised(options.output) if options.output else None
    return files.Naming(request.tag, output, form, options.name, options.compare)


def _nothing(options: RestoreOptions) -> str:
    """What to say where there is nothing to do, which is no error."""
    where = ", ".join((*(options.inputs or ()), *([options.files_from] if options.files_from else ())))
    deeper = "" if options.recursive or not options.inputs else "; folders within folders: -r"
    return f"nothing to do: no pictures in {where}{deeper}"


def _log(options: RestoreOptions) -> Path | None:
    """The file that lines are appended to. Raises UsageError for what is no log by its name."""
    from mambair_cli.images.formats import RAW_SUFFIXES, READABLE_SUFFIXES

    if options.log and options.log.suffix.lower() in READABLE_SUFFIXES | RAW_SUFFIXES:
        raise UsageError(f"{options.log} is called like a picture, not like a log", "For example: --log mambair.log")
    return None if options.dry_run else options.log


def _with_streams(options: RestoreOptions) -> RestoreOptions:
    """The options with stdin and stdout called "-", whatever the system calls them."""
    stdin, stdout = (
        dict.fromkeys((f"/dev/{name}", f"/dev/fd/{n}", f"/proc/self/fd/{n}"), "-") for n, name in STREAMS
    )
    return replace(
        options,
        inputs=[stdin.get(name, name) for name in options.inputs or ()],
        files_from=stdin.get(options.files_from or "", options.files_from),
        output=stdout.get(options.output or "", options.output),
    )


def _check_last(inputs: list[str], task: str, options: RestoreOptions) -> None:
    """`in.png out.png` and `*.png folder/`, as other programs take them, are no inputs. Raises UsageError."""
    *others, last = inputs or [""]
    meant = (len(others) == 1 and (others[0] == "-" or os.path.exists(others[0]))) or last.endswith(("/", os.sep))
    if options.output is None and others and meant and not os.path.lexists(last) and not glob.has_magic(last):
        raise UsageError(
            f"{last} is not there to be read",
            f"If the result is to go there: mambair {task} {shlex.join(others[:3])}{' ...' * (len(others) > 3)} "
            f"-o {shlex.quote(last)}",
        )


def _check_streams(inputs: list[str], options: RestoreOptions) -> None:
    """stdin and stdout can carry one thing each, and no terminal wants a picture's bytes."""
    if "-" in inputs and sys.stdin.isatty():
        raise UsageError("stdin is a terminal, not a picture", "Redirect a file into it: < photo.jpg")
    if not options.dry_run and (options.output == "-" or (options.output is None and inputs == ["-"])):
        if options.json:
            raise UsageError("the picture and --json cannot share stdout", "Write the picture with -o FILE.")
        if sys.stdout.isatty():
            raise UsageError("a picture is nothing to show as text", "Redirect it (> out.png), or use -o FILE.")


def _settings(options: RestoreOptions) -> Settings:
    from mambair_cli.images.encode import Encoding
    from mambair_cli.restoring.steps import Settings

    return Settings(
        encoding=Encoding(options.png_level, options.output_quality, options.strip_metadata),
        max_pixels=options.max_pixels,
        force=options.force,
        fail_fast=options.fail_fast,
        describe=options.json,
    )


def _rehearse(request: Request, jobs: Iterable[Job], options: RestoreOptions) -> None:
    """`--dry-run`: what would be done, on stdout. Loads no torch."""
    from mambair_cli.restoring.batch import rehearse

    failed = False
    for job in jobs:
        record = rehearse(job, request, _settings(options))
        failed |= record.status == "failed"
        line = record.json() if options.json else _rehearsed(record)
        print(printable(line) if stdout_is_terminal() else line, flush=True)
    raise typer.Exit(1 if failed else 0)


def _rehearsed(record: Record) -> str:
    """A line for people."""
    line = record.input + (f" -> {record.output}" if record.output else "")
    if record.input_size and record.output_size:
        sizes = " -> ".join("x".join(map(str, size)) for size in (record.input_size, record.output_size))
        how = filter(None, (record.model, "resampled" if record.resampled else None, sizes))
        line += f" ({', '.join(how)})"
    if record.status == "failed":
        return f"{line}: fails: {(record.error or '').splitlines()[0]}"
    return line if record.status == "planned" else f"{line}: exists, skipped"
