"""NIQE against other people's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.album import photo
from PIL import Image

from mambair_cli.bench.niqe import niqe


def wall(mode: str = "RGB") -> np.ndarray:
    """The photo and its mirror images, 411x297."""
    picture = np.array(photo(mode))
    return np.pad(picture, ((100, 150), (120, 230), (0, 0))[: picture.ndim], mode="symmetric")


@pytest.mark.parametrize(
    ("picture", "crop", "expected"),
    [(wall(), 4, 8.849649), (wall()[..., 1], 0, 8.097980), (wall()[..., 1], 4, 7.634507)],
)
def test_agrees_with_basicsr(picture: np.ndarray, crop: int, expected: float) -> None:
    """What `calculate_niqe` of BasicSR 1.4.2 returns for the same pixels."""
    assert niqe(picture, crop=crop) == pytest.approx(expected, abs=1e-3)


def test_agrees_with_matlab(shared: Path) -> None:
    """BasicSR's documentation states what MATLAB R2021a makes of baboon: 5.72957338."""
    with Image.open(shared / "data" / "Set14" / "HR" / "baboon.png") as baboon:
        assert niqe(np.array(baboon)) == pytest.approx(5.72957338, abs=1e-5)


def test_only_what_is_inside_the_border_counts() -> None:
    spoiled = wall()
    spoiled[:5] = spoiled[:, -5:] = 255
    assert niqe(spoiled, crop=5) == niqe(wall(), crop=5)
    assert niqe(spoiled) != niqe(wall())


def test_without_two_blocks_there_is_none() -> None:
    assert niqe(wall()[:96, :192]) is not None
    assert niqe(wall()[:96, :191]) is None
    assert niqe(wall()[:95, :400]) is None
    assert niqe(wall()[:98, :400], crop=2) is None
    assert niqe(wall()[:10, :10], crop=8) is None
    assert niqe(np.full((300, 300), 128, np.uint8)) is None
