"""How long many small pictures take, beside the network alone: python tests/throughput.py [MODEL] [THREADS].

What a second worker adds, where both cores are free: python tests/throughput.py workers [MODEL].

Not a test: where other work shares the cores, what is decoded and encoded meanwhile has to wait for them, too. The
last line says what the caller's thread did besides the network: the time in which a device of its own would idle.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from mambair_cli import Restorer, files, load_model
from mambair_cli.files import Job, Naming
from mambair_cli.images import color
from mambair_cli.images.decode import read_picture
from mambair_cli.restoring import batch as restoring
from mambair_cli.restoring import spread, steps
from mambair_cli.restoring.hand import Networks, Restoring
from mambair_cli.restoring.record import Record
from mambair_cli.restoring.request import Request
from mambair_cli.restoring.restorer import Restorers
from mambair_cli.workers.processes import Processes
from mambair_cli.workers.team import Seat

SAMPLE = Path(__file__).parent.parent / "docs" / "sample.png"
COUNT, SIDE = 50, 96


class Silent:
    def tiles(self, job: Job, done: int, total: int) -> None: ...
    def note(self, job: Job, text: str) -> None: ...
    def record(self, record: Record) -> None:
        assert record.status == "done", record


def crops(folder: Path, suffix: str = ".png") -> list[Path]:
    with Image.open(SAMPLE) as image:
        room = image.width - SIDE, image.height - SIDE
        for index in range(COUNT):
            x, y = index * 37 % room[0], index * 53 % room[1]
            image.crop((x, y, x + SIDE, y + SIDE)).save(folder / f"{index:02}{suffix}")
    return sorted(folder.iterdir())


def alone(restorer: Restorer, paths: list[Path]) -> float:
    """Seconds of the network with everything decoded before and nothing encoded after."""
    frames = [read_picture(path).frames[0].pixels for path in paths]
    tensors = [torch.from_numpy(color.as_float(pixels)).permute(2, 0, 1) for pixels in frames]
    began = time.perf_counter()
    for tensor in tensors:
        restorer.restore(tensor)
    return time.perf_counter() - began


def batch(restorer: Restorer, paths: list[Path], out: Path) -> tuple[float, float]:
    """Seconds from file to file, and those that its thread computed."""
    jobs = files.plan(files.find([str(path) for path in paths]), Naming("x4", f"{out}/"))
    began, computed = time.perf_counter(), time.thread_time()
    request = Request("upscale", spec=restorer.spec)
    restoring.run(jobs, request, lambda _: restorer, steps.Settings(force=True), Silent())
    return time.perf_counter() - began, time.thread_time() - computed


class Clock(Silent):
    """When each picture was done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def record(self, record: Record) -> None:
        super().record(record)
        self.times.append(time.perf_counter())

    @property
    def rate(self) -> float:
        """Pictures a second, without the first ones, before which workers start."""
        skipped = len(self.times) // 5
        return (len(self.times) - 1 - skipped) / (self.times[-1] - self.times[skipped])


def by_workers(count: int, model: str, paths: list[Path], out: Path) -> float:
    """Pictures a second by so many processes of one thread."""
    jobs = files.plan(files.find([str(path) for path in paths]), Naming("x4", f"{out}/"))
    work = Restoring(Request("upscale", model=model), Networks(Restorers()), steps.Settings(force=True), time.time())
    clock = Clock()
    spread.run(jobs * 4, Processes(work, [Seat("cpu", 1)] * count), work.settings, clock)
    return clock.rate


def workers(model: str = "tiny-x4") -> None:
    """As JPEG and as PNG, whose encoding takes a sixth of the time: one worker has the other core for it."""
    for suffix in (".jpg", ".png"):
        with tempfile.TemporaryDirectory() as folder:
            (small := Path(folder, "in")).mkdir()
            paths = crops(small, suffix)
            for _ in range(3):
                one, two = (by_workers(count, model, paths, Path(folder, "out")) for count in (1, 2))
                told = f"one worker {one:.2f} pictures a second, two {two:.2f}: {two / one:.2f} times"
                print(f"{suffix}: {told}", flush=True)


def main(model: str = "tiny-x4", threads: str = "1") -> None:
    torch.set_num_threads(int(threads))
    restorer = load_model(model)
    with tempfile.TemporaryDirectory() as folder:
        (small := Path(folder, "in")).mkdir()
        paths = crops(small)
        alone(restorer, paths[:3])
        for _ in range(3):
            began = time.thread_time()
            network = alone(restorer, paths)
            computed = time.thread_time() - began
            wall, own = batch(restorer, paths, Path(folder, "out"))
            print(f"network {network:.2f} s, batch {wall:.2f} s, beside the network {own - computed:+.2f} s")


if __name__ == "__main__":
    if sys.argv[1:2] == ["workers"]:
        workers(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
