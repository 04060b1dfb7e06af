"""The trainer: a run from recipe to usable model, exact resume, and what a sample is."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import xml.etree.ElementTree as ET
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import Mambair, mambair
from helpers.training import brief, crops, weights
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from mambair_cli import archs, degradations
from mambair_cli.errors import MambairError, Unavailable, UsageError
from mambair_cli.models import checkpoints
from mambair_cli.train import curve, data, init, loop, pictures, recipe
from mambair_cli.train.export import export
from mambair_cli.train.outcomes import Outcomes
from mambair_cli.train.pictures import Folders
from mambair_cli.train.recipe import Teacher
from mambair_cli.train.state import State
from mambair_cli.train.train import Options, train


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Mambair:
    return partial(mambair, capture=capfdbinary)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return crops(tmp_path_factory.mktemp("photos"))


def test_smoke_recipe_learns_and_its_model_runs(photos: Path, tmp_path: Path, run: Mambair) -> None:
    done = run("train", "smoke", "--data", photos, "--out", tmp_path / "run", "--device", "cpu")
    assert done.status == 0, done.err
    model = Path(done.out.decode().strip())
    log = list(csv.DictReader(io.StringIO((tmp_path / "run/log.csv").read_text())))
    assert [row["iteration"] for row in log] == ["100", "200", "300"]
    assert float(log[-1]["loss"]) < 0.5 * float(log[0]["loss"])
    assert float(log[-1]["psnr"]) > float(log[0]["psnr"]) + 1
    assert "it/s" in done.err
    assert "300" in (tmp_path / "run/curve.svg").read_text()

    card = json.loads(model.with_suffix(".json").read_text())
    assert card["psnr"] == pytest.approx(float(log[-1]["psnr"]), abs=0.01)
    assert (card["dtype"], card["iterations"], card["recipe"]["name"]) == ("float16", 300, "smoke")
    assert len(card["data"]["validation"]) == 2

    picture = photos / "coffee_s001.png"
    done = run("upscale", "--weights", model, "-o", tmp_path / "large.png", picture)
    assert done.status == 0, done.err
    with Image.open(picture) as small, Image.open(tmp_path / "large.png") as large:
        assert large.size == (2 * small.width, 2 * small.height)
        same = np.asarray(large.resize(small.size, Image.Resampling.BOX), float) - np.asarray(small, float)
    assert np.abs(same).mean() < 8


def test_interrupted_and_resumed_equals_uninterrupted(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = (
        Options(Folders((photos,)), tmp_path / name, device="cpu", workers=0) for name in ("whole", "parts")
    )
    train(brief(), whole)

    step = loop.step

    def interrupted(state: State, *rest: Any) -> float:
        if state.iteration == 5:
            signal.raise_signal(signal.SIGINT)
        return step(state, *rest)

    monkeypatch.setattr(loop, "step", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with pytest.raises(KeyboardInterrupt):
        train(brief(), parts)
    signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    assert torch.load(parts.out / "checkpoint.pt", weights_only=True)["iteration"] == 6
    assert not (parts.out / "brief.safetensors").exists()

    model = train(brief(), replace(parts, resume=True, workers=2))
    expected, got = weights(whole.out), weights(parts.out)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert model.read_bytes() == (whole.out / "brief.safetensors").read_bytes()
    logs = [list(csv.DictReader((out / "log.csv").open())) for out in (whole.out, parts.out)]
    assert [(row["iteration"], row["loss"], row["psnr"]) for row in logs[0]] == [
        (row["iteration"], row["loss"], row["psnr"]) for row in logs[1]
    ]


@pytest.mark.parametrize("every", [1, 16])
def test_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(
    every: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Outcomes, "on", lambda device: Outcomes(every))  # 16: as on a GPU
    options = Options(Folders((photos,)), tmp_path, device="cpu", workers=0)
    batch = data.Batches.__getitem__

    def spoiled(batches: data.Batches, iteration: int) -> tuple[torch.Tensor, ...]:
        lq, hq = batch(batches, iteration)
        return lq, hq * (torch.nan if iteration == 6 else 1)

    monkeypatch.setattr(data.Batches, "__getitem__", spoiled)
    with pytest.raises(MambairError, match="loss became nan at iteration 7") as caught:
        train(brief(), options)
    monkeypatch.undo()
    assert "training.rate" in caught.value.hint
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["iteration"] == 4
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())
    train(brief(), replace(options, resume=True))


class Reads(TorchDispatchMode):
    """Notes the tensors whose value the host asks for: on a GPU it would wait for each."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_floating_point():
            self.seen.append(args[0].data_ptr())
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_nothing(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the numbers that the host keeps itself: how many steps the optimiser and the average have done."""
    step, waits, settled, cudnn = loop.step, [], [], torch.backends.cudnn

    def watched(state: State, *rest: Any) -> torch.Tensor:
        assert cudnn.benchmark
        assert not cudnn.allow_tf32
        with Reads() as reads:
            outcome = step(state, *rest)
        steps = (values["step"] for values in state.optimizer.state.values())
        waits.append(set(reads.seen) - {t.data_ptr() for t in steps})
        return outcome

    settle = Outcomes.settle
    monkeypatch.setattr(Outcomes, "on", lambda device: Outcomes(3))
    monkeypatch.setattr(Outcomes, "settle", lambda self: settled.append(len(settle(self))) or [0.0])
    monkeypatch.setattr(loop, "step", watched)
    train(brief(), Options(Folders((photos,)), tmp_path, device="cpu", workers=0))
    assert waits == [set()] * 8
    assert settled == [1, 3, 3, 1]  # the first, to have something to show; three; before a score, three again


def test_weights_that_run_away_are_not_saved(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(MambairError, match="became"):
        train(brief(rate=1e30, every=1), Options(Folders((photos,)), tmp_path, device="cpu", workers=0))
    assert not (tmp_path / "checkpoint.pt").exists()


def test_time_ends_the_run_and_the_schedule_with_it(photos: Path, tmp_path: Path) -> None:
    options = Options(Folders((photos,)), tmp_path, device="cpu", workers=0, minutes=0.01)
    train(brief(iterations=10**9, every=10**9), options)
    (row,) = csv.DictReader((tmp_path / "log.csv").open())
    assert float(row["seconds"]) >= 0.6
    assert float(row["rate"]) < recipe.load_recipe("smoke").training.rate


def test_no_time_is_no_wish_for_the_whole_recipe(photos: Path, tmp_path: Path, run: Mambair) -> None:
    for minutes in ("0", "-1", "nan", "inf"):
        done = run("train", "smoke", "--data", photos, "--out", tmp_path / "run", "--minutes", minutes)
        assert (done.status, "--minutes" in done.err) == (2, True), done.err
    assert not (tmp_path / "run").exists()


def test_names_need_not_be_utf8(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    try:
        for number, picture in enumerate(photos.iterdir()):
            (tmp_path / "photos" / os.fsdecode(b"caf\xe9%d.png" % number)).write_bytes(picture.read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    model = train(
        brief(iterations=1), Options(Folders((tmp_path / "photos",)), tmp_path / "run", device="cpu", workers=0)
    )
    held_out = json.loads(model.with_suffix(".json").read_text())["data"]["validation"]
    assert len(held_out) == 2
    assert all((tmp_path / "photos" / name).exists() for name in held_out)


def test_resume_refuses_what_is_not_the_same_run(photos: Path, tmp_path: Path) -> None:
    options = Options(Folders((photos,)), tmp_path / "run", device="cpu", workers=0)
    with pytest.raises(UsageError, match="Nothing to resume"):
        train(brief(), replace(options, resume=True))
    train(brief(), options)
    with pytest.raises(UsageError, match="holds a run already"):
        train(brief(), options)
    with pytest.raises(UsageError, match="another set of recipe"):
        train(brief(rate=1e-4), replace(options, resume=True))
    with pytest.raises(UsageError, match="--init begins"):
        train(brief(), replace(options, resume=True, init="light"))


def test_init_takes_over_all_but_the_head_of_another_scale(photos: Path, tmp_path: Path, run: Mambair) -> None:
    options = Options(Folders((photos,)), tmp_path / "x2", device="cpu", workers=0)
    x2 = train(brief("x2"), options)
    state = checkpoints.read_tensors(x2)
    arch, kwargs = brief(scale=3).arguments()
    network = archs.build(arch, **kwargs)
    taken = init.take_over(network, state)
    assert taken.left == ("upsample.0.weight", "upsample.0.bias")
    own = network.state_dict()
    assert all(torch.equal(own[name], state[name].float()) for name in state if name not in taken.left)
    with pytest.raises(UsageError, match="None of the tensors"):
        init.take_over(torch.nn.Linear(3, 3), state)
    train(brief("x3", scale=3), replace(options, out=tmp_path / "x3", init=str(x2)))
    assert json.loads((tmp_path / "x3/x3.json").read_text())["init"]["model"] == x2.name


def test_a_teacher_is_imitated(photos: Path, tmp_path: Path) -> None:
    options = Options(Folders((photos,)), tmp_path / "teacher", device="cpu", workers=0)
    model = train(brief("teacher"), options)
    pupil = replace(brief("pupil"), teacher=Teacher(str(model), 1.0))
    train(pupil, replace(options, out=tmp_path / "pupil"))
    assert json.loads((tmp_path / "pupil/pupil.json").read_text())["teacher"]["name"] == "teacher"
    train(brief("alone"), replace(options, out=tmp_path / "alone"))
    taught, alone = weights(tmp_path / "pupil"), weights(tmp_path / "alone")
    assert any(not torch.equal(taught[name], alone[name]) for name in taught)
    with pytest.raises(UsageError, match="cannot teach"):
        train(replace(pupil, scale=3), replace(options, out=tmp_path / "x3"))


def test_half_precision_only_where_it_costs_nothing(tmp_path: Path) -> None:
    smoke = brief()
    arch, kwargs = smoke.arguments()
    network = archs.build(arch, **kwargs)
    too_large = 1e6  # for float16

    def score(network: torch.nn.Module) -> float:
        return 30.0 if all(p.isfinite().all() for p in network.parameters()) else float("nan")

    assert export(tmp_path / "half.safetensors", network, smoke, score, {})["dtype"] == "float16"
    torch.nn.init.constant_(network.norm.bias, too_large)
    assert export(tmp_path / "full.safetensors", network, smoke, score, {})["dtype"] == "float32"
    assert checkpoints.read_tensors(tmp_path / "full.safetensors")["norm.bias"].unique().item() == too_large
    arch, kwargs = archs.infer(checkpoints.read_tensors(tmp_path / "half.safetensors"))
    assert (arch, kwargs["upscale"]) == ("mambair", 2)


@pytest.mark.parametrize("name", recipe.names())
def test_recipes_of_the_package(name: str, photos: Path) -> None:
    """Each builds its network and its samples, and a sample is a picture and the same one made worse."""
    of = recipe.load_recipe(name)
    arch, kwargs = of.arguments()
    archs.build(arch, **kwargs)
    of = replace(of, data=replace(of.data, patch=20, batch=4))
    clean = pictures.decode(sorted(photos.iterdir())[:2], data.smallest_side(of))
    small = (
        pictures.made_worse(clean, partial(degradations.downscale, scale=of.scale)) if of.degradation.whole else []
    )
    lq, hq = data.Batches(of, clean, small)[3]
    assert lq.shape == (4, 3, 20, 20)
    assert hq.shape == (4, 3, 20 * of.scale, 20 * of.scale)
    assert lq.dtype == hq.dtype == torch.float32
    assert 0 <= hq.min() <= hq.max() <= 1
    shrunk = torch.nn.functional.avg_pool2d(hq, of.scale) if of.scale > 1 else hq
    assert not torch.equal(lq, shrunk)
    assert (lq - shrunk).abs().mean() < 0.15


def test_samples_depend_on_seed_and_iteration_only(photos: Path) -> None:
    of = replace(recipe.load_recipe("denoise"), data=replace(recipe.load_recipe("denoise").data, patch=16, batch=2))
    batches = data.Batches(of, pictures.decode(sorted(photos.iterdir()), 16))
    alone, helped = (batches.loader(5, workers) for workers in (0, 2))
    for number in range(5, 8):
        expected = batches[number]
        for got in (next(alone), next(helped)):
            assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    assert not torch.equal(batches[5][1], batches[6][1])


def test_bicubic_samples_are_cut_from_the_picture_downscaled_whole(photos: Path) -> None:
    of = replace(brief(scale=3), data=replace(brief().data, patch=8, batch=16))
    clean = pictures.decode(sorted(photos.iterdir()), 24)
    lq, hq = data.Batches(of, clean, pictures.made_worse(clean, partial(degradations.downscale, scale=3)))[0]
    for small, large in zip(lq, hq, strict=True):
        whole = degradations.downscale((large * 255).round().byte().permute(1, 2, 0).numpy(), 3)
        inside = (slice(None), slice(2, -2), slice(2, -2))  # the filter reaches two pixels
        # Transposed, the two passes round in the other order.
        assert (small - data.to_tensor(whole[None])[0])[inside].abs().max() < 1.01 / 255


def test_crops_of_an_original_stay_together(tmp_path: Path) -> None:
    for shade, name in enumerate(("a_s001", "a_s002", "b_s001", "b_s002", "c", "IMG_0001", "IMG_0002")):
        Image.new("L", (8, 8), shade).save(tmp_path / f"{name}.png")
    found = pictures.find(Folders((tmp_path,)), 1, held_out=3)
    kept, training = ({path.stem.split("_s0")[0] for path in paths} for paths in (found.validation, found.training))
    assert len(found.validation) == len(kept) == 3
    assert kept | training == {"a", "b", "c", "IMG_0001", "IMG_0002"}
    assert not kept & training
    assert pictures.find(Folders((tmp_path,)), 1, held_out=3) == found

    pairs = [{"file": path.name, "original": path.stem[0]} for path in tmp_path.iterdir()]
    (tmp_path / "manifest.json").write_text(json.dumps(pairs))
    assert len(pictures.find(Folders((tmp_path,)), 1, held_out=3).training) == 2
    Image.new("L", (8, 8), 200).save(tmp_path / "c.png")
    assert pictures.find(Folders((tmp_path,)), 1, held_out=3).sha256 != found.sha256
    with pytest.raises(Unavailable, match="0 pictures to train on"):
        pictures.find(Folders((tmp_path,)), 1, held_out=4)
    assert len(pictures.find(Folders((tmp_path,), validation=(tmp_path,)), 1, held_out=4).training) == 7


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_regular_file_is_no_training_picture(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    found = pictures.find(Folders((tmp_path,)), 1, held_out=1)
    assert sorted(path.name for path in (*found.training, *found.validation)) == ["a.png", "b.png"]


def test_pictures_that_cannot_be_used_are_named(photos: Path, tmp_path: Path, run: Mambair) -> None:
    def fails(*arguments: object) -> tuple[int, str]:
        done = run("train", "smoke", "--val", photos, "--out", tmp_path / "run", "--device", "cpu", *arguments)
        return done.status, " ".join(done.err.split())

    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "broken.png").write_bytes(next(photos.iterdir()).read_bytes()[:200])
    status, told = fails("--data", bad)
    assert (status, "broken.png" in told) == (1, True)
    Image.new("L", (64, 23)).save(bad / "broken.png")
    status, told = fails("--data", bad)
    assert (status, "64x23 pixels; the recipe needs 24x24" in told) == (1, True)
    status, told = fails("--data", tmp_path / "nowhere")
    assert (status, "is not a folder" in told) == (2, True)
    assert fails()[0] == 2


def test_curve_stays_in_its_frame(tmp_path: Path) -> None:
    points = [(100.0 * i, value) for i, value in enumerate((5.0, 28.0, 30.5, 30.7), 1)]
    curve.write(tmp_path / "curve.svg", "x < y", points, baseline=29.0)
    lines = [e for e in ET.parse(tmp_path / "curve.svg").iter() if e.tag.endswith("polyline")]
    drawn = [tuple(map(float, xy.split(","))) for line in lines for xy in line.attrib["points"].split()]
    assert len(drawn) > len(points)
    assert all(0 <= x <= curve.WIDTH and 0 <= y <= curve.HEIGHT for x, y in drawn)
