"""What a user asks for, and what that means for a picture: which model, which size. Without torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from mambair_cli.errors import MambairError, Unavailable, UsageError
from mambair_cli.images.decode import Picture
from mambair_cli.models import checkpoints, zoo
from mambair_cli.models.spec import ModelSpec
from mambair_cli.restoring.fit import NO_FIT, Fit, Size
from mambair_cli.task import Task, Value
from mambair_cli.tasks import TASKS

SCALES = (2, 3, 4)
_LARGE_INPUT = 12_000_000  # pixels from which the size of the result is worth a line
_ROUGH_JPEG = 40  # quality below which two steps are better than one: docs/models.md
_NOISY_JPEG = 80  # quality below which artefacts are enlarged along with the picture


@dataclass(frozen=True)
class Plan:
    """What is done with one picture: the model (None: it is only resampled), the size, and what the user should
    know."""

    spec: ModelSpec | None
    size: Size
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """One task and how it is to be done; plain data that can be sent to another process.

    `model`: a name or alias; `spec`: the model itself, where it is none of the zoo's (`for_weights`).
    """

    task: str
    scale: int | None = None
    sigma: Value = None  # 0 to 255, "real" or "auto"
    quality: Value = None  # JPEG, 1 to 100; None: the picture's own
    compressed: bool | None = None  # low-resolution input that went through JPEG; None: as the file's format is
    fit: Fit = NO_FIT
    model: str | None = None
    spec: ModelSpec | None = None

    @property
    def about(self) -> Task:
        """The record of the task."""
        return TASKS[self.task]

    def for_weights(self, file: Path) -> Request:
        """The request with the model that is read off a file of weights.

        Raises UsageError where it does another task or scale, BadCheckpoint where it is none.
        """
        spec = checkpoints.spec_for_file(file)
        if (spec.scale > 1) != self.about.enlarges or self.scale not in (None, spec.scale):
            raise UsageError(
                f"{file} enlarges x{spec.scale}: it cannot {self.task}" + (f" x{self.scale}" if self.scale else ""),
                "Choose the command and the scale that it was trained for.",
            )
        if self.compressed and not spec.compressed:
            raise UsageError(f"{file} is not made for compressed pictures.", "Leave --compressed out.")
        return replace(self, spec=spec, model=None)

    def nominal(self) -> ModelSpec:
        """A model of the request before any picture is seen, so that what cannot work fails at once.

        Raises UsageError or Unavailable.
        """
        if self.spec is not None:
            return self.spec
        if self.fit and self.scale is None:
            return self._enlarging(1.0, bool(self.compressed))
        return self._resolve(self.scale, self._assumed_level(), bool(self.compressed))

    def plan(self, picture: Picture) -> Plan:
        """What to do with a picture. Raises MambairError for a size that no model reaches."""
        factor = max(self.fit.factor(frame.size) for frame in picture.frames) if self.fit else 0.0
        if self.fit and self.scale is None and factor <= 1:
            width, height = size = self.fit.size(picture.size)
            return Plan(
                None,
                size,
                (f"large enough already: only resampled to {width}x{height} (with -s it is restored first)",),
            )
        spec, notes = (self.spec, []) if self.spec else self._choose(picture, factor)
        if factor > spec.scale:
            raise MambairError(
                f"the size asked for is x{factor:.3g}, and {spec.name} enlarges x{spec.scale}",
                "Ask for less, or enlarge in two steps.",
            )
        size = self.result_size(picture.size, spec)
        if self.about.enlarges:
            notes += _hints(spec, picture, size)
        return Plan(spec, size, tuple(notes))

    def result_size(self, size: Size, spec: ModelSpec) -> Size:
        """What a frame of this size becomes."""
        return self.fit.size(size) if self.fit else (size[0] * spec.scale, size[1] * spec.scale)

    def level_note(self, spec: ModelSpec) -> str | None:
        """Where nobody trained for the level that was asked for: which one is taken."""
        level, value, has = self.about.level, self.about.level_of(self), self.about.level_of(spec)
        if level and isinstance(value, int) and isinstance(has, int) and value != has:
            return f"{level.text} {value}: the model for {has} is the nearest, {spec.name}"
        return None

    # --- choosing a model ---

    def _choose(self, picture: Picture, factor: float) -> tuple[ModelSpec, list[str]]:
        """The model for a picture, and what its level was read off."""
        if self._prefers_compressed(picture):
            try:
                scale = self.scale if self.fit else self.nominal().scale  # as the result is named after
                return self._of_size(factor, scale, True), []
            except (UsageError, Unavailable):  # then the one for clean pictures has to do
                pass
        if self.about.level is None:
            return self._of_size(factor, self.scale, bool(self.compressed)), []
        value, words = self._level_for(picture)
        spec = self._resolve(self.scale, value, bool(self.compressed))
        return spec, [f"{words}: {spec.name}"] if words else []

    def _prefers_compressed(self, picture: Picture) -> bool:
        free = self.model is None and self.compressed is None
        return self.about.enlarges and free and not picture.lossless

    def _of_size(self, factor: float, scale: int | None, compressed: bool) -> ModelSpec:
        if self.fit and scale is None:
            return self._enlarging(factor, compressed)
        return self._resolve(scale, None, compressed)

    def _enlarging(self, factor: float, compressed: bool) -> ModelSpec:
        """The model of the smallest scale that is enough, or of the largest that there is."""
        largest: ModelSpec | None = None
        for scale in SCALES:
            try:
                largest = self._resolve(scale, None, compressed)
            except (UsageError, Unavailable) as error:
                reason = error
                continue
            if largest.scale >= factor:
                break
        if largest is None:
            raise reason
        return largest

    def _assumed_level(self) -> Value:
        """The level asked for, or what stands for one that will be read off the picture."""
        level, value = self.about.level, self.about.level_of(self)
        return level.assumed if level and level.measure and value == level.measured_as else value

    def _level_for(self, picture: Picture) -> tuple[Value, str]:
        """The level asked for, or what the picture shows, with words for that."""
        level, value = self.about.level, self.about.level_of(self)
        if level is None or level.measure is None or value != level.measured_as:
            return value, ""
        return level.measure(picture) or (None, "")

    def _resolve(self, scale: int | None, value: Value, compressed: bool) -> ModelSpec:
        values = {self.about.level.name: value} if self.about.level else {}
        return zoo.resolve(
            self.task,
            scale=scale,
            sigma=values.get("sigma"),
            quality=values.get("quality"),
            model=self.model,
            compressed=compressed,
        )


def _hints(spec: ModelSpec, picture: Picture, size: Size) -> list[str]:
    """What the user of an enlargement should know."""
    hints = []
    if picture.size[0] * picture.size[1] > _LARGE_INPUT:
        width, height = size
        hints.append(f"a large picture: {width}x{height} will come out ({width * height / 1e6:.0f} megapixels)")
    if picture.jpeg_quality is None:
        return hints
    quality = f"JPEG of quality {picture.jpeg_quality}"
    if spec.compressed:
        if isinstance(spec.quality, tuple) and picture.jpeg_quality < min(_ROUGH_JPEG, spec.quality[0]):
            hints.append(f"{quality}: comes out better if it goes through `mambair decompress` first")
    elif picture.jpeg_quality < _NOISY_JPEG and not any(alias.startswith("real") for alias in spec.aliases):
        hints.append(f"{quality}: {spec.name} enlarges its artefacts too; try -m photo or -m real")
    return hints
