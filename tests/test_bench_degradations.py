"""Photographs as users have them: degradations by name, the same every time, and how much gradient is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.album import photo
from helpers.commands import mambair
from helpers.networks import identity, nearest
from helpers.sets import parts

from mambair_cli import degradations, metrics
from mambair_cli.bench.plan import Criteria, damage_for
from mambair_cli.models import zoo
from mambair_cli.tasks import TASKS


@pytest.mark.parametrize(
    ("task", "scale", "name"),
    [
        (task.name, scale, d.name)
        for task in TASKS.values()
        for d in task.degradations
        if d.seeded
        for scale in ((2, 4) if task.enlarges else (None,))
    ],
)
def test_a_named_degradation_depends_on_the_picture_alone(task: str, scale: int | None, name: str) -> None:
    spec = zoo.resolve(task, scale=scale)
    damage = damage_for(spec, Criteria(degradation=name))
    hq = np.asarray(photo().resize((64, 48)))
    (lq, truth), (again, _), (other, _) = (damage.apply(hq, picture) for picture in ("a", "a", "b"))
    assert truth.shape[:2] == tuple(n * spec.scale for n in lq.shape[:2])
    assert np.array_equal(lq, again)
    assert name == "old" or not np.array_equal(lq, other)  # nothing is random in that one


def test_bench_measures_on_it(tmp_path: Path, capsysbinary: Any) -> None:
    pictures, weights = parts(tmp_path / "set"), nearest(tmp_path / "net.pth", 4)
    options = ("--degradation", "web", "--gradient", "--json", "--weights", weights)
    outcome = mambair("bench", "-d", pictures, *options, capture=capsysbinary)
    assert outcome.status == 0, outcome.err
    told = json.loads(outcome.out)
    assert told["degradation"] == "x4 web"
    assert "JPEG 80" in told["protocol"]["input"]
    truth = degradations.modcrop(np.asarray(photo().crop((0, 0, 41, 40))), 4)
    lq, _ = damage_for(zoo.find("tiny-x4-photo"), Criteria(degradation="web")).apply(truth, "part0")
    result = lq.repeat(4, 0).repeat(4, 1)
    crop = told["protocol"]["crop"]
    assert told["images"][0]["psnr"] == pytest.approx(metrics.psnr(result, truth, crop=crop), abs=1e-2)
    assert told["images"][0]["gradient"] == pytest.approx(metrics.gradient_kept(result, truth, crop=crop), abs=1e-3)


def test_what_cannot_be_measured_is_told(tmp_path: Path, capsysbinary: Any) -> None:
    options = ("-d", parts(tmp_path / "set"), "--weights", nearest(tmp_path / "net.pth", 4), "--degradation", "fog")
    outcome = mambair("bench", *options, capture=capsysbinary)
    assert outcome.status == 2
    assert "There are: bicubic" in outcome.err


def test_denoise_is_measured_on_a_cameras_noise(tmp_path: Path, capsysbinary: Any) -> None:
    options = ("-d", parts(tmp_path / "set"), "--weights", identity(tmp_path / "net.pth"), "--task", "denoise")
    outcome = mambair("bench", *options, "--degradation", "camera", "--json", capture=capsysbinary)
    assert outcome.status == 0, outcome.err
    told = json.loads(outcome.out)
    assert told["mean"]["psnr"] == pytest.approx(told["baseline"]["psnr"], abs=1e-6)
