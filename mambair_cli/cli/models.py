"""`mambair models`: what there is, what is here, and how to get the rest."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from mambair_cli import console
from mambair_cli.cli.help import Command, Group
from mambair_cli.cli.options import Json, Offline, Quiet
from mambair_cli.errors import Unavailable, UsageError
from mambair_cli.models import checkpoints, timings, zoo
from mambair_cli.models.spec import ModelSpec
from mambair_cli.tasks import TASKS

HELP = """List, inspect, download and verify the models.

[bold]Examples[/]

\b
mambair models list                         all there are
mambair models info light                   what one is good for, and what not
mambair models download light base          fetch, verify, keep
"""

app = typer.Typer(cls=Group, no_args_is_help=True, rich_markup_mode="rich", help=HELP)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A model or an alias.", autocompletion=zoo.complete)]
Names = Annotated[list[str], typer.Argument(metavar="NAME", help="Models or aliases.", autocompletion=zoo.complete)]


@app.command("list", cls=Command)
def list_models(
    task: Annotated[
        str | None, typer.Option(metavar="TASK", help=f"Only models for one of {', '.join(TASKS)}.")
    ] = None,
    json: Json = False,
) -> None:
    """All models with size, score and licence, and whether they are on this machine.

    [bold]Examples[/]

    \b
    mambair models list --task denoise          only models for one task
    mambair models list --json | jq -r '.models[].name'

    The score is a published PSNR in dB; `mambair models info NAME` has the others, and how they were measured.
    S/MP are seconds for a megapixel of input, where [bold]mambair speed -m NAME[/] has measured them on this machine.
    """
    if task not in (None, *TASKS):
        raise UsageError(f"There is no task {task!r}.", f"Tasks: {', '.join(TASKS)}.")
    specs = [spec for spec in zoo.zoo().values() if task in (None, spec.task)]
    if json:
        print(jsonlib.dumps({"schema": 1, "models": [_record(spec) for spec in specs]}, ensure_ascii=False))
        return
    _show(specs)


def _show(specs: Iterable[ModelSpec]) -> None:
    """A line each; in a pipe with tabs."""
    head, times = ("MODEL", "JOB", "SIZE", "SCORE", "LICENCE", "HERE", "S/MP"), timings.known()
    rows = [(s.name, _job(s), _size(s), _score(s), s.licence, _here(s), _time(times.get(s.name))) for s in specs]
    if not sys.stdout.isatty():
        print("\n".join("\t".join(row) for row in (head, *rows)))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for column in head:
        table.add_column(column, justify="right" if column in ("SIZE", "S/MP") else "left", no_wrap=column != "JOB")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


@app.command(cls=Command)
def info(
    name: Name,
    bibtex: Annotated[bool, typer.Option("--bibtex", help="Only the citation, as BibTeX.")] = False,
    json: Json = False,
) -> None:
    """The card of a model: trained on what, good for what, scores with their protocol, licence.

    [bold]Examples[/]

    \b
    mambair models info tiny-x4                 a model
    mambair models info real                    all models behind an alias
    mambair models info light --bibtex          how to cite it

    Of the models behind an alias the first runs that does the job asked for; where all do the same one, its card
    follows.
    """
    behind = zoo.behind(name)
    one = zoo.find(name) if len({spec.task for spec in behind}) < 2 else None
    if bibtex:
        print("\n\n".join(dict.fromkeys(zoo.bibtex(spec).strip() for spec in ([one] if one else behind))))
    elif json:
        card = {**_record(one), "bibtex": zoo.bibtex(one)} if one else {}
        alias = {"alias": name, "models": [_record(spec) for spec in behind]} if behind else {}
        print(jsonlib.dumps({"schema": 1, **card, **alias}, ensure_ascii=False))
    else:
        if several := len(behind) > 1:
            _show(behind)
        if one:
            print("\n" * several + _card(one))


@app.command(cls=Command)
def path(name: Name) -> None:
    """Print where a model's file is.

    [bold]Examples[/]

    \b
    cp "$(mambair models path light)" backup/
    """
    spec = zoo.find(name)
    file = checkpoints.path(spec)
    if file is None:
        raise Unavailable(
            f"{spec.name} is not on this machine; it would be {checkpoints.place(spec)}.",
            f"Fetch it: mambair models download {spec.name}" if spec.source.urls else zoo.by_hand(spec),
        )
    print(file)


@app.command(cls=Command)
def download(names: Names, offline: Offline = False, quiet: Quiet = False) -> None:
    """Fetch models into the cache, verify them, and print where they are.

    [bold]Examples[/]

    \b
    mambair models download light base          one or several
    mambair models download light --offline     only look
    """
    console.set_up(quiet)
    failures = []
    for spec in dict.fromkeys(zoo.find(name) for name in names):
        try:
            print(checkpoints.fetch(spec, offline=offline))
        except Unavailable as failure:
            failures.append(failure)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise Unavailable("\n\n".join(str(failure) for failure in failures))


@app.command(cls=Command)
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME", help="Models or aliases; all that are here if none.", autocompletion=zoo.complete
        ),
    ] = None,
) -> None:
    """Compare the files on this machine with their published or recorded hashes; status 3 if one differs.

    [bold]Examples[/]

    \b
    mambair models verify                       all that are here
    mambair models verify light base            these, which must be here
    """
    from mambair_cli.models.download import sha256_of

    specs = [zoo.find(name) for name in names or ()] or [s for s in zoo.zoo().values() if checkpoints.path(s)]
    wrong, missing = [], []
    for spec in dict.fromkeys(specs):
        file = checkpoints.path(spec)
        if file is None:
            missing.append(spec.name)
            continue
        digest, known = sha256_of(file), checkpoints.known_hash(spec)
        verdict = "unknown" if known is None else "ok" if digest == known else "WRONG"
        print(f"{verdict}\t{spec.name}\t{digest}")
        if verdict == "WRONG":
            wrong.append(spec.name)
    failures = []
    if wrong:
        failures.append(f"Not the files they should be: {', '.join(wrong)}.")
        failures.append(f"Remove them, and they are fetched again: mambair models rm {' '.join(wrong)}")
    if missing:
        failures.append(f"Not on this machine: {', '.join(missing)}.")
        failures.append(f"Fetch them: mambair models download {' '.join(missing)}")
    if failures:
        raise Unavailable(failures[0], "\n".join(failures[1:]))


@app.command("import", cls=Command)
def import_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint fetched by hand.")],
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Which model it is.", autocompletion=zoo.complete)
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Copy a checkpoint fetched by hand into the cache; which model it is shows in its keys, shapes and name.

    [bold]Examples[/]

    \b
    mambair models import ~/Downloads/net_g_280000.pth
    mambair models import net_g_latest.pth --as vmambair-derain
    """
    voice = console.set_up(quiet)
    fits = [zoo.find(name)] if name else checkpoints.identify(file)
    spec = fits[0] if len(fits) == 1 else _ask(file, fits)
    voice.say(f"{file.name} is {spec.name}.", None)
    print(checkpoints.adopt(file, spec))


@app.command(cls=Command)
def rm(names: Names, quiet: Quiet = False) -> None:
    """Remove models from the cache, and forget the hashes recorded for them.

    [bold]Examples[/]

    \b
    mambair models rm light base                one or several
    """
    voice = console.set_up(quiet)
    for spec in dict.fromkeys(zoo.find(name) for name in names):
        done = checkpoints.forget(spec)
        voice.say(f"{spec.name} {'is removed' if done else 'was not here'}.", None)


# ------------------------------------------------------------------------------------------------------ in words


def _ask(file: Path, fits: list[ModelSpec]) -> ModelSpec:
    names = [spec.name for spec in fits]
    unsure = UsageError(f"{file.name} may be {' or '.join(names)}.", f"Say which: --as {names[0]}")
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise unsure
    from rich.console import Console
    from rich.prompt import IntPrompt

    console = Console(stderr=True, highlight=False)
    console.print(f"{file.name} may be", *(f"  {number}  {name}" for number, name in enumerate(names, 1)), sep="\n")
    try:
        choices = [str(number) for number in range(1, len(names) + 1)]
        return fits[IntPrompt.ask("Which", choices=choices, console=console) - 1]
    except EOFError:
        raise unsure from None


def _job(spec: ModelSpec) -> str:
    return f"{spec.task} {spec.level}{' compressed' if spec.compressed else ''}".strip()


def _size(spec: ModelSpec) -> str:
    return f"{'' if spec.source.bytes else '~'}{spec.bytes / 1e6:.{0 if spec.bytes > 1e7 else 1}f} MB"


def _score(spec: ModelSpec) -> str:
    return next((f"{psnr:.2f} {dataset}" for dataset, (psnr, _) in spec.published.items()), "")


def _time(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.3g}"


def _macs(spec: ModelSpec) -> str:
    if not spec.macs:
        return ""
    small, large = (f"{macs / 1e9:.3g} G" for macs in spec.macs)
    return f"{small} for 128x128 in, {large} for 1280x720 out; 9 for each of the scan's updates, as papers count"


def _here(spec: ModelSpec) -> str:
    if checkpoints.path(spec) is None:
        return ""
    return "bundled" if spec.source.bundled else "cached"


def _record(spec: ModelSpec) -> dict[str, Any]:
    file, source, protocol = checkpoints.path(spec), spec.source, spec.protocol
    return {
        "name": spec.name,
        "aliases": spec.aliases,
        "family": spec.family,
        "task": spec.task,
        "scale": spec.scale,
        "sigma": spec.sigma,
        "quality": spec.quality,
        "compressed": spec.compressed,
        "channels": spec.channels,
        "params": spec.params,
        "macs": {"128x128 in": spec.macs[0], "1280x720 out": spec.macs[1]} if spec.macs else None,
        "seconds_per_megapixel": timings.known().get(spec.name),
        "bytes": source.bytes,
        "sha256": source.sha256,
        "urls": source.urls,
        "folder": source.folder,
        "filename": source.filename,
        "bundled": source.bundled,
        "path": str(file) if file else None,
        "licence": spec.licence,
        "training": spec.training,
        "good_for": spec.good_for,
        "not_for": spec.not_for,
        "remarks": spec.remarks,
        "protocol": {"channel": protocol.channel, "crop": protocol.crop, "rounding": protocol.rounding},
        "published": {name: {"psnr": psnr, "ssim": ssim} for name, (psnr, ssim) in spec.published.items()},
    }


def _card(spec: ModelSpec) -> str:
    source, protocol = spec.source, spec.protocol
    scores = [
        f"{name} {psnr:.2f} dB" + (f" / {ssim:.4f}" if ssim else "") for name, (psnr, ssim) in spec.published.items()
    ]
    fetch = f"mambair models {f'download {spec.name}' if source.urls else f'import FILE --as {spec.name}'}"
    measured = f"PSNR / SSIM on {protocol.channel}, {protocol.crop} pixels cropped; {protocol.note}"
    lines = {
        "job": _job(spec) + (", grey" if spec.channels == 1 else ""),
        "network": f"{spec.arch}, {spec.params:,} parameters",
        "MACs": _macs(spec),
        "time": f"{_time(seconds)} s for a megapixel here" if (seconds := timings.known().get(spec.name)) else "",
        "trained on": spec.training,
        "good for": spec.good_for,
        "not for": spec.not_for,
        "remarks": spec.remarks,
        "scores": "\n".join(scores),
        "measured": measured if scores else "",
        "licence": spec.licence,
        "aliases": ", ".join(spec.aliases),
        "file": str(checkpoints.path(spec) or f"not here; {_size(spec)}: {fetch}"),
        "source": "\n".join(source.urls) or (source.folder or "bundled"),
        "sha256": checkpoints.known_hash(spec) or "not published: trusted on first use",
    }
    indent = "\n" + " " * 12
    told = [f"{what:<12}{text.replace(chr(10), indent)}" for what, text in lines.items() if text]
    return "\n".join([spec.name, *told])
