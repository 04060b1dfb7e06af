"""What a batch tells people, on stderr: a bar on a terminal, lines where that is wished, errors always."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress

    from mambair_cli.files import Job
    from mambair_cli.restoring.batch import Record


class Reporter:
    """Listens to a pipeline. A context manager; the summary comes at its end, whatever ended it.

    `paths`: results are named on stdout, for other programs to read.
    """

    def __init__(self, total: int, *, quiet: bool, json: bool, paths: bool) -> None:
        self.counts: Counter[str] = Counter()
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._total, self._quiet, self._json = total, quiet, json
        self._paths = paths and not quiet and not json
        self._failures: list[Record] = []
        self._started = time.monotonic()
        plain = os.environ.get("TERM") == "dumb" or bool(os.environ.get("CI"))
        self._lines = plain and not quiet
        self._bar = _bar(self._console) if self._console.is_terminal and not plain and not quiet else None
        if self._bar:
            self._all = self._bar.add_task("pictures", total=total, visible=total > 1)
            self._tiles = self._bar.add_task("tiles", total=None)
        self._log = _LogHandler(self)

    def __enter__(self) -> Reporter:
        logging.getLogger("mambair").addHandler(self._log)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        logging.getLogger("mambair").removeHandler(self._log)
        if self._bar:
            self._bar.stop()
        if kind is not BrokenPipeError:  # who closed the pipe has seen enough
            self._summary()

    # --- what the pipeline calls ---

    def tiles(self, job: Job, done: int, total: int) -> None:
        if self._bar:
            self._bar.start()
            self._bar.update(self._tiles, description=job.input, completed=done, total=total)
            self._bar.update(self._all, completed=self.counts.total() + done / total)

    def note(self, job: Job, text: str) -> None:
        self.say(f"{job.input}: {text}")

    def record(self, record: Record) -> None:
        self.counts[record.status] += 1
        if record.status == "failed":
            self._failures.append(record)
            self._print(f"{record.input}: {record.error}", "red")
        elif self._lines and record.status != "not tried":
            seconds = f" in {record.seconds:.1f} s" if record.seconds else ""
            self._print(f"[{self.counts.total()}/{self._total}] {record.output} {record.status}{seconds}")
        if self._bar:
            self._bar.update(self._all, completed=self.counts.total())
        if self._json:
            self._result(record.json())
        elif self._paths and record.status == "done":
            self._result(str(record.output))

    # --- the rest ---

    def say(self, text: str) -> None:
        """A line for people."""
        if not self._quiet:
            self._print(text, "yellow")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Without the bar, while something else draws one."""
        running = self._bar is not None and self._bar.live.is_started
        if self._bar and running:
            self._bar.stop()
        yield
        if self._bar and running:
            self._bar.start()

    def _print(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, markup=False)

    def _result(self, line: str) -> None:
        sys.stdout.write(line.encode("utf-8", "surrogateescape").decode("utf-8", "replace") + "\n")
        sys.stdout.flush()

    def _summary(self) -> None:
        if self._quiet:
            return
        counts = {status: self.counts[status] for status in ("done", "skipped", "failed")}
        if left := self._total - sum(counts.values()):
            counts["not tried"] = left
        numbers = ", ".join(f"{count} {what}" for what, count in counts.items())
        self._print(f"{numbers} in {time.monotonic() - self._started:.1f} s")
        if skipped := counts["skipped"]:
            there = "result is" if skipped == 1 else "results are"
            self._print(f"{skipped} {there} there already, whatever settings made them: --force makes them anew")
        if len(self._failures) > 1:
            self._print("failed: " + ", ".join(record.input for record in self._failures))


def _bar(console: Console) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        # What goes to another program must not be drawn on the terminal.
        redirect_stdout=sys.stdout.isatty(),
    )


class _LogHandler(logging.Handler):
    """The restorer's notices, above the bar."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.INFO)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.say(record.getMessage())
