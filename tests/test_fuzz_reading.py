"""Whatever stands in the files and answers that models, data sets and journals are read from: an error, or a result.

Derandomized and bounded, so that a run of the suite is like any other; without that, for a longer search:
`HYPOTHESIS_MAX_EXAMPLES=100000 pytest tests/test_fuzz_reading.py`.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.server import Server, raw
from helpers.sets import damage
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mambair_cli.bench import datasets
from mambair_cli.bench.records import Journal
from mambair_cli.cli.models import _card, _record, _size
from mambair_cli.errors import MambairError, Unavailable
from mambair_cli.models import answers, checkpoints, zoo
from mambair_cli.models import download as module
from mambair_cli.models.download import download
from mambair_cli.models.manifest import read_manifest

SEARCH = os.environ.get("HYPOTHESIS_MAX_EXAMPLES")
bounded = settings(
    max_examples=int(SEARCH or 60),
    derandomize=not SEARCH,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

WELL: dict[str, Any] = {
    "family": "f",
    "arch": "mambair",
    "protocol": "p",
    "task": "denoise",
    "params": 1,
    "scale": 1,
    "sigma": [0, 50],
    "kwargs": {"in_chans": 3},
    "source": {"filename": "a.pth", "urls": ["https://example.org/{filename}"], "bytes": 7},
    "published": {"Set5": [38.0, 0.96]},
    "aliases": ["b"],
    "like": "d",
    "licence": "MIT",
}
PLACES = [(key,) for key in WELL] + [
    ("source", key) for key in ("filename", "urls", "bytes", "sha256", "drive_id", "x")
]
text = st.text(max_size=8) | st.sampled_from(["../x", "{}", "{0.__class__}", "http://[", "\x1b[2J", "a", "d", "p"])
plain = st.none() | st.booleans() | st.integers() | st.floats() | text
anything = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=6
)


def toml(value: object) -> str:
    """A value as TOML writes it, strings with every escape."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(v)}" for key, v in value.items() if v is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml(v) for v in value if v is not None) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" for c in value) + '"'
    return str(value).lower()


@bounded
@given(place=st.sampled_from(PLACES), value=anything, defaults=anything)
@example(place=("params",), value=10**400, defaults={})
@example(place=("like",), value="d", defaults={"d": {"like": "d"}})
def test_any_list_of_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: tuple[str, ...], value: object, defaults: object
) -> None:
    model = json.loads(json.dumps(WELL))
    table = model
    for key in place[:-1]:
        table = table[key]
    table[place[-1]] = value
    manifest = {
        "protocols": {"p": {"channel": "y", "crop": 0}},
        "defaults": {"d": {}} | (defaults if isinstance(defaults, dict) else {}),
        "models": {"m": model},
    }
    file = tmp_path / "zoo.toml"
    file.write_text("\n".join(f"{key} = {toml(value)}" for key, value in manifest.items()), "utf-8", "surrogatepass")
    monkeypatch.setenv("MAMBAIR_ZOO", str(file))
    monkeypatch.setenv("MAMBAIR_CACHE", str(tmp_path / "cache"))
    read_manifest.cache_clear()
    try:
        models = zoo.zoo()
    except MambairError:
        return
    for spec in models.values():
        assert checkpoints.place(spec).parent in (checkpoints.cache_dir(), checkpoints.BUNDLED)
        assert all(
            isinstance(told, str) for told in (_card(spec), _size(spec), json.dumps(_record(spec)), spec.level)
        )
        assert "\x1b" not in _card(spec)


@bounded
@given(content=st.binary(max_size=60) | anything.map(lambda value: json.dumps(value).encode("utf-8", "replace")))
@example(b"[" * 100_000)
def test_any_note_beside_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setenv("MAMBAIR_CACHE", str(tmp_path))
    spec = next(spec for spec in zoo.zoo().values() if not spec.source.sha256 and not spec.source.bundled)
    (tmp_path / f"{spec.source.filename}.json").write_bytes(content)
    assert checkpoints.known_hash(spec) == checkpoints.UNREADABLE


LINE = {
    "name": "a",
    "width": 1,
    "height": 1,
    "score": {"psnr": 30.0, "ssim": 0.9},
    "baseline": {"psnr": 29.0, "ssim": None},
}


@bounded
@given(key=st.sampled_from([*LINE, "seconds", "stamp", "error", "x"]), value=anything, rest=st.binary(max_size=40))
def test_any_journal(tmp_path: Path, key: str, value: object, rest: bytes) -> None:
    journal = Journal(tmp_path, {"model": "m", "dataset": "d"})
    journal.folder.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps(LINE | {key: value}).encode("utf-8", "replace"),
        b"[" * 100_000,
        rest,
        json.dumps(LINE).encode(),
    ]
    journal.file.write_bytes(b"\n".join(lines))
    for image in journal.read().values():
        assert isinstance(image.gain, float)
        assert isinstance(image.name + image.stamp + image.timed + image.error, str)


@bounded
@given(
    names=st.lists(
        st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=12), max_size=6
    )
)
@example(["001_HR.png", "001_LR.png", "x2.png", "norain-1.png", "rain-1.png", "²3.png", "٣.png", "1" * 200 + ".png"])
def test_any_folder_of_a_set(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    folder = tmp_path_factory.mktemp("set")
    for name in names:
        for place in (folder / "HR", folder / "LRx2", folder):
            place.mkdir(exist_ok=True)
            if name not in (".", "..", "HR", "LRx2"):
                (place / (name if "." in name else name + ".png")).touch()
    try:
        items = datasets.scan(folder, damage("upscale", 2))
    except Unavailable:
        return
    assert len({item.name for item in items}) == len(items)
    assert all(item.truth.is_file() and (item.degraded is None or item.degraded.is_file()) for item in items)


BODY = random.Random(1).randbytes(3000)
HEADERS = [
    "Content-Length",
    "Content-Range",
    "Content-Type",
    "ETag",
    "Last-Modified",
    "Location",
    "Retry-After",
    "Date",
]
HEADERS += ["Transfer-Encoding", "Content-Encoding", "Connection"]
VALUES = [
    "3000",
    "-1",
    "9" * 5000,
    "bytes 0-9/10",
    "bytes */3000",
    "text/html",
    '"1"',
    'W/"1"',
    "http://[::1",
    "/w",
    "gzip",
]
VALUES += ["chunked", "Sat, 01 Jan 0001 00:00:00 -9999", "Fri, 31 Dec 9999 23:59:59 GMT", "\xff", "", "٣", "close"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    monkeypatch.setattr(answers, "CONNECT_TIMEOUT", 2.0)
    monkeypatch.delenv("MAMBAIR_OFFLINE", raising=False)
    with Server() as server:
        yield server


@bounded
@given(
    code=st.sampled_from([200, 200, 206, 302, 416, 429, 404, 999]),
    headers=st.lists(st.tuples(st.sampled_from(HEADERS), st.sampled_from(VALUES) | st.text(max_size=8)), max_size=4),
    body=st.sampled_from([BODY, BODY[:100], b"", b"<html>", b"<form id=download-form action='http://[x'>"]),
    note=st.none() | anything,
)
def test_any_answer(
    server: Server, tmp_path: Path, code: int, headers: list[tuple[str, str]], body: bytes, note: object
) -> None:
    """The right file, from the second address at the latest, and never another one."""
    target = tmp_path / "w"
    for file in tmp_path.iterdir():
        file.unlink()
    (tmp_path / "w.part").write_bytes(BODY[:50])
    (tmp_path / "w.part.json").write_text(json.dumps(note), "utf-8")
    lines = [
        f"HTTP/1.1 {code} X",
        *(f"{name}: {value}".replace("\n", "").replace("\r", "") for name, value in headers),
    ]
    answer = "\r\n".join(lines).encode("utf-8", "replace") + b"\r\n\r\n" + body
    mad = server.put("/mad", BODY, *[raw(answer)] * 20)
    good = server.put("/w", BODY)

    def check(file: Path) -> None:
        if file.read_bytes() != BODY:
            raise Unavailable("it is another file")

    assert download([mad, good], target, check=check, timeout=2).read_bytes() == BODY
    assert not list(tmp_path.glob("w.*"))
