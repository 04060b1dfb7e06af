"""JPEG as pictures meet it: any quality and chroma, once or twice, the grid of blocks anywhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mambair_cli.degradations.arrays import Bytes, log_uniform
from mambair_cli.degradations.classic import jpeg

Span = tuple[float, float]
SUBSAMPLING = ("4:4:4", "4:2:2", "4:2:0", "4:2:0")


@dataclass(frozen=True)
class Jpegs:
    """Ranges that `jpegs` draws from; `twice` is a probability."""

    quality: Span = (8, 92)  # drawn evenly in its logarithm: from 80 to 90 little changes, from 10 to 20 much
    twice: float = 0.3  # share that is stored once more, with another grid


DEFAULT = Jpegs()


def jpegs(hq: Bytes, rng: np.random.Generator, ranges: Jpegs = DEFAULT) -> Bytes:
    """A clean picture (h, w) or (h, w, 3), at least 16x16, through one or two JPEGs."""
    picture = hq
    for _ in range(2 if rng.random() < ranges.twice else 1):
        top, left = (int(n) for n in rng.integers(16, size=2))  # 4:2:0 has blocks of 16
        margins = ((top, 0), (left, 0), (0, 0))[: picture.ndim]
        padded = np.pad(picture, margins, mode="symmetric")
        quality = round(log_uniform(rng, ranges.quality))
        picture = jpeg(padded, quality, SUBSAMPLING[rng.integers(4)])[top:, left:]
    return picture
