"""Before and after: the sheet, and the page in a real browser."""

from __future__ import annotations

import base64
import io
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.album import photo
from helpers.browser import Browser
from helpers.commands import mambair
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from mambair_cli import compare
from mambair_cli.compare import CROPS, aligned, detailed, read_flat, sheet
from mambair_cli.errors import BadImage
from mambair_cli.metrics import psnr


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A photo four times enlarged, and the small one."""
    image = photo()
    image.save(tmp_path / "small.png")
    image.resize((4 * image.width, 4 * image.height), Image.Resampling.LANCZOS).save(tmp_path / "large & <b>.png")
    return tmp_path / "small.png", tmp_path / "large & <b>.png"


def embedded(page: Path) -> list[np.ndarray]:
    uris = re.findall(r'src="data:image/\w+;base64,([^"]+)"', page.read_text("utf-8"))
    return [np.array(Image.open(io.BytesIO(base64.b64decode(uri))).convert("RGB")) for uri in uris]


def split(browser: Browser) -> float:
    return float(browser.script("document.querySelector('.handle').getAttribute('aria-valuenow')"))


def test_page_holds_both_pictures_and_loads_nothing(
    pair: tuple[Path, Path], tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    page = tmp_path / "page.html"
    outcome = mambair("compare", *pair, "-o", page, capture=capsysbinary)
    assert (outcome.status, outcome.out.decode().strip()) == (0, str(page))
    text = page.read_text("utf-8")
    assert not re.search(r'(src|href)="(?!data:)|url\(|@import|fetch\(', text)
    assert "<b>.png" not in text.split("</title>")[1]  # names are escaped
    after, before = embedded(page)
    large = read_flat(pair[1])
    assert before.shape == after.shape == large.shape
    assert psnr(after, large, channel="rgb") > 35


def test_page_in_a_browser(pair: tuple[Path, Path], tmp_path: Path, browser: Browser, capsysbinary) -> None:
    page = tmp_path / "page.html"
    mambair("compare", *pair, "-o", page, capture=capsysbinary)
    browser.screen(1000, 900)
    browser.open(page)
    width = read_flat(pair[1]).shape[1]
    sizes = browser.script("[...document.images].map(i => i.complete ? i.naturalWidth : 0)")
    assert sizes == [width, width]

    shown = "document.querySelector('.frame').getBoundingClientRect().width"
    quarter = round(browser.script(shown) / 4)
    browser.drag(".handle", quarter)
    assert split(browser) == pytest.approx(75, abs=1)
    clip = browser.script("getComputedStyle(document.querySelector('img.before')).clipPath")
    assert "25" in clip  # a quarter, from the right, is hidden
    browser.keys(".handle", "\ue012" * 5)  # arrow to the left
    assert split(browser) == pytest.approx(65, abs=1)

    browser.click(".zoom button[value='4']")
    assert browser.script(shown) == 4 * width
    browser.click(".zoom button[value='0']")
    assert browser.script(shown) == pytest.approx(4 * quarter, abs=2)
    assert browser.complaints() == []


def test_page_on_a_phone(pair: tuple[Path, Path], tmp_path: Path, browser: Browser, capsysbinary) -> None:
    page = tmp_path / "page.html"
    mambair("compare", *pair, "-o", page, capture=capsysbinary)
    browser.screen(375, 667, phone=True)
    browser.open(page)
    assert browser.script("document.documentElement.scrollWidth") <= 375
    browser.drag(".handle", -100, kind="touch")
    assert split(browser) < 30
    browser.screen(1000, 900)


def test_sheet_shows_crops_of_both(pair: tuple[Path, Path], tmp_path: Path, capsysbinary) -> None:
    sheet = tmp_path / "sheet.png"
    assert mambair("compare", *pair, "-o", sheet, capture=capsysbinary).status == 0
    picture = np.array(Image.open(sheet)).astype(int)
    crops = picture[-288 - 12 : -12]  # the lowest row: 96 pixels, three times enlarged
    before, after = crops[:, 12 : 12 + 288], crops[:, 24 + 288 : 24 + 2 * 288]
    assert (before[::3, ::3] == before[2::3, 2::3]).all()  # pixels stay pixels
    assert np.abs(np.diff(after, axis=1)).mean() > np.abs(np.diff(before, axis=1)).mean()  # and the result is sharper


def test_an_existing_comparison_is_kept(pair: tuple[Path, Path], tmp_path: Path, capsysbinary) -> None:
    target = tmp_path / "page.html"
    target.write_text("mine")
    outcome = mambair("compare", *pair, "-o", target, capture=capsysbinary)
    assert (outcome.status, target.read_text()) == (2, "mine")
    assert "--force" in outcome.err
    assert mambair("compare", *pair, "-o", target, "--force", capture=capsysbinary).status == 0
    assert target.read_text("utf-8").startswith("<!DOCTYPE html>")


def test_what_cannot_be_compared(pair: tuple[Path, Path], tmp_path: Path, capsysbinary) -> None:
    assert mambair("compare", *pair, "-o", tmp_path / "page.pdf", capture=capsysbinary).status == 2
    Image.new("RGB", (300, 40)).save(tmp_path / "strip.png")
    outcome = mambair("compare", pair[0], tmp_path / "strip.png", "-o", tmp_path / "a.png", capture=capsysbinary)
    assert outcome.status == 1
    assert "different shapes" in outcome.err
    assert not (tmp_path / "a.png").exists()
    (tmp_path / "text.png").write_text("no picture")
    for bad in ("none.png", "text.png", "."):
        for files in ((pair[0], tmp_path / bad), (tmp_path / bad, pair[0])):
            outcome = mambair("compare", *files, "-o", tmp_path / "a.png", capture=capsysbinary)
            assert outcome.status == 1
            assert f"{tmp_path / bad}: " in outcome.err


def test_neither_picture_is_overwritten(pair: tuple[Path, Path], tmp_path: Path, capsysbinary) -> None:
    (tmp_path / "link.png").symlink_to(pair[1])
    before = [path.read_bytes() for path in pair]
    for target in (*pair, tmp_path / "link.png", tmp_path / "." / "none" / ".." / pair[0].name):
        (tmp_path / "none").mkdir(exist_ok=True)
        outcome = mambair("compare", *pair, "-f", "-o", target, capture=capsysbinary)
        assert (outcome.status, [path.read_bytes() for path in pair]) == (2, before)
        assert "one of the pictures" in outcome.err


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such names")
def test_names_need_not_be_readable(pair: tuple[Path, Path], tmp_path: Path, capsysbinary) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xff\n.png"))
    odd.write_bytes(pair[0].read_bytes())
    for suffix in (".html", ".png"):
        target = odd.with_suffix(suffix + suffix)
        outcome = mambair("compare", odd, pair[1], "-o", target, capture=capsysbinary)
        assert (outcome.status, outcome.out) == (0, os.fsencode(target) + b"\n")
    assert "caf\ufffd\ufffd.png" in odd.with_suffix(".html.html").read_text("utf-8")


def test_transparency_is_shown_on_white_and_cropped_results_fit(tmp_path: Path) -> None:
    Image.new("LA", (8, 8), (0, 0)).save(tmp_path / "clear.png")
    assert (read_flat(tmp_path / "clear.png") == 255).all()
    truth, small = np.zeros((101, 67, 3), np.uint8), np.zeros((25, 16, 3), np.uint8)
    before, after = aligned(small, truth)[0]
    assert before.shape == after.shape == truth.shape
    with pytest.raises(BadImage):
        aligned(small, truth[:60])


@given(
    picture=arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))), side=st.integers(1, 50)
)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("searched", [compare.SEARCHED_PIXELS, 20])  # in single pixels, and in steps
def test_crops_lie_inside_and_do_not_overlap(searched: int, picture: np.ndarray, side: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "SEARCHED_PIXELS", searched)
        corners = detailed(picture, CROPS, side)
    side = min(side, *picture.shape[:2])
    assert 1 <= len(corners) <= CROPS
    for n, (y, x) in enumerate(corners):
        assert 0 <= y <= picture.shape[0] - side
        assert 0 <= x <= picture.shape[1] - side
        assert all(abs(y - v) >= side or abs(x - u) >= side for v, u in corners[:n])


@given(
    picture=arrays(np.uint8, st.tuples(st.integers(1, 3) | st.integers(1, 60), st.integers(1, 60), st.just(3))),
    turned=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_a_sheet_of_any_size_ends(picture: np.ndarray, turned: bool) -> None:
    picture = picture.swapaxes(0, 1).copy() if turned else picture
    result = sheet(picture, picture, ["a name that is far too long for a column " * 5, "short"])
    assert result.width == compare.SHEET_WIDTH


def test_a_long_thin_picture_is_shown_whole() -> None:
    strip = np.zeros((2, 3000, 3), np.uint8)
    overview = np.asarray(sheet(strip, strip, ("before", "after")))[12, :, 0]
    assert (overview == 0).sum() > compare.SHEET_WIDTH - 2 * compare.GAP - 30  # but for the white frames
