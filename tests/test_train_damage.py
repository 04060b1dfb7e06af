"""`train --resume` from a checkpoint that is damaged says so, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.album import photo
from helpers.commands import Mambair, mambair

Damage = Callable[[dict[str, Any]], None]


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Mambair:
    return partial(mambair, capture=capfdbinary)


def lacking(content: dict[str, Any]) -> None:
    del content["network"]


def reshaped(content: dict[str, Any]) -> None:
    name = next(iter(content["network"]))
    content["network"][name] = torch.zeros(3)


def not_numbers(content: dict[str, Any]) -> None:
    next(iter(content["network"].values())).fill_(torch.nan)


def another_stage(content: dict[str, Any]) -> None:
    content["stage"] = 7


def no_iterations(content: dict[str, Any]) -> None:
    content["random"] = "x"


DAMAGES = (lacking, reshaped, not_numbers, another_stage, no_iterations)


def test_damaged_checkpoints_are_refused(tmp_path: Path, run: Mambair) -> None:
    (tmp_path / "photos").mkdir()
    for n in range(10):
        photo().resize((140, 100)).crop((5 * n, 0, 5 * n + 90, 96)).save(tmp_path / "photos" / f"p{n}.png")
    command = ("train", "smoke", "--data", tmp_path / "photos", "--out", tmp_path / "run", "--device", "cpu")
    assert run(*command, "--minutes", "0.02").status == 0
    file = tmp_path / "run" / "checkpoint.pt"
    sound = file.read_bytes()

    def told() -> str:
        done = run(*command, "--minutes", "0.04", "--resume")
        assert done.status == 3, done.err
        assert "Traceback" not in done.err
        assert "--init" in done.err
        return " ".join(done.err.split())

    for damage in DAMAGES:
        content = torch.load(file, weights_only=True)
        damage(content)
        torch.save(content, file)
        assert "is damaged" in told(), damage.__name__
        file.write_bytes(sound)
    flipped = bytearray(sound)
    flipped[len(sound) // 2] ^= 0x40
    for body in (bytes(flipped), sound[: len(sound) // 2], b""):
        file.write_bytes(body)
        assert "checkpoint.pt" in told()
