"""Files of weights made to do harm: refused with one error, before memory is spent on what they claim."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.commands import mambair
from helpers.networks import nearest
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

State = dict[str, Tensor]
CONV = "conv_first.weight"
A_LOGS = "layers.0.residual_group.blocks.0.self_attention.A_logs"


def expanded(state: State) -> object:
    return {key: value[(0,) * value.dim()].clone().expand(value.shape) for key, value in state.items()}


def enormous(state: State) -> object:
    return state | {CONV: torch.zeros(1).expand(10**6, 10**6)}


def shared(state: State) -> object:
    memory = torch.zeros(max(value.numel() for value in state.values()))
    return {key: memory[: value.numel()].view(value.shape) for key, value in state.items()}


def crowded(state: State) -> object:
    return state | {f"x{i}": torch.zeros(0) for i in range(21_000)}


HOSTILE: dict[str, tuple[Callable[[State], object], str]] = {
    "expanded": (expanded, "claims to hold more values than its bytes can"),
    "enormous": (enormous, "claims to hold more values than its bytes can"),
    "shared": (shared, "claims to hold more values than its bytes can"),
    "crowded": (crowded, "no network has so many"),
    "scalar": (lambda state: state | {A_LOGS: torch.zeros(())}, "fit no known network|is \\[\\], not"),
    "all scalars": (lambda state: {key: torch.zeros(()) for key in state}, "fit no known network|is \\[\\], not"),
    "empty": (lambda state: {key: torch.zeros(0) for key in state}, "fit no known network|is \\[0\\], not"),
    "absurd states": (lambda state: state | {A_LOGS: torch.zeros(1, 2 << 20)}, "fit no known network|, not \\["),
    "wide": (lambda state: state | {CONV: torch.zeros(1 << 20, 3, 1, 1)}, "fit no known network|, not \\["),
    "bool": (lambda state: state | {CONV: state[CONV].bool()}, "no real numbers but bool in conv_first"),
    "integers": (lambda state: state | {CONV: state[CONV].int()}, "no real numbers but int32 in conv_first"),
    "complex": (lambda state: state | {CONV: state[CONV] + 0j}, "no real numbers but complex64 in conv_first"),
    "sparse": (lambda state: state | {"norm.bias": state["norm.bias"].to_sparse()}, "is no plain tensor"),
}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def refused(weights: Path, picture: Path, said: str, capture: pytest.CaptureFixture[bytes]) -> None:
    """By the architecture that shows, and with a name that says which it must be."""
    for model in ([], ["-m", "tiny-x2"]):
        outcome = mambair(
            "upscale", *model, "--weights", weights, picture, "-o", picture.parent / "no.png", capture=capture
        )
        assert outcome.status == 3, outcome.err
        assert "Traceback" not in outcome.err
        if not model:
            assert re.search(said, " ".join(outcome.err.split())), outcome.err


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_weights_are_refused(name: str, tmp_path: Path, picture: Path, capfdbinary) -> None:
    make, said = HOSTILE[name]
    state = torch.load(nearest(tmp_path / "good.pth"), weights_only=True)["params"]
    torch.save(make(state), tmp_path / "w.pth")
    refused(tmp_path / "w.pth", picture, said, capfdbinary)


def test_an_archive_that_unpacks_to_more_is_refused(tmp_path: Path, picture: Path, capfdbinary) -> None:
    with (
        zipfile.ZipFile(nearest(tmp_path / "good.pth")) as good,
        zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for record in good.infolist():
            bomb.writestr(record.filename, good.read(record))
        bomb.writestr("archive/data/more", bytes(10_000_000))
    refused(tmp_path / "w.pth", picture, "claims to hold more values", capfdbinary)


def test_a_note_nested_without_end_is_no_note(tmp_path: Path, picture: Path, capfdbinary) -> None:
    state = torch.load(nearest(tmp_path / "good.pth"), weights_only=True)["params"]
    for note in ("[" * 100_000, '{"task":' * 100_000, '{"task": ["upscale"]}'):
        save_file(state, tmp_path / "w.safetensors", {"mambair": note})
        command = ["upscale", "--weights", tmp_path / "w.safetensors", picture, "-o", tmp_path / "b.png", "--force"]
        outcome = mambair(*command, capture=capfdbinary)
        assert outcome.status == 0, outcome.err
