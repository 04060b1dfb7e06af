"""The only door for a picture: whatever holds it, the same pixels and a record come back."""

from __future__ import annotations

import pickle
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from helpers.album import encoded, photo
from helpers.networks import nearest
from PIL import Image

import mambair_cli as mambair
from mambair_cli.errors import BadImage, UsageError
from mambair_cli.images.formats import FORMATS


@pytest.fixture
def request_for_nearest(tmp_path: Path) -> mambair.Request:
    return mambair.Request("upscale").for_weights(nearest(tmp_path / "net.pth"))


def test_every_kind_of_source_gives_the_same_pixels(request_for_nearest: mambair.Request, tmp_path: Path) -> None:
    photo().save(tmp_path / "photo.png")
    load = mambair.Restorers(weights=tmp_path / "net.pth")
    sources = [
        *(tmp_path / "photo.png", str(tmp_path / "photo.png"), encoded(photo(), "PNG"), photo(), np.asarray(photo()))
    ]
    for source in sources:
        said: list[str] = []
        result = mambair.restore(source, request_for_nearest, load, say=said.append)
        expected = np.asarray(photo()).repeat(2, axis=0).repeat(2, axis=1)
        assert np.array_equal(np.asarray(result.image), expected)
        assert (result.record.status, result.record.scale, result.record.model) == ("done", 2, "net")
        assert result.record.output_size == (122, 94)
        assert said == list(result.notes)
        assert Image.open(BytesIO(result.encoded())).size == (122, 94)


def test_a_result_is_saved_in_the_format_of_its_name(request_for_nearest: mambair.Request, tmp_path: Path) -> None:
    result = mambair.restore(photo(), request_for_nearest, mambair.Restorers(weights=tmp_path / "net.pth"))
    assert result.save(tmp_path / "new" / "a.webp") == ()
    assert Image.open(tmp_path / "new" / "a.webp").format == "WEBP"
    with pytest.raises(UsageError, match="suffix"):
        result.save(tmp_path / "a.doc")


def test_what_the_format_cannot_hold_is_refused_before_any_work(request_for_nearest: mambair.Request) -> None:
    def load(spec: object) -> mambair.Restorer:
        raise AssertionError("no network is needed to see that")

    wide = Image.new("L", (9000, 1))
    with pytest.raises(BadImage, match="too large"):
        mambair.restore(wide, request_for_nearest, load, form=FORMATS["WEBP"])


def test_what_loads_a_network_can_be_sent_to_another_process(
    request_for_nearest: mambair.Request, tmp_path: Path
) -> None:
    load = mambair.Restorers(mambair.Running(tile=32, seed=7), tmp_path / "net.pth")
    first = mambair.restore(photo(), request_for_nearest, load)
    sent_load, sent_request = pickle.loads(pickle.dumps((load, request_for_nearest)))
    again = mambair.restore(photo(), sent_request, sent_load)
    assert (again.record.tile, again.record.seed) == (32, 7)
    assert np.array_equal(np.asarray(again.image), np.asarray(first.image))


@pytest.mark.parametrize("name", ["net.pth", "./net.pth"])
def test_a_path_in_the_place_of_a_name_is_a_file_of_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nearest(tmp_path / "net.pth")
    monkeypatch.chdir(tmp_path)
    assert mambair.load_model(name).spec.name == "net"
    with pytest.raises(UsageError, match="both files of weights"):
        mambair.load_model(name, weights="other.pth")


@pytest.mark.parametrize(
    "options", [{"device": "gpu"}, {"precision": "fp8"}, {"tile": 3}, {"tile": "none"}, {"tile": 32, "overlap": 17}]
)
def test_what_makes_no_sense_is_refused_without_torch(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        mambair.Running(**options)
