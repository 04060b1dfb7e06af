"""Losses and gradients of steps that the device may still be at work on.

To read a number off a GPU makes the host wait until all that was asked of it is done. So the numbers of several steps
are read at once; steps that went wrong are found a little later, and always before anything is saved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mambair_cli.errors import MambairError

EVERY = 16  # steps after which a GPU is asked
NAMES = ("The loss", "The gradient")


@dataclass
class Outcomes:
    """What has not been looked at yet."""

    every: int
    _waiting: list[tuple[int, Tensor]] = field(default_factory=list)  # iteration; its loss and the gradient's norm
    loss: float = math.nan  # the last one that was looked at

    @classmethod
    def on(cls, device: torch.device) -> Outcomes:
        return cls(1 if device.type == "cpu" else EVERY)

    @property
    def due(self) -> bool:
        return len(self._waiting) >= self.every or math.isnan(self.loss)

    def add(self, iteration: int, outcome: Tensor) -> None:
        """`outcome`: the loss and the norm of the gradient, on the device."""
        self._waiting.append((iteration, outcome))

    def settle(self) -> list[float]:
        """The losses since the last time, in one transfer. Raises MambairError if one of the numbers is none."""
        if not self._waiting:
            return []
        numbers = torch.stack([outcome for _, outcome in self._waiting]).tolist()
        for (iteration, _), values in zip(self._waiting, numbers, strict=True):
            for name, value in zip(NAMES, values, strict=True):
                finite(value, name, iteration)
        self._waiting.clear()
        self.loss = numbers[-1][0]
        return [loss for loss, _ in numbers]


def finite(value: float, what: str, iteration: int) -> None:
    if not math.isfinite(value):
        raise MambairError(
            f"{what} became {value} at iteration {iteration}.",
            "Nothing was saved since the last checkpoint. Try a lower training.rate or training.clip.",
        )
