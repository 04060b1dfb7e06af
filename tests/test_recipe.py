"""Recipes: what they may say, what is documented of them, and what they make of rates and losses."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from helpers.commands import Mambair, mambair
from helpers.training import brief, table

from mambair_cli.errors import UsageError
from mambair_cli.train import loop, recipe
from mambair_cli.train.recipe import Adversarial


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Mambair:
    return partial(mambair, capture=capfdbinary)


def test_every_key_is_in_the_list_with_its_default(run: Mambair) -> None:
    done = run("train", "--keys")
    assert (done.status, done.err) == (0, "")
    text = done.out.decode()
    of = recipe.load_recipe(str(recipe.KEYS))

    def defaults(record: Any, default: Any) -> None:
        for entry in fields(record):
            value = getattr(record, entry.name)
            assert re.search(rf"^(# )?\[?[\w.]*\b{entry.name}\b( = |\])", text, re.MULTILINE), entry.name
            if is_dataclass(value):
                defaults(value, getattr(default, entry.name))
            elif value != getattr(default, entry.name):
                line = re.search(rf"^(# )?{entry.name} = .*# needed", text, re.MULTILINE)
                assert line, f"{entry.name} is {value}, the default {getattr(default, entry.name)}"

    defaults(of.data, recipe.Data("", 0, 0))
    defaults(of.training, recipe.Training(0, 0))
    defaults(of.validation, recipe.Validation(0))
    assert of.adversarial is not None
    defaults(of.adversarial, Adversarial(0))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"shrink": [0.5, 1]}, "1 for bicubic"),
        ({"pairs": 2}, "data.pairs is a share"),
        ({"noises": {"white": 0.7, "cameras": 0.5}}, "add up to at most 1"),
        ({"noises": {"camera": {"shot": [2, 1]}}}, "data.noises.camera.shot is [low, high]"),
        ({"photo": {"first": {"sigma": 3}}}, "3 is not what belongs there"),
        ({"jpegs": {"quality": [0, 50]}}, "data.jpegs.quality is from 1 to 100"),
    ],
)
def test_ranges_that_make_no_sense(change: dict[str, Any], complaint: str) -> None:
    good = table(brief())
    with pytest.raises(UsageError) as caught:
        recipe.parse({**good, "data": {**good["data"], **change}}, "bad")
    assert complaint in caught.value.message


@pytest.mark.parametrize("schedule", ["cosine", "multistep"])
def test_rate_rises_then_falls(schedule: str) -> None:
    training = replace(recipe.load_recipe("upscale-x4").training, schedule=schedule, warmup=0.1)
    rates = [loop.schedule(training, progress / 100) for progress in range(101)]
    assert rates[:11] == sorted(rates[:11])
    assert rates[10] == 1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[0] < 0.1 > rates[-1] > 0


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"task": "paint"}, "task is 'paint'"),
        ({"scale": 1}, "scale is above 1"),
        ({"speed": 3}, "unknown speed"),
        ({"network": {"embed_dim": 32}}, "network.arch is missing"),
        ({"data": {"degradation": "noise", "patch": 8, "batch": 1}}, "data.degradation is 'noise'"),
        ({"data": {"degradation": "bicubic", "patch": 8}}, "batch missing"),
        ({"data": {"degradation": "bicubic", "patch": "8", "batch": 1}}, "'8' is not what belongs there"),
        ({"data": {"degradation": "bicubic", "patch": 8, "batch": 1, "level": [1, 2]}}, "data.level belongs to"),
        (
            {
                "task": "decompress",
                "scale": 1,
                "data": {"degradation": "jpeg", "patch": 8, "batch": 1, "level": [0, 90]},
            },
            "from 1 to 100",
        ),
        ({"training": {"iterations": 1, "rate": 1, "betas": [1, 2, 3]}}, "[1, 2, 3] is not what belongs there"),
        ({"training": {"iterations": 0, "rate": 1}}, "training.iterations is at least 1"),
        ({"teacher": {"model": "light", "weight": 2}}, "teacher.weight is a share"),
    ],
)
def test_recipes_that_make_no_sense(change: dict[str, Any], complaint: str) -> None:
    good = {
        "task": "upscale",
        "summary": "",
        "scale": 2,
        "network": {"arch": "mambair"},
        "data": {"degradation": "bicubic", "patch": 8, "batch": 1},
        "training": {"iterations": 1, "rate": 1},
        "validation": {"every": 1},
    }
    recipe.parse(good, "good")
    with pytest.raises(UsageError) as caught:
        recipe.parse({**good, **change}, "bad")
    assert complaint in caught.value.message


@pytest.mark.parametrize(
    ("loss", "expected"), [("l1", 0.15), ("l2", 0.045), ("charbonnier", 0.15), ("psnr", -(10.46 + 50) / 2)]
)
def test_losses_of_a_sample_that_is_off_by_three_tenths_and_of_a_perfect_one(loss: str, expected: float) -> None:
    of = recipe.parse({**table(brief()), "training": {"iterations": 1, "rate": 1, "loss": loss}}, "good")
    truth = torch.full((2, 3, 4, 5), 0.5)
    result = truth.clone()
    result[0] += 0.3
    assert float(loop.LOSSES[of.training.loss](result, truth)) == pytest.approx(expected, rel=1e-2)
