"""What a batch and a measurement tell: people on stderr, programs on stdout."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from mambair_cli.console import Voice
from mambair_cli.errors import MambairError, printable
from mambair_cli.streams import stdout_is_terminal, write_stdout

if TYPE_CHECKING:
    from mambair_cli.bench.records import Measured
    from mambair_cli.bench.run import Watcher
    from mambair_cli.files import Job
    from mambair_cli.restoring.record import Record


class Reporter:
    """Listens to a batch. A context manager; the summary comes at its end, whatever ended it.

    `paths`: results are named on stdout, for other programs to read. `total`: None where nobody has counted them.
    """

    def __init__(self, voice: Voice, total: int | None, *, json: bool, paths: bool) -> None:
        self.counts: Counter[str] = Counter()
        self._voice, self._total, self._json = voice, total, json
        self._paths = paths and not voice.quiet and not json
        self._failures: list[Record] = []
        self._started = time.monotonic()
        self._closing = ExitStack()
        self._mute = False  # stdout has failed

    @property
    def failed(self) -> bool:
        """Whether a picture failed, or could not be told of."""
        return self._mute or self.counts["failed"] > 0

    def __enter__(self) -> Reporter:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        self._bar = self._closing.enter_context(self._voice.progress(*columns, TimeRemainingColumn()))
        self._all = self._bar.add_task("pictures", total=self._total, visible=self._total != 1)
        self._tiles = self._bar.add_task("tiles", total=None, visible=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._closing.close()
        if kind is not BrokenPipeError:  # who closed the pipe has seen enough
            self._summary()

    # --- what the batch calls ---

    def tiles(self, job: Job, done: int, total: int) -> None:
        self._bar.update(self._tiles, description=printable(job.input), completed=done, total=total, visible=True)
        self._bar.update(self._all, completed=self.counts.total() + done / total)

    def note(self, job: Job, text: str) -> None:
        self._voice.say(f"{job.input}: {text}")

    def record(self, record: Record) -> None:
        self.counts[record.status] += 1
        if record.status == "failed":
            self._failures.append(record)
            self._voice.problem(f"{record.input}: {record.error}")
        elif record.status != "not tried":
            seconds = f" in {record.seconds:.1f} s" if record.seconds else ""
            count = f"[{self.counts.total()}/{self._total or '?'}]"
            self._voice.step(f"{count} {record.output} {record.status}{seconds}")
        self._bar.update(self._all, completed=self.counts.total())
        if self._json:
            self._tell(record.json())
        elif self._paths and record.status == "done":
            self._tell(str(record.output))

    # --- the rest ---

    def _tell(self, line: str) -> None:
        """A line for programs. Where stdout fails the results are still made, and the status tells of it."""
        if self._mute:
            return
        try:
            if stdout_is_terminal():
                print(printable(line), flush=True)  # above the bar, where one is drawn
            else:
                text = line.encode("utf-8", "surrogateescape").decode("utf-8", "replace") + "\n"
                write_stdout(text.encode(sys.stdout.encoding or "utf-8", "backslashreplace"))
        except MambairError as error:
            self._mute = True
            self._voice.problem(f"{error}; results are made all the same, but not named there")

    def _summary(self) -> None:
        say = self._voice.say
        counts = {status: self.counts[status] for status in ("done", "skipped", "failed")}
        tried = sum(counts.values())
        if left := (self.counts.total() if self._total is None else self._total) - tried:
            counts["not tried"] = left
        numbers = ", ".join(f"{count} {what}" for what, count in counts.items())
        say(f"{numbers} in {time.monotonic() - self._started:.1f} s", None)
        if skipped := counts["skipped"]:
            there = "result is" if skipped == 1 else "results are"
            say(f"{skipped} {there} there already, whatever settings made them: --force makes them anew", None)
        if len(self._failures) > 1:
            say("failed: " + ", ".join(record.input for record in self._failures), None)


@contextmanager
def measuring(title: str, voice: Voice) -> Iterator[Watcher]:
    """Of a test set, on stderr: a bar with the mean gain on a terminal, else a line a picture."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    from mambair_cli.bench.run import Watcher

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    gains: list[float] = []

    def start(total: int, known: int) -> None:
        bar.update(task, total=total, completed=known)
        if known:
            measured = f"{known} of {total} pictures were measured before"
            voice.say(f"{title}: {measured}; --fresh measures them again", None)

    def step(image: Measured) -> None:
        if image.score:
            gains.append(image.gain)
            time = "" if image.seconds is None else f" in {image.seconds:.2f} s"
            result = f"{image.score.psnr:.2f} dB ({image.gain:+.2f}){time}"
        else:
            result = image.error
        if voice.plain or image.error:
            voice.say(f"{title}: {image.name}: {result}", None)
        mean = f" {sum(gains) / len(gains):+.2f} dB" if gains else ""
        bar.update(task, advance=1, description=title + mean)

    with voice.progress(*columns, TimeRemainingColumn()) as bar:
        task = bar.add_task(title)
        yield Watcher(start, step)
