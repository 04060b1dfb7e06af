"""The benchmark: the published figures, runs that stop and go on, the reports."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.album import photo
from helpers.browser import Browser
from helpers.commands import Outcome, mambair
from helpers.networks import identity, nearest
from helpers.sets import damage, parts, put
from PIL import Image

from mambair_cli import degradations, metrics
from mambair_cli.bench import report
from mambair_cli.bench.datasets import load
from mambair_cli.bench.niqe import niqe
from mambair_cli.bench.records import Measured, Score
from mambair_cli.bench.run import Watcher, measure
from mambair_cli.restoring.restorer import load_model

X2 = damage("upscale", 2)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAMBAIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MAMBAIR_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return parts(tmp_path / "pictures")


@pytest.fixture
def bench(capsysbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Outcome]:
    return lambda *args: mambair("bench", *args, capture=capsysbinary)


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

    found = load(str(pictures), X2)
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


# --- reports -------------------------------------------------------------------------------------------------


@pytest.fixture
def reports(pictures: Path, tmp_path: Path, bench: Callable[..., Outcome]) -> Path:
    """Reports of all kinds over one set, one picture of which is broken."""
    (pictures / "part9 <i>.png").write_bytes(b"")
    folder = tmp_path / "reports"
    kinds = [argument for kind in ("html", "md", "csv", "json") for argument in ("--report", folder / f"a.{kind}")]
    outcome = bench("-d", pictures, "--weights", nearest(tmp_path / "net.pth"), "--save", folder / "saved", *kinds)
    assert outcome.status == 1
    assert b"3 of 4 images" in outcome.out
    assert b"part9" in outcome.out
    return folder


def test_no_cell_of_a_csv_is_a_formula() -> None:
    """Nor obeyed by a terminal; negative numbers stay numbers."""
    names = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "plain - name", "a\x1b[2J"]
    images = [Measured(name, 3, 2, Score(-1.5, 0.25), Score(2.0, None), 0.5) for name in names]
    result = SimpleNamespace(
        dataset=SimpleNamespace(name="=set"), damage="x2", model="@model", extra=(), images=images
    )
    rows = list(csv.DictReader(report.table_csv([result]).splitlines()))  # type: ignore[list-item]
    assert [row["image"] for row in rows] == [*(f"'{name}" for name in names[:4]), "plain - name", r"a\033[2J"]
    assert {(row["dataset"], row["model"], row["psnr"], row["width"]) for row in rows} == {
        ("'=set", "'@model", "-1.5", "3")
    }


def test_reports_agree(reports: Path) -> None:
    record = json.loads((reports / "a.json").read_text())
    rows = list(csv.DictReader((reports / "a.csv").open()))
    assert [row["image"] for row in rows] == [image["name"] for image in record["images"]]
    assert [float(row["psnr"] or 0) for row in rows] == [image["psnr"] or 0 for image in record["images"]]
    text = (reports / "a.md").read_text()
    assert f"{record['mean']['psnr']:.2f}" in text
    assert "BT.601" in text
    assert record["environment"]["sha256"] in text
    saved = sorted(path.name for path in (reports / "saved" / "pictures-x2" / "net").iterdir())
    assert saved == ["part0.png", "part1.png", "part2.png"]


def test_reports_replace_reports_only(pictures: Path, tmp_path: Path, bench: Callable[..., Outcome]) -> None:
    arguments = ("-d", pictures, "--weights", nearest(tmp_path / "net.pth"), "--limit", 1)
    for kind in ("html", "md", "csv", "json"):
        file = tmp_path / f"mine.{kind}"
        file.write_text("my own\n# mambair bench\n")
        outcome = bench(*arguments, "--report", file)
        assert (outcome.status, outcome.out, file.read_text()[:6]) == (2, b"", "my own")
        assert "--force" in outcome.err
        assert bench(*arguments, "--report", file, "--force").status == 0
        report = file.read_bytes()
        assert b"my own" not in report
        assert bench(*arguments, "--report", file).status == 0
        assert file.read_bytes() == report


def test_what_cannot_be_written_is_found_first(pictures: Path, tmp_path: Path, bench: Callable[..., Outcome]) -> None:
    arguments = ("-d", pictures, "--weights", nearest(tmp_path / "net.pth"))
    blocked = tmp_path / "file" / "results"
    blocked.parent.write_text("")
    (tmp_path / "folder.md").mkdir()
    for option, place, status in (
        ("--report", blocked / "a.html", 1),
        ("--save", blocked, 1),
        ("--report", tmp_path / "folder.md", 2),
    ):
        outcome = bench(*arguments, option, place)
        assert (outcome.status, outcome.out) == (status, b"")
        assert str(place.parent) in outcome.err
        assert "part0" not in outcome.err, "nothing was measured"


def test_a_cache_that_cannot_be_written_is_named(
    pictures: Path, tmp_path: Path, bench: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MAMBAIR_CACHE", str(tmp_path / "file" / "cache"))
    outcome = bench("-d", pictures, "--weights", nearest(tmp_path / "net.pth"))
    assert outcome.status == 1
    assert f"cannot write {tmp_path / 'file' / 'cache'}" in outcome.err


def test_perceptual_metrics_are_an_extra(
    pictures: Path, tmp_path: Path, bench: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("-d", pictures, "--weights", nearest(tmp_path / "net.pth"), "--perceptual")
    monkeypatch.setitem(sys.modules, "torchvision", None)  # as if it were not installed
    outcome = bench(*arguments)
    assert outcome.status == 2
    assert "mambair[perceptual]" in outcome.err

    def distances(restored: np.ndarray, truth: np.ndarray) -> dict[str, float]:
        return {"lpips": float(np.abs(restored.astype(float) - truth).mean()), "dists": 0.25}

    monkeypatch.setattr("mambair_cli.bench.run.Perceptual", lambda: distances)
    kinds = [argument for kind in ("html", "md", "csv") for argument in ("--report", tmp_path / f"a.{kind}")]
    record = json.loads(bench(*arguments, "--json", *kinds).out)
    assert record["protocol"]["perceptual"].startswith("LPIPS")
    assert record["mean"]["dists"] == 0.25
    assert record["mean"]["lpips"] == pytest.approx(np.mean([image["lpips"] for image in record["images"]]))
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [float(row["lpips"]) for row in rows] == [image["lpips"] for image in record["images"]]
    for kind in ("html", "md"):
        text = (tmp_path / f"a.{kind}").read_text()
        assert "LPIPS" in text
        assert all(f"{image['lpips']:.4f}" in text for image in record["images"])
    assert record["mean"]["niqe"] is None  # too small
    assert (record["measured"], record["measured_niqe"]) == (3, 0)
    assert b"NIQE - (0 of 3)" in bench(*arguments).out


def test_niqe_needs_no_extra(tmp_path: Path, bench: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    for name, size in (("a", (200, 104)), ("b", (104, 200)), ("small", (194, 104))):
        put(tmp_path / "set" / f"{name}.png", size)
    arguments = ("-d", tmp_path / "set", "--weights", nearest(tmp_path / "net.pth"))
    assert "niqe" not in json.loads(bench(*arguments, "--json").out)["mean"]
    kinds = [argument for kind in ("html", "md", "csv") for argument in ("--report", tmp_path / f"a.{kind}")]
    record = json.loads(bench(*arguments, "--niqe", "--json", *kinds).out)
    a, b, small = (image["niqe"] for image in record["images"])
    with Image.open(tmp_path / "set" / "a.png") as truth:
        lq = degradations.downscale(np.array(truth), 2)
    assert a == niqe(lq.repeat(2, 0).repeat(2, 1), crop=2)
    assert record["images"][0]["baseline"]["niqe"] == niqe(degradations.bicubic(lq, (104, 200)), crop=2)
    assert small is None
    assert record["mean"]["niqe"] == pytest.approx((a + b) / 2)
    assert (record["measured"], record["measured_niqe"]) == (3, 2)
    assert "Y of BT.601" in record["protocol"]["niqe"]
    assert record["protocol"]["perceptual"] is None

    mean = f"{(a + b) / 2:.4f} (2 of 3)"
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [row["niqe"] for row in rows] == [str(a), str(b), ""]
    for kind in ("html", "md"):
        text = (tmp_path / f"a.{kind}").read_text()
        assert all(part in text for part in ("NIQE ↓", mean, f"{a:.4f}"))
        assert "LPIPS" not in text
    table = bench(*arguments, "--niqe").out.decode()
    assert f"NIQE {mean}" in table
    assert "lower is better" in table


def test_page_in_a_browser(reports: Path, browser: Browser) -> None:
    browser.screen(1000, 900)
    browser.open(reports / "a.html")
    assert browser.script("[...document.images].every(i => i.complete && i.naturalWidth === 40)")
    assert browser.script("document.querySelectorAll('.slider').length") == 2 * 3  # pictures and their errors
    assert browser.script("document.querySelectorAll('svg.plot circle').length") >= 6
    assert browser.script("document.querySelector('p.bad').textContent").startswith("part9 <i>")

    column = "[...document.querySelectorAll('.sortable tbody tr')].map(r => Number(r.cells[5].textContent))"
    gains = browser.script(column)
    browser.click(".sortable th:nth-child(6) button")
    assert browser.script(column) == sorted(gains, reverse=True)
    browser.click(".sortable th:nth-child(6) button")
    assert browser.script(column) == sorted(gains)

    browser.drag(".handle", 100)
    assert float(browser.script("document.querySelector('.handle').getAttribute('aria-valuenow')")) > 60
    assert browser.complaints() == []
    browser.screen(375, 667, phone=True)
    assert browser.script("document.documentElement.scrollWidth") <= 375
    browser.screen(1000, 900)


def test_several_models_share_a_table(
    pictures: Path, tmp_path: Path, bench: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = tmp_path / "zoo.toml"
    model = """
[models.net-{0}]
family = "mambair"
arch = "mambair"
task = "upscale"
scale = 2
protocol = "sr"
params = 27106
source.filename = "net.pth"
published = {{ Set5 = [{0}, 0.9] }}
kwargs.upscale = 2
kwargs.embed_dim = 30
kwargs.d_state = 1
kwargs.depths = [1]
kwargs.mlp_ratio = 1.2
kwargs.upsampler = "pixelshuffledirect"
"""
    protocol = '[protocols.sr]\nchannel = "y"\ncrop = "scale"\n'
    zoo.write_text(model.format(20) + model.format(60) + protocol)
    monkeypatch.setenv("MAMBAIR_ZOO", str(zoo))
    (tmp_path / "cache").mkdir()
    nearest(tmp_path / "cache" / "net.pth")
    for n in range(5):
        put(tmp_path / "data" / "set5" / "HR" / f"{n}.png", (48, 40))
    outcome = bench(
        *("-m", "net-20", "-m", "net-60", "-d", "Set5", "-d", pictures, "--data-root", tmp_path / "data"),
        *("--report", tmp_path / "a.html"),
    )
    assert outcome.status == 0, outcome.err
    table = outcome.out.decode()
    assert all(
        name in table for name in ("net-20", "net-60", "Set5", "pictures", "published 20.00", "published 60.00")
    )
    page = (tmp_path / "a.html").read_text()
    assert "Speed and quality on Set5" in page
    assert page.count("<section>") == 4
