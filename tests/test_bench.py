"""The benchmark: the published figures, runs that stop and go on, the reports."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.album import photo
from helpers.benching import bench, cache, pictures  # noqa: F401 -- fixtures
from helpers.commands import Outcome
from helpers.networks import identity, nearest
from helpers.sets import damage, put
from PIL import Image

from mambair_cli import degradations, metrics
from mambair_cli.bench.datasets import load_dataset
from mambair_cli.bench.run import Watcher, measure
from mambair_cli.restoring.restorer import load_model

X2 = damage("upscale", 2)


@pytest.mark.parametrize(("name", "psnr", "ssim"), [("Set5", 32.54, 0.8990), ("Set14", 28.90, 0.7888)])
def test_real_checkpoint_scores_as_the_published_code(
    shared: Path, bench: Callable[..., Outcome], name: str, psnr: float, ssim: float
) -> None:
    weights = shared / "weights" / "mambairv2_light_x4.pth"
    outcome = bench(
        *("--dataset", name, "-m", "mambairv2-light-x4-ntire", "--weights", weights),
        *("--data-root", shared / "data", "--json", "--device", "cpu", "--precision", "fp32"),
    )
    assert outcome.status == 0, outcome.err
    record = json.loads(outcome.out)
    assert record["mean"]["psnr"] == pytest.approx(psnr, abs=0.01)
    assert record["mean"]["ssim"] == pytest.approx(ssim, abs=0.0003)
    assert record["published"]["psnr"] == psnr
    assert record["protocol"]["channel"] == "y"
    assert record["protocol"]["crop"] == 4


# --- runs ----------------------------------------------------------------------------------------------------


def test_broken_pairs_are_reported_and_do_not_count(tmp_path: Path, bench: Callable[..., Outcome]) -> None:
    folder = tmp_path / "set"
    for name in ("a", "b", "c", "d"):
        put(folder / "HR" / f"{name}.png", (40, 36))
        put(folder / "LRx2" / f"{name}x2.png", (20, 18))
    (folder / "LRx2" / "bx2.png").unlink()
    (folder / "HR" / "c.png").write_bytes(b"not a picture")
    put(folder / "LRx2" / "dx2.png", (19, 18))
    outcome = bench("-d", folder, "--weights", nearest(tmp_path / "net.pth"), "--json")
    assert outcome.status == 1
    record = json.loads(outcome.out)
    errors = {image["name"]: image["error"] for image in record["images"]}
    assert errors["a"] is None
    assert "no degraded picture" in errors["b"]
    assert "LRx2" in errors["b"]
    assert errors["c"]
    assert "19x18" in errors["d"] or "38x36" in errors["d"]
    assert (record["measured"], record["of"]) == (1, 4)
    assert record["mean"]["psnr"] == record["images"][0]["psnr"]


def test_record_keeps_its_contract(pictures: Path, tmp_path: Path, bench: Callable[..., Outcome]) -> None:
    outcome = bench("-d", pictures, "--weights", nearest(tmp_path / "net.pth"), "--json", "-q")
    record = json.loads(outcome.out)
    assert outcome.err == ""
    contract = "schema dataset model protocol images mean baseline published environment"
    assert set(contract.split()) <= set(record)
    assert record["schema"] == 1
    assert record["dataset"] == "pictures"
    assert record["published"] is None
    for image in record["images"]:
        assert {"name", "psnr", "ssim", "seconds"} <= set(image)
    truth = np.array(photo().crop((0, 0, 40, 40)))
    small = degradations.downscale(truth, 2)
    expected = metrics.psnr(small.repeat(2, 0).repeat(2, 1), truth, crop=record["protocol"]["crop"])
    assert record["images"][0]["psnr"] == pytest.approx(expected, abs=0.01)
    expected = metrics.ssim(degradations.bicubic(small, (40, 40)), truth, crop=record["protocol"]["crop"])
    assert record["images"][0]["baseline"]["ssim"] == pytest.approx(expected, abs=1e-9)


def test_a_stopped_run_goes_on(pictures: Path, tmp_path: Path) -> None:
    class Counting:
        def __init__(self) -> None:
            self.restorer, self.calls = load_model(weights=nearest(tmp_path / "net.pth")), 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.restorer, name)

        def restore_bands(self, *args: Any) -> Any:
            self.calls += 1
            return self.restorer.restore_bands(*args)

    def stop(image: Any) -> None:
        raise KeyboardInterrupt

    found = load_dataset(str(pictures), X2)
    first = Counting()
    with pytest.raises(KeyboardInterrupt):
        measure(first, found, X2, watcher=Watcher(step=stop))
    assert first.calls < 3
    second = Counting()
    resumed = measure(second, found, X2)
    assert first.calls + second.calls == 3
    third = Counting()
    assert measure(third, found, X2) == resumed
    assert third.calls == 0

    photo().crop((3, 3, 44, 43)).save(pictures / "part1.png")  # another picture now
    fourth = Counting()
    changed = measure(fourth, found, X2)
    assert fourth.calls == 1
    assert changed.images[1].score != resumed.images[1].score
    assert changed.images[0] == resumed.images[0]

    fifth = Counting()
    assert [i.score for i in measure(fifth, found, X2, fresh=True).images] == [i.score for i in changed.images]
    assert fifth.calls == 3


def test_levels_and_channels_follow_the_model(pictures: Path, tmp_path: Path, bench: Callable[..., Outcome]) -> None:
    noise = json.loads(bench("-d", pictures, "--weights", identity(tmp_path / "a.pth"), "--json", "--limit", 1).out)
    assert (noise["task"], noise["degradation"], noise["protocol"]["channel"]) == ("denoise", "noise 25", "rgb")
    # the network changes nothing but what lies outside of [0, 1], which its result cannot hold
    assert 20.0 < noise["baseline"]["psnr"] < noise["mean"]["psnr"] < 22.0
    jpeg = json.loads(
        bench(
            "-d", pictures, "--weights", identity(tmp_path / "b.pth", 1), "--json", "--quality", 30, "--limit", 1
        ).out
    )
    assert (jpeg["degradation"], jpeg["protocol"]["channel"]) == ("JPEG 30", "gray")
    assert jpeg["mean"] == pytest.approx(jpeg["baseline"], abs=0.01)
    small = bench("-d", pictures, "--weights", nearest(tmp_path / "c.pth"), "--json", "--quality", 30, "--limit", 1)
    assert json.loads(small.out)["degradation"] == "x2 JPEG 30"


def test_times_are_of_this_environment(
    pictures: Path, tmp_path: Path, bench: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("-d", pictures, "--weights", nearest(tmp_path / "net.pth"), "--report", tmp_path / "a.html")
    first = json.loads(bench(*arguments, "--json").out)
    assert all(image["seconds"] > 0 for image in first["images"])
    assert json.loads(bench(*arguments, "--json").out) == first

    monkeypatch.setattr("platform.platform", lambda: "another machine")
    kinds = ("--report", tmp_path / "a.md", "--report", tmp_path / "a.csv")
    other = json.loads(bench(*arguments, "--json", *kinds).out)
    assert other["environment"]["platform"] == "another machine"
    assert other["seconds"] is None
    assert {image["seconds"] for image in other["images"]} == {None}
    assert other["mean"] == first["mean"]
    assert [row["seconds"] for row in csv.DictReader((tmp_path / "a.csv").open())] == ["", "", ""]
    assert "timed elsewhere" in bench(*arguments).out.decode()

    (pictures / "part0.png").touch()
    mixed = json.loads(bench(*arguments, "--json").out)
    assert mixed["seconds"] == mixed["images"][0]["seconds"] > 0
    assert mixed["images"][1]["seconds"] is None


def test_a_file_of_weights_answers_for_itself(pictures: Path, tmp_path: Path, bench: Callable[..., Outcome]) -> None:
    net = nearest(tmp_path / "net.pth")
    for option, value in (("-s", 4), ("--task", "denoise")):
        outcome = bench("-d", pictures, "--weights", net, option, value)
        assert (outcome.status, outcome.out) == (2, b"")
        assert f"{value} is not for net, a model for upscale x2." in outcome.err
    outcome = bench("-d", pictures, "--weights", net, "-s", 2, "--limit", 1)
    assert outcome.status == 0
    assert b"made on the fly" in outcome.out
    assert b"ublished" not in outcome.out


def test_transparency_is_not_dropped_in_silence(
    pictures: Path, tmp_path: Path, bench: Callable[..., Outcome]
) -> None:
    for name, level in (("part1", 255), ("part2", 254)):
        with Image.open(pictures / f"{name}.png") as picture:
            picture.putalpha(level)
            picture.save(pictures / f"{name}.png")
    outcome = bench("-d", pictures, "--weights", nearest(tmp_path / "net.pth"), "--json")
    assert outcome.status == 1
    errors = [image["error"] for image in json.loads(outcome.out)["images"]]
    assert errors[:2] == [None, None]
    assert "part2.png is transparent" in errors[2]


def test_noise_is_rounded_as_denoise_does(pictures: Path, tmp_path: Path, bench: Callable[..., Outcome]) -> None:
    arguments = ("-d", pictures, "--weights", identity(tmp_path / "a.pth"), "--limit", 1, "--json", "--sigma")
    assert json.loads(bench(*arguments, "25.7").out)["degradation"] == "noise 26"
    assert bench(*arguments, "auto").status == bench(*arguments, "256").status == 2


def test_a_set_that_is_none(bench: Callable[..., Outcome]) -> None:
    """It is said before anything else: what it is for cannot be known."""
    for name, near in (
        ("Set6", "Did you mean Set5 or Set14?"),
        ("urban", "Did you mean Urban100?"),
        ("xyz", "Known:"),
    ):
        outcome = bench("--dataset", name)
        assert (outcome.status, outcome.out) == (2, b"")
        assert f"There is no set and no folder '{name}'." in outcome.err
        assert near in outcome.err


def test_options_that_make_no_sense(pictures: Path, tmp_path: Path, bench: Callable[..., Outcome]) -> None:
    net = nearest(tmp_path / "net.pth")
    for wrong in (
        [],
        ["-d", "Set55", "-m", "light"],
        ["-d", pictures],
        ["-d", pictures, "--weights", net, "--sigma", "25"],
        ["-d", pictures, "--weights", net, "-m", "light", "-m", "base"],
        ["-d", pictures, "--sigma", "loud"],
        ["-d", pictures, "--weights", net, "--report", "a.pdf"],
        ["-d", pictures, "--weights", net, "--size", "8x8"],
        ["-d", pictures, "--weights", net, "--backward"],
    ):
        outcome = bench(*wrong)
        assert outcome.status == 2, (wrong, outcome)
        assert outcome.out == b""
    assert bench("-d", "Manga109", "--weights", net).status == 3


def test_workers_measure_the_same_and_one_journal_knows_it(
    pictures: Path, tmp_path: Path, bench: Callable[..., Outcome]
) -> None:
    (pictures / "part9.png").write_bytes(b"no picture")
    command = ("-d", pictures, "--weights", nearest(tmp_path / "net.pth"), "--json", "--device", "cpu", "--niqe")
    spread = bench(*command, "--workers", 2, "--threads", 1, "--save", tmp_path / "kept")
    alone = bench(*command, "--fresh")
    assert spread.status == alone.status == 1
    one, two = json.loads(alone.out), json.loads(spread.out)
    assert one["mean"] == two["mean"]
    assert [(image["name"], image["psnr"], image["error"]) for image in one["images"]] == [
        (image["name"], image["psnr"], image["error"]) for image in two["images"]
    ]
    assert len(list((tmp_path / "kept").rglob("part*.png"))) == 3
    assert "3 of 4 pictures were measured before" in bench(*command, "--workers", 2).err
