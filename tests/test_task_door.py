"""A task is one record: from it come a command, a row of `bench` and a training task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.album import photo
from helpers.commands import mambair
from helpers.networks import identity
from helpers.sets import parts

from mambair_cli import tasks
from mambair_cli.tasks import Degradation, Task

DIM = Task(
    name="brighten",
    about="Undo underexposure.",
    tag="bright",
    channel="rgb",
    degradations=(Degradation("dim", "half the light", make=lambda hq, scale, level, rng: hq // 2, how="halved"),),
)


@pytest.fixture
def brighten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tasks.TASKS, DIM.name, DIM)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A network that changes nothing, in a file that says it was trained for the task."""
    import torch
    from safetensors.torch import save_file

    state = torch.load(identity(tmp_path / "net.pth"), weights_only=True)["params"]
    save_file(state, tmp_path / "net.safetensors", {"mambair": json.dumps({"task": DIM.name})})
    return tmp_path / "net.safetensors"


def test_the_record_gives_a_command(brighten: None, weights: Path, tmp_path: Path, capsysbinary: Any) -> None:
    photo().save(tmp_path / "a.png")
    outcome = mambair("brighten", tmp_path / "a.png", "--weights", weights, capture=capsysbinary)
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "a_bright.png").exists()
    assert "Undo underexposure." in mambair("brighten", "--help", capture=capsysbinary).out.decode()


def test_the_record_gives_a_row_of_bench(brighten: None, weights: Path, tmp_path: Path, capsysbinary: Any) -> None:
    outcome = mambair("bench", "-d", parts(tmp_path / "set"), "--weights", weights, "--json", capture=capsysbinary)
    assert outcome.status == 0, outcome.err
    told = json.loads(outcome.out)
    assert told["task"] == "brighten"
    truth = np.asarray(photo().crop((0, 0, 41, 40))).astype(float)
    error = np.mean((truth - truth // 2) ** 2)
    assert told["images"][0]["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-6)
    assert "half the light" in told["protocol"]["input"]
