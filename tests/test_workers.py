"""Work spread over processes: same pixels, and nothing lost when workers die."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers.album import photo
from helpers.commands import Mambair, mambair
from helpers.networks import nearest
from helpers.work import Fatal, Nothing
from hypothesis import given
from hypothesis import strategies as st

from mambair_cli import files
from mambair_cli.errors import BadCheckpoint, MambairError, Unavailable
from mambair_cli.files import Job, Naming
from mambair_cli.models import parcel, zoo
from mambair_cli.restoring import spread
from mambair_cli.restoring.hand import Networks, Restoring
from mambair_cli.restoring.record import Record
from mambair_cli.restoring.request import Request
from mambair_cli.restoring.restorer import Restorers
from mambair_cli.restoring.running import Running
from mambair_cli.restoring.steps import Settings
from mambair_cli.workers import engines
from mambair_cli.workers.cluster import sized
from mambair_cli.workers.driver import PATIENCE, Driver
from mambair_cli.workers.engines import Wanted
from mambair_cli.workers.processes import Processes
from mambair_cli.workers.team import WINDOW, Done, Event, Lost, Ready, Refused, Seat, WorkerDied


@pytest.fixture(scope="module")
def x2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nearest(tmp_path_factory.mktemp("weights") / "nearest.pth")


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Mambair:
    return partial(mambair, capture=capfdbinary)


def album(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index in range(count):
        photo().resize((24, 18)).rotate(index).save(folder / f"{index:02}.png")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- the driver, with a team that dies as it is told ------------------------------------------------------------


class Mortal:
    """A team that does tasks in random order. Tasks in `killers` end their worker; so does chance, now and then."""

    def __init__(self, size: int, chance: random.Random, killers: frozenset[int], accidents: int = 0) -> None:
        self.size, self.chance, self.killers, self.accidents = size, chance, killers, accidents
        self.tasks: dict[int, list[tuple[int, int, bool]]] = {}
        self.told: deque[Event] = deque()
        self.most = 0

    def start(self, worker: int) -> None:
        assert worker not in self.tasks
        self.tasks[worker] = []
        self.told.append(Ready(worker))

    def send(self, worker: int, ticket: int, task: int, again: bool) -> None:
        self.tasks[worker].append((ticket, task, again))
        self.most = max(self.most, len(self.tasks[worker]))

    def events(self) -> Iterator[Event]:
        while self.told:
            yield self.told.popleft()
        busy = [worker for worker, tasks in self.tasks.items() if tasks]
        if not busy:
            return
        worker = self.chance.choice(busy)
        ticket, task, _ = self.chance.choice(self.tasks[worker])
        accident = self.accidents and len(self.tasks[worker]) > 1 and self.chance.random() < 0.2
        if task in self.killers or accident:
            self.accidents -= bool(accident)
            del self.tasks[worker]
            yield Lost(worker, "killed")
        else:
            self.tasks[worker] = [entry for entry in self.tasks[worker] if entry[0] != ticket]
            yield Done(worker, ticket, task * 10)

    def close(self) -> None: ...


@given(st.integers(0, 40), st.integers(1, 5), st.frozensets(st.integers(0, 39), max_size=4), st.randoms())
def test_every_task_comes_out_once_and_only_killers_fail(
    count: int, size: int, killers: frozenset[int], chance: random.Random
) -> None:
    team = Mortal(size, chance, killers, accidents=3)
    results = list(Driver(range(count), team))
    assert sorted(task for task, _ in results) == list(range(count))
    assert team.most <= WINDOW
    for task, result in results:
        if task in killers:
            assert isinstance(result, WorkerDied)
        else:
            assert result == task * 10


def test_what_is_stopped_gives_the_rest_back() -> None:
    driver = Driver(range(100), Mortal(2, random.Random(1), frozenset({3})))
    done = []
    for task, _ in driver:
        done.append(task)
        if len(done) == 5:
            driver.stop()
    assert sorted(done + list(driver.left())) == list(range(100))
    assert len(done) <= 5 + 2 * WINDOW


def test_workers_that_never_begin_end_the_run() -> None:
    starts: Counter[int] = Counter()

    class Stillborn(Mortal):
        def start(self, worker: int) -> None:
            starts[worker] += 1
            self.told.append(Lost(worker, "exit status 1"))

    team = Stillborn(2, random.Random(1), frozenset())
    with pytest.raises(MambairError, match="all workers end before they begin: exit status 1"):
        list(Driver(range(9), team))
    assert set(starts.values()) == {PATIENCE}

    class Unfit(Mortal):
        def start(self, worker: int) -> None:
            self.told.append(Refused(worker, Unavailable("no weights")))

    with pytest.raises(Unavailable, match="no weights"):
        list(Driver(range(9), Unfit(2, random.Random(1), frozenset())))


def test_a_long_run_holds_no_more_than_a_short_one() -> None:
    def peak(count: int) -> int:
        gc.collect()
        tracemalloc.start()
        for _ in Driver((f"picture {index}" for index in range(count)), Mortal(4, random.Random(1), frozenset())):
            pass
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(4_000) < peak(500) + 20_000  # bytes: two for each picture would be seen


# --- processes --------------------------------------------------------------------------------------------------


def test_two_workers_make_the_same_pixels_and_records(tmp_path: Path, run: Mambair, x2: Path) -> None:
    folder = album(tmp_path / "in", 9)
    (folder / "bad.png").write_bytes(b"no picture")
    command = ("upscale", "--weights", x2, "--json", folder, "-o")
    one, two = run(*command, tmp_path / "one"), run(*command, tmp_path / "two", "--workers", 2, "--threads", 1)
    assert one.status == two.status == 1
    assert contents(tmp_path / "one") == contents(tmp_path / "two")

    def told(out: bytes) -> list[dict[str, Any]]:
        records = [json.loads(line) for line in out.splitlines()]
        for record in records:
            record["output"] = Path(record["output"]).name
            del record["seconds"]
        return sorted(records, key=lambda record: str(record["input"]))

    assert told(one.out) == told(two.out)
    assert "9 done, 0 skipped, 1 failed" in two.err
    again = run(*command, tmp_path / "two", "--device", "cpu,cpu", "--fail-fast")
    assert Counter(record["status"] for record in told(again.out))["done"] == 0
    assert again.status == 1


@pytest.fixture
def work(tmp_path: Path, x2: Path) -> Restoring:
    request = Request("upscale").for_weights(x2)
    return Restoring(request, Networks(Restorers(Running(device="cpu"), x2)), Settings(), time.time())


class Diary:
    def __init__(self) -> None:
        self.records: list[Record] = []

    def tiles(self, job: Job, done: int, total: int) -> None: ...
    def note(self, job: Job, text: str) -> None: ...
    def record(self, record: Record) -> None:
        self.records.append(record)


def jobs_of(folder: Path, out: Path) -> list[Job]:
    return files.plan(files.find([str(folder)]), Naming("x2", f"{out}/"))


def test_a_picture_that_kills_its_worker_fails_by_name_and_alone(
    tmp_path: Path, work: Restoring, capfd: pytest.CaptureFixture[str]
) -> None:
    jobs, diary = jobs_of(album(tmp_path / "in", 9), tmp_path / "out"), Diary()
    fatal = Fatal(work, tmp_path, once=("05.png",), always=("02.png",), modules=work.modules)
    spread.run(jobs, Processes(fatal, [Seat("cpu", 1)] * 2), Settings(), diary)
    told = {Path(record.input).name: record for record in diary.records}
    assert len(diary.records) == len(told) == 9
    assert {name for name, record in told.items() if record.status != "done"} == {"02.png"}
    assert "its worker ended twice: killed by SIGKILL" in str(told["02.png"].error)
    assert sorted(contents(tmp_path / "out")) == sorted(set(told) - {"02.png"})  # and nothing half-written


def test_missing_weights_leave_the_rest_untried(tmp_path: Path, work: Restoring) -> None:
    jobs, diary = jobs_of(album(tmp_path / "in", 9), tmp_path / "out"), Diary()
    spec = replace(zoo.find("light", scale=2), name="not here")
    missing = replace(
        work,
        request=Request("upscale", spec=spec),
        networks=replace(work.networks, restorers=Restorers(Running(device="cpu"), None, offline=True), hashes={}),
    )
    with pytest.raises(Unavailable, match="no hash of its file is published"):
        spread.run(jobs, Processes(missing, [Seat("cpu", 1)]), Settings(), diary)
    assert [record.status for record in diary.records] == ["not tried"] * 9


def test_a_result_that_a_dead_worker_had_written_counts_as_done(tmp_path: Path, work: Restoring) -> None:
    [job] = jobs_of(album(tmp_path / "in", 1), tmp_path / "out")
    do = work.begin(Seat("cpu", 1))
    assert do(job, False).record.status == "done"
    assert do(job, False).record.status == "skipped"
    assert do(job, True).record.status == "done"
    assert job.target is not None
    os.utime(str(job.target), (0, 0))  # of a run before
    assert do(job, True).record.status == "skipped"


def test_two_drivers_at_once_write_every_result_once(tmp_path: Path, work: Restoring) -> None:
    jobs = jobs_of(album(tmp_path / "in", 12), tmp_path / "out")
    diaries = [Diary(), Diary()]
    threads = [
        threading.Thread(target=spread.run, args=(jobs, Processes(work, [Seat("cpu", 1)]), Settings(), diary))
        for diary in diaries
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = [record.output for diary in diaries for record in diary.records if record.status == "done"]
    assert sorted(str(output) for output in done) == sorted(str(job.output) for job in jobs)
    assert {record.status for diary in diaries for record in diary.records} <= {"done", "skipped"}


def test_an_interrupt_ends_all_workers_and_leaves_nothing(tmp_path: Path, x2: Path) -> None:
    folder = album(tmp_path / "in", 200)
    command = [sys.executable, "-m", "mambair_cli", "upscale", "--weights", str(x2), str(folder), "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--json", "-o", str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["status"] == "done"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)  # its pipes close when the last worker is gone
    assert process.returncode == 130
    assert "not tried" in err
    assert "Traceback" not in err
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".png"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("-", "--workers", 2, "-o", "x.png"), "stdin and stdout belong to one process"),
        (("a.png", "--engine", "slurm"), "there is no engine 'slurm'"),
        (("a.png", "--device", "cpu,tpu"), "No such device: tpu"),
        (("a.png", "--workers", 2, "--address", "auto"), "--address is of a cluster"),
        (("a.png", "--engine", "ray", "--device", "cuda:0,cuda:1"), "a cluster gives each worker one device"),
    ],
)
def test_what_makes_no_sense_is_refused(options: tuple[object, ...], told: str, run: Mambair, x2: Path) -> None:
    outcome = run("upscale", "--weights", x2, *options)
    assert outcome.status == 2
    assert told in outcome.err


def test_what_is_missing_is_named(run: Mambair, x2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    outcome = run("upscale", "--weights", x2, "a.png", "--engine", "ray")
    assert (outcome.status, "pip install 'mambair[ray]'" in outcome.err) == (2, True)


def test_workers_are_seated(monkeypatch: pytest.MonkeyPatch) -> None:
    from mambair_cli.restoring import restorer

    monkeypatch.setattr(restorer, "available_devices", lambda: ["cuda:0", "cuda:1", "cpu"])
    monkeypatch.setattr(engines, "cores", lambda: 8)
    assert engines.devices("all") == ["cuda:0", "cuda:1"]
    assert not engines.find("local").needed(Wanted("auto"))
    assert engines.find("local").needed(Wanted("all"))
    seats = engines.find("local").team(Nothing(), Wanted("cuda:0,cuda:1", workers=4))._seats  # type: ignore[attr-defined]
    assert seats == [Seat("cuda:0", 2), Seat("cuda:1", 2)] * 2
    assert sized({"GPU": 4, "CPU": 64}, None, "auto", None) == sized({"GPU": 4}, 4, "cuda", None)
    four = sized({"CPU": 8}, None, "auto", 2)
    assert (four.workers, four.seat, four.cpus, four.gpus) == (4, Seat("cpu", 2), 2, 0)
    assert sized({"GPU": 4, "CPU": 8}, None, "cpu", None).workers == 8


# --- weights on their way ----------------------------------------------------------------------------------------


def test_weights_arrive_as_they_were_sent_or_not_at_all(
    tmp_path: Path, x2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAMBAIR_CACHE", str(tmp_path / "cache"))
    data = x2.read_bytes()
    sent = parcel.pack(x2, None, lambda data: lambda: data)
    assert parcel.unpack(sent) == x2  # the same machine, or a shared disk
    elsewhere = replace(sent, file=tmp_path / "gone" / x2.name)
    arrived = parcel.unpack(elsewhere)
    assert arrived.read_bytes() == data
    assert tmp_path / "cache" in arrived.parents
    arrived.write_bytes(b"damaged")  # what lies in a cache is not believed either
    assert parcel.unpack(elsewhere).read_bytes() == data
    arrived.unlink()
    with pytest.raises(BadCheckpoint):
        parcel.unpack(replace(elsewhere, data=lambda: data[:-1] + b"x"))
    assert not arrived.exists()


def test_a_worker_of_another_version_is_refused(work: Restoring) -> None:
    with pytest.raises(MambairError, match=r"a worker runs mambair .*, this is 0\.0"):
        replace(work, networks=replace(work.networks, version="0.0")).begin(Seat("cpu", 1))
