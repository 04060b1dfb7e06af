"""Stages of a recipe, the discriminator, pairs of one's own, several processes."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import Mambair, mambair
from helpers.training import brief, crops, table, weights
from PIL import Image

from mambair_cli import degradations
from mambair_cli.errors import BadImage, Unavailable, UsageError
from mambair_cli.train import data, loop, pictures, recipe
from mambair_cli.train.pictures import Folders
from mambair_cli.train.recipe import Adversarial, Recipe
from mambair_cli.train.rival import Discriminator, Rival, enlarge, grid_excess
from mambair_cli.train.state import State
from mambair_cli.train.train import Options, train


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Mambair:
    return partial(mambair, capture=capfdbinary)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return crops(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def own(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lq/ and hq/: the photographs at half the size and darker, and as they are."""
    folder = tmp_path_factory.mktemp("own")
    for name in ("lq", "hq"):
        (folder / name).mkdir()
    for path in photos.iterdir():
        with Image.open(path) as photo:
            photo.save(folder / "hq" / path.name)
            photo.resize((75, 73)).point(lambda x: x // 2).save(folder / "lq" / f"{path.stem}x2.png")
    return folder


def staged(**second: Any) -> Recipe:
    """Four iterations of pixels only, then eight with a discriminator that learns alone at first."""
    adversarial = {"weight": 0.05, "width": 8, "alone": 2}
    stages = ({}, {"data": {"patch": 16}, "training": {"iterations": 8}, "adversarial": adversarial, **second})
    return recipe.parse({**table(brief(iterations=4)), "stages": list(stages)}, "staged")


def test_a_stage_changes_what_it_names_and_keeps_the_rest() -> None:
    first, second = staged(training={"iterations": 8, "rate": 1e-4}).parts()
    assert (first.training.iterations, first.adversarial, first.data.patch) == (4, None, brief().data.patch)
    assert (second.training.iterations, second.training.rate, second.data.patch) == (8, 1e-4, 16)
    assert second.adversarial == Adversarial(weight=0.05, width=8, alone=2)
    assert (second.network, second.training.ema) == (first.network, first.training.ema)
    assert brief().parts() == (brief(),)
    with pytest.raises(UsageError, match="stage 2: cannot change network"):
        staged(network={})
    with pytest.raises(UsageError, match=r"adversarial are not below 0"):
        staged(adversarial={"weight": -1})


def test_stages_with_a_discriminator_resume_exactly(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = (Options(Folders((photos,)), tmp_path / name, device="cpu", workers=0) for name in ("a", "b"))
    train(staged(), whole)
    step = loop.step
    for stop in (2, 7, 10):  # in the first stage, while the discriminator is alone nearly, in the second

        def interrupted(state: State, *rest: Any, stop: int = stop) -> float:
            if state.iteration == stop:
                signal.raise_signal(signal.SIGINT)
            return step(state, *rest)

        monkeypatch.setattr(loop, "step", interrupted)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            train(staged(), replace(parts, resume=stop > 2))
        signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    model = train(staged(), replace(parts, resume=True))
    assert model.read_bytes() == (whole.out / "staged.safetensors").read_bytes()
    expected, got = (torch.load(out / "checkpoint.pt", weights_only=True) for out in (whole.out, parts.out))
    rivals = [content["rival"]["network"] for content in (expected, got)]
    assert all(torch.equal(rivals[0][name], rivals[1][name]) for name in rivals[0])
    assert (got["stage"], got["iteration"], got["began"][0]) == (1, 12, 4)
    rows = list(csv.DictReader((parts.out / "log.csv").open()))
    assert [(row["iteration"], row["stage"]) for row in rows] == [("4", "1"), ("8", "2"), ("12", "2")]


def test_a_run_may_begin_with_a_later_stage(photos: Path, tmp_path: Path) -> None:
    options = Options(Folders((photos,)), tmp_path / "late", device="cpu", workers=0, stage=2)
    train(staged(), options)
    rows = list(csv.DictReader((options.out / "log.csv").open()))
    assert [(row["iteration"], row["stage"]) for row in rows] == [("4", "2"), ("8", "2")]
    with pytest.raises(UsageError, match="no stage 3"):
        train(staged(), replace(options, out=tmp_path / "none", stage=3))
    with pytest.raises(UsageError, match="--stage begins"):
        train(staged(), replace(options, resume=True))


def test_the_network_waits_while_the_discriminator_is_alone(photos: Path, tmp_path: Path) -> None:
    options = Options(Folders((photos,)), tmp_path / "alone", device="cpu", workers=0)
    of = replace(brief(iterations=3), adversarial=Adversarial(weight=0.1, width=8, alone=3))
    torch.manual_seed(of.training.seed)
    train(of, options)
    still = weights(options.out)
    train(replace(of, adversarial=replace(of.adversarial, alone=2)), replace(options, out=tmp_path / "moves"))
    moved = weights(tmp_path / "moves")
    assert any(not torch.equal(still[name], moved[name]) for name in still)
    fresh = brief(iterations=1, rate=1e-12)
    train(fresh, replace(options, out=tmp_path / "fresh"))
    start = weights(tmp_path / "fresh")
    assert all(torch.allclose(still[name], start[name], atol=1e-6) for name in still if name.startswith("raw."))


def test_a_discriminator_learns_to_tell_sharp_from_soft() -> None:
    torch.manual_seed(0)
    rival = Rival.fresh(Adversarial(weight=1.0, features=0.2, width=8, rate=2e-3), torch.device("cpu"))
    truth = torch.rand(2, 3, 32, 32)
    lq = torch.nn.functional.avg_pool2d(truth, 2)
    soft = enlarge(lq, truth)
    assert soft.shape == truth.shape
    for _ in range(100):
        seen = rival.learn(soft, truth, soft, 1.0)
    verdicts = [rival.network(picture, soft)[-1].mean().item() for picture in (truth, soft)]
    assert verdicts[0] > verdicts[1] + 0.5
    result = soft.clone().requires_grad_()
    rival.objection(result, truth, soft, 2, seen).backward()
    assert result.grad is not None
    l1 = result.numel() ** -0.5  # the size of the gradient of L1
    assert 0.8 * l1 < float(result.grad.norm()) < 1.21 * l1  # weight and features push, in whatever directions
    better = rival.network(soft - 10 * result.grad, soft)[-1].mean()
    assert better > verdicts[1]


def test_a_grid_at_the_periods_of_the_upsampler_is_pushed_away() -> None:
    torch.manual_seed(0)
    truth = torch.nn.functional.avg_pool2d(torch.rand(2, 3, 64, 64), 5, 1, 2)
    rival = Rival.fresh(Adversarial(weight=0.0, features=0.0, grid=1.0, width=8), torch.device("cpu"))
    seen = [feature.detach() for feature in rival.network(truth, truth)]
    for period in (2, 4):
        result = truth.clone()
        result[..., ::period] += 0.02
        result.requires_grad_()
        before = grid_excess(result, truth, 4)
        assert before > 1
        rival.objection(result, truth, truth, 4, seen).backward()
        assert result.grad is not None
        assert grid_excess(result - 5 * result.grad, truth, 4) < before - 0.1
        assert grid_excess(result, result, 4) == 0  # what the truth has may be there
    assert grid_excess(truth, truth, 4) == grid_excess(truth, truth, 1) == 0


def test_a_verdict_for_every_second_pixel() -> None:
    *seen, verdict = Discriminator(8)(torch.rand(1, 3, 24, 32), torch.rand(1, 3, 24, 32))
    assert verdict.shape == (1, 1, 12, 16)
    assert [feature.shape[2] for feature in seen] == [24, 12, 6, 6]


def test_pairs_of_ones_own(own: Path, tmp_path: Path, run: Mambair) -> None:
    done = run("train", "smoke", "--lq", own / "lq", "--hq", own / "hq", "--out", tmp_path / "run", "--device", "cpu")
    assert done.status == 0, done.err
    card = json.loads((tmp_path / "run/smoke.json").read_text())
    assert (card["data"]["training"], card["data"]["pairs"]) == (0, 4)  # one of three photographs is left
    assert card["psnr"] > card["baseline"] + 3  # it learns what the pairs show: to brighten
    assert "10 pictures" not in done.err


def test_pairs_beside_pictures_and_as_validation(photos: Path, own: Path) -> None:
    folders = Folders((photos,), (own / "lq",), (own / "hq",), (own / "hq",), (own / "lq",))
    found = pictures.find(folders, 2, held_out=1)
    assert (len(found.training), len(found.pairs), len(found.validation)) == (12, 12, 12)
    of = brief()
    clean, pairs = pictures.decode(found.training, 24), pictures.decode_pairs(found.pairs, 12, 2)
    dark = 0
    for lq, hq in map(
        data.Batches(
            of, clean, pictures.made_worse(clean, partial(degradations.downscale, scale=2)), pairs=pairs
        ).__getitem__,
        range(10),
    ):
        assert lq.shape[2:] == (12, 12)
        dark += int((lq.mean((1, 2, 3)) < 0.7 * hq.mean((1, 2, 3))).sum())
    assert 10 < dark < 30  # of 40: about half are pairs
    (lq, hq), *_ = data.validation_pairs(of, found.validation)
    assert (lq.shape[2:], hq.shape) == ((48, 48), (96, 96, 3))
    assert lq.mean() < 0.7 * hq.mean() / 255


def test_pairs_that_do_not_fit_are_named(photos: Path, own: Path, tmp_path: Path, run: Mambair) -> None:
    def fails(*arguments: object) -> str:
        done = run("train", "smoke", *arguments, "--out", tmp_path / "run", "--device", "cpu")
        assert done.status != 0
        return " ".join(done.err.split())

    assert "--lq and --hq" in fails("--lq", own / "lq")
    assert "Name their folder with --val" in fails("--data", photos, "--val-lq", own / "lq")
    (tmp_path / "lq").mkdir()
    stray = tmp_path / "lq" / "stray.png"
    Image.new("RGB", (80, 80)).save(stray)
    assert "stray.png belongs to no picture" in fails("--lq", tmp_path / "lq", "--hq", own / "hq")
    with pytest.raises(Unavailable, match="belongs to no picture"):
        pictures.match([stray], [], 2)
    small = own / "lq" / "coffee_s001x2.png"
    with pytest.raises(BadImage, match="that is not x3"):
        pictures.decode_pairs([(small, own / "hq" / "coffee_s001.png")], 8, 3)
    assert not (tmp_path / "run").exists()


def test_a_run_that_ends_below_doing_nothing_says_so(photos: Path, tmp_path: Path, run: Mambair) -> None:
    short = ("--data", photos, "--device", "cpu", "--workers", "0", "--minutes", "0.001")
    done = run("train", "smoke", *short, "--out", tmp_path / "run")
    told = " ".join(done.err.split())
    assert done.status == 0
    assert re.search(r"dB below doing nothing\. It did not learn enough", told)
    percent = [int(found) for found in re.findall(r"(\d+)% smoke", told)]
    assert max(percent) == 100


def test_a_network_that_cannot_be_built_is_no_crash(photos: Path, tmp_path: Path, run: Mambair) -> None:
    (tmp_path / "v2.toml").write_text(
        'task = "upscale"\nscale = 2\nsummary = ""\n[network]\narch = "mambairv2"\n'
        '[data]\ndegradation = "bicubic"\npatch = 16\nbatch = 1\n[training]\niterations = 1\nrate = 1e-4\n'
        "[validation]\nevery = 1\noriginals = 1\n"
    )
    done = run("train", tmp_path / "v2.toml", "--data", photos, "--out", tmp_path / "run", "--device", "cpu")
    assert done.status == 2
    assert "no head upsampler='' for scale 2" in done.err
    assert "Give network.upsampler" in " ".join(done.err.split())


def test_truths_can_be_made_smaller_first(photos: Path) -> None:
    of = replace(recipe.load_recipe("upscale-x2-photo"), training=brief().training)
    of = replace(of, data=replace(of.data, patch=16, batch=6))
    clean = pictures.decode(sorted(photos.iterdir()), data.smallest_side(of))
    kept = []
    for shrink in ((1.0, 1.0), (0.5, 0.5)):
        changed = replace(of, data=replace(of.data, shrink=shrink))
        batches = [data.Batches(changed, clean)[number][1] for number in range(40)]
        assert batches[0].shape == (6, 3, 32, 32)
        kept.append(float(torch.stack([hq.diff(dim=2).abs().mean() for hq in batches]).mean()))
    assert kept[1] > 1.2 * kept[0]


def test_two_processes_train_one_network(photos: Path, tmp_path: Path) -> None:
    """Each makes its own half of the batch; the result is that of one process with both halves."""
    (tmp_path / "two.toml").write_text(toml(brief(iterations=3, batch=2, every=3)))
    (tmp_path / "one.toml").write_text(toml(brief(iterations=3, batch=4, every=3)))
    common = ("--data", photos, "--device", "cpu", "--workers", "0", "--quiet")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    launched = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "mambair_cli", "train", tmp_path / "two.toml", "--out", tmp_path / "two", *common),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert launched.returncode == 0, launched.stderr
    card = json.loads((tmp_path / "two/two.json").read_text())
    assert (card["processes"], card["iterations"]) == (2, 3)
    train(
        recipe.load_recipe(str(tmp_path / "one.toml")),
        Options(Folders((photos,)), tmp_path / "one", workers=0, device="cpu"),
    )
    together, alone = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert all(torch.allclose(together[name], alone[name], atol=1e-5) for name in together)


def toml(of: Recipe) -> str:
    """The scalars of a recipe, enough for the smoke recipe."""
    lines, tables = [], []
    for key, value in table(of).items():
        if isinstance(value, dict):
            own = [f"{k} = {json.dumps(v)}" for k, v in value.items() if v is not None and not isinstance(v, dict)]
            tables += [f"[{key}]", *own]
        elif key != "stages":
            lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join([*lines, *tables])


def test_samples_of_photographs_and_of_noise_are_aligned(photos: Path) -> None:
    """Averaged over many draws, the input is the truth: nothing is shifted."""
    for name in ("denoise", "upscale-x4-photo", "decompress"):
        of = recipe.load_recipe(name).parts()[-1]
        of = replace(of, data=replace(of.data, patch=16, batch=24, grey=0.0))
        clean = pictures.decode(sorted(photos.iterdir()), data.smallest_side(of))
        lq, hq = data.Batches(of, clean)[0]
        small = torch.nn.functional.avg_pool2d(hq, of.scale) if of.scale > 1 else hq
        errors = {
            shift: float((torch.roll(lq, shift, 3) - small)[..., 3:-3, 3:-3].abs().mean()) for shift in (-1, 0, 1)
        }
        assert min(errors, key=lambda shift: errors[shift]) == 0, (name, errors)


def test_it_rains_in_all_pictures_that_are_held_out(photos: Path) -> None:
    """A training sample in seven is dry; of a dry one doing nothing is perfect, and the mean would say so."""
    pairs = data.validation_pairs(recipe.load_recipe("derain"), 2 * sorted(photos.iterdir()))
    assert len(pairs) == 24
    assert all((np.rint(lq[0].permute(1, 2, 0).numpy() * 255) != hq).any() for lq, hq in pairs)
    assert loop.baseline(recipe.load_recipe("derain"), pairs) < 40


def test_baseline_of_pairs_is_the_input_enlarged(own: Path) -> None:
    folders = Folders(lq=(own / "lq",), hq=(own / "hq",))
    found = pictures.find(folders, 2, held_out=1)
    pairs = data.validation_pairs(brief(), found.validation)
    assert len(pairs) == 1
    lq, hq = pairs[0]
    enlarged = degradations.bicubic((lq[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8), hq.shape[:2])
    assert loop.baseline(brief(), pairs) == pytest.approx(loop.score(enlarged, hq, brief()))


def test_held_out_pictures_that_enlarge_without_error(photos: Path, tmp_path: Path, run: Mambair) -> None:
    """A flat picture, enlarged, is the truth itself: the score of doing nothing stays a number."""
    for number in range(2):
        Image.new("RGB", (200, 200), (90, 120, number)).save(tmp_path / f"flat{number}.png")
    (tmp_path / "flat.toml").write_text(toml(brief(iterations=2, every=2)))
    where = ("--data", photos, "--val", tmp_path, "--out", tmp_path / "run", "--device", "cpu")
    done = run("train", tmp_path / "flat.toml", *where)
    assert done.status == 0, done.err
    assert "doing nothing gets 100.00 dB" in done.err
    assert (tmp_path / "run" / "curve.svg").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_stop_of_all_processes_is_saved(photos: Path, tmp_path: Path) -> None:
    """As `timeout`, a batch system or a shutdown sends it: to the workers as well."""
    (tmp_path / "long.toml").write_text(toml(brief(iterations=10**6, every=10)))
    command = (sys.executable, "-m", "mambair_cli", "train", tmp_path / "long.toml", "--data", photos)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    log = tmp_path / "log"
    with log.open("wb") as file:
        running = subprocess.Popen(
            [*command, "--out", tmp_path / "run", "--device", "cpu", "--workers", "2"],
            env=environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    end = time.monotonic() + 200
    while not (tmp_path / "run/checkpoint.pt").exists() and running.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGTERM)
    running.wait(60)
    told = log.read_text()
    assert "Traceback" not in told
    assert "--resume continues" in told
    content = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
    assert f"at iteration {content['iteration']}" in told
