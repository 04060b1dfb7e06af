"""A wished size instead of a factor."""

from __future__ import annotations

from dataclasses import dataclass

from mambair_cli.errors import UsageError

Size = tuple[int, int]  # (width, height)


@dataclass(frozen=True)
class Fit:
    """The size a result shall have, proportions kept: in a box, by its long edge, or in megapixels."""

    width: int | None = None
    height: int | None = None
    long_edge: int | None = None
    megapixels: float | None = None

    def __post_init__(self) -> None:
        wishes = [self.width or self.height, self.long_edge, self.megapixels]
        if sum(wish is not None for wish in wishes) > 1:
            raise UsageError("more than one size is asked for", "Use --width/--height, --long-edge or --megapixels.")

    def __bool__(self) -> bool:
        return any(wish is not None for wish in (self.width, self.height, self.long_edge, self.megapixels))

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
        return min(wish / side for wish, side in ((self.width, width), (self.height, height)) if wish)

    def size(self, size: Size) -> Size:
        """The wished size of a picture of this size, in whole pixels."""
        factor = self.factor(size)
        return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


NO_FIT = Fit()
