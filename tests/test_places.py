"""Pictures and results in stores: a true S3 protocol (moto's server), a web server that misbehaves, memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from helpers.album import encoded, photo
from helpers.bucket import Bucket, bucket, store  # noqa: F401 -- fixtures
from helpers.commands import Mambair, Outcome, mambair
from helpers.networks import nearest
from helpers.server import Server, status, whole

from mambair_cli import places
from mambair_cli.elsewhere import Search
from mambair_cli.errors import AlreadyThere, BadImage, MambairError, UsageError
from mambair_cli.files import Naming
from mambair_cli.places import Place


@pytest.fixture(scope="module")
def x2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nearest(tmp_path_factory.mktemp("weights") / "nearest.pth")


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Mambair:
    return partial(mambair, capture=capfdbinary)


@pytest.fixture
def memory() -> Iterator[Any]:
    fsspec = pytest.importorskip("fsspec")
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "PAUSE", 0.001)


def picture(turned: int = 0, form: str = "PNG") -> bytes:
    return encoded(photo().resize((20, 16)).rotate(turned), form)


def records(outcome: Outcome) -> list[dict[str, Any]]:
    return [json.loads(line) for line in outcome.out.splitlines()]


def test_a_tree_in_a_bucket_is_restored_as_on_the_disk_and_goes_on_where_it_stopped(
    bucket: Bucket,
    run: Mambair,
    x2: Path,
    tmp_path: Path,
) -> None:
    for key, body in {
        "album/a.png": picture(1),
        "album/deep/b.jpg": picture(2, "JPEG"),
        "album/deep/c.png": picture(3)[:200],
        "album/.hidden.png": picture(4),
        "album/notes.txt": b"no picture",
        "album/": b"",  # as consoles make folders
    }.items():
        bucket.put(key, body)
        if not key.endswith("/"):
            (path := tmp_path / "in" / key.removeprefix("album/")).parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
    command = ("upscale", "--weights", x2, "--json", "-r")
    local = run(*command, tmp_path / "in", "-o", tmp_path / "out")
    remote = run(*command, f"{bucket.url}/album/", "-o", f"{bucket.url}/large/")
    assert local.status == remote.status == 1
    assert [(r["status"], r["output_size"]) for r in records(remote)] == [
        (r["status"], r["output_size"]) for r in records(local)
    ]
    assert "1 other left alone: .txt" in remote.err
    on_disk = {p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*.*")}
    assert bucket.contents("large/") == on_disk
    assert sorted(on_disk) == ["a.png", "deep/b.jpg"]
    assert bucket.get("large/a.png")["ContentType"] == "image/png"
    assert bucket.get("large/deep/b.jpg")["ContentType"] == "image/jpeg"

    again = records(run(*command, f"{bucket.url}/album/", "-o", f"{bucket.url}/large/"))
    assert [record["status"] for record in again] == ["skipped", "skipped", "failed"]
    # And from the store to the disk, from the disk to the store, one file, one pattern, a list, without the network.
    assert run(*command, f"{bucket.url}/album", "-o", tmp_path / "down").status == 1
    assert (tmp_path / "down" / "deep" / "b.jpg").read_bytes() == on_disk["deep/b.jpg"]
    assert run(*command, tmp_path / "in" / "a.png", "-o", f"{bucket.url}/up/one.png").status == 0
    assert run(*command, f"{bucket.url}/album/*.png", "-o", f"{bucket.url}/up/").status == 0
    (tmp_path / "list").write_text(f"{bucket.url}/album/a.png\n{bucket.url}/album/deep/b.jpg\n")
    assert run(*command, "--files-from", tmp_path / "list", "-o", f"{bucket.url}/listed").status == 0
    assert set(bucket.keys("up/") + bucket.keys("listed/")) == {
        "up/one.png",
        "up/a.png",
        "listed/a.png",
        "listed/deep/b.jpg",
    }
    planned = run("upscale", "--weights", x2, f"{bucket.url}/album/a.png", "-o", f"{bucket.url}/other/", "-n")
    assert f"{bucket.url}/album/a.png -> {bucket.url}/other/a.png (nearest, 20x16 -> 40x32)" in planned.out.decode()
    assert bucket.keys("other/") == []


def test_nothing_is_replaced_unasked_not_even_at_the_last_moment(
    bucket: Bucket, run: Mambair, x2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("a.png", picture())
    monkeypatch.setattr(Place, "exists", lambda self: False)  # another run writes it between the question and the end
    bucket.put("out/a.png", b"of another run")
    command = ("upscale", "--weights", x2, "--json", f"{bucket.url}/a.png", "-o", f"{bucket.url}/out/")
    assert [record["status"] for record in records(run(*command))] == ["skipped"]
    assert bucket.contents("out/") == {"a.png": b"of another run"}
    assert [record["status"] for record in records(run(*command, "--force"))] == ["done"]
    assert bucket.contents("out/")["a.png"].startswith(b"\x89PNG")


def test_a_store_without_exclusive_files_is_asked_and_that_is_said(
    memory: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place, pipe = Place("memory://out/a.png"), type(memory).pipe_file

    def simple(self: Any, path: str, value: bytes, mode: str = "overwrite", **_: object) -> None:
        if mode != "overwrite":
            raise NotImplementedError
        pipe(self, path, value)

    place.write(b"one", "image/png", exclusive=True)
    monkeypatch.setattr(type(memory), "pipe_file", simple)
    places._say_once.cache_clear()
    with pytest.raises(AlreadyThere):
        place.write(b"two", "image/png", exclusive=True)
    Place("memory://out/b.png").write(b"two", "image/png", exclusive=True)
    assert (memory.cat_file("/out/a.png"), memory.cat_file("/out/b.png")) == (b"one", b"two")
    assert caplog.text.count("cannot create files exclusively") == 1


@pytest.mark.usefixtures("quick")
def test_reading_is_patient_but_not_for_ever(run: Mambair, x2: Path, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="needs mambair[cloud]")
    with Server() as server:
        good = server.put("/good.png", picture(), *[status(503)] * 3, *[whole] * 9)
        gone = server.url("/gone.png")
        bad = server.put("/bad.png", picture(), *[status(500)] * 99)
        refused = server.put("/refused.png", picture(), *[status(403)] * 99)
        outcome = run("upscale", "--weights", x2, "--json", good, gone, bad, refused, "-o", tmp_path / "out")
        tries = [path for path, _ in server.requests]
    told = {Path(record["input"]).stem: record for record in records(outcome)}
    assert {name: record["status"] for name, record in told.items()} == {
        "good": "done",
        "gone": "failed",
        "bad": "failed",
        "refused": "failed",
    }
    assert "404" in told["gone"]["error"]
    assert "500" in told["bad"]["error"]
    assert "403" in told["refused"]["error"]
    assert tries.count("/bad.png") > tries.count("/refused.png")


def test_a_longer_file_than_any_picture_is_not_taken_into_memory(memory: Any) -> None:
    memory.pipe_file("/long.png", b"x" * 2000)
    assert len(Place("memory://long.png").read(2000).read()) == 2000
    with pytest.raises(BadImage, match="more than 1,999 bytes"):
        Place("memory://long.png").read(1999)


def jobs_of(*inputs: str, output: str, recursive: bool = True, **naming: Any) -> list[tuple[str, str | None, bool]]:
    search = Search(inputs, (), Naming("x4", output, **naming), recursive)
    return [(job.input, job.output, bool(job.error)) for job in search.jobs()]


def test_names_in_stores_cannot_lead_out_of_the_folder_of_results(bucket: Bucket, tmp_path: Path) -> None:
    for key in ("in/a//b.png", "in/good.png", "in/d\\..\\e.png"):
        bucket.put(key, b"")
    told = jobs_of(f"{bucket.url}/in/", output=f"{tmp_path}/out/")
    assert {(name.removeprefix(bucket.url), output) for name, output, _ in told} == {
        ("/in/d\\..\\e.png", None),
        ("/in/good.png", f"{tmp_path}/out/good.png"),
        ("/in/a/", None),
    }
    with pytest.raises(UsageError):
        list(Search((), [f"{bucket.url}/x/../../e.png"], Naming("x4", "out/"), base=bucket.url).jobs())


def test_what_a_tree_gives_and_where_it_goes(memory: Any, tmp_path: Path) -> None:
    for name in ("/t/b/a.png", "/t/a.png", "/t/a.ppm", "/t/out/a.png", "/t/b/c.txt"):
        memory.pipe_file(name, b"")
    told = jobs_of("memory://t/", output="memory://t/out/")
    assert told == [
        ("memory://t/a.png", "memory://t/out/a.png", False),
        ("memory://t/a.ppm", None, True),  # it would be a.png, too
        ("memory://t/b/a.png", "memory://t/out/b/a.png", False),
    ]
    assert [output for _, output, _ in jobs_of("memory://t", output="x/", recursive=False, template="{name}")] == [
        "x/a.png",
        "x/a.ppm.png",
    ]
    (tmp_path / "here.png").write_bytes(b"")
    told = jobs_of(str(tmp_path / "here.png"), "memory://t/a.ppm", output="memory://all/")
    assert [output for _, output, _ in told] == ["memory://all/here.png", "memory://all/a.png"]
    assert jobs_of("memory://nowhere/", output="x/") == [("memory://nowhere/", None, True)]
    memory.makedirs("/empty")
    assert jobs_of("memory://empty/", output="x/") == []


@pytest.mark.parametrize(
    ("inputs", "output", "naming"),
    [
        (["memory://t/a.png"], None, {}),  # beside it? then a second run would enlarge the results
        (["memory://t/a.png", "memory://t/b.png"], "memory://t/one.png", {}),
        (["memory://t/a.png"], "https://example.com/out/", {}),
        (["memory://t/a.png"], "memory://t/one.xyz", {}),
        (["memory://t/a.png"], "x/", {"compare": True}),
        (["nonsense://t/a.png"], "x/", {}),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_work(
    memory: Any, inputs: list[str], output: str | None, naming: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        list(Search(inputs, (), Naming("x4", output, **naming)).jobs())


def test_a_name_on_the_web_is_without_its_query() -> None:
    place = Place("https://example.com/some%20where/a%20b.png?width=3#x")
    assert (place.name, place.suffix) == ("a b.png", ".png")
    assert Place("s3://bucket/what?.png").name == "what?.png"
    assert Place("s3://bucket/out").below(PurePosixPath("a/b.png")) == Place("s3://bucket/out/a/b.png")


def test_local_urls_are_local_files(run: Mambair, x2: Path, tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(picture())
    outcome = run(
        "upscale", "--weights", x2, (tmp_path / "a b.png").as_uri(), "-o", (tmp_path / "out").as_uri() + "/"
    )
    assert outcome.out.decode().strip() == str(tmp_path / "out" / "a b.png")
    assert (tmp_path / "out" / "a b.png").exists()


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = pytest.importorskip("fsspec.registry")
    for name in list(registry._registry):  # of those that are loaded
        monkeypatch.delitem(registry._registry, name)
    for module, url, hint in (
        ("gcsfs", "gs://b/a.png", "pip install gcsfs"),
        ("adlfs", "az://b/a.png", "pip install adlfs"),
        ("aiohttp", "https://b/a.png", "pip install 'mambair[cloud]'"),
        ("fsspec", "s3://c/a.png", "pip install 'mambair[cloud]'"),
    ):
        places._filesystem.cache_clear()
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
        with pytest.raises(UsageError) as raised:
            Place(url).check()
        assert raised.value.hint == hint
    places._filesystem.cache_clear()


def test_a_store_that_cannot_be_reached_fails_by_name(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(places, "PAUSE", 0.0)
    monkeypatch.setattr(type(memory), "exists", unreachable)
    monkeypatch.setattr(type(memory), "ls", unreachable)
    with pytest.raises(MambairError, match="cannot be reached: refused"):
        Place("memory://a/b.png").exists()
    assert jobs_of("memory://a/", output="x/") == [("memory://a/", None, True)]


def test_the_plain_command_imports_neither_fsspec_nor_ray(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    code = (
        "import sys; from mambair_cli.cli.app import application\n"
        f"application()(['upscale', '-n', {str(tmp_path / 'a.png')!r}], standalone_mode=False)\n"
        "sys.exit(', '.join({'fsspec', 's3fs', 'ray', 'torch'} & set(sys.modules)) or 0)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
