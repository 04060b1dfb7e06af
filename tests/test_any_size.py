"""Any size: one network or two, one after the other, then resampled to the pixel."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers.album import cutout, encoded, exif, frames, photo, wide_gamut
from helpers.commands import Mambair, mambair
from helpers.networks import nearest, spec
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

import mambair_cli
from mambair_cli.errors import BadImage, UsageError
from mambair_cli.images.software import made_by
from mambair_cli.models import zoo
from mambair_cli.restoring.fit import resampled_bands
from mambair_cli.restoring.request import Request, chain


@pytest.fixture(scope="session")
def x2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nearest(tmp_path_factory.mktemp("weights") / "nearest.pth")


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Mambair:
    monkeypatch.chdir(tmp_path)
    photo().crop((0, 0, 24, 18)).save("a.png", exif=exif(1))
    return partial(mambair, capture=capfdbinary)


# --- which networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "there", "taken"),
    [
        (1.5, (2, 3, 4), (2,)),
        (3, (2, 3, 4), (3,)),
        (3.01, (2, 3, 4), (4,)),
        (4.3, (2, 3, 4), (4,)),  # a tenth more is no work for a second network
        (4.44, (2, 3, 4), (2, 3)),
        (6, (2, 3, 4), (2, 3)),
        (8, (2, 3, 4), (2, 4)),  # the smaller first: the other one has less to do
        (16, (2, 3, 4), (4, 4)),
        (99, (2, 3, 4), (4, 4)),
        (1.5, (4,), (4,)),
        (5, (4,), (4, 4)),
    ],
)
def test_the_fewest_networks_that_are_enough(factor: float, there: tuple[int, ...], taken: tuple[int, ...]) -> None:
    models = {scale: spec(scale) for scale in there}
    assert tuple(model.scale for model in chain(factor, models, models)) == taken


def test_what_a_network_has_made_is_clean(run: Mambair) -> None:
    photo().save("a.jpg", quality=75)
    plans = {name: json.loads(run("upscale", "-n", "--json", "-s", 8, name).out) for name in ("a.jpg", "a.png")}
    compressed = [[zoo.find(one["model"]).compressed for one in plan["passes"]] for plan in plans.values()]
    assert compressed == [[True, False], [False, False]]


def test_scales_that_enlarge_nothing_are_refused() -> None:
    for scale in (1, 0.5, 0, -2, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="enlarges nothing"):
            Request("upscale", scale=scale)
    with pytest.raises(UsageError, match="keeps the size"):
        Request("denoise", scale=2)


# --- resampling in bands ------------------------------------------------------------------------------------------

sides = st.integers(1, 40)


@settings(max_examples=60, deadline=None)
@given(size=st.tuples(sides, sides), target=st.tuples(sides, sides), rows=st.integers(1, 40))
def test_resampling_in_bands_is_resampling(size: tuple[int, int], target: tuple[int, int], rows: int) -> None:
    width, height = size
    whole = np.random.default_rng(0).random((2, height, width), np.float32)
    bands = ((y, whole[:, y : y + rows]) for y in range(0, height, rows))
    result, seen = np.full((2, target[1], target[0]), np.nan), 0
    for y, band in resampled_bands(bands, size, target):
        assert y == seen
        result[:, y : y + band.shape[1]] = band
        seen += band.shape[1]
    for plane, expected in zip(result, whole, strict=True):
        at_once = Image.fromarray(expected).resize(target, Image.Resampling.BICUBIC)
        assert np.abs(plane - np.asarray(at_once)).max() < 2e-5


def test_few_rows_are_held_at_a_time() -> None:
    most = 0

    def bands():
        for y in range(0, 4000, 50):
            yield y, np.zeros((1, 50, 8), np.float32)

    for _, band in resampled_bands(bands(), (8, 4000), (5, 3000)):
        most = max(most, band.shape[1])
    assert most <= 50


# --- the command --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "size", "name", "passes", "resampled"),
    [
        (["-s", "1.5", "--ensemble"], [36, 27], "a_x1.5.png", [2], True),
        (["-s", "8"], [192, 144], "a_x8.png", [2, 4], False),
        (["--long-edge", "110"], [110, 82], "a_110px.png", [2, 3], True),
        (["-s", "2", "-m", "pfvm-x4"], [48, 36], "a_x2.png", [4], True),
    ],
)
def test_a_rehearsal_and_its_run_agree(
    options: list[str], size: list[int], name: str, passes: list[int], resampled: bool, run: Mambair
) -> None:
    rehearsed = json.loads(run("upscale", "a.png", "--json", "-n", *options).out)
    assert [one["scale"] for one in rehearsed["passes"]] == passes
    assert (rehearsed["output"], rehearsed["output_size"], rehearsed["resampled"]) == (name, size, resampled)
    if "-m" in options:  # not here
        return
    outcome = run("upscale", "a.png", "--json", "--tile", "32", *options)
    record = json.loads(outcome.out)
    same = ("output", "model", "scale", "input_size", "output_size", "resampled")
    assert {key: record[key] for key in same} == {key: rehearsed[key] for key in same}
    assert [(one["model"], len(one["sha256"])) for one in record["passes"]] == [
        (one["model"], 64) for one in rehearsed["passes"]
    ]
    assert "enlarged by tiny-x2 (x2), then" in outcome.err
    with Image.open(name) as image:
        assert list(image.size) == size
        assert image.getexif()[ExifTags.Base.Make] == "Maker"
        blurred = photo().crop((0, 0, 24, 18)).resize(image.size, Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(image).astype(float) - np.asarray(blurred)).mean() < 12
    made = made_by(Path(name))
    assert made is not None
    assert (made.model, made.how) == (record["model"], f"x{size[0] / 24:.3g}")


def test_twice_is_as_exact_as_once(run: Mambair, x2: Path) -> None:
    outcome = run("upscale", "--weights", x2, "-s", "4", "--tile", "16", "-", stdin=Path("a.png").read_bytes())
    assert outcome.status == 0
    with Image.open(io.BytesIO(outcome.out)) as image, Image.open("a.png") as before:
        assert np.array_equal(np.asarray(image), np.asarray(before).repeat(4, 0).repeat(4, 1))


def test_every_kind_of_picture_in_odd_sizes(run: Mambair, x2: Path) -> None:
    deep = np.asarray(photo("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save("deep.png")
    cutout().save("clear.png", icc_profile=wide_gamut())
    photo().save("wide.png", icc_profile=wide_gamut())
    first, *others = frames()
    first.save("moving.webp", save_all=True, append_images=others, duration=[100, 200, 300], lossless=True)
    names = ["deep.png", "clear.png", "wide.png", "moving.webp"]
    for scale in ("1.7", "5.3"):
        outcome = run("upscale", "--weights", x2, "-s", scale, *names, "-o", f"{scale}/", "--json")
        told = [json.loads(line) for line in outcome.out.splitlines()]
        size = [round(61 * float(scale)), round(47 * float(scale))]
        assert [(one["status"], one["output_size"]) for one in told] == [("done", size)] * 4, outcome.err
        with Image.open(f"{scale}/deep.png") as image:
            assert image.mode == "I;16"
            levels = np.asarray(Image.fromarray(np.asarray(image)).resize((61, 47)), np.float64)
            assert np.abs(levels - deep).mean() < 65535 * 0.02
        with Image.open(f"{scale}/clear.png") as image, Image.open(f"{scale}/wide.png") as wide:
            assert (image.mode, image.info["icc_profile"]) == ("RGBA", wide.info["icc_profile"])
            mask = cutout().getchannel("A").resize(tuple(size), Image.Resampling.BICUBIC)
            assert np.array_equal(np.asarray(image.getchannel("A")), np.asarray(mask))
        with Image.open(f"{scale}/moving.webp") as image:
            assert (image.n_frames, image.size) == (3, tuple(size))


def test_a_slip_of_the_finger_is_caught(run: Mambair, x2: Path) -> None:
    for rehearsal in ([], ["-n"]):
        outcome = run("upscale", "--weights", x2, "--long-edge", "384000", "a.png", *rehearsal)
        assert outcome.status == 1
        assert not list(Path().glob("a_*"))
    outcome = run("upscale", "--weights", x2, "-s", "20", "--max-pixels", "100000", "a.png")
    assert "480x360 pixels would come out, more than 100,000 in all" in outcome.err
    assert "--max-pixels 172800" in outcome.err
    outcome = run("upscale", "--weights", x2, "-s", "20", "--max-pixels", "172800", "a.png")
    assert outcome.status == 0
    assert "nearest (x2), then nearest (x2), then resampled to 480x360, more than the models give" in outcome.err


def test_from_python() -> None:
    result = mambair_cli.restore(photo().crop((0, 0, 16, 12)), "upscale", scale=1.5)
    assert (result.image.size, result.record.resampled, result.record.scale) == ((24, 18), True, 2)
    request = Request("upscale", scale=2)
    assert mambair_cli.restore(photo().crop((0, 0, 16, 12)), request, scale=3.0).image.size == (48, 36)
    with pytest.raises(BadImage, match="--max-pixels 1728"):
        mambair_cli.restore(encoded(photo().crop((0, 0, 16, 12)), "PNG"), "upscale", scale=3, max_pixels=1000)
