"""What a picture shows by itself: noise, the marks of JPEG, rain. The records of the tasks ask these."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mambair_cli.images.decode import Picture
    from mambair_cli.task import Value

_ESTIMATE_SLACK = 0.95  # the noise estimate errs by a few percent; 15.4 is not a case for the model of 25
_DISTURBING = 2.6  # noise in smooth places from which a picture is denoised before it is enlarged: docs/models.md
ROUGH_JPEG = 40  # quality below which it is decompressed before
_STORED_AGAIN = 8  # by how much better a JPEG must be than what was in it, to be said to be its second


def noise_of(picture: Picture) -> tuple[tuple[Value, ...], str]:
    """The level of the noise, in 8-bit steps, and `real` before it where neighbours go together; and in words."""
    from mambair_cli.images import noise

    pixels = picture.frames[0].pixels
    level = noise.noise_level(pixels)
    value, words = round(level * _ESTIMATE_SLACK), f"noise of about {level:.1f}"
    return (("real", value), f"{words}, as a camera's") if noise.is_correlated(pixels) else ((value,), words)


def noise_before(picture: Picture) -> tuple[Value, str] | None:
    """Of a picture that is to be enlarged: noise in smooth places, where there is enough of it to disturb."""
    from mambair_cli.images.noise import smooth_noise

    level = smooth_noise(picture.frames[0].pixels)
    return (noise_of(picture)[0][0], f"noise of about {level:.0f}") if level >= _DISTURBING else None


def quality_of(picture: Picture) -> tuple[tuple[Value, ...], str] | None:
    """The quality of the JPEG that the picture is or once was, the worse of the two; None where there was none."""
    from mambair_cli.images.history import jpeg_quality

    stored, seen = picture.jpeg_quality, jpeg_quality(picture.frames[0].pixels)
    if stored and (seen is None or seen > stored - _STORED_AGAIN):
        return (stored,), f"JPEG quality {stored}"
    if seen is None:
        return None
    return (seen,), f"once a JPEG of quality {seen}" + (f", stored again at {stored}" if stored else "")


def quality_before(picture: Picture) -> tuple[Value, str] | None:
    """Of a picture that is to be enlarged: a JPEG whose blocks would be enlarged with it."""
    found = quality_of(picture)
    return (found[0][0], found[1]) if found and int(found[0][0] or 0) < ROUGH_JPEG else None


_NO_RAIN, _RAIN = 0.2, 0.4  # of the picture in which streaks were removed: docs/models.md


def rain_of(before: NDArray[Any], after: NDArray[Any]) -> tuple[float, str]:
    """How far what was removed is believed to be rain, in [0, 1], by how far it reaches; and in words."""
    from mambair_cli.images.streaks import reach

    share = reach(before, after)
    believed = min(max((share - _NO_RAIN) / (_RAIN - _NO_RAIN), 0.0), 1.0)
    return believed, f"streaks in {share:.0%} of the picture, rain would be in all of it"
