"""The eight symmetries: all different, all undone, averaged."""

from __future__ import annotations

import pytest
import torch

from mambair_cli.restoring import ensemble

IMAGE = torch.arange(12.0).reshape(1, 3, 4)


def test_the_views_are_the_eight_symmetries_of_the_square() -> None:
    assert torch.equal(ensemble.view(IMAGE, 0), IMAGE)
    assert len({str(ensemble.view(IMAGE, i).tolist()) for i in range(ensemble.SIZE)}) == 8


@pytest.mark.parametrize("index", range(ensemble.SIZE))
def test_undo_is_the_inverse(index: int) -> None:
    assert torch.equal(ensemble.undo(ensemble.view(IMAGE, index), index), IMAGE)


def test_average_of_an_equivariant_map_is_the_map() -> None:
    torch.testing.assert_close(ensemble.average(IMAGE, lambda x, index: 2 * x), 2 * IMAGE)


def test_average_undoes_directions() -> None:
    """A map that only looks left becomes symmetric: the average of a shift along all four directions."""
    spot = torch.zeros(1, 5, 5)
    spot[0, 2, 2] = 1
    out = ensemble.average(spot, lambda x, index: x.roll(1, -1))
    expected = torch.zeros(1, 5, 5)
    expected[0, 1, 2] = expected[0, 3, 2] = expected[0, 2, 1] = expected[0, 2, 3] = 0.25
    torch.testing.assert_close(out, expected)
