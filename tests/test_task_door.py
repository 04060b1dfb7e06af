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
from PIL import Image

from mambair_cli import metrics, tasks
from mambair_cli.task import Degradation, Task

DIM = Task(
    name="brighten",
    about="Undo underexposure.",
    tag="bright",
    channel="rgb",
    degradations=(Degradation("dim", "half the light", make=lambda hq, setting, rng: (hq // 2, hq), how="halved"),),
)

RECIPE = """
task = "brighten"
summary = "a few steps"
network = { arch = "mambair", embed_dim = 30, depths = [1], d_state = 1, mlp_ratio = 1.0 }
data = { degradation = "dim", patch = 16, batch = 1 }
training = { iterations = 2, rate = 1e-4 }
validation = { every = 2, originals = 1, side = 64 }
"""


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
    truth = np.asarray(photo().crop((0, 0, 41, 40)))
    assert told["images"][0]["psnr"] == pytest.approx(metrics.psnr(truth // 2, truth, channel="rgb"), abs=1e-6)
    assert "half the light" in told["protocol"]["input"]


def test_the_record_gives_a_recipe(brighten: None, tmp_path: Path, capsysbinary: Any) -> None:
    (tmp_path / "data").mkdir()
    for number in range(3):
        photo().resize((64, 64)).rotate(90 * number).save(tmp_path / "data" / f"{number}.png")
    (tmp_path / "dim.toml").write_text(RECIPE)
    arguments = ("train", tmp_path / "dim.toml", "--data", tmp_path / "data", "--out", tmp_path / "run")
    outcome = mambair(*arguments, "--workers", 0, "--device", "cpu", capture=capsysbinary)
    assert outcome.status == 0, outcome.err
    card = json.loads((tmp_path / "run" / "dim.json").read_text())
    assert card["task"] == "brighten"
    truth = np.asarray(Image.open(tmp_path / "data" / card["data"]["validation"][0]))
    assert card["baseline"] == pytest.approx(metrics.psnr(truth // 2, truth, channel="rgb"), abs=1e-3)
