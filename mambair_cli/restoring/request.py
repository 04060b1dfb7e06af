"""What a user asks for, and which model that means: it can depend on the picture."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from mambair_cli.errors import MambairError, Unavailable, UsageError
from mambair_cli.images.decode import Picture
from mambair_cli.images.noise import noise_level
from mambair_cli.models import zoo
from mambair_cli.models.zoo import ModelSpec
from mambair_cli.restoring.fit import NO_FIT, Fit, Size

AUTO = "auto"
SCALES = (2, 3, 4)
_LARGE = 12_000_000  # pixels of input from which the size of the result is worth a line
_ROUGH_JPEG = 40  # quality below which two steps are better than one: docs/models.md
_NOISY_JPEG = 80  # quality below which artefacts are enlarged along with the picture
_ESTIMATE_SLACK = 0.95  # the noise estimate errs by a few percent; 15.4 is not a case for the model of 25

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """One task with its wishes. `spec` is set where the weights were named as a file."""

    task: str
    scale: int | None = None
    sigma: int | str | None = None  # 0 to 255, "real" or "auto"
    quality: int | None = None  # JPEG, 1 to 100; None: the picture's own
    compressed: bool | None = None  # low-resolution input that went through JPEG; None: as the file's format is
    fit: Fit = NO_FIT
    model: str | None = None
    spec: ModelSpec | None = None

    def nominal(self) -> ModelSpec:
        """A model of the request before any picture is seen, so that what cannot work fails at once.

        Raises UsageError or Unavailable.
        """
        if self.spec is not None:
            return self.spec
        if self.fit and self.scale is None:
            return self._enlarging(1.0)
        sigma = 25 if self.sigma == AUTO else self.sigma
        quality = 10 if self.task == "decompress" and self.quality is None else self.quality
        return self._resolve(self.scale, sigma, quality)

    def model_for(self, picture: Picture, say: Say) -> ModelSpec | None:
        """The model for this picture, None where it has only to shrink to the wished size and no scale was asked for.

        What the user should know of the choice goes to `say`. Raises MambairError for a size that no model reaches.
        """
        factor = max(self.fit.factor(frame.size) for frame in picture.frames) if self.fit else 0.0
        if self.fit and self.scale is None and factor <= 1:
            width, height = self.fit.size(picture.size)
            say(f"large enough already: only resampled to {width}x{height} (with -s it is restored first)")
            return None
        spec = self.spec or self._choose(picture, factor, say)
        if factor > spec.scale:
            raise MambairError(
                f"the size asked for is x{factor:.3g}, and {spec.name} enlarges x{spec.scale}",
                "Ask for less, or enlarge in two steps.",
            )
        if self.task == "upscale":
            self._hint(spec, picture, say)
        return spec

    def result_size(self, size: Size, spec: ModelSpec | None) -> Size:
        """What a picture of this size becomes."""
        if self.fit or spec is None:
            return self.fit.size(size)
        return size[0] * spec.scale, size[1] * spec.scale

    def _choose(self, picture: Picture, factor: float, say: Say) -> ModelSpec:
        if self.task == "upscale" and self.model is None and self.compressed is None and not picture.lossless:
            with suppress(UsageError, Unavailable):  # then the one for clean pictures has to do
                scale = self.scale if self.fit else self.nominal().scale  # as the result is named after
                return replace(self, compressed=True, scale=scale)._choose(picture, factor, say)
        if self.fit and self.scale is None:
            return self._enlarging(factor)
        if self.sigma == AUTO:
            level = noise_level(picture.frames[0].pixels)
            spec = self._resolve(None, round(level * _ESTIMATE_SLACK), None)
            say(f"noise of about {level:.1f}: {spec.name}")
            return spec
        if self.task == "decompress" and self.quality is None:
            spec = self._resolve(None, None, picture.jpeg_quality)
            if picture.jpeg_quality is not None:
                say(f"JPEG quality {picture.jpeg_quality}: {spec.name}")
            return spec
        return self._resolve(self.scale, self.sigma, self.quality)

    def _resolve(self, scale: int | None, sigma: int | str | None, quality: int | None) -> ModelSpec:
        return zoo.resolve(
            self.task, scale=scale, sigma=sigma, quality=quality, model=self.model, compressed=bool(self.compressed)
        )

    def _enlarging(self, factor: float) -> ModelSpec:
        """The model of the smallest scale that is enough, or of the largest that there is."""
        largest: ModelSpec | None = None
        for scale in SCALES:
            try:
                largest = self._resolve(scale, None, None)
            except (UsageError, Unavailable) as error:
                reason = error
                continue
            if largest.scale >= factor:
                break
        if largest is None:
            raise reason
        return largest

    def _hint(self, spec: ModelSpec, picture: Picture, say: Say) -> None:
        if picture.size[0] * picture.size[1] > _LARGE:
            width, height = self.result_size(picture.size, spec)
            say(f"a large picture: {width}x{height} will come out ({width * height / 1e6:.0f} megapixels)")
        if picture.jpeg_quality is None:
            return
        quality = f"JPEG of quality {picture.jpeg_quality}"
        if spec.compressed:
            if isinstance(spec.quality, tuple) and picture.jpeg_quality < min(_ROUGH_JPEG, spec.quality[0]):
                say(f"{quality}: comes out better if it goes through `mambair decompress` first")
        elif picture.jpeg_quality < _NOISY_JPEG and not any(alias.startswith("real") for alias in spec.aliases):
            say(f"{quality}: {spec.name} enlarges its artefacts too; try -m photo or -m real")


def level_note(request: Request, spec: ModelSpec) -> str | None:
    """Where nobody trained for the wished level: which one is taken."""
    for what, wish, has in (("noise", request.sigma, spec.sigma), ("JPEG quality", request.quality, spec.quality)):
        if isinstance(wish, int) and isinstance(has, int) and wish != has:
            return f"{what} {wish}: the model for {has} is the nearest, {spec.name}"
    return None
