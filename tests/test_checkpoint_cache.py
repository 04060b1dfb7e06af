"""The cache: what is trusted, what is refused, what is told of what is not there."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import BODY, X1, X2, cache, cached, same, saved, server, weights  # noqa: F401 -- fixtures
from helpers.server import Server, cut, page

from mambair_cli import archs
from mambair_cli.errors import BadCheckpoint, Unavailable, UsageError
from mambair_cli.models import checkpoints, download, zoo

# ---------------------------------------------------------------------------------------------------- the cache


def test_first_use_is_trusted_and_said(server: Server, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = zoo.find("tiny-x2")
    server.put("/x2.pth", BODY)
    network, digest = checkpoints.load_network(spec)
    assert same(network.state_dict(), X2)
    assert cached(cache) == ["tiny_lightSRx2.pth", "tiny_lightSRx2.pth.json"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert digest in record.getMessage()
    caplog.clear()
    checkpoints.load_network(spec)
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
        checkpoints.load_network(zoo.find("sure-x2"))


def test_offline(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = zoo.find("tiny-x2")
    with pytest.raises(Unavailable) as error:
        checkpoints.load_network(spec, offline=True)
    for said in ("tiny_lightSRx2.pth", spec.source.urls[0], str(cache / "tiny_lightSRx2.pth")):
        assert said in str(error.value)
    assert not server.requests
    cache.mkdir()
    (cache / "tiny_lightSRx2.pth").write_bytes(BODY)
    monkeypatch.setenv("MAMBAIR_OFFLINE", "1")
    assert same(checkpoints.load_network(spec)[0].state_dict(), X2), "a file put there by hand does"


def test_a_shared_folder_needs_a_hand(server: Server, cache: Path, tmp_path: Path) -> None:
    spec = zoo.find("tiny-denoise-15")
    with pytest.raises(Unavailable) as error:
        checkpoints.fetch(spec)
    assert "https://example.org/folder" in error.value.hint
    assert "mambair models import FILE --as tiny-denoise-15" in error.value.hint
    (tmp_path / "fetched.pth").write_bytes(saved(X1))
    assert checkpoints.adopt(tmp_path / "fetched.pth", spec) == checkpoints.fetch(spec)
    assert same(checkpoints.load_network(spec)[0].state_dict(), X1)


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
        checkpoints.load_network(spec)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / spec.source.filename).write_bytes(BODY)
    assert same(checkpoints.load_network(spec, offline=True)[0].state_dict(), X2)
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

    counted(checkpoints, "read_tensors")
    counted(checkpoints, "sha256_of")
    counted(download, "sha256_of")
    counted(archs, "build")
    for name in ("tiny-x2", "sure-x2"):  # without and with a published hash
        spec = zoo.find(name)
        server.put("/" + spec.source.urls[0].rpartition("/")[2], BODY)
        assert same(checkpoints.load_network(spec)[0].state_dict(), X2)
        assert sorted(done) == ["build", "read_tensors", "sha256_of"], name
        done.clear()


def test_a_page_with_status_200_is_told(server: Server, cache: Path) -> None:
    server.put("/x2.pth", BODY, page("<p>Rate limit</p>"))
    with pytest.raises(Unavailable, match="a web page came instead of the file"):
        checkpoints.fetch(zoo.find("tiny-x2"))
    assert cached(cache) == []
