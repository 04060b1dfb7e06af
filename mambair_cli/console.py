"""The one voice of the program: what is said to people on stderr, and whether a bar may be drawn.

Commands set it up once; notices of the package's logger, of libraries (`warnings`) and of downloads come out of it as
well. Without a setup (the Python API) nothing is said here: loggers and warnings have their own defaults, and
downloads the bars of tqdm.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import TYPE_CHECKING

from mambair_cli.errors import MambairError, UsageError, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

NOTICE, PROBLEM = "yellow", "red"


class Log(WatchedFileHandler):
    """A file that lines with times are appended to; where it is moved away (logrotate), a new one is begun.

    Raises UsageError where it cannot be written; where that happens later it is said once, and nothing ends by it.
    """

    def __init__(self, path: Path) -> None:
        try:
            super().__init__(path, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UsageError(f"cannot write the log {path}: {error.strerror}", "Name another file.") from error
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
        self._failed = False

    def write(self, text: str) -> None:
        """A line, whatever breaks the text has."""
        self.handle(logging.makeLogRecord({"msg": "; ".join(printable(text, lines=True).split("\n"))}))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 -- logging's name
        if not self._failed:
            self._failed = True
            voice.console.print(
                printable(f"the log cannot be written: {sys.exc_info()[1]}"), style=PROBLEM, markup=False
            )


class Voice:
    """Lines and bars on stderr. `quiet`: only problems. `log`: a file that gets all lines, also those of bars."""

    def __init__(self, quiet: bool = False, log: Log | None = None) -> None:
        self.quiet = quiet
        self.log = log
        self._console: Console | None = None
        self._bar: Progress | None = None  # the one being drawn: lines go above it

    @property
    def console(self) -> Console:
        """Rich's view of stderr, made when it is first needed."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        return self._console

    @property
    def plain(self) -> bool:
        """Whether nothing may move: no terminal, a dumb one, or one that a CI service writes down."""
        return not self.console.is_terminal or os.environ.get("TERM") == "dumb" or bool(os.environ.get("CI"))

    @property
    def lines(self) -> bool:
        """Whether progress is told in lines: where no bar is drawn though somebody watches or reads the log later."""
        return not self.quiet and (os.environ.get("TERM") == "dumb" or bool(os.environ.get("CI")))

    def say(self, text: str, style: str | None = NOTICE) -> None:
        """A line for people, unless they want quiet."""
        if not self.quiet:
            self._print(text, style)
        self.note(text)

    def step(self, text: str) -> None:
        """A line of progress: said only where no bar is drawn for it."""
        if self.lines:
            self._print(text)
        self.note(text)

    def note(self, text: str) -> None:
        """A line for the log alone."""
        if self.log:
            self.log.write(text)

    def problem(self, text: str) -> None:
        """A line that is said in any case."""
        self._print(text, PROBLEM)
        self.note(text)

    def error(self, error: MambairError) -> None:
        """What ends the program: what happened and why, then what to do."""
        self.console.print("[red bold]error:[/] ", end="")
        self._print(error.message)
        if error.hint:
            self._print(error.hint, "dim")
        self.note(f"error: {error}")

    @contextmanager
    def progress(self, *columns: str | ProgressColumn) -> Iterator[Progress]:
        """A bar while the block lasts; it draws nothing where none may be drawn. A bar within another pauses it."""
        from rich.progress import Progress

        outer = self._bar
        if outer:
            outer.stop()
        bar = Progress(
            *columns,
            console=self.console,
            transient=True,
            disable=self.quiet or self.plain,
            redirect_stdout=sys.stdout.isatty() if sys.stdout else False,  # what goes elsewhere is not to be drawn
        )
        self._bar = bar
        try:
            with bar:
                yield bar
        finally:
            self._bar = outer
            if outer:
                outer.start()

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """What is going on while the block lasts, where something may move."""
        if self.quiet or self.plain:
            yield
            return
        with self.console.status(text):
            yield

    def _print(self, text: str, style: str | None = None) -> None:
        self.console.print(printable(text, lines=True), style=style, markup=False)

    @contextmanager
    def download(self, name: str, total: int | None, there: int) -> Iterator[Callable[[int], object]]:
        """A bar for a file of `total` bytes, of which some are there; told of every chunk's bytes."""
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
        with self.progress(*columns, TransferSpeedColumn(), TimeRemainingColumn()) as bar:
            task = bar.add_task(name, total=total, completed=there)
            yield lambda count: bar.update(task, advance=count)


class Silence(Voice):
    """Before a command has set anything up, as in notebooks: nothing but tqdm's bars for downloads."""

    @contextmanager
    def download(self, name: str, total: int | None, there: int) -> Iterator[Callable[[int], object]]:
        from tqdm.auto import tqdm

        hidden = not sys.stderr.isatty() and "ipykernel" not in sys.modules
        bar = tqdm(total=total, initial=there, desc=name, unit="B", unit_scale=True, leave=False, disable=hidden)
        with bar:
            yield bar.update


voice: Voice = Silence(quiet=True)


def set_up(quiet: bool = False, log: Path | None = None) -> Voice:
    """A new voice for a command; notices of the package and of libraries speak with it. Raises UsageError where there
    can be no log."""
    global voice
    voice = Voice(quiet, Log(log) if log else None)
    logger = logging.getLogger("mambair")
    logger.handlers[:] = [_Notices()]
    logger.setLevel(logging.INFO)
    warnings.showwarning = _warn
    return voice


class _Notices(logging.Handler):
    """The package's own notices: waiting for a server, out of memory and going on."""

    def emit(self, record: logging.LogRecord) -> None:
        voice.say(record.getMessage())


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    """Warnings as lines for people, without the code that they come from."""
    voice.say(f"warning: {message}")
