"""A true Ray cluster of two cores on this machine, with a bucket: actors die, drivers meet, results are exact."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers.album import encoded, photo
from helpers.bucket import Bucket, bucket, store  # noqa: F401 -- fixtures
from helpers.commands import Mambair, Outcome, mambair
from helpers.networks import nearest
from helpers.work import Fatal

from mambair_cli.elsewhere import Search
from mambair_cli.files import Job, Naming
from mambair_cli.restoring import spread
from mambair_cli.restoring.hand import Networks, Restoring
from mambair_cli.restoring.record import Record
from mambair_cli.restoring.request import Request
from mambair_cli.restoring.restorer import Restorers
from mambair_cli.restoring.running import Running
from mambair_cli.restoring.steps import Settings
from mambair_cli.workers.cluster import Cluster


@pytest.fixture(scope="module", autouse=True)
def cluster(store: Any) -> Iterator[None]:
    ray = pytest.importorskip("ray", reason="needs mambair[ray]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80_000_000)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def x2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nearest(tmp_path_factory.mktemp("weights") / "nearest.pth")


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Mambair:
    return partial(mambair, capture=capfdbinary)


class Diary:
    def __init__(self) -> None:
        self.records: list[Record] = []

    def tiles(self, job: Job, done: int, total: int) -> None: ...
    def note(self, job: Job, text: str) -> None: ...
    def record(self, record: Record) -> None:
        self.records.append(record)


def jobs_of(bucket: Bucket, out: str) -> Iterator[Job]:
    return Search([f"{bucket.url}/in/"], (), Naming("x2", f"{bucket.url}/{out}/")).jobs()


def statuses(outcome: Outcome) -> Counter[str]:
    return Counter(json.loads(line)["status"] for line in outcome.out.splitlines())


@pytest.mark.timeout(1200)  # seven processes start one after the other: minutes on a loaded machine
def test_twenty_pictures_of_a_bucket_by_two_actors_of_which_some_die(
    bucket: Bucket,
    tmp_path: Path,
    run: Mambair,
    x2: Path,
) -> None:
    (tmp_path / "in").mkdir()
    for index in range(20):
        body = encoded(photo().resize((24, 18)).rotate(index), "PNG") if index != 11 else b"no picture"
        bucket.put(f"in/{index:02}.png", body)
        (tmp_path / "in" / f"{index:02}.png").write_bytes(body)
    local = run("upscale", "--weights", x2, "--json", tmp_path / "in", "-o", tmp_path / "local")
    assert statuses(local) == {"done": 19, "failed": 1}
    exact = {path.name: path.read_bytes() for path in (tmp_path / "local").iterdir()}

    # Through the driver itself, with a picture that ends its actor in the middle.
    request = Request("upscale").for_weights(x2)
    work = Restoring(request, Networks(Restorers(Running(), x2)), Settings(), time.time())
    diary = Diary()
    fatal = Fatal(work, tmp_path, once=("07.png",))
    spread.run(jobs_of(bucket, "out"), Cluster(fatal, 2, "cpu", 1, None), Settings(), diary)
    assert (tmp_path / "07.png").exists()  # it did end its actor
    assert Counter(record.status for record in diary.records) == {"done": 19, "failed": 1}
    assert [record.input for record in diary.records if record.status == "failed"] == [f"{bucket.url}/in/11.png"]
    assert bucket.contents("out/") == exact

    # Resumed by the command.
    command = ("upscale", "--weights", x2, "--json", "--engine", "ray", "--workers", 1)
    again = run(*command, f"{bucket.url}/in/", "-o", f"{bucket.url}/out/")
    assert again.status == 1
    assert statuses(again) == {"skipped": 19, "failed": 1}

    # Two drivers at once: every object is written once.
    versioning = {"Status": "Enabled"}
    bucket.client.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration=versioning)
    diaries = [Diary(), Diary()]
    drivers = [
        threading.Thread(
            target=spread.run, args=(jobs_of(bucket, "both"), Cluster(work, 1, "cpu", 1, None), Settings(), each)
        )
        for each in diaries
    ]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    told = Counter(record.status for each in diaries for record in each.records)
    assert told == {"done": 19, "skipped": 19, "failed": 2}
    written = bucket.client.list_object_versions(Bucket=bucket.name, Prefix="both/")["Versions"]
    assert len(written) == 19
    assert bucket.contents("both/") == exact


def test_a_cluster_that_is_not_there_is_named(run: Mambair, x2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def refused(**_: object) -> None:
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(ray, "init", refused)
    outcome = run("upscale", "--weights", x2, "docs/sample.png", "--engine", "ray", "--address", "far:6379")
    assert outcome.status == 1
    assert "no Ray cluster at far:6379: nobody answers" in outcome.err
