"""Benchmark sets: found in every usual layout, fetched from a server, degraded as the field does it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import server as servers
from helpers.album import photo
from helpers.sets import damage, parts, put
from PIL import Image

from mambair_cli import metrics
from mambair_cli.bench import datasets
from mambair_cli.bench.damage import Damage
from mambair_cli.bench.datasets import Selection, known, load_dataset, scan
from mambair_cli.bench.run import prepare
from mambair_cli.errors import BadImage, Unavailable, UsageError
from mambair_cli.task import Protocol
from mambair_cli.tasks import TASKS

X2 = damage("upscale", 2)
RAIN = damage("derain")
NOISE = damage("denoise", sigma=25.0)
SR, RGB, GREY = Protocol("y", 2), Protocol("rgb", 0), Protocol("gray", 0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAMBAIR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return parts(tmp_path / "pictures")


# --- sets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clean", "degraded", "undone"),
    [
        ("HR/baby.png", "LRx2/babyx2.png", X2),
        ("HR/baby.png", "LR_bicubic/X2/babyx2.png", X2),
        ("HR/baby.png", "LR_bicubic/X2/baby.png", X2),
        ("HR/img2x3.png", "LR_bicubic/X2/img2x3x2.png", X2),
        ("GTmod12/baby.png", "LRbicx2/baby.png", X2),
        ("image_SRF_2/img_001_SRF_2_HR.png", "image_SRF_2/img_001_SRF_2_LR.png", X2),
        ("norain/001.png", "rain/001.png", RAIN),
        ("norain-001.png", "rain/X2/norain-001x2.png", RAIN),
        ("norain-001.png", "rain-001.png", RAIN),
        ("target/1.png", "input/1.png", RAIN),
        ("HR/1.png", "LQ/1.png", RAIN),
        ("clean/1.bmp", "noisy/1.png", damage("denoise", sigma="real")),
        ("HR/a.png", "LQ_q10/a.jpg", damage("decompress", quality=10)),
        ("sharp/1.png", "blur/1.png", damage("deblur")),  # GoPro, as many keep it
        ("target/1.png", "input/1.png", damage("deblur")),  # HIDE
        ("scene001/gt/gt_7.png", "scene001/blur/blur_7.png", damage("deblur")),  # RealBlur
        ("clear/0001.png", "hazy/0001.png", damage("dehaze")),
    ],
)
def test_usual_layouts(tmp_path: Path, clean: str, degraded: str, undone: Damage) -> None:
    put(tmp_path / clean)
    put(tmp_path / degraded)
    (item,) = scan(tmp_path, undone)
    assert (item.truth, item.degraded, item.problem) == (tmp_path / clean, tmp_path / degraded, "")


def test_scenes_with_the_same_names_pair_within_themselves(tmp_path: Path) -> None:
    for scene in ("GOPR0384_11_00", "GOPR0385_11_01"):
        for number in (1, 2):
            for kind in ("sharp", "blur", "blur_gamma"):
                put(tmp_path / scene / kind / f"00000{number}.png")
    (tmp_path / "GOPR0385_11_01" / "blur" / "000002.png").unlink()
    items = {item.name: item for item in scan(tmp_path, damage("deblur"))}
    assert sorted(items) == [
        *("GOPR0384_11_00_000001.png", "GOPR0384_11_00_000002.png"),
        *("GOPR0385_11_01_000001.png", "GOPR0385_11_01_000002.png"),
    ]
    for name, item in items.items():
        assert item.truth.parents[1].name in name
        if name == "GOPR0385_11_01_000002.png":
            assert item.degraded is None
            assert "no degraded picture" in item.problem
        else:
            assert item.degraded == item.truth.parents[1] / "blur" / item.truth.name


@pytest.mark.parametrize("way", ["{}x2.png", "{}.png", "{}_LR.png", "{}-x2_LR.png"])
def test_a_name_that_looks_degraded_gets_no_other_pictures_half(tmp_path: Path, way: str) -> None:
    """All four pictures have the same size, so that nothing but their names tells them apart."""
    names = ["photo", "photo-x2", "photox2", "sky"]
    for name in names:
        put(tmp_path / "HR" / f"{name}.png")
        put(tmp_path / "LRx2" / way.format(name))
    assert [item.degraded.name for item in scan(tmp_path, X2) if item.degraded] == [way.format(n) for n in names]
    for missing in ("photo", "photo-x2", "photox2"):
        (tmp_path / "LRx2" / way.format(missing)).unlink()
        items = {item.name: item for item in scan(tmp_path, X2)}
        assert items[missing].degraded is None
        assert items["sky"].degraded.name == way.format("sky")


def test_order_is_natural_and_names_are_unique(tmp_path: Path) -> None:
    for name in ("10.png", "9.png", "9.bmp", "a.png"):
        put(tmp_path / name)
    assert [item.name for item in scan(tmp_path, NOISE)] == ["9.bmp", "9.png", "10", "a"]


def test_what_is_not_found_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="No pictures"):
        scan(tmp_path, X2)
    put(tmp_path / "HR" / "a.png")
    assert scan(tmp_path, X2)[0].degraded is None  # made on the fly
    with pytest.raises(Unavailable, match="only read") as refused:
        scan(tmp_path, RAIN)
    assert all(place in refused.value.hint for place in ("rain/", "input/", "LQ/"))
    with pytest.raises(UsageError) as unknown:
        load_dataset("Set55", X2)
    assert "Set5" in unknown.value.hint
    with pytest.raises(Unavailable, match="redistributed") as restricted:
        load_dataset("manga109", X2)
    assert "manga109.org" in restricted.value.hint


def test_sets_are_found_by_any_spelling(tmp_path: Path) -> None:
    assert [known(name) for name in ("b100", "BSDS100", "set14", "LIVE1", "nothing")] == [
        "BSD100",
        "BSD100",
        "Set14",
        "LIVE1",
        None,
    ]
    put(tmp_path / "urban-100" / "HR" / "1.png")
    found = load_dataset("Urban100", X2, root=tmp_path)
    assert (found.name, len(found.items), found.size) == ("Urban100", 1, 100)


def test_selection_is_reproducible(pictures: Path) -> None:
    def names(select: Selection) -> list[str]:
        return [item.name for item in load_dataset(str(pictures), X2, select=select).items]

    assert names(Selection(2)) == ["part0", "part1"]
    assert names(Selection(seed=1)) == names(Selection(seed=1))
    assert len({tuple(names(Selection(seed=seed))) for seed in range(6)}) > 1
    assert sorted(names(Selection(seed=1))) == names(Selection())


# --- downloads -----------------------------------------------------------------------------------------------


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch, pictures: Path):
    """A set of three pictures on a local server, one of them in a folder with a space."""
    with servers.Server() as server:
        entries = []
        for file in sorted(pictures.iterdir()):
            path, body = f"HR (all)/{file.name}", file.read_bytes()
            server.put(f"/HR%20%28all%29/{file.name}", body)
            entries.append(["HR", path, len(body), hashlib.sha256(body).hexdigest()])
        entry = {"task": "upscale", "base": server.url("/"), "files": entries}
        monkeypatch.setattr(datasets, "registry", lambda: {"Toy": entry})
        monkeypatch.setattr("mambair_cli.models.download.BACKOFF", 0.01)
        server.entry = entry
        yield server


def test_a_set_is_fetched_once_and_only_what_is_missing(remote: Any, cache: Path) -> None:
    two = load_dataset("toy", X2, select=Selection(2))
    assert (len(two.items), two.size, len(remote.requests)) == (2, 3, 2)
    assert all(
        metrics.psnr(datasets.read_8bit(i.truth, False), datasets.read_8bit(i.truth, False)) > 99 for i in two.items
    )
    load_dataset("toy", X2)
    assert len(remote.requests) == 3
    assert len(load_dataset("toy", X2, offline=True).items) == 3
    assert len(list((cache / "datasets" / "Toy" / "HR").glob("*.png"))) == 3


def test_an_interrupted_download_goes_on(remote: Any) -> None:
    path = "/HR%20%28all%29/part0.png"
    remote.put(path, remote.files[path], servers.cut(100))
    load_dataset("toy", X2)
    ranges = [headers.get("Range") for asked, headers in remote.requests if asked == path]
    assert ranges == [None, "bytes=100-"]


def test_a_wrong_or_missing_file_is_refused(remote: Any, cache: Path) -> None:
    good = remote.entry["files"][1][3]
    remote.entry["files"][1][3] = "0" * 64
    with pytest.raises(Unavailable, match=r"part1\.png"):
        load_dataset("toy", X2, select=Selection(2))
    assert not (cache / "datasets" / "Toy" / "HR" / "part1.png").exists()
    remote.entry["files"][1][3] = good
    del remote.files["/HR%20%28all%29/part2.png"]
    with pytest.raises(Unavailable, match=r"part2\.png"):
        load_dataset("toy", X2)
    with pytest.raises(Unavailable, match=r"part2\.png"):
        load_dataset("toy", X2, offline=True)


def test_a_file_of_the_cache_that_was_changed_is_refused(remote: Any, cache: Path) -> None:
    load_dataset("toy", X2)
    changed = cache / "datasets" / "Toy" / "HR" / "part1.png"
    photo().crop((1, 1, 42, 41)).save(changed)
    for offline in (False, True):
        with pytest.raises(Unavailable, match=r"part1\.png is not the file of Toy") as error:
            load_dataset("toy", X2, offline=offline)
        assert "Remove it" in error.value.hint
    assert len(load_dataset("toy", X2, select=Selection(1)).items) == 1, "only what is measured matters"
    changed.unlink()
    assert load_dataset("toy", X2).foreign == ()


def test_foreign_files_below_the_data_root_are_told(
    remote: Any, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = tmp_path / "root" / "toy"
    own.mkdir(parents=True)
    for number, file in enumerate(sorted(pictures.iterdir())):
        (own / f"img_{number}.png").write_bytes(file.read_bytes())
    assert load_dataset("toy", X2, root=own.parent).foreign == (), "by content, whatever they are called"
    assert not caplog.records
    put(own / "img_1.png", (40, 40))
    found = load_dataset("toy", X2, root=own.parent)
    assert found.foreign == (own / "img_1.png",)
    assert "1 files differ, of which img_1.png is the first" in caplog.text


def test_pinned_sets_are_well_described() -> None:
    for name, entry in datasets.registry().items():
        assert entry["task"] in TASKS
        assert ("files" in entry) != ("source" in entry)
        for role, path, size, sha256 in entry.get("files", ()):
            assert role in ("HR", "LQ", "LRx2", "LRx3", "LRx4"), (name, path)
            assert (size > 0, len(sha256)) == (True, 64)
    counts = {
        name: sum(file[0] == "HR" for file in entry.get("files", ())) for name, entry in datasets.registry().items()
    }
    assert (counts["Set5"], counts["Set14"], counts["BSD100"], counts["Urban100"]) == (5, 14, 100, 100)
    assert (counts["CBSD68"], counts["Kodak24"], counts["McMaster"]) == (68, 24, 18)
    assert (counts["Classic5"], counts["LIVE1"], counts["Rain100L"]) == (5, 29, 100)


# --- published starting points -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "undone", "protocol", "expected"),
    [
        ("Set5", damage("upscale", 2), Protocol("y", 2), 33.68),
        ("Set5", damage("upscale", 3), Protocol("y", 3), 30.40),
        ("Set5", damage("upscale", 4), Protocol("y", 4), 28.43),
        ("Set14", damage("upscale", 2), Protocol("y", 2), 30.33),
        ("Set14", damage("upscale", 3), Protocol("y", 3), 27.63),
        ("Set14", damage("upscale", 4), Protocol("y", 4), 26.09),
        ("Classic5", damage("decompress", quality=10), GREY, 27.82),
        ("LIVE1", damage("decompress", quality=10), GREY, 27.77),
        ("Rain100L", RAIN, Protocol("y", 0, rounding="luma"), 26.49),
        ("CBSD68", NOISE, RGB, 20.17),
    ],
)
def test_doing_nothing_scores_as_published(
    shared: Path, name: str, undone: Damage, protocol: Protocol, expected: float
) -> None:
    values = []
    for item in load_dataset(name, undone, root=shared / "data").items:
        pair = prepare(item, undone, protocol)
        values.append(
            metrics.psnr(
                pair.before,
                pair.truth,
                channel=protocol.channel,
                crop=protocol.crop,
                round_luma=protocol.rounding == "luma",
            )
        )
    assert np.mean(values) == pytest.approx(expected, abs=0.02)


def test_published_code_reads_grey_pictures_as_colour(tmp_path: Path) -> None:
    photo("L").save(tmp_path / "grey.png")
    (item,) = scan(tmp_path, X2)
    assert prepare(item, X2, SR).truth.shape[2] == 3
    assert prepare(item, damage("decompress", quality=10), GREY).truth.ndim == 2
    Image.fromarray(np.zeros((20, 20), np.uint16)).save(tmp_path / "grey.png")
    with pytest.raises(BadImage, match="8 bits"):
        prepare(item, X2, SR)
