"""Results for people and programs: the table of the papers on the terminal, JSON, CSV, Markdown."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mambair_cli.atomic import atomic_write
from mambair_cli.bench.latex import latex
from mambair_cli.bench.page import cells, extra_cells, extra_heads, extra_means, html, signed, timing
from mambair_cli.bench.records import Result, Score
from mambair_cli.errors import MambairError, UsageError, printable

COLUMNS = (
    *("dataset", "degradation", "model", "image", "width", "height"),
    *("psnr", "ssim", "lpips", "dists", "niqe", "gradient"),
    *("baseline_psnr", "baseline_ssim", "baseline_lpips", "baseline_dists", "baseline_niqe", "baseline_gradient"),
    *("seconds", "error"),
)
STARTS = {  # how a report of ours begins, of whichever version
    ".html": r"<!DOCTYPE html>.{,400}<title>mambair bench: ",
    ".md": r"# mambair bench\n",
    ".csv": r"dataset,degradation,model,image,",
    ".json": r'\{"schema": 1, "dataset": ',
    ".tex": r"% mambair bench\n",
}
HEADS = ("set", "input", "model", "PSNR", "SSIM", "published", "do nothing", "s/image", "images")
CLOSE = 0.05  # dB that rounding, other hardware and random routing may cost against a published score


def check(targets: Iterable[Path], force: bool = False) -> None:
    """Find out before anything is measured what reports would fail of in the end; makes their folders.

    Raises UsageError for a report of a kind we do not write or, unless `force`, in the place of a file that is not an
    earlier report of its kind, MambairError for a folder that cannot be written to.
    """
    for target in targets:
        if target.suffix.lower() not in STARTS:
            raise UsageError(f"A report is one of {', '.join(STARTS)}, not {target.name!r}.")
        check_folder(target.parent)
        if target.is_dir() or (target.exists() and not force and not _ours(target)):
            raise UsageError(
                f"{target} is there, and is no report of mambair bench.",
                "Choose another name." if target.is_dir() else "Choose another name, or replace it with --force.",
            )


def check_folder(folder: Path) -> None:
    """Make a folder and try whether files can be made in it. Raises MambairError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise MambairError(f"cannot write into {folder}: {error.strerror or error}") from error


def _ours(target: Path) -> bool:
    try:
        with target.open(encoding="utf-8", errors="replace") as stream:
            return bool(re.match(STARTS[target.suffix.lower()], stream.read(1000), re.DOTALL))
    except OSError:
        return False


def write(results: Sequence[Result], target: Path) -> None:
    """A report of the kind that the suffix of `target` names."""
    kinds = {".html": html, ".md": markdown, ".csv": table_csv, ".json": documents, ".tex": latex}
    text = kinds[target.suffix.lower()](results)
    with atomic_write(target) as stream:
        stream.write(text.encode())


def document(result: Result) -> dict[str, Any]:
    """The record of `--json`; scores that are not finite or not there are null."""
    return {
        "schema": 1,
        "dataset": result.dataset.name,
        "model": result.model,
        "task": result.damage.task,
        "degradation": str(result.damage),
        "protocol": result.protocol,
        "images": [
            {
                "name": image.name,
                **_numbers(image.score, result.extra),
                "seconds": image.seconds if image.score else None,
                "size": [image.width, image.height] if image.score else None,
                "baseline": _numbers(image.baseline, result.extra),
                "error": image.error or None,
            }
            for image in result.images
        ],
        "measured": len(result.measured),
        "of": result.dataset.size,
        **({"measured_niqe": result.having("niqe")} if "niqe" in result.extra else {}),
        "mean": _numbers(result.mean, result.extra),
        "baseline": _numbers(result.baseline, result.extra),
        "published": _numbers(result.published) if result.published else None,
        "seconds": result.seconds,
        "environment": dict(result.environment),
    }


def documents(results: Sequence[Result]) -> str:
    """One JSON document a line, one for each model and set."""
    return "".join(json.dumps(document(result), allow_nan=False) + "\n" for result in results)


def table_csv(results: Sequence[Result]) -> str:
    """One line for each picture."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for result in results:
        for image in result.images:
            row = {
                "dataset": result.dataset.name,
                "degradation": result.damage,
                "model": result.model,
                "image": image.name,
                "error": image.error,
            }
            if image.score:
                row |= {"width": image.width, "height": image.height, "seconds": image.seconds}
                row |= _numbers(image.score, result.extra)
                row |= {f"baseline_{key}": value for key, value in _numbers(image.baseline, result.extra).items()}
            writer.writerow({column: _cell_of(value) for column, value in row.items()})
    return stream.getvalue()


def _cell_of(value: object) -> object:
    """Numbers as they are; text that a spreadsheet would run as a formula behind an apostrophe, as it expects."""
    if value is None or isinstance(value, int | float):
        return value
    text = printable(str(value))
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def markdown(results: Sequence[Result]) -> str:
    """The table, its protocols, every picture and the environment."""
    lines = ["# mambair bench", ""]
    lines += _grid(
        [*HEADS, *(extra_heads(results[0]) if results else [])],
        ([*_identity(r), *_means(r)] for r in results),
    )
    for result in results:
        title = f"{result.model} on {result.dataset.name}, {result.damage}"
        rows = (
            [
                i.name,
                *cells(i.score),
                *cells(i.baseline),
                signed(i.gain),
                timing(i.seconds),
                *extra_cells(result, i.score),
            ]
            if i.score
            else [i.name, f"failed: {i.error}", *[""] * (5 + len(result.extra))]
            for i in result.images
        )
        lines += ["", f"## {title}", "", *_listed(result.protocol), ""]
        heads = ["image", "PSNR", "SSIM", "PSNR before", "SSIM before", "gain", "s"]
        lines += _grid([*heads, *extra_heads(result)], rows)
        lines += ["", "Environment:", "", *_listed(result.environment)]
    return "\n".join(lines) + "\n"


def show(results: Sequence[Result], console: Console) -> None:
    """The table as papers print it: a row a model, a column a set; under each score the published one."""
    order = {str(result.damage): None for result in results}
    for damage in order:
        group = [result for result in results if str(result.damage) == damage]
        sets = list(dict.fromkeys(result.dataset.name for result in group))
        table = Table(title=f"{damage}, PSNR/SSIM", title_justify="left", show_lines=True)
        table.add_column("model", overflow="fold")
        for name in sets:
            table.add_column(name, justify="right", no_wrap=True)
        for model, rows in _by_model(group):
            cells = {result.dataset.name: _cell(result) for result in rows}
            table.add_row(model, *(cells.get(name, Text("")) for name in sets))
        console.print(table)
        for protocol in dict.fromkeys(" ".join(result.sentences) for result in group):
            console.print(protocol, highlight=False, soft_wrap=not console.is_terminal)
    for result in results:
        for image in result.failed:
            console.print(printable(f"{result.dataset.name}/{image.name}: {image.error}"), style="red", markup=False)


def _cell(result: Result) -> Text:
    """Score, distance to the published one, and to doing nothing."""
    if result.mean is None or result.baseline is None:
        return Text("failed", "red")
    cell = Text(_pair(result.mean), "bold")
    if result.extra:
        pairs = zip(result.extra, extra_means(result), strict=True)
        cell.append("\n" + ", ".join(f"{name.upper()} {mean}" for name, mean in pairs), "not bold")
    if result.dataset.foreign:
        cell.append(f"\n{len(result.dataset.foreign)} files are not the set's", "not bold red")
    if result.published:
        cell.append(f"\npublished {_pair(result.published)} ", "not bold")
        if result.complete:
            delta = result.mean.psnr - result.published.psnr
            cell.append(signed(delta), "not bold green" if delta > -CLOSE else "not bold red")
    gain = result.mean.psnr - result.baseline.psnr
    cell.append(f"\n{result.damage.about.baseline} {_pair(result.baseline)} ", "not bold")
    cell.append(signed(gain), "not bold green" if gain > 0 else "not bold red")
    seconds = f"{timing(result.seconds)} s/image" if result.seconds is not None else "timed elsewhere"
    cell.append(f"\n{seconds}{_share(result)}", "not bold dim")
    return cell


def _share(result: Result) -> str:
    """What to add where the mean is not over the whole set."""
    return "" if result.complete else f", {len(result.measured)} of {result.dataset.size} images"


def _by_model(results: Sequence[Result]) -> list[tuple[str, list[Result]]]:
    models = dict.fromkeys(result.model for result in results)
    return [(model, [result for result in results if result.model == model]) for model in models]


def _identity(result: Result) -> list[str]:
    return [result.dataset.name, str(result.damage), result.model]


def _means(result: Result) -> list[str]:
    return [
        *cells(result.mean),
        _pair(result.published),
        _pair(result.baseline),
        timing(result.seconds),
        f"{len(result.measured)}/{result.dataset.size}",
        *extra_means(result),
    ]


def _pair(score: Score | None) -> str:
    return "/".join(filter(None, cells(score)))


def _numbers(score: Score | None, extra: Sequence[str] = ()) -> dict[str, float | None]:
    """PSNR, SSIM and `extra` as JSON's numbers: null for what is missing or not finite."""
    values = {key: getattr(score, key, None) for key in ("psnr", "ssim", *extra)}
    return {key: value if value is not None and math.isfinite(value) else None for key, value in values.items()}


def _grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [heads, ["---" if n == 0 else "--:" for n in range(len(heads))], *rows]
    return ["| " + " | ".join(printable(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]


def _listed(record: Any) -> list[str]:
    return [f"- {key}: {value}" for key, value in record.items() if value is not None]
