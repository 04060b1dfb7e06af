"""Reports of `bench`: they agree with each other, replace only their own kind, and open in a browser."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.benching import bench, cache, pictures  # noqa: F401 -- fixtures
from helpers.browser import Browser
from helpers.commands import Outcome
from helpers.networks import nearest
from helpers.sets import damage, put
from PIL import Image

from mambair_cli import degradations
from mambair_cli.bench import plots, report
from mambair_cli.bench.niqe import niqe
from mambair_cli.bench.records import Measured, Score
from mambair_cli.compare import page

X2 = damage("upscale", 2)


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


BOXES = """[...document.querySelectorAll('svg.plot')].filter(s => s.getBoundingClientRect().width).map(s => {
  const r = s.getBoundingClientRect();
  return [r.left, r.right, [...s.querySelectorAll('text')].map(t => {
    const b = t.getBoundingClientRect(); return [b.left, b.right, b.top, b.bottom, t.textContent] })] })"""


@pytest.mark.parametrize("width", [400, 1200])
def test_plots_can_be_read(tmp_path: Path, browser: Browser, width: int) -> None:
    """Letters of 11 pixels and more, inside of the plot, none over another."""
    names = ["baby", "bird", "butterfly", "head", "woman"]
    images = [Measured(n, 9, 9, Score(30.0 + i, 0.9), Score(27.5 + i, 0.8), 0.5) for i, n in enumerate(names)]
    models = [("tiny-x4", 0.1, 31.2), ("mambairv2-light-x4-ntire", 0.9, 32.54), ("mambair-light-x4", 1.1, 32.52)]
    results = [SimpleNamespace(model=m, seconds=s, mean=Score(p, 0.9)) for m, s, p in models]
    body = plots.psnr_by_image(images) + plots.speed_and_quality(results)  # type: ignore[arg-type]
    (tmp_path / "plots.html").write_text(page("plots", body), encoding="utf-8")
    browser.screen(width, 900)
    browser.open(tmp_path / "plots.html")
    shown = browser.script(BOXES)
    assert len(shown) == 2
    for left, right, texts in shown:
        assert {text[4] for text in texts} >= {"dB"}
        for n, (x0, x1, y0, y1, text) in enumerate(texts):
            assert y1 - y0 >= 11, text
            assert left <= x0, text
            assert x1 <= right, text
            for a0, a1, b0, b1, other in texts[:n]:
                assert not (x0 < a1 - 1 and a0 < x1 - 1 and y0 < b1 - 3 and b0 < y1 - 3), (text, other)
    assert set(names) <= {text[4] for text in shown[0][2]}
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
