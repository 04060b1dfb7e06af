"""How far streaks reach in a picture: rain falls in all of it, rows of lit windows stand somewhere."""

from __future__ import annotations

import numpy as np

from mambair_cli.images.color import Array
from mambair_cli.images.noise import luma

_BLOCKS = 16  # along the longer side,
_SIDE = 32  # but of as many pixels at least
_FEWEST = 24  # blocks to judge by
_DARKER = 4 / 255
_STREAKED = 0.01  # share of the pixels of a block
_BRIGHT = 0.9  # median of a block in which bright streaks would not be seen


def reach(before: Array, after: Array) -> float:
    """Share of the blocks of a picture in which streaks were removed: more than one pixel in a hundred darkened.

    `before` and `after`: (H, W, C) of any depth. Blocks near white do not count. 1, as of rain, where there are too
    few blocks to judge by: pictures below about 200x150, and white ones.
    """
    side = max(_SIDE, -(-max(before.shape[:2]) // _BLOCKS))
    streaked: list[bool] = []
    for top in range(0, before.shape[0] - side + 1, side):  # row by row: in floats a large picture is large
        row = luma(before[top : top + side])
        darker = row - luma(after[top : top + side]) > _DARKER
        for left in range(0, before.shape[1] - side + 1, side):
            columns = slice(left, left + side)
            if np.median(row[:, columns]) < _BRIGHT:
                streaked.append(bool(darker[:, columns].mean() > _STREAKED))
    return float(np.mean(streaked)) if len(streaked) >= _FEWEST else 1.0
