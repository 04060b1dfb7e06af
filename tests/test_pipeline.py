"""The pipeline and what decides on a model, with a network that only repeats pixels."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.album import encoded, photo
from helpers.networks import spec

from mambair_cli import files
from mambair_cli.errors import Unavailable, UsageError
from mambair_cli.files import Job, Naming
from mambair_cli.images.decode import Frame, Picture, read_picture
from mambair_cli.images.formats import FORMATS
from mambair_cli.models import zoo
from mambair_cli.restoring import batch, steps
from mambair_cli.restoring.fit import Fit
from mambair_cli.restoring.picture import restore
from mambair_cli.restoring.record import Record
from mambair_cli.restoring.request import Request
from mambair_cli.restoring.running import Running
from mambair_cli.restoring.steps import Settings

Bands = Iterator[tuple[int, torch.Tensor]]


class Repeater:
    """In the place of a Restorer: every pixel `scale` times, in bands of three rows."""

    def __init__(self, scale: int = 2) -> None:
        self.spec, self.scale, self.running = replace(spec(scale), name="repeater"), scale, Running()
        self.request = Request("upscale", spec=self.spec)
        self.device, self.scan, self.sha256 = torch.device("cpu"), "torch", "0" * 64

    def restore_bands(self, lq: torch.Tensor, progress: object, used: object) -> Bands:
        if progress:
            progress(1, 1)
        scale = self.spec.scale
        big = lq.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        for y in range(0, big.shape[1], 3):
            yield y, big[:, y : y + 3]


class Diary:
    """Listens, and keeps everything."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.notes: list[str] = []
        self.done: list[tuple[int, int]] = []
        self.threads: set[int] = set()

    def tiles(self, job: Job, done: int, total: int) -> None:
        self.done.append((done, total))

    def note(self, job: Job, text: str) -> None:
        self.notes.append(text)

    def record(self, record: Record) -> None:
        self.threads.add(threading.get_ident())
        self.records.append(record)


def restore_all(jobs: list[Job], repeater: Repeater, **settings: object) -> Diary:
    diary = Diary()
    batch.run(jobs, repeater.request, lambda spec: repeater, Settings(**settings), diary)
    return diary


def jobs_of(folder: Path, count: int) -> list[Job]:
    (folder / "in").mkdir()
    for index in range(count):
        photo().rotate(index).save(folder / "in" / f"{index}.png")
    sources = files.find([str(folder / "in")])
    return files.plan(sources, Naming("x2", f"{folder}/out/"))


class Interrupted(Repeater):
    """Stopped in the middle of the second picture, once the first one is written."""

    def __init__(self, first: Path) -> None:
        super().__init__()
        self.first, self.calls = first, 0

    def restore_bands(self, lq: torch.Tensor, progress: object, used: object) -> Bands:
        self.calls += 1
        if self.calls == 1:
            yield from super().restore_bands(lq, progress, used)
            return
        until = time.monotonic() + 10
        while not self.first.exists() and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.3)
        raise KeyboardInterrupt


def test_what_was_written_before_an_interrupt_is_told(tmp_path: Path) -> None:
    jobs, diary = jobs_of(tmp_path, 3), Diary()
    network = Interrupted(tmp_path / "out" / "0.png")
    with pytest.raises(KeyboardInterrupt):
        batch.run(jobs, network.request, lambda spec: network, Settings(), diary)
    assert [(Path(record.input).name, record.status) for record in diary.records] == [("0.png", "done")]


def test_records_come_in_order_from_the_calling_thread(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, 9)
    assert jobs[3].source is not None
    jobs[3].source.write_bytes(b"broken")
    diary = restore_all(jobs, Repeater())
    assert [record.input for record in diary.records] == [job.input for job in jobs]
    assert [record.status for record in diary.records] == ["done"] * 3 + ["failed"] + ["done"] * 5
    assert diary.threads == {threading.get_ident()}


def test_the_record_is_the_contract(tmp_path: Path) -> None:
    [job] = jobs_of(tmp_path, 1)
    [record] = restore_all([job], Repeater()).records
    told = json.loads(record.json())
    assert told.pop("seconds") > 0
    assert told == {
        "schema": 1,
        "input": job.input,
        "output": job.output,
        "status": "done",
        "error": None,
        "model": "repeater",
        "sha256": "0" * 64,
        "scale": 2,
        "input_size": [61, 47],
        "output_size": [122, 94],
        "device": "cpu",
        "precision": "fp32",
        "scan": "torch",
        "tile": "off",
        "ensemble": False,
        "seed": 0,
        "passes": [{"model": "repeater", "sha256": "0" * 64, "scale": 2}],
        "resampled": False,
    }


def test_reading_and_writing_happen_while_the_network_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = jobs_of(tmp_path, 5)
    read = {job.source: threading.Event() for job in jobs}
    wrote = [threading.Event() for _ in jobs]
    real = read_picture, steps.write

    def reading(source: Path, limit: int) -> Picture:
        read[source].set()
        return real[0](source, limit)

    def writing(job: Job, *rest: object) -> object:
        written = real[1](job, *rest)
        wrote[jobs.index(job)].set()
        return written

    class Waiting(Repeater):
        index = 0

        def restore_bands(self, lq: torch.Tensor, progress: object, used: object) -> Bands:
            """Works until the next picture is being read and the last one is written."""
            if self.index + 1 < len(jobs):
                assert read[jobs[self.index + 1].source].wait(20)
            if self.index:
                assert wrote[self.index - 1].wait(20)
            self.index += 1
            yield from super().restore_bands(lq, progress, used)

    monkeypatch.setattr(steps, "read_picture", reading)
    monkeypatch.setattr(steps, "write", writing)
    assert [record.status for record in restore_all(jobs, Waiting()).records] == ["done"] * 5


def test_large_results_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, write, lock = jobs_of(tmp_path, 8), steps.write, threading.Lock()
    restored, written, most = 0, 0, 0

    def counted(*args: object) -> object:
        nonlocal written
        time.sleep(0.03)
        result = write(*args)
        with lock:
            written += 1
        return result

    class Counting(Repeater):
        def restore_bands(self, lq: torch.Tensor, progress: object, used: object) -> Bands:
            nonlocal restored, most
            yield from super().restore_bands(lq, progress, used)
            with lock:
                restored += 1
                most = max(most, restored - written)

    monkeypatch.setattr(steps, "write", counted)
    monkeypatch.setattr(batch, "WAITING_PIXELS", 122 * 94)  # one result
    restore_all(jobs, Counting())
    assert most <= 2  # the one just restored, and one being written


def test_missing_weights_end_the_batch_after_what_is_done(tmp_path: Path) -> None:
    jobs, diary, repeater = jobs_of(tmp_path, 3), Diary(), Repeater()

    def load(spec: object) -> Repeater:
        if diary.done:
            raise Unavailable("gone")
        return repeater

    with pytest.raises(Unavailable):
        batch.run(jobs, repeater.request, load, Settings(), diary)
    assert [record.status for record in diary.records] == ["done", "not tried", "not tried"]
    assert [(record.input, record.error) for record in diary.records[1:]] == [(job.input, "gone") for job in jobs[1:]]


def test_a_network_that_breaks_on_a_picture_breaks_only_that(tmp_path: Path) -> None:
    class Picky(Repeater):
        def restore_bands(self, lq: torch.Tensor, progress: object, used: object) -> Bands:
            if lq[0, 0, 0] == 0:
                raise RuntimeError("cannot")
            return super().restore_bands(lq, progress, used)

    records = restore_all(jobs_of(tmp_path, 3), Picky()).records
    assert [record.status for record in records] == ["done", "failed", "failed"]  # turning leaves black corners
    assert records[1].error == "RuntimeError: cannot"


def test_a_full_disk_ends_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(steps.encode, "write", full)
    jobs = jobs_of(tmp_path, 20)
    records = restore_all(jobs, Repeater()).records
    assert [record.input for record in records] == [job.input for job in jobs]
    tried = [record.status for record in records].index("not tried")
    assert 0 < tried < 20
    assert {record.status for record in records[:tried]} == {"failed"}
    assert {(record.status, record.error) for record in records[tried:]} == {("not tried", "the disk is full")}
    assert "0.png: No space left on device" in str(records[0].error)


@pytest.mark.parametrize(
    ("name", "output", "told"),
    [
        ("wrong.jpg", "out/", ["holds a PNG; by its name the result is a JPEG, with losses (--format png: without)"]),
        ("wrong.webp", "out/", []),  # stays without loss
        ("right.png", "out/named.jpg", []),
    ],
)
def test_a_misleading_suffix_costs_no_quality_silently(
    name: str, output: str, told: list[str], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(encoded(photo(), "PNG"))
    jobs = files.plan(files.find([str(tmp_path / name)]), Naming("x2", f"{tmp_path}/{output}"))
    diary = restore_all(jobs, Repeater())
    assert [record.status for record in diary.records] == ["done"]
    assert diary.notes == told


# --- a size ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fit", "size", "tag"),
    [
        (Fit(width=100), (100, 50), "100w"),
        (Fit(height=100), (200, 100), "100h"),
        (Fit(width=100, height=20), (40, 20), "100wx20h"),
        (Fit(long_edge=120), (120, 60), "120px"),
        (Fit(megapixels=0.0098), (140, 70), "0.0098mp"),
    ],
)
def test_sizes_keep_proportions(fit: Fit, size: tuple[int, int], tag: str, tmp_path: Path) -> None:
    assert fit.size((80, 40)) == size
    assert fit.tag == tag
    picture = Picture((Frame(np.zeros((40, 80, 3), np.uint8), np.zeros((40, 80), np.uint8)),))
    repeater = Repeater(scale=4)
    request = replace(repeater.request, fit=fit)
    result = restore(picture, request, lambda spec: repeater, form=FORMATS["PNG"]).picture
    assert result.size == size
    assert result.frames[0].alpha is not None
    assert result.frames[0].alpha.shape == size[::-1]


def test_only_one_size_can_be_asked_for() -> None:
    with pytest.raises(UsageError):
        Fit(width=3, long_edge=4)


# --- which model ------------------------------------------------------------------------------------------------


def chosen(request: Request, picture: Picture) -> tuple[str, list[str]]:
    plan = request.plan(picture)
    assert len(plan.models) == 1
    return plan.models[0].level, [note for note in plan.notes if "then resampled to" not in note]


def plain(width: int = 64, height: int = 48, noise: float = 0.0) -> Picture:
    slope = np.linspace(0.3, 0.7, width)[None, :, None] * np.ones((height, 1, 3))
    pixels = slope + np.random.default_rng(0).normal(0, 1, slope.shape) * noise / 255
    return Picture((Frame(np.clip(pixels, 0, 1).astype(np.float32)),))


@pytest.mark.parametrize(("long_edge", "scale"), [(65, "x2"), (128, "x2"), (129, "x3"), (192, "x3"), (250, "x4")])
def test_the_smallest_scale_that_is_enough_is_taken(long_edge: int, scale: str) -> None:
    request = Request("upscale", fit=Fit(long_edge=long_edge), model="light")
    assert chosen(request, plain())[0] == scale


@pytest.mark.parametrize("long_edge", [64, 20])
def test_what_is_large_enough_needs_no_network_unless_a_scale_is_named(long_edge: int) -> None:
    request = Request("upscale", fit=Fit(long_edge=long_edge), model="light")
    plan = request.plan(plain())
    assert plan.models == ()
    assert "large enough already" in plan.notes[0]
    assert chosen(replace(request, scale=2), plain())[0] == "x2"
    pages = Picture((*plain().frames, *plain(32, 24).frames))
    assert (request.plan(pages).models == ()) == (long_edge == 20)  # the smallest page decides


def test_what_was_compressed_falls_back_on_the_model_for_clean_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    clean_only = {name: spec for name, spec in zoo.zoo().items() if not (spec.source.bundled and spec.compressed)}
    monkeypatch.setattr(zoo, "zoo", lambda: clean_only)
    lossy = replace(plain(), lossless=False)
    assert not Request("upscale", scale=4).plan(lossy).models[0].compressed
    with pytest.raises(Unavailable):  # but not in silence where it was asked for
        Request("upscale", scale=4, compressed=True).plan(lossy)


@pytest.mark.parametrize(("sigma", "level"), [(14, "σ15"), (24, "σ25"), (40, "σ50")])
def test_noise_is_measured_where_that_is_wished(sigma: int, level: str) -> None:
    name = next(s.name for s in zoo.zoo().values() if s.task == "denoise" and s.sigma == 25)
    alias = next(alias for alias in zoo.find(name).aliases)
    found, notes = chosen(Request("denoise", sigma="auto", model=alias), plain(noise=sigma))
    assert found == level
    assert notes[0].startswith("noise of about")


@pytest.mark.parametrize(("quality", "level"), [(8, "q10"), (32, "q30"), (60, "q40")])
def test_the_quality_of_the_jpeg_chooses(quality: int, level: str) -> None:
    picture = read_picture(encoded(photo(), "JPEG", quality=quality))
    alias = next(s.aliases[0] for s in zoo.zoo().values() if s.task == "decompress" and s.quality == 10 and s.aliases)
    found, notes = chosen(Request("decompress", model=alias), picture)
    assert found == level
    assert notes[0].startswith(f"JPEG quality {quality}")


def test_what_a_user_would_want_to_know_is_said() -> None:
    upscale = Request("upscale", scale=4, model="light")
    rough = replace(plain(), jpeg_quality=39)
    assert any("try -m photo" in note for note in chosen(upscale, rough)[1])
    assert chosen(replace(upscale, model="compressed"), rough)[1] == []
    assert any("decompress" in note for note in chosen(replace(upscale, model="photo"), rough)[1])
    assert chosen(replace(upscale, model="photo"), replace(plain(), jpeg_quality=40))[1] == []
    large = Picture((Frame(np.zeros((3000, 4001, 1), np.uint8)),))
    assert any("16004x12000 will come out" in note for note in chosen(upscale, large)[1])
    assert chosen(upscale, plain())[1] == []


def test_a_level_nobody_trained_for_is_named() -> None:
    request = Request("denoise", sigma=20, model="mambair-colordn-25")
    spec = next(s for s in zoo.zoo().values() if s.task == "denoise" and s.sigma == 25)
    assert "25" in str(request.level_note(spec))
    assert replace(request, sigma=25).level_note(spec) is None
