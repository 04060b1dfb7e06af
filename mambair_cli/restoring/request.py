"""What a user asks for, and what that means for a picture: which model, which size. Without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from mambair_cli.errors import Unavailable, UsageError
from mambair_cli.images.decode import Picture
from mambair_cli.models import checkpoints, zoo
from mambair_cli.models.spec import ModelSpec
from mambair_cli.restoring.fit import NO_FIT, Fit, Size
from mambair_cli.task import Task, Value
from mambair_cli.tasks import TASKS

AND = " + "  # between the names of models that ran one after the other
_NEARLY = 1.1  # times the largest scale: resampling does the rest as well as a second network
_LARGE_INPUT = 12_000_000  # pixels from which the size of the result is worth a line
_ROUGH_JPEG = 40  # quality below which two steps are better than one: docs/models.md
_NOISY_JPEG = 80  # quality below which artefacts are enlarged along with the picture


@dataclass(frozen=True)
class Plan:
    """What is done with one picture: the models, one after the other (none: it is only resampled), the size, and what
    the user should know."""

    models: tuple[ModelSpec, ...]
    size: Size
    notes: tuple[str, ...] = ()
    resampled: bool = False  # in the end, as no models give exactly the size

    @property
    def model(self) -> str | None:
        """The names of the models."""
        return AND.join(spec.name for spec in self.models) or None

    @property
    def scale(self) -> int | None:
        """How much the models enlarge, all together."""
        return math.prod(spec.scale for spec in self.models) if self.models else None


@dataclass(frozen=True)
class Request:
    """One task and how it is to be done; plain data that can be sent to another process.

    `model`: a name or alias; `spec`: the model itself, where it is none of the zoo's (`for_weights`).
    """

    task: str
    scale: float | None = None  # above 1, of any size
    sigma: Value = None  # 0 to 255, "real" or "auto"
    quality: Value = None  # JPEG, 1 to 100; None: the picture's own
    compressed: bool | None = None  # low-resolution input that went through JPEG; None: as the file's format is
    fit: Fit = NO_FIT
    model: str | None = None
    spec: ModelSpec | None = None

    def __post_init__(self) -> None:
        if self.scale is None:
            return
        if not self.about.enlarges:
            raise UsageError(f"{self.task} has no scale: it keeps the size", "Leave it out.")
        if not 1 < self.scale < math.inf:
            raise UsageError(
                f"a scale of {self.scale:g} enlarges nothing",
                "Give a number above 1; --width, --height and --long-edge also make pictures smaller.",
            )
        if self.scale == round(self.scale):
            object.__setattr__(self, "scale", round(self.scale))

    @property
    def about(self) -> Task:
        """The record of the task."""
        return TASKS[self.task]

    @property
    def tag(self) -> str:
        """What results are named after. Raises as `nominal`."""
        if self.fit:
            return self.fit.tag
        return self.about.tag.format(scale=f"{self.scale or self.nominal().scale:g}")

    def for_weights(self, file: Path) -> Request:
        """The request with the model that is read off a file of weights.

        Raises UsageError where it does another task, BadCheckpoint where it is none.
        """
        spec = checkpoints.spec_for_file(file)
        if (spec.scale > 1) != self.about.enlarges:
            raise UsageError(
                f"{file} enlarges x{spec.scale}: it cannot {self.task}",
                "Choose the command that it was trained for.",
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
        if self.about.enlarges and (self.fit or self.scale):
            return self._chain(self.scale or 1.0, bool(self.compressed))[0]
        return self._resolve(None, self._assumed_level(), bool(self.compressed))

    def plan(self, picture: Picture) -> Plan:
        """What to do with a picture. Raises UsageError or Unavailable where no model can do it."""
        growth = max(self.fit.factor(frame.size) for frame in picture.frames) if self.fit else 0.0
        if self.fit and self.scale is None and growth <= 1:
            width, height = size = self.fit.size(picture.size)
            return Plan(
                (),
                size,
                (f"large enough already: only resampled to {width}x{height} (with -s it is restored first)",),
                resampled=True,
            )
        if not self.about.enlarges:
            spec, notes = self._at_level(picture)
            return Plan((spec,), self.result_size(picture.size, (spec,)), tuple(notes))
        factor = max(growth, self.scale or 0.0) or self.nominal().scale
        models = self._enlarging(picture, factor)
        size, given = self.result_size(picture.size, models), math.prod(spec.scale for spec in models)
        resampled = size != (picture.size[0] * given, picture.size[1] * given)
        notes = _way(models, size, resampled, factor > given) + _hints(models[0], picture, size)
        return Plan(models, size, tuple(notes), resampled)

    def result_size(self, size: Size, models: Sequence[ModelSpec]) -> Size:
        """What a frame of this size becomes."""
        if self.fit:
            return self.fit.size(size)
        factor = self.scale or math.prod(spec.scale for spec in models)
        return round(size[0] * factor), round(size[1] * factor)

    def level_note(self, spec: ModelSpec) -> str | None:
        """Where nobody trained for the level that was asked for: which one is taken."""
        level, value, has = self.about.level, self.about.level_of(self), self.about.level_of(spec)
        if level and isinstance(value, int) and isinstance(has, int) and value != has:
            return f"{level.text} {value}: the model for {has} is the nearest, {spec.name}"
        return None

    # --- choosing a model ---

    def _at_level(self, picture: Picture) -> tuple[ModelSpec, list[str]]:
        """The model for the level of a picture, and what that was read off."""
        if self.spec:
            return self.spec, []
        value, words = self._level_for(picture)
        spec = self._resolve(None, value, bool(self.compressed))
        return spec, [f"{words}: {spec.name}"] if words else []

    def _enlarging(self, picture: Picture, factor: float) -> tuple[ModelSpec, ...]:
        """The models that enlarge a picture so much; where nothing else is said, after what its file is."""
        if self.model is None and self.compressed is None and not picture.lossless:
            with suppress(UsageError, Unavailable):  # then the one for clean pictures has to do
                return self._chain(factor, True)
        return self._chain(factor, bool(self.compressed))

    def _chain(self, factor: float, compressed: bool) -> tuple[ModelSpec, ...]:
        """The models that reach a factor; what one of them has made is a clean picture for the next."""
        first = self._by_scale(compressed)
        return chain(factor, first, self._by_scale(False) if compressed else first)

    def _by_scale(self, compressed: bool) -> dict[int, ModelSpec]:
        """The models that may be taken, by their scale. Raises UsageError or Unavailable where there is none."""
        if self.spec:
            return {self.spec.scale: self.spec}
        models = {}
        for scale in sorted({spec.scale for spec in zoo.zoo().values() if spec.task == self.task}):
            try:
                models[scale] = self._resolve(scale, None, compressed)
            except (UsageError, Unavailable) as error:
                reason = error
        if not models:
            raise reason
        return models

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


def chain(factor: float, first: Mapping[int, ModelSpec], second: Mapping[int, ModelSpec]) -> tuple[ModelSpec, ...]:
    """One model, or two one after the other, that enlarge by a factor or little more; the largest where none do.

    `first` and `second`: what there is for each of the two passes, by scale. The smaller scale of two goes first:
    then the other has less to do.
    """
    largest = max(first)
    if factor <= largest * _NEARLY:
        return (first[min((scale for scale in first if scale >= factor), default=largest)],)
    pairs = sorted((one * other, one, other) for one in first for other in second)
    _, one, other = next((pair for pair in pairs if pair[0] >= factor), pairs[-1])
    return first[one], second[other]


def _way(models: Sequence[ModelSpec], size: Size, resampled: bool, further: bool) -> list[str]:
    """How a size is reached that no model gives by itself; `further`: nor two of them."""
    names = ", then ".join(f"{spec.name} (x{spec.scale})" for spec in models)
    if resampled:
        more = ", more than the models give" if further else ""
        return [f"enlarged by {names}, then resampled to {size[0]}x{size[1]}{more}"]
    return [f"enlarged by {names}"] if len(models) > 1 else []


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
