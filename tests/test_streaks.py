"""A derainer's result is believed where streaks are all over the picture, as rain is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.commands import mambair
from PIL import Image

from mambair_cli.degradations import rain
from mambair_cli.images.streaks import reach

SIZE = (192, 288)  # rows, columns


def streaks(columns: int) -> np.ndarray:
    """A dark street with rain in so many of its columns, as a tower of lit windows has it."""
    street = np.full((*SIZE, 3), (30, 34, 60), np.uint8)
    street[:, :columns] = rain(street, np.random.default_rng(5))[:, :columns]
    return street


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_reach_is_the_share_of_blocks_that_became_darker(dtype: type[np.unsignedinteger]) -> None:
    most = np.iinfo(dtype).max
    after = np.full((*SIZE, 3), most // 4, dtype)
    before = after.copy()
    assert reach(before, after) == 0
    before[:, 0:144:20] = most // 2
    assert reach(before, after) == pytest.approx(5 / 9)  # columns of blocks
    before[:, :, :] = most  # where rain would not show
    assert reach(before, after) == 1
    assert reach(after[:96, :96], after[:96, :96]) == 1  # too few blocks


@pytest.mark.parametrize(("columns", "believed"), [(32, False), (SIZE[1], True)])
def test_streaks_in_one_place_stay_and_rain_goes(
    columns: int, believed: bool, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    picture = streaks(columns)
    Image.fromarray(picture).save(tmp_path / "a.png")
    told = mambair("derain", tmp_path / "a.png", "-o", tmp_path / "default.png", capture=capfdbinary)
    forced = mambair("derain", tmp_path / "a.png", "--strength", 1, "-o", tmp_path / "all.png", capture=capfdbinary)
    assert forced.status == told.status == 0
    default, everything = (np.asarray(Image.open(tmp_path / f"{n}.png")).astype(int) for n in ("default", "all"))
    assert np.abs(everything - picture).max() > 20
    assert (f"{tmp_path / 'a.png'}: streaks in " in told.err) is not believed
    assert np.array_equal(default, everything if believed else picture)
