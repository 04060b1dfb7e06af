"""One picture: the only door. The command line, the Python API and benchmarks all come through `restore`.

    request -> model -> bytes -> Picture -> frames -> tensor -> tiles -> frames -> bytes -> record

Nothing here imports torch before a network runs, so that a plan costs nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mambair_cli.atomic import atomic_write
from mambair_cli.errors import BadImage, UsageError
from mambair_cli.images import encode, software
from mambair_cli.images.decode import Picture, read_picture
from mambair_cli.images.encode import Encoding
from mambair_cli.images.formats import FORMATS, MAX_PIXELS, MAX_RESULT_PIXELS, Format, of_suffix
from mambair_cli.models.spec import ModelSpec
from mambair_cli.restoring.fit import resize_frame, visible_colours
from mambair_cli.restoring.record import Pass, Record
from mambair_cli.restoring.request import AND, Plan, Request
from mambair_cli.restoring.running import TilesDone

if TYPE_CHECKING:
    from mambair_cli.restoring.restorer import Restorer, Used

Source = bytes | str | Path | Picture | Image.Image | np.ndarray[Any, Any]
Load = Callable[[ModelSpec], "Restorer"]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """A restored picture, how it came about, and what the user should know."""

    picture: Picture
    record: Record
    notes: tuple[str, ...] = ()

    @property
    def format(self) -> Format:
        """The format of the original where it can be written, else PNG."""
        return FORMATS.get(self.picture.format, FORMATS["PNG"])

    @property
    def image(self) -> Image.Image:
        """The first frame for Pillow; of 16-bit colour, which Pillow has not, raises BadImage."""
        from mambair_cli.restoring.frames import pillow_image

        return pillow_image(self.picture.frames[0])

    def encoded(self, form: Format | None = None, encoding: Encoding | None = None) -> bytes:
        """The bytes of a file. Raises BadImage if the format cannot hold the picture."""
        stream = BytesIO()
        encode.write(self.picture, stream, form or self.format, encoding or Encoding())
        return stream.getvalue()

    def save(self, path: str | Path, encoding: Encoding | None = None) -> tuple[str, ...]:
        """Write a file, whole or not at all, and return what could not be kept.

        Raises MambairError where it cannot be written, UsageError for a suffix of no format.
        """
        target = Path(path)
        form = of_suffix(target)
        if form is None:
            raise UsageError(f"{target} has no suffix of a format that can be written.", "For example .png.")
        with atomic_write(target) as stream:
            return tuple(encode.write(self.picture, stream, form, encoding or Encoding()))


def restore(
    source: Source,
    request: Request | str,
    load: Load | None = None,
    *,
    form: Format | None = None,
    max_pixels: int | None = None,
    progress: TilesDone | None = None,
    say: Say | None = None,
    **asked: Any,
) -> Result:
    """A picture, restored.

    `source`: a file or its bytes, a PIL image, an array (H, W[, C]) of uint8, uint16 or float in [0, 1], or a picture
    that was read already. `request`: a task by name, or all that is asked for; `asked`: more of its fields, such as
    `scale=1.5`. `load` gives networks by model (default: the published weights on the best device, see `Restorers`).
    `form`: the format that the result must fit into. `max_pixels`: of the picture and of the result (default:
    MAX_PIXELS and MAX_RESULT_PIXELS). `progress` is told of tiles, `say` at once of what the user should know.

    Raises BadImage for what is no picture, is too large or does not fit, UsageError and Unavailable where no model
    can do it.
    """
    request = Request(request, **asked) if isinstance(request, str) else replace(request, **asked)
    started = time.perf_counter()
    picture = opened(source, max_pixels)
    steps = plan(picture, request, form, max_pixels)
    notes = (*picture.warnings, *steps.notes)
    if say:
        for text in notes:
            say(text)
    if steps.models:
        load = load or _restorers()
        result, made = _restored(picture, request, [load(spec) for spec in steps.models], progress)
        result, seen = _judged(picture, result, request)
        if say and seen:
            say(*seen)
        notes += seen
    else:
        result, made = _resampled(picture, request), Record()
    record = replace(
        made,
        input_size=picture.size,
        output_size=result.size,
        seconds=time.perf_counter() - started,
        resampled=steps.resampled,
    )
    return Result(result, record, notes)


def plan(picture: Picture, request: Request, form: Format | None = None, max_pixels: int | None = None) -> Plan:
    """What `restore` would do. Raises BadImage where the result is too large or `form` cannot hold it, else as
    `Request.plan`."""
    steps = request.plan(picture)
    sizes = [request.result_size(frame.size, steps.models) for frame in picture.frames]
    pixels, most = sum(width * height for width, height in sizes), max_pixels or MAX_RESULT_PIXELS
    if pixels > most:
        width, height = steps.size
        frames = f" in {len(sizes)} frames" if len(sizes) > 1 else ""
        raise BadImage(
            f"{width}x{height} pixels{frames} would come out, more than {most:,} in all",
            f"If that is what you want: --max-pixels {pixels}.",
        )
    if form:
        encode.check(form, max(sizes, key=max), len(sizes))
    return steps


def opened(source: Source, max_pixels: int | None = None) -> Picture:
    """The picture that a source holds. Raises BadImage."""
    if isinstance(source, Picture):
        return source
    if isinstance(source, bytes | str | Path):
        return read_picture(Path(source) if isinstance(source, str) else source, max_pixels or MAX_PIXELS)
    from mambair_cli.restoring import frames

    if isinstance(source, Image.Image):
        return Picture((frames.frame_of_image(source),))
    return Picture((frames.frame_of_array(source),))


def _restored(
    picture: Picture, request: Request, restorers: Sequence[Restorer], progress: TilesDone | None
) -> tuple[Picture, Record]:
    """Every frame through the networks, at the size asked for."""
    from mambair_cli.restoring import frames
    from mambair_cli.restoring.restorer import Used

    used, count, results = Used(), len(picture.frames), []
    models = [restorer.spec for restorer in restorers]

    def tiles(before: int, done: int, total: int) -> None:
        if progress:
            progress(before * total + done, count * total)

    for index, frame in enumerate(picture.frames):
        size = request.result_size(frame.size, models)
        told, strength = partial(tiles, index), 1.0 if request.strength is None else request.strength
        results.append(frames.restore_frame(frame, picture.space, restorers, size, told, used, strength))
    growth = results[0].size[0] / picture.size[0]
    record = _signed(restorers, used)
    how = f"x{request.scale or growth:.3g}" if request.about.enlarges else request.about.tag
    kept = replace(picture.metadata, software=software.signature(str(record.model), how))
    return replace(picture, frames=tuple(results), metadata=kept), record


def _judged(picture: Picture, result: Picture, request: Request) -> tuple[Picture, tuple[str, ...]]:
    """As much of a result as its task believes in where nobody says how much, and what it saw."""
    share = request.about.share
    if not share or not share.judge or request.strength is not None or picture.size != result.size:
        return result, ()
    from mambair_cli.restoring.frames import mixed

    pairs = list(zip(picture.frames, result.frames, strict=True))
    believed, why = max(share.judge(before.pixels, after.pixels) for before, after in pairs)  # frames alike
    if believed == 1:
        return result, ()
    kept = replace(result, frames=tuple(mixed(*pair, believed) for pair in pairs))
    done = f"{believed:.0%} of the change made" if believed else "left as it was"
    return kept, (f"{why}: {done} (--strength 1: all the same)",)


def _resampled(picture: Picture, request: Request) -> Picture:
    """Every frame at the size asked for, without a network."""
    bled = (replace(frame, pixels=visible_colours(frame)) for frame in picture.frames)
    return replace(picture, frames=tuple(resize_frame(frame, request.fit.size(frame.size)) for frame in bled))


def _signed(restorers: Sequence[Restorer], used: Used) -> Record:
    """What it was made with. Of several networks the last one has most to do: how it ran is what counts."""
    last = restorers[-1]
    return Record(
        model=AND.join(restorer.spec.name for restorer in restorers),
        sha256=last.sha256 if len(restorers) == 1 else None,
        scale=math.prod(restorer.spec.scale for restorer in restorers),
        device=str(last.device),
        precision=used.precision,
        scan=last.scan,
        tile=used.tile,
        ensemble=last.running.ensemble,
        seed=last.running.seed,
        passes=tuple(Pass(one.spec.name, one.sha256, one.spec.scale) for one in restorers),
    )


def _restorers() -> Load:
    from mambair_cli.restoring.restorer import Restorers

    return Restorers()
