"""A size instead of a factor, and pictures brought to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from mambair_cli.errors import UsageError
from mambair_cli.images import color
from mambair_cli.images.decode import Frame

Size = tuple[int, int]  # (width, height)
Band = tuple[int, color.Array]  # y of its first row, (C, rows, width)


@dataclass(frozen=True)
class Fit:
    """The size of a result, proportions kept: in a box, by its long edge, or in megapixels."""

    width: int | None = None
    height: int | None = None
    long_edge: int | None = None
    megapixels: float | None = None

    def __post_init__(self) -> None:
        asked = [self.width or self.height, self.long_edge, self.megapixels]
        if sum(size is not None for size in asked) > 1:
            raise UsageError("more than one size is asked for", "Use --width/--height, --long-edge or --megapixels.")

    def __bool__(self) -> bool:
        return any(size is not None for size in (self.width, self.height, self.long_edge, self.megapixels))

    @property
    def tag(self) -> str:
        """For file names."""
        if self.megapixels is not None:
            return f"{self.megapixels:g}mp"
        if self.long_edge is not None:
            return f"{self.long_edge}px"
        return "x".join(f"{side}{letter}" for side, letter in ((self.width, "w"), (self.height, "h")) if side)

    def factor(self, size: Size) -> float:
        """How much a picture of this size has to grow."""
        width, height = size
        if self.megapixels is not None:
            return float((self.megapixels * 1e6 / (width * height)) ** 0.5)
        if self.long_edge is not None:
            return self.long_edge / max(size)
        return min(asked / side for asked, side in ((self.width, width), (self.height, height)) if asked)

    def size(self, size: Size) -> Size:
        """The size asked for, of a picture of this size, in whole pixels."""
        factor = self.factor(size)
        return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


NO_FIT = Fit()


def resize_frame(frame: Frame, size: Size) -> Frame:
    """A frame at a size, bicubic, antialiased where it shrinks; without a network."""
    alpha = None if frame.alpha is None else color.resample(frame.alpha, size)
    return replace(frame, pixels=color.resample(frame.pixels, size), alpha=alpha)


def resampled_bands(bands: Iterable[Band], size: Size, target: Size) -> Iterator[Band]:
    """Bands (y, (C, h, width)) of a float32 picture of `size`, from top to bottom, as those of one of `target` size.

    As `resize_frame` does it, with no more rows at a time than came in and than the filter reaches.
    """
    if size == target:
        yield from bands
        return
    (width, height), rows = size, target[1]
    reach = 2 * max(1.0, height / rows) + 1  # of the filter, and one row for rounding
    held, top, done = np.empty((0, 0, width), np.float32), 0, 0
    for _, band in bands:
        held = np.concatenate((held, band), axis=1) if held.size else band
        bottom = top + held.shape[1]
        ready = rows if bottom == height else int((bottom - reach) * rows / height)
        if ready <= done:
            continue
        box = (0, done * height / rows - top, width, ready * height / rows - top)
        shape = target[0], ready - done
        yield done, np.stack([_resized(plane, shape, box) for plane in held])
        done = ready
        unseen = max(top, int(done * height / rows - reach))
        held, top = held[:, unseen - top :], unseen


def _resized(plane: color.Array, size: Size, box: tuple[float, float, float, float]) -> color.Array:
    """What a box of a plane holds, at a size; the filter sees what is around it as well."""
    image = Image.fromarray(np.ascontiguousarray(plane, np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box))


def visible_colours(frame: Frame) -> color.Array:
    """(H, W, C): where nothing shows, the colours nearby."""
    return frame.pixels if frame.alpha is None else color.bleed(frame.pixels, frame.alpha)
