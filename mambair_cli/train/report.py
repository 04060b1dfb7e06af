"""What a person sees of a run: a line that moves, and a table and a curve to keep."""

from __future__ import annotations

import csv
import io
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

from mambair_cli.atomic import atomic_write
from mambair_cli.console import Voice
from mambair_cli.train.loop import AfterStep
from mambair_cli.train.state import State


@contextmanager
def display(voice: Voice, name: str) -> Iterator[AfterStep]:
    """A live line on a terminal: iteration, speed, loss, PSNR, time left; elsewhere a line per validation."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    recent: deque[tuple[float, float]] = deque(maxlen=100)  # time and loss of the last steps
    with voice.progress(*columns) as bar:
        task = bar.add_task(name, total=1.0)

        def report(state: State, progress: float, loss: float) -> None:
            recent.append((time.monotonic(), loss))
            took = (recent[-1][0] - recent[0][0]) / max(len(recent) - 1, 1)
            mean = sum(loss for _, loss in recent) / len(recent)
            words = f"{name} {state.iteration} · {1 / took if took else 0:.1f} it/s · loss {mean:.4f}"
            if state.history:
                words += f" · {state.history[-1]['psnr']:.3f} dB"
            bar.update(task, completed=progress, description=words)
            if voice.plain and state.history and state.history[-1]["iteration"] == state.iteration:
                voice.say(f"{int(100 * progress):3}% {words}", None)

        yield report


def write_log(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """A CSV with a row per validation."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(history[0]))
    writer.writeheader()
    writer.writerows(history)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
