"""Files become networks strictly and safely, and the cache holds nothing but the right ones."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path

import pytest
import torch
from helpers.server import Server, cut, page
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mambair_cli import archs
from mambair_cli.errors import BadCheckpoint, Unavailable, UsageError
from mambair_cli.models import checkpoints, download, zoo

GOLDEN = Path(__file__).parent / "golden"
TINY = {"in_chans": 3, "upscale": 1, "embed_dim": 30, "d_state": 4, "depths": [1], "mlp_ratio": 1.2}
SMALL = sorted(
    file.stem
    for file in GOLDEN.glob("*.safetensors")
    if not file.stem.startswith(("full_", "real_", "orders_"))
    and file.stem not in ("mambair_realdn_unet", "selective_scan", "eamamba_dualpixel")  # which takes two views
)

MANIFEST = """
[protocols.p]
channel = "y"
crop = "scale"
[defaults.tiny]
family = "mambair"
arch = "mambair"
protocol = "p"
source.key = "params"
kwargs = { in_chans = 3, upscale = 1, embed_dim = 30, d_state = 4, depths = [1], mlp_ratio = 1.2 }
[models.tiny-x2]
like = "tiny"
task = "upscale"
scale = 2
params = %(x2)d
kwargs = { upscale = 2, upsampler = "pixelshuffledirect" }
source.filename = "tiny_lightSRx2.pth"
source.urls = ["%(server)s/x2.pth"]
[models.sure-x2]
like = "tiny"
task = "upscale"
scale = 2
params = %(x2)d
kwargs = { upscale = 2, upsampler = "pixelshuffledirect" }
source.filename = "sure_x2.pth"
source.urls = ["%(server)s/sure.pth"]
source.sha256 = "%(sha256)s"
[models.tiny-denoise-15]
like = "tiny"
task = "denoise"
sigma = 15
params = %(x1)d
source.filename = "tiny_level15.pth"
source.urls = []
source.folder = "https://example.org/folder"
[models.tiny-denoise-50]
like = "tiny"
task = "denoise"
sigma = 50
params = %(x1)d
source.filename = "tiny_level50.pth"
source.folder = "https://example.org/folder"
"""


def weights(seed: int = 0, **kwargs: object) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return archs.build("mambair", **TINY | kwargs).state_dict()


def saved(content: object) -> bytes:
    stream = BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


X2 = weights(upscale=2, upsampler="pixelshuffledirect")
X1 = weights()
BODY = saved({"params": X2})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAMBAIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MAMBAIR_OFFLINE", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def server(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server, and a manifest of tiny models whose addresses lead to it."""
    with Server() as server:
        size = {"x1": sum(w.numel() for w in X1.values()), "x2": sum(w.numel() for w in X2.values())}
        sha256 = hashlib.sha256(BODY).hexdigest()
        (tmp_path / "zoo.toml").write_text(MANIFEST % {"server": server.url(""), "sha256": sha256, **size})
        monkeypatch.setenv("MAMBAIR_ZOO", str(tmp_path / "zoo.toml"))
        yield server


def cached(cache: Path) -> list[str]:
    return sorted(file.name for file in cache.glob("*") if not file.name.startswith("."))


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------------------------------------------ reading


CONTAINERS: dict[str, object] = {
    "bare": X1,
    "params": {"params": X1},
    "params_ema": {"params_ema": X1, "params": X2},
    "state_dict": {"state_dict": X1, "epoch": 3},
    "module": {"params": {f"module.{name}": value for name, value in X1.items()}},
    "bare with more": {**X1, "step": 5},
}


@pytest.mark.parametrize("content", CONTAINERS.values(), ids=CONTAINERS)
@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
def test_containers(tmp_path: Path, content: object, modern: bool) -> None:
    torch.save(content, tmp_path / "w", _use_new_zipfile_serialization=modern)
    assert same(checkpoints.read(tmp_path / "w"), X1)


def test_the_preferred_container_wins(tmp_path: Path) -> None:
    torch.save({"params_ema": X1, "params": X2}, tmp_path / "w")
    assert same(checkpoints.read(tmp_path / "w", "params"), X2)
    torch.save({"params_ema": X1}, tmp_path / "w")
    assert same(checkpoints.read(tmp_path / "w", "params"), X1)


def test_safetensors_by_content(tmp_path: Path) -> None:
    save_file(X1, tmp_path / "weights.pth")
    assert same(checkpoints.read(tmp_path / "weights.pth"), X1)


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {os.environ['MAMBAIR_EVIL']}",)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAMBAIR_EVIL", str(tmp_path / "pwned"))
    for content in (saved({"params": X1, "more": Evil()}), pickle.dumps({"params": Evil()}, protocol=2)):
        (tmp_path / "w").write_bytes(content)
        with pytest.raises(BadCheckpoint, match=r"holds more than tensors .*system.* refused"):
            checkpoints.read(tmp_path / "w")
    assert not (tmp_path / "pwned").exists()


BAD = {
    "empty": b"",
    "page": b"<!DOCTYPE html><html>Not found</html>",
    "truncated zip": BODY[: len(BODY) // 2],
    "truncated safetensors": (100).to_bytes(8, "little") + b'{"a":' + b" " * 200,
    "no tensors": saved({"params": {}, "epoch": 1}),
    "a list": saved([1, 2, 3]),
    "a tensor": saved(torch.zeros(3)),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_files_without_weights(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=r"w (is no checkpoint|is damaged|holds no weights)") as error:
        checkpoints.read(tmp_path / "w")
    assert error.value.exit_code == 3


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x10\0\0\0\0\0\0\0{"]), rest=st.binary(max_size=64))
def test_garbage_is_told_as_such(tmp_path: Path, start: bytes, rest: bytes) -> None:
    (tmp_path / "w").write_bytes(start + rest)
    with pytest.raises(BadCheckpoint):
        checkpoints.read(tmp_path / "w")


def test_a_missing_file(tmp_path: Path) -> None:
    for file in (tmp_path / "w", tmp_path):
        with pytest.raises(Unavailable, match="Cannot read"):
            checkpoints.read(file)


# ------------------------------------------------------------------------------------------------------ loading


def golden(name: str) -> tuple[str, dict, dict[str, Tensor]]:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        fixture = json.loads(file.metadata()["fixture"])
        tensors = {key: file.get_tensor(key).float() for key in file.keys() if key.startswith("weights/")}  # noqa: SIM118
    return fixture["arch"], fixture["kwargs"], {k.removeprefix("weights/"): v for k, v in tensors.items()}


@pytest.mark.parametrize("name", SMALL)
def test_a_file_of_unknown_origin(tmp_path: Path, name: str) -> None:
    arch, kwargs, state = golden(name)
    torch.save({"params_ema": state}, tmp_path / "mine.pth")
    spec = checkpoints.spec_for_file(tmp_path / "mine.pth")
    assert (spec.name, spec.arch, spec.params) == ("mine", arch, sum(w.numel() for w in state.values()))
    record = archs.find(arch)
    assert (spec.channels, spec.scale) == (record.channels_of(kwargs), record.scale_of(kwargs))
    alike = [s for s in zoo.zoo().values() if s.arch == arch and (s.scale > 1) == (spec.scale > 1)]
    grey = [s for s in alike if s.channels == spec.channels]
    assert spec.task in {s.task for s in grey or alike}
    network, digest = checkpoints.load(spec, tmp_path / "mine.pth")
    assert digest == hashlib.sha256((tmp_path / "mine.pth").read_bytes()).hexdigest()
    loaded = network.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    assert not network.training


@pytest.mark.parametrize(
    ("note", "task"),
    [('{"task": "derain"}', "derain"), ('{"task": "dream"}', "denoise"), ("[]", "denoise"), ("{", "denoise")],
)
def test_a_file_of_the_trainer_says_its_task(tmp_path: Path, note: str, task: str) -> None:
    arch, kwargs, _ = golden("mambair_denoise_rgb")
    state = archs.build(arch, **kwargs).state_dict()
    save_file(state, tmp_path / "mine.safetensors", {"mambair": note})
    spec = checkpoints.spec_for_file(tmp_path / "mine.safetensors")
    assert spec.task == task
    assert spec.protocol.channel == ("y" if task == "derain" else "rgb")


def test_a_real_checkpoint(shared: Path) -> None:
    file = shared / "weights" / "mambairv2_light_x4.pth"
    assert [spec.name for spec in checkpoints.identify(file)] == ["mambairv2-light-x4-ntire"]
    network, digest = checkpoints.load(zoo.find("mambairv2-light-x4"), file)
    assert digest == zoo.find("light").source.sha256
    assert sum(p.numel() for p in network.parameters()) == 789_680
    with pytest.raises(BadCheckpoint, match=r"lacks .*more.*besides .*more.*not \[180, 3, 3, 3\]") as error:
        checkpoints.load(zoo.find("mambair-classic-x4"), file)
    assert "mambairv2_light network of 789,680 parameters, as mambairv2-light-x4-ntire and" in error.value.hint


def test_a_mismatch_names_the_first_keys(server: Server, tmp_path: Path) -> None:
    state = dict(X2)
    del state["norm.weight"], state["norm.bias"]
    state |= {"extra.weight": torch.zeros(1), "conv_first.weight": torch.zeros(30, 1, 3, 3)}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(BadCheckpoint) as error:
        checkpoints.load(zoo.find("tiny-x2"), tmp_path / "w.pth")
    said = error.value.message
    assert "it lacks norm.weight (and 1 more); it has besides extra.weight;" in said
    assert "conv_first.weight is [30, 1, 3, 3], not [30, 3, 3, 3]" in said


def test_half_precision_and_absent_index_tables(tmp_path: Path) -> None:
    arch, kwargs, state = golden("mambairv2_classic_x2")
    assert "relative_position_index_SA" in archs.build(arch, **kwargs).state_dict()
    table = archs.build(arch, **kwargs).state_dict()["relative_position_index_SA"]
    for more in ({}, {"relative_position_index_SA": torch.zeros_like(table)}):
        torch.save({key: value.half() for key, value in state.items()} | more, tmp_path / "w.pth")
        network, _ = checkpoints.load(checkpoints.spec_for_file(tmp_path / "w.pth"), tmp_path / "w.pth")
        assert {p.dtype for p in network.parameters()} == {torch.float32}
        assert torch.equal(network.state_dict()["relative_position_index_SA"], table), "it is computed, not read"


# ---------------------------------------------------------------------------------------------------- the cache


def test_first_use_is_trusted_and_said(server: Server, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = zoo.find("tiny-x2")
    server.put("/x2.pth", BODY)
    network, digest = checkpoints.load(spec)
    assert same(network.state_dict(), X2)
    assert cached(cache) == ["tiny_lightSRx2.pth", "tiny_lightSRx2.pth.json"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert digest in record.getMessage()
    caplog.clear()
    checkpoints.load(spec)
    assert not caplog.records
    assert len(server.requests) == 1


def test_later_mismatches_are_refused(server: Server, cache: Path) -> None:
    spec = zoo.find("tiny-x2")
    server.put("/x2.pth", BODY)
    file = checkpoints.fetch(spec)
    other = saved({"params": weights(1, upscale=2, upsampler="pixelshuffledirect")})
    file.write_bytes(other)
    with pytest.raises(BadCheckpoint, match="recorded when it was first used") as error:
        checkpoints.fetch(spec)
    assert "mambair models rm tiny-x2" in error.value.hint
    file.unlink()
    server.put("/x2.pth", other)
    with pytest.raises(Unavailable, match="sha256"):
        checkpoints.fetch(spec)
    assert checkpoints.path(spec) is None
    assert checkpoints.forget(spec)
    assert not checkpoints.forget(spec)
    assert checkpoints.fetch(spec).read_bytes() == other


WRONG = {
    "another network": saved({"params": X1}),
    "no weights": saved({"params": {}}),
    "a page": b"<html>Sign in</html>",
    "noise": bytes(range(256)) * 10,
    "truncated": BODY[:-100],
}


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("name", ["tiny-x2", "sure-x2"], ids=["hash unknown", "hash known"])
def test_a_wrong_file_never_gets_into_the_cache(server: Server, cache: Path, name: str, body: bytes) -> None:
    spec = zoo.find(name)
    server.put("/" + spec.source.urls[0].rpartition("/")[2], body)
    with pytest.raises(Unavailable) as error:
        checkpoints.fetch(spec)
    assert str(checkpoints.place(spec)) in error.value.hint
    assert cached(cache) == []


def test_known_hash_through_a_bad_connection(
    server: Server, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mambair_cli.models.download.BACKOFF", 0.01)
    server.put("/sure.pth", BODY, cut(1000), cut(20_000))
    assert checkpoints.fetch(zoo.find("sure-x2")).read_bytes() == BODY
    assert cached(cache) == ["sure_x2.pth"]
    assert not any("trusted" in record.getMessage() for record in caplog.records)


def test_a_wrong_file_put_by_hand_is_refused(server: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / "sure_x2.pth").write_bytes(saved({"params": weights(2, upscale=2, upsampler="pixelshuffledirect")}))
    with pytest.raises(BadCheckpoint, match="published is"):
        checkpoints.load(zoo.find("sure-x2"))


def test_offline(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = zoo.find("tiny-x2")
    with pytest.raises(Unavailable) as error:
        checkpoints.load(spec, offline=True)
    for said in ("tiny_lightSRx2.pth", spec.source.urls[0], str(cache / "tiny_lightSRx2.pth")):
        assert said in str(error.value)
    assert not server.requests
    cache.mkdir()
    (cache / "tiny_lightSRx2.pth").write_bytes(BODY)
    monkeypatch.setenv("MAMBAIR_OFFLINE", "1")
    assert same(checkpoints.load(spec)[0].state_dict(), X2), "a file put there by hand does"


def test_a_shared_folder_needs_a_hand(server: Server, cache: Path, tmp_path: Path) -> None:
    spec = zoo.find("tiny-denoise-15")
    with pytest.raises(Unavailable) as error:
        checkpoints.fetch(spec)
    assert "https://example.org/folder" in error.value.hint
    assert "mambair models import FILE --as tiny-denoise-15" in error.value.hint
    (tmp_path / "fetched.pth").write_bytes(saved(X1))
    assert checkpoints.adopt(tmp_path / "fetched.pth", spec) == checkpoints.fetch(spec)
    assert same(checkpoints.load(spec)[0].state_dict(), X1)


def test_adopt_refuses_what_it_is_not(server: Server, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "fetched.pth").write_bytes(saved(X1))
    with pytest.raises(BadCheckpoint, match=r"fetched\.pth is a mambair network"):
        checkpoints.adopt(tmp_path / "fetched.pth", zoo.find("tiny-x2"))
    (tmp_path / "fetched.pth").write_bytes(saved(X2))
    with pytest.raises(BadCheckpoint, match="published is"):
        checkpoints.adopt(tmp_path / "fetched.pth", zoo.find("sure-x2"))
    with pytest.raises(Unavailable, match="Cannot copy"):
        checkpoints.adopt(tmp_path / "nowhere.pth", zoo.find("tiny-x2"))
    assert cached(cache) == []


@pytest.mark.parametrize(
    ("name", "content", "models"),
    [
        ("anything.pth", BODY, ["sure-x2"]),  # by its hash
        ("tiny_lightSRx2.pth", saved(X2), ["tiny-x2"]),
        ("other.pth", saved(X2), ["tiny-x2", "sure-x2"]),
        ("net_level50.pth", saved(X1), ["tiny-denoise-50"]),
        ("denoise-15 (1).pth", saved(X1), ["tiny-denoise-15"]),
        ("net_g_latest.pth", saved(X1), ["tiny-denoise-15", "tiny-denoise-50"]),
    ],
)
def test_identify(server: Server, tmp_path: Path, name: str, content: bytes, models: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    assert [spec.name for spec in checkpoints.identify(tmp_path / name)] == models


def test_identify_knows_what_it_does_not_know(server: Server, tmp_path: Path) -> None:
    torch.save(weights(depths=[2]), tmp_path / "w.pth")
    with pytest.raises(BadCheckpoint, match=r"mambair network of .* parameters; no published model is") as error:
        checkpoints.identify(tmp_path / "w.pth")
    assert f"--weights {tmp_path / 'w.pth'}" in error.value.hint
    torch.save({"fc.weight": torch.zeros(3, 3)}, tmp_path / "w.pth")
    with pytest.raises(BadCheckpoint, match="fit no known network"):
        checkpoints.identify(tmp_path / "w.pth")


def test_a_bundled_file(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = tmp_path / "bundled.toml"
    manifest.write_text(
        zoo.manifest().read_text().replace("[models.tiny-x2]", "[models.tiny-x2]\nsource.bundled = true")
    )
    monkeypatch.setenv("MAMBAIR_ZOO", str(manifest))
    monkeypatch.setattr(checkpoints, "BUNDLED", tmp_path / "models")
    spec = zoo.find("tiny-x2")
    with pytest.raises(Unavailable, match="though it is part of mambair"):
        checkpoints.load(spec)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / spec.source.filename).write_bytes(BODY)
    assert same(checkpoints.load(spec, offline=True)[0].state_dict(), X2)
    with pytest.raises(UsageError, match="it stays"):
        checkpoints.forget(spec)


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MAMBAIR_CACHE", "~/weights")
    assert checkpoints.cache_dir() == Path.home() / "weights"
    monkeypatch.delenv("MAMBAIR_CACHE")
    assert checkpoints.cache_dir().name == "mambair"


def test_a_first_run_reads_the_file_twice_and_builds_once(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def counted(module: object, name: str) -> None:
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **kw: done.append(name) or function(*args, **kw))

    counted(checkpoints, "read")
    counted(checkpoints, "sha256_of")
    counted(download, "sha256_of")
    counted(archs, "build")
    for name in ("tiny-x2", "sure-x2"):  # without and with a published hash
        spec = zoo.find(name)
        server.put("/" + spec.source.urls[0].rpartition("/")[2], BODY)
        assert same(checkpoints.load(spec)[0].state_dict(), X2)
        assert sorted(done) == ["build", "read", "sha256_of"], name
        done.clear()


def test_a_page_with_status_200_is_told(server: Server, cache: Path) -> None:
    server.put("/x2.pth", BODY, page("<p>Rate limit</p>"))
    with pytest.raises(Unavailable, match="a web page came instead of the file"):
        checkpoints.fetch(zoo.find("tiny-x2"))
    assert cached(cache) == []
