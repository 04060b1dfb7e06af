"""What a benchmark undoes: a degradation of a task, at a scale and a level."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambair_cli.task import Degradation, Setting, Task
from mambair_cli.tasks import TASKS


@dataclass(frozen=True)
class Damage:
    """A task's degradation; `level` is a number or the word of the degradation (the noise of cameras: "real")."""

    task: str
    degradation: Degradation
    scale: int = 1
    level: float | str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels by name: functions do not."""
        return _known, (self.task, self.about.degradations.index(self.degradation), self.scale, self.level)

    def __str__(self) -> str:
        return self.degradation.text.format(scale=self.scale, level=self._level)

    @property
    def about(self) -> Task:
        """The record of the task."""
        return TASKS[self.task]

    @property
    def can_be_made(self) -> bool:
        """On the fly; what the field only reads, rain and the noise of cameras, is read."""
        return self.degradation.make is not None and self.degradation.standard

    @property
    def role(self) -> str:
        """The folder of such pictures in the sets that can be fetched."""
        return self.degradation.role.format(s=self.scale)

    @property
    def patterns(self) -> tuple[str, ...]:
        """Where such pictures may lie, relative to the folder of a set."""
        return tuple(pattern.format(s=self.scale, q=self._level) for pattern in self.degradation.layouts)

    @property
    def _level(self) -> str:
        """In text."""
        return f"{self.level:g}" if isinstance(self.level, int | float) else str(self.level)

    def apply(self, truth: NDArray[np.uint8], name: str = "") -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """The degraded picture of a clean one, `uint8` or float32 on [0, 1], and what is to come of it.

        What is random is drawn as the field does it, else from the picture's name.
        """
        if self.degradation.make is None:
            raise ValueError(f"{self} cannot be made")
        level = None if isinstance(self.level, str) else self.level
        rng = np.random.default_rng(zlib.crc32(name.encode())) if self.degradation.seeded else None
        return self.degradation.make(truth, Setting(self.scale, level), rng)

    def describe(self, read: bool) -> str:
        """For reports: where the degraded pictures came from."""
        if read or not self.can_be_made:
            return f"{self}: read from files"
        return f"{self}: made on the fly ({self.degradation.how})"


def _known(task: str, index: int, scale: int, level: float | str | None) -> Damage:
    return Damage(task, TASKS[task].degradations[index], scale, level)
