"""Files become networks strictly and safely, and the cache holds nothing but the right ones."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.checkpoints import BODY, GOLDEN, SMALL, X1, X2, cache, same, saved, server, weights  # noqa: F401 -- fixtures
from helpers.server import Server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mambair_cli import archs
from mambair_cli.errors import BadCheckpoint, Unavailable
from mambair_cli.images.decode import Frame, Picture
from mambair_cli.models import checkpoints, zoo
from mambair_cli.restoring.request import Request

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
    assert same(checkpoints.read_tensors(tmp_path / "w"), X1)


def test_the_preferred_container_wins(tmp_path: Path) -> None:
    torch.save({"params_ema": X1, "params": X2}, tmp_path / "w")
    assert same(checkpoints.read_tensors(tmp_path / "w", "params"), X2)
    torch.save({"params_ema": X1}, tmp_path / "w")
    assert same(checkpoints.read_tensors(tmp_path / "w", "params"), X1)


def test_safetensors_by_content(tmp_path: Path) -> None:
    save_file(X1, tmp_path / "weights.pth")
    assert same(checkpoints.read_tensors(tmp_path / "weights.pth"), X1)


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {os.environ['MAMBAIR_EVIL']}",)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAMBAIR_EVIL", str(tmp_path / "pwned"))
    for content in (saved({"params": X1, "more": Evil()}), pickle.dumps({"params": Evil()}, protocol=2)):
        (tmp_path / "w").write_bytes(content)
        with pytest.raises(BadCheckpoint, match=r"holds more than tensors .*system.* refused"):
            checkpoints.read_tensors(tmp_path / "w")
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
        checkpoints.read_tensors(tmp_path / "w")
    assert error.value.exit_code == 3


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x10\0\0\0\0\0\0\0{"]), rest=st.binary(max_size=64))
def test_garbage_is_told_as_such(tmp_path: Path, start: bytes, rest: bytes) -> None:
    (tmp_path / "w").write_bytes(start + rest)
    with pytest.raises(BadCheckpoint):
        checkpoints.read_tensors(tmp_path / "w")


def test_a_missing_file(tmp_path: Path) -> None:
    for file in (tmp_path / "w", tmp_path):
        with pytest.raises(Unavailable, match="Cannot read"):
            checkpoints.read_tensors(file)


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
    assert spec.channels == kwargs.get("in_chans", 3)
    assert spec.scale == kwargs.get("upscale", 4 if arch in ("vmambair_sisr", "vmambair_realsr") else 1)
    own = {"vmambair_derain": "derain", "evssm": "deblur"}
    one_to_one = own.get(arch, "decompress" if spec.channels == 1 else "denoise")
    assert spec.task == ("upscale" if spec.scale > 1 else one_to_one)
    network, digest = checkpoints.load_network(spec, tmp_path / "mine.pth")
    assert digest == hashlib.sha256((tmp_path / "mine.pth").read_bytes()).hexdigest()
    loaded = network.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    assert not network.training


def test_a_network_of_two_views_is_not_for_pictures(tmp_path: Path) -> None:
    torch.save({"params_ema": golden("eamamba_dualpixel")[2]}, tmp_path / "mine.pth")
    with pytest.raises(BadCheckpoint, match="6 channels; pictures have 1 or 3"):
        checkpoints.spec_for_file(tmp_path / "mine.pth")


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


@pytest.mark.parametrize(("note", "compressed"), [('{"compressed": true}', True), ('{"compressed": 1}', False)])
def test_a_file_of_the_trainer_says_whether_it_is_for_photographs(
    tmp_path: Path, note: str, compressed: bool
) -> None:
    """Then nobody is told to take a model for photographs in its place."""
    arch, kwargs, _ = golden("mambair_light_x2")
    save_file(archs.build(arch, **kwargs).state_dict(), tmp_path / "mine.safetensors", {"mambair": note})
    spec = checkpoints.spec_for_file(tmp_path / "mine.safetensors")
    photo = Picture((Frame(np.zeros((8, 8, 3), np.uint8)),), jpeg_quality=60)
    notes = Request("upscale", spec=spec).plan(photo).notes
    assert any("-m photo" in note for note in notes) != compressed


def test_a_real_checkpoint(shared: Path) -> None:
    file = shared / "weights" / "mambairv2_light_x4.pth"
    assert [spec.name for spec in checkpoints.identify(file)] == ["mambairv2-light-x4-ntire"]
    network, digest = checkpoints.load_network(zoo.find("mambairv2-light-x4"), file)
    assert digest == zoo.find("light").source.sha256
    assert sum(p.numel() for p in network.parameters()) == 789_680
    with pytest.raises(BadCheckpoint, match=r"lacks .*more.*besides .*more.*not \[180, 3, 3, 3\]") as error:
        checkpoints.load_network(zoo.find("mambair-classic-x4"), file)
    assert "mambairv2_light network of 789,680 parameters, as mambairv2-light-x4-ntire and" in error.value.hint


def test_a_mismatch_names_the_first_keys(server: Server, tmp_path: Path) -> None:
    state = dict(X2)
    del state["norm.weight"], state["norm.bias"]
    state |= {"extra.weight": torch.zeros(1), "conv_first.weight": torch.zeros(30, 1, 3, 3)}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(BadCheckpoint) as error:
        checkpoints.load_network(zoo.find("tiny-x2"), tmp_path / "w.pth")
    said = error.value.message
    assert "it lacks norm.weight (and 1 more); it has besides extra.weight;" in said
    assert "conv_first.weight is [30, 1, 3, 3], not [30, 3, 3, 3]" in said


def test_half_precision_and_absent_index_tables(tmp_path: Path) -> None:
    arch, kwargs, state = golden("mambairv2_classic_x2")
    assert "relative_position_index_SA" in archs.build(arch, **kwargs).state_dict()
    table = archs.build(arch, **kwargs).state_dict()["relative_position_index_SA"]
    for more in ({}, {"relative_position_index_SA": torch.zeros_like(table)}):
        torch.save({key: value.half() for key, value in state.items()} | more, tmp_path / "w.pth")
        network, _ = checkpoints.load_network(checkpoints.spec_for_file(tmp_path / "w.pth"), tmp_path / "w.pth")
        assert {p.dtype for p in network.parameters()} == {torch.float32}
        assert torch.equal(network.state_dict()["relative_position_index_SA"], table), "it is computed, not read"
