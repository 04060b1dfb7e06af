"""What is trusted, and on which grounds: files of a model without a published hash, and the notes about them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import torch
from helpers.server import Handler, Server, status

from mambair_cli import archs
from mambair_cli.errors import BadCheckpoint, Unavailable
from mambair_cli.models import checkpoints, zoo

KWARGS = {"in_chans": 3, "upscale": 2, "embed_dim": 30, "d_state": 4, "depths": [1], "mlp_ratio": 1.2}
MANIFEST = """
[protocols.p]
channel = "y"
crop = "scale"
[models.tiny-x2]
family = "mambair"
arch = "mambair"
protocol = "p"
task = "upscale"
scale = 2
params = {params}
kwargs.in_chans = 3
kwargs.upscale = 2
kwargs.embed_dim = 30
kwargs.d_state = 4
kwargs.depths = [1]
kwargs.mlp_ratio = 1.2
kwargs.upsampler = "pixelshuffledirect"
source.key = "params"
source.filename = "tiny_lightSRx2.pth"
source.urls = ["{server}/x2.pth"]
"""


def weights(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return archs.build("mambair", **KWARGS, upsampler="pixelshuffledirect").state_dict()


def saved(state: dict[str, torch.Tensor]) -> bytes:
    stream = BytesIO()
    torch.save({"params": state}, stream)
    return stream.getvalue()


X2 = weights(0)
BODY = saved(X2)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAMBAIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MAMBAIR_OFFLINE", raising=False)
    monkeypatch.setattr("mambair_cli.models.download.BACKOFF", 0.01)
    return tmp_path / "cache"


@pytest.fixture
def server(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server, and a manifest with one tiny model that is there."""
    with Server() as server:
        params = sum(tensor.numel() for tensor in X2.values())
        (tmp_path / "zoo.toml").write_text(MANIFEST.format(server=server.url(""), params=params))
        monkeypatch.setenv("MAMBAIR_ZOO", str(tmp_path / "zoo.toml"))
        yield server


def cached(cache: Path) -> list[str]:
    return sorted(file.name for file in cache.glob("*") if not file.name.startswith("."))


def flipped(body: bytes) -> bytes:
    """One bit of a weight is another: shapes and sizes stay."""
    damaged = bytearray(body)
    damaged[len(body) // 2] ^= 1
    return bytes(damaged)


def test_damage_is_found_before_a_file_is_trusted(server: Server, cache: Path, tmp_path: Path) -> None:
    spec, body = zoo.find("tiny-x2"), flipped(BODY)
    (tmp_path / "w.pth").write_bytes(body)
    assert checkpoints.read_tensors(tmp_path / "w.pth").keys() == X2.keys(), "PyTorch does not see it"
    server.put("/x2.pth", body)
    with pytest.raises(Unavailable, match=r"is damaged: .* fails its checksum"):
        checkpoints.fetch(spec)
    with pytest.raises(BadCheckpoint, match=r"w\.pth is damaged"):
        checkpoints.adopt(tmp_path / "w.pth", spec)
    assert cached(cache) == []
    (cache / "tiny_lightSRx2.pth").write_bytes(body)
    with pytest.raises(BadCheckpoint, match="is damaged"):
        checkpoints.load_network(spec)
    assert checkpoints.known_hash(spec) is None


def test_halves_of_two_files_are_never_trusted(server: Server, cache: Path) -> None:
    """A server that gives the same tag to two versions: only the file itself can tell."""
    spec, other = zoo.find("tiny-x2"), saved(weights(1))
    half = len(BODY) // 2

    def rest(handler: Handler, body: bytes) -> None:
        span = f"bytes {half}-{len(body) - 1}/{len(body)}"
        handler.answer(206, body[half:], ETag='"1"', Content_Range=span)

    first = status(200, other[:half], Content_Length=len(BODY), ETag='"1"')
    server.put("/x2.pth", BODY, first, rest)
    assert checkpoints.fetch(spec).read_bytes() == BODY
    assert [headers.get("Range") for _, headers in server.requests] == [None, f"bytes={half}-", None]


NOTES = ["", "{", "[]", "3", "{}", '{"sha256": 3}', '{"sha256": "abc"}', "[" * 100_000, "\0", '{"sha256": null}']


@pytest.mark.parametrize("note", NOTES, ids=lambda note: note[:20])
def test_a_damaged_note_is_no_reason_to_trust_again(server: Server, cache: Path, note: str) -> None:
    spec = zoo.find("tiny-x2")
    server.put("/x2.pth", BODY)
    checkpoints.fetch(spec)
    (cache / "tiny_lightSRx2.pth.json").write_text(note)
    with pytest.raises(BadCheckpoint, match="its note is damaged") as error:
        checkpoints.load_network(spec)
    assert "mambair models rm tiny-x2" in error.value.hint
    checkpoints.forget(spec)
    assert checkpoints.fetch(spec).read_bytes() == BODY


def test_one_model_is_imported_by_several_at_once(server: Server, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(BODY)
    code = (
        "import pathlib, sys; from mambair_cli.models import checkpoints, zoo; import torch; print(flush=True);"
        "sys.stdin.readline(); checkpoints.adopt(pathlib.Path(sys.argv[1]), zoo.find('tiny-x2'))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "w.pth")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    several = [subprocess.Popen(command, **pipes) for _ in range(4)]
    for process in several:
        process.stdout.readline()
    told = [process.communicate("\n")[1] for process in several]
    assert [process.returncode for process in several] == [0] * 4, told
    assert (cache / "tiny_lightSRx2.pth").read_bytes() == BODY
    assert cached(cache) == ["tiny_lightSRx2.pth", "tiny_lightSRx2.pth.json"]
