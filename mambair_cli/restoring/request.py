"""What a user asks for, and what that means for a picture: which model, which size. Without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mambair_cli.errors import Unavailable, UsageError
from mambair_cli.images.decode import Picture
from mambair_cli.models import checkpoints, zoo
from mambair_cli.models.spec import ModelSpec
from mambair_cli.restoring.fit import NO_FIT, Fit, Size
from mambair_cli.seen import ROUGH_JPEG
from mambair_cli.task import Task, Value
from mambair_cli.tasks import TASKS

AND = " + "  # between the names of models that ran one after the other
_NEARLY = 1.1  # times the largest scale: resampling does the rest as well as a second network
_LARGE_INPUT = 12_000_000  # pixels from which the size of the result is worth a line
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
    strength: float | None = None  # share of the result, the rest is the picture as it was; None: the task's own
    sharpness: float | None = None  # of photographs that are enlarged, 0 to 1; None: the model's own
    fit: Fit = NO_FIT
    model: str | None = None
    spec: ModelSpec | None = None

    def __post_init__(self) -> None:
        for name in ("strength", "sharpness"):
            self._check_share(name, getattr(self, name))
        if self.sharpness is not None and self.compressed is False:
            raise UsageError("--sharpness is for photographs, --clean for what is none", "Leave one of them out.")
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

    def _check_share(self, name: str, value: float | None) -> None:
        has = self.about.share.name if self.about.share else None
        if value is not None and name != has:
            raise UsageError(f"{self.task} has no {name}", f"It has a {has}." if has else "Leave it out.")
        if value is not None and not 0 <= value <= 1:
            raise UsageError(f"--{name} {value:g} makes no sense", "A number from 0 to 1.")

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
        if self.sharpness is not None:
            raise UsageError(f"{file} is one network: there is no sharpness to choose.", "Leave --sharpness out.")
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
            return self._chain(self.scale or 1.0, self._for_photographs)[0]
        return self._resolve(None, self._assumed_level(), self._for_photographs)

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
        before, notes = self._before(picture)
        models = self._enlarging(picture, factor, bool(before))
        size, given = self.result_size(picture.size, models), math.prod(spec.scale for spec in models)
        resampled = size != (picture.size[0] * given, picture.size[1] * given)
        notes += _way(models, size, resampled, factor > given)
        notes += _hints(models[0], picture, size) if not before else []
        return Plan((*before, *models), size, tuple(notes), resampled)

    def result_size(self, size: Size, models: Sequence[ModelSpec]) -> Size:
        """What a frame of this size becomes."""
        if self.fit:
            return self.fit.size(size)
        factor = self.scale or math.prod(spec.scale for spec in models)
        return round(size[0] * factor), round(size[1] * factor)

    def level_note(self, spec: ModelSpec) -> str | None:
        """Where nobody trained for the level that was asked for: which one is taken."""
        level, value, has = self.about.level, self.about.level_of(self), self.about.level_of(spec)
        if level is None or not isinstance(value, int):
            return None
        if isinstance(has, tuple) and has[0] <= value <= has[1]:
            return f"{spec.name} takes any {level.text} to {has[1]} as it is: --{level.name} only chose the model"
        if isinstance(has, tuple):
            return f"{level.text} {value}: {spec.name} was trained from {has[0]} to {has[1]} only"
        if isinstance(has, int) and value != has:
            return f"{level.text} {value}: the model for {has} is the nearest, {spec.name}"
        return None

    # --- choosing a model ---

    def _at_level(self, picture: Picture) -> tuple[ModelSpec, list[str]]:
        """The model for the level of a picture, and what that was read off."""
        if self.spec:
            return self.spec, []
        values, words = self._levels_for(picture)
        for value in values[:-1]:
            with suppress(UsageError, Unavailable):  # then there is none for what suits best
                spec = self._resolve(None, value, False)
                return spec, [f"{words}: {spec.name}"]
        spec = self._resolve(None, values[-1], False)
        return spec, [f"{words}: {spec.name}"] if words else []

    @property
    def _is_free(self) -> bool:
        """Whether nothing is said of the model: then the picture decides."""
        return self.model is None and self.spec is None and self.compressed is None

    @property
    def _for_photographs(self) -> bool:
        return bool(self.compressed) or (self.sharpness is not None and self.model is None)

    def _before(self, picture: Picture) -> tuple[tuple[ModelSpec, ...], list[str]]:
        """The model that a picture goes through before it is enlarged, if any, and what it is for."""
        for task in TASKS.values() if self._is_free else ():
            if task.level and task.level.before and (seen := task.level.before(picture)):
                with suppress(UsageError, Unavailable):  # then it has to do without
                    level: dict[str, Any] = {task.level.name: seen[0]}
                    spec = zoo.resolve(task.name, **level)
                    return (spec,), [f"{seen[1]}: first {spec.name} (not with --clean or --compressed)"]
        return (), []

    def _enlarging(self, picture: Picture, factor: float, disturbed: bool) -> tuple[ModelSpec, ...]:
        """The models that enlarge a picture so much; where nothing else is said, after what it shows."""
        if self._is_free and (disturbed or self._for_photographs or _is_photograph(picture)):
            with suppress(UsageError, Unavailable):  # then the one for clean pictures has to do
                return self._chain(factor, True)
        return self._chain(factor, self._for_photographs)

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

    def _levels_for(self, picture: Picture) -> tuple[tuple[Value, ...], str]:
        """The level asked for, or what the picture shows, the best first, with words for that."""
        level, value = self.about.level, self.about.level_of(self)
        if level is None or level.measure is None or value != level.measured_as:
            return (value,), ""
        return level.measure(picture) or ((None,), "")

    def _resolve(self, scale: int | None, value: Value, compressed: bool) -> ModelSpec:
        values = {self.about.level.name: value} if self.about.level else {}
        spec = zoo.resolve(
            self.task,
            scale=scale,
            sigma=values.get("sigma"),
            quality=values.get("quality"),
            model=self.model,
            compressed=compressed,
        )
        wanted = self.sharpness is not None and (compressed or self.model is not None)  # the rest of a chain is clean
        return zoo.sharpened(spec, self.sharpness or 0.0) if wanted else spec


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


def _is_photograph(picture: Picture) -> bool:
    """Whether a file's format or its pixels tell of compression."""
    from mambair_cli.images.history import went_through_jpeg

    return not picture.lossless or went_through_jpeg(picture.frames[0].pixels)


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
        if isinstance(spec.quality, tuple) and picture.jpeg_quality < min(ROUGH_JPEG, spec.quality[0]):
            hints.append(f"{quality}: comes out better if it goes through `mambair decompress` first")
    elif picture.jpeg_quality < _NOISY_JPEG and not any(alias.startswith("real") for alias in spec.aliases):
        hints.append(f"{quality}: {spec.name} enlarges its artefacts too; try -m photo or -m real")
    return hints
