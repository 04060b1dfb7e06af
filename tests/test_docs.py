"""What README and docs say is true: their commands work as printed, their scores are those of the cards.

Commands are those lines of code blocks that begin with `mambair`. They run in a folder with the pictures that they
name. Those of published models, and enlargements to 3840 pixels, run as dry runs; those that measure, train, fetch,
serve, wait or work elsewhere are only parsed, with all their options. A block after an HTML comment `not run: WHY` is
left alone, and counted.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from pathlib import Path

import click
import pytest
from helpers.album import photo
from helpers.commands import mambair
from typer.main import get_command

from mambair_cli.cli.app import application
from mambair_cli.models import zoo
from mambair_cli.tasks import TASKS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = re.compile(r"<!-- not run: (.+) -->")
RUN = {*TASKS, "compare", "doctor", "help"}  # and `models list` and `info`; all others are parsed
SHARED = {"--watch", "--shard", "--workers", "--engine"}  # they wait, or need other machines
WRITTEN = {"-o", "--output", "--log", "--report", "--save", "--out"}  # what follows is no input


def blocks(page: Path) -> list[tuple[str, list[str]]]:
    """The code blocks of a page, fenced as shell or indented by four: why it is not run, and its lines."""
    found: list[tuple[str, list[str]]] = []
    fence, inside, why = "", False, ""
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            fence, inside = ("" if fence else line), False
            if fence in ("```sh", "```crontab"):
                found.append((why, []))
        elif mark := MARK.fullmatch(line):
            why = mark[1]
            continue
        elif fence in ("```sh", "```crontab"):
            found[-1][1].append(line)
        elif not fence and line.startswith("    "):
            if not inside:
                found.append((why, []))
            inside = True
            found[-1][1].append(line[4:])
        elif line:
            inside, why = False, ""
    return found


def commands(lines: list[str]) -> list[list[str]]:
    """The arguments of those that begin with `mambair`, up to a pipe, a redirection or the words about them."""
    plain = "\n".join(lines).replace("\\\n", " ").splitlines()
    ours = [re.split(r"\s{2,}| \| | > ", line)[0] for line in plain if line.startswith("mambair ")]
    return [shlex.split(line)[1:] for line in ours]


EVERY = [(page.name, why, args) for page in PAGES for why, lines in blocks(page) for args in commands(lines)]
LEFT = Counter(f"{name}: {why}" for name, why, _ in EVERY if why)
TRIED = [pytest.param(args, id=f"{name}: {' '.join(args)}") for name, why, args in EVERY if not why]


def prepare(args: list[str]) -> list[str]:
    """Put the pictures there that are named, and return the arguments as a shell would pass them."""
    expanded: list[str] = []
    for before, arg in zip(["", *args], args, strict=False):
        if before not in WRITTEN:
            if arg.endswith("/"):
                Path(arg).mkdir(parents=True, exist_ok=True)
                photo().resize((24, 18)).save(Path(arg) / "a.jpg")
            elif re.fullmatch(r"[\w*./-]+\.(png|jpg)", arg):
                name = Path(arg.replace("*", "b"))
                name.parent.mkdir(parents=True, exist_ok=True)
                photo().resize((24, 18)).save(name)
        expanded += sorted(map(str, Path().glob(arg))) if "*" in arg else [arg]
    return expanded


def check(args: list[str]) -> None:
    """Raise click's UsageError where the command or one of its options is none."""
    command: click.Command = get_command(application())  # type: ignore[assignment]
    while isinstance(command, click.Group):
        assert args[0] in command.commands, f"no command {args[0]}"
        command, args = command.commands[args[0]], args[1:]
    command.make_context(command.name or "", args)


@pytest.mark.parametrize("args", TRIED)
def test_commands_work_as_printed(
    args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAMBAIR_CACHE", str(tmp_path / "cache"))
    elsewhere = any("://" in arg or arg.startswith("/") for arg in args)
    args = args if elsewhere else prepare(args)
    models = [args[n + 1] for n, arg in enumerate(args) if arg in ("-m", "--model")]
    begun = args[0] in RUN or args[:2] in (["models", "list"], ["models", "info"])
    if not begun or elsewhere or SHARED & set(args):
        check([arg for n, arg in enumerate(args) if not ({arg, *args[n - 1 : n]} & {"--results", "--weights"})])
    elif args[0] in TASKS:
        dry = "--long-edge" in args or any(not zoo.find(m, task=args[0]).source.bundled for m in models)
        picture = (ROOT / "tests" / "pictures" / "photo.png").read_bytes() if "-" in args else b""
        outcome = mambair(*args, *["--dry-run"] * dry, stdin=picture, capture=capsysbinary)
        assert outcome.status == 0, outcome.err
    else:
        assert mambair(*args, capture=capsysbinary).status == 0


def test_what_is_left_out_is_little() -> None:
    assert len(TRIED) > 40
    assert sum(LEFT.values()) <= 8, LEFT
    assert {why.partition(": ")[2] for why in LEFT} <= {
        "needs ffmpeg",
        "runs until it is stopped",
        "needs the cloud",
        "needs SLURM",
    }


# ------------------------------------------------------------------------------------------------------ scores


def rows(page: Path) -> list[tuple[list[str], list[str]]]:
    """Heads and cells of every row of every table."""
    found, heads = [], None
    for line in page.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            heads = None
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if heads is None:
            heads = cells
        elif not set(line) <= set("|-: "):
            found.append((heads, cells))
    return found


@pytest.mark.parametrize("page", ["README.md", "docs/families.md"])
def test_scores_are_those_of_the_cards(page: str, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Of columns called by a set; `models list` and `models info` print the same."""
    listed = mambair("models", "list", capture=capsysbinary).out.decode()
    compared = 0
    for heads, cells in rows(ROOT / page):
        named = re.search(r"`([\w.-]+)`", " ".join(cells[:2]))
        if named is None or named[1] not in zoo.zoo():
            continue
        spec = zoo.find(named[1])
        card = mambair("models", "info", spec.name, capture=capsysbinary).out.decode()
        for head, cell in zip(heads, cells, strict=True):
            score = re.fullmatch(r"(\w+) x4", head)
            if score and (value := re.fullmatch(r"([\d.]+) / (0\.\d{4})", cell)):
                psnr, ssim = spec.published[score[1]]
                assert (f"{psnr:.2f}", f"{ssim:.4f}") == value.groups(), (spec.name, head)
                assert f"{score[1]} {value[1]} dB / {value[2]}" in card
                assert score[1] != "Set5" or f"{value[1]} Set5" in listed
                compared += 1
    assert compared >= 6


def test_the_bundled_models_score_as_their_cards_say() -> None:
    """README's second table: where it measures what the card does."""
    for page in (ROOT / "README.md", ROOT / "docs" / "models.md"):
        compared = 0
        for heads, cells in rows(page):
            row = dict(zip(heads, cells, strict=True))
            if not {"model", "job", "set, protocol", "score"} <= set(row):
                continue
            spec = zoo.find(row["model"].strip("`"))
            sets = re.findall(r"\b(?:Set5|Set14|CBSD68|LIVE1|Rain100L)\b", row["set, protocol"])
            same_job = "JPEG 75" not in row["job"] and all(name in spec.published for name in sets)
            if sets and same_job:
                assert row["score"].split(" / ") == [f"{spec.published[name][0]:.2f}" for name in sets], spec.name
                compared += 1
        assert compared >= 5, page


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)|(?:src|href)=\"([^\":]+)\"", page.read_text()):
            path = page.parent / (target[0] or target[1])
            assert path.exists(), (page.name, os.fspath(path))
