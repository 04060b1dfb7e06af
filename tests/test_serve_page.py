"""The page of `mambair serve` in a real browser."""

from __future__ import annotations

import base64
import io
import shlex
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from helpers.album import photo
from helpers.browser import Browser
from helpers.commands import mambair
from helpers.serving import TOKEN, Gate, Served, png, serving, until

from mambair_cli.serve.guard import Rules
from mambair_cli.serve.limits import Limits

TAB, SHIFT_TAB, ENTER, SPACE, DOWN, LEFT = "\ue004", "\ue008", "\ue007", " ", "\ue015", "\ue012"

WATCH_SHIFTS = """
    window.moves = [],
    new PerformanceObserver((list) => window.moves.push(...list.getEntries().map((entry) => entry.toJSON())))
      .observe({ type: "layout-shift", buffered: true })
"""

PASTE = """(function () {
    const bytes = Uint8Array.from(atob(arguments[0]), (sign) => sign.charCodeAt(0));
    const clipboardData = new DataTransfer();
    clipboardData.items.add(new File([bytes], "image.png", { type: "image/png" }));
    document.dispatchEvent(new ClipboardEvent("paste", { clipboardData }));
})"""


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, Path]:
    """A lossless and a lossy one, with names that a page or a shell could stumble over."""
    one, two = tmp_path / "one.png", tmp_path / "it's <b>two & more.jpg"
    photo().crop((0, 0, 24, 18)).save(one)
    photo().crop((10, 10, 40, 30)).save(two, quality=70)
    return one, two


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as served:
        yield served


@pytest.fixture
def page(browser: Browser, served: Served) -> Browser:
    """The page, just opened."""
    return visit(browser, served.url)


def visit(browser: Browser, url: str) -> Browser:
    browser.prefer("light")
    browser.screen(1280, 860)
    browser.complaints()
    browser.open("about:blank")
    browser.open(url)
    until(lambda: browser.script("document.querySelectorAll('#tasks input').length"))
    return browser


def states(page: Browser) -> list[str]:
    """What the rows of the queue say."""
    return page.script("[...document.querySelectorAll('#queue .what span')].map((e) => e.textContent)")


def done(page: Browser, count: int) -> None:
    until(lambda: page.script("document.querySelectorAll('#queue .done').length") == count)


def text(page: Browser, selector: str) -> str:
    return page.script("document.querySelector(arguments[0]).textContent", selector)


def test_two_pictures_from_the_drop_to_the_disk(
    page: Browser, pictures: tuple[Path, Path], tmp_path: Path, monkeypatch: Any, capsysbinary: Any
) -> None:
    gate = Gate(monkeypatch)
    page.script(f"void ({WATCH_SHIFTS})")
    page.click("#tasks input[value=upscale]")
    page.click(".offers button:nth-of-type(1)")
    page.drop("#drop", *pictures)
    until(lambda: states(page)[:2] == ["Enlarge: tile 1 of 4", "Enlarge: next"])
    assert page.script("document.querySelector('#queue progress').value") == 0.25
    gate.open.set()
    done(page, 2)
    until(lambda: page.script("document.querySelectorAll('#stage img').length") == 2)
    assert text(page, "#counts") == "2 of 2 done"
    assert text(page, "#line").startswith("Enlarge with tiny-")
    assert " on cpu: 24×18 → 48×36, " in text(page, "#line")

    page.drag("#stage .handle", 60)
    assert float(page.script("document.querySelector('.handle').getAttribute('aria-valuenow')")) > 52
    page.click("#stage .zoom button[value='4']")
    until(lambda: page.script("document.querySelector('#stage .frame').getBoundingClientRect().width") == 4 * 48)

    folder = tmp_path / "saved"
    page.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    monkeypatch.chdir(tmp_path)
    for row, picture in enumerate(pictures, 1):
        page.click(f"#queue li:nth-child({row}) .show")
        page.click(f"#queue li:nth-child({row}) .save")
        command = shlex.split(page.script("document.querySelector('#command').value"))
        assert command[-1] == picture.name.replace("<", "_").replace(">", "_")
        outcome = mambair(*command[1:-1], picture, capture=capsysbinary)
        assert outcome.status == 0, outcome.err
        made = Path(outcome.out.decode().strip())
        saved = folder / made.name.replace("<", "_").replace(">", "_")
        until(saved.exists)
        assert saved.read_bytes() == made.read_bytes()
    page.click("#all")
    until((folder / "mambair.zip").exists)
    with zipfile.ZipFile(folder / "mambair.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["one_x2.png", "it's _b_two & more_x2.jpg"]
        assert all(archive.read(name) == (folder / name).read_bytes() for name in archive.namelist())
    moves = page.script("window.moves")
    assert sum(move["value"] for move in moves if not move["hadRecentInput"]) < 0.01, moves
    assert page.complaints() == []


def test_a_broken_file_a_cancelled_one_and_another_try(
    page: Browser, pictures: tuple[Path, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:80])
    page.click("#tasks input[value=derain]")
    page.drop("body", broken)
    until(lambda: page.script("document.querySelectorAll('#queue .failed').length") == 1)
    assert states(page)[0].startswith("Remove rain: cannot be read")
    assert text(page, "#news").startswith("broken.png: cannot be read")
    gate = Gate(monkeypatch)
    page.drop("#drop", *pictures)
    assert gate.came.acquire(timeout=60)
    page.click("#queue li:nth-child(2) .end")
    assert gate.came.acquire(timeout=60)  # the next one runs
    assert states(page)[1] == "Remove rain: cancelled"
    gate.open.set()
    page.click("#queue li:nth-child(2) .again")
    done(page, 2)
    page.click("#clear")
    assert states(page) == []
    assert page.script("document.querySelector('#clear').disabled && document.activeElement.id === 'drop'")


LATE_ANSWERS = """(() => {
  const send = XMLHttpRequest.prototype.send;
  XMLHttpRequest.prototype.send = function (...body) {
    const answered = this.onload;
    this.onload = () => setTimeout(answered, 700);
    send.apply(this, body);
  };
})()"""


def test_what_failed_before_the_answer_named_it_is_not_waited_for(page: Browser, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(png()[:80])
    page.script(f"void {LATE_ANSWERS}")
    page.drop("#drop", broken)
    until(lambda: page.script("document.querySelectorAll('#queue .failed').length") == 1)


def test_a_picture_is_pasted(page: Browser) -> None:
    data = base64.b64encode(png()).decode()
    page.script(f"void ({PASTE}).apply(null, arguments)", data)
    done(page, 1)
    assert text(page, "#queue b") == "image.png"


def test_all_of_it_by_keyboard(page: Browser, pictures: tuple[Path, Path]) -> None:
    focus = "(document.activeElement.id || document.activeElement.value || document.activeElement.className)"
    page.press(TAB)
    assert page.script(focus) == "upscale"
    page.press(DOWN)
    assert page.script("new FormData(document.forms.form).get('task')") == "denoise"
    page.press(TAB)
    page.press("2", "5")
    for _ in range(12):
        page.press(TAB)
        if page.script(focus) == "drop":
            break
    outline = page.script("getComputedStyle(document.activeElement).outlineStyle")
    assert (page.script(focus), outline) == ("drop", "solid")
    page.script("void (document.querySelector('#files').click = () => { window.asked = true; })")
    page.press(ENTER)
    assert page.script("window.asked")
    page.keys("#files", str(pictures[0]))
    done(page, 1)
    until(lambda: page.script("!!document.querySelector('#stage .handle')"))
    assert "--sigma 25" in page.script("document.querySelector('#command').value")
    page.script("void document.querySelector('#drop').focus()")
    seen = []
    while "command" not in seen and len(seen) < 20:
        page.press(TAB)
        seen.append(page.script(focus))
        if seen[-1] == "handle":
            page.press(LEFT)
    assert [
        name for name in seen if name in ("clear", "all", "queue", "show", "save", "end", "handle", "command")
    ] == [*("clear", "all", "queue", "show", "save", "end", "handle", "command")]
    assert page.script("document.querySelector('.handle').getAttribute('aria-valuenow')") == "48"


def test_a_server_that_is_killed_and_started_again(
    browser: Browser, pictures: tuple[Path, Path], monkeypatch: Any
) -> None:
    gate = Gate(monkeypatch)
    gate.open.set()
    with serving() as first:
        page = visit(browser, first.url)
        page.drop("#drop", pictures[0])
        done(page, 1)
        gate.open.clear()
        page.drop("#drop", pictures[1])
        until(lambda: states(page)[1:] == ["Enlarge: tile 1 of 4"])
    until(lambda: page.script("!document.querySelector('#offline').hidden"))
    gate.open.set()
    with serving(port=first.port):
        done(page, 2)  # what was done is kept, what was not is done by the new one
        until(lambda: page.script("document.querySelector('#offline').hidden"))
        page.click("#queue li:nth-child(2) .show")
        until(lambda: page.script("document.querySelectorAll('#stage img').length") == 2)
    browser.open("about:blank")


@pytest.mark.skipif(not find_spec("axe_core_python"), reason="needs the package axe-core-python, of the extra test")
def test_light_dark_and_phone_and_what_axe_finds(page: Browser, pictures: tuple[Path, Path], tmp_path: Path) -> None:
    import axe_core_python

    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    page.drop("#drop", pictures[0], broken)
    done(page, 1)
    until(lambda: page.script("document.querySelectorAll('#stage img').length") == 2)
    page.command("Runtime.evaluate", expression=(Path(axe_core_python.__file__).parent / "axe.min.js").read_text())
    backgrounds = []
    for scheme, width in (("light", 1280), ("dark", 1280), ("dark", 360)):
        page.prefer(scheme)
        page.screen(width, 800, phone=width < 500)
        backgrounds.append(page.script("getComputedStyle(document.documentElement).backgroundColor"))
        assert page.script("document.documentElement.scrollWidth") <= width
        page.script("void document.querySelectorAll('details').forEach((e) => (e.open = true))")
        look = "axe.run({resultTypes: ['violations']})"
        page.script(f"void (window.found = null, {look}.then((r) => (window.found = r.violations)))")
        found = until(lambda: page.script("window.found && [window.found]"))[0]
        assert [
            (one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")
        ] == []
    assert backgrounds[0] != backgrounds[1]
    page.screen(1280, 860)


def test_the_token_is_taken_from_the_address_or_asked_for(browser: Browser, pictures: tuple[Path, Path]) -> None:
    with serving(Limits(upload=100_000), Rules(token=TOKEN)) as served:
        browser.open("about:blank")
        browser.open(served.url)
        until(lambda: browser.script("document.querySelector('#ask')?.open"))
        browser.keys("#token", "wrong" + ENTER)
        until(lambda: browser.script("document.querySelector('#ask').open && document.querySelector('#token').value"))
        browser.script("void (document.querySelector('#token').value = '')")
        browser.keys("#token", TOKEN + ENTER)
        until(lambda: browser.script("document.querySelectorAll('#tasks input').length"))
        browser.script("void sessionStorage.clear()")
        visit(browser, f"{served.url}/#token={TOKEN}")
        assert "token" not in browser.script("location.href")
        large = pictures[0].with_name("large.bmp")
        large.write_bytes(bytes(200_000))
        browser.drop("#drop", pictures[0], large)
        done(browser, 1)
        until(lambda: len(states(browser)) == 2 and "More than" in states(browser)[1])
        browser.open("about:blank")


def test_the_slider_is_that_of_compare(served: Served, tmp_path: Path, capsysbinary: Any) -> None:
    """One source: what `mambair compare` writes into its page is what this one loads."""
    stream = io.BytesIO()
    photo().save(stream, "PNG")
    (tmp_path / "a.png").write_bytes(stream.getvalue())
    mambair("compare", tmp_path / "a.png", tmp_path / "a.png", "-o", tmp_path / "a.html", capture=capsysbinary)
    written = (tmp_path / "a.html").read_text("utf-8")
    for name in ("slider.css", "slider.js", "colours.css"):
        assert served.get(f"/static/{name}").text in written
