"""The tasks. All that is known of one stands in its record; nothing else branches on a task's name.

A record gives a command, a row of `bench` and a training task. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mambair_cli.seen import noise_before, noise_of, quality_before, quality_of, rain_of
from mambair_cli.task import Degradation, Level, Setting, Share, Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mambair_cli.task import Bytes, Make, Rng

# ---------------------------------------------------------------------------------------------- making pictures worse


def _bicubic(hq: Bytes, setting: Setting, rng: Rng) -> tuple[NDArray[Any], Bytes]:
    from mambair_cli import degradations

    return degradations.downscale(hq, setting.scale), hq


def _jpeg(hq: Bytes, setting: Setting, rng: Rng) -> tuple[NDArray[Any], Bytes]:
    from mambair_cli import degradations

    small = degradations.downscale(hq, setting.scale) if setting.scale > 1 else hq
    return degradations.jpeg(small, round(setting.level or 0)), hq


def _jpegs(hq: Bytes, setting: Setting, rng: Rng) -> tuple[NDArray[Any], Bytes]:
    from mambair_cli import degradations

    if setting.level:
        return degradations.jpeg(hq, round(setting.level)), hq
    return degradations.jpegs(hq, _seeded(rng), setting.ranges or degradations.Jpegs()), hq


def _realistic(hq: Bytes, setting: Setting, rng: Rng) -> tuple[NDArray[Any], Bytes]:
    from mambair_cli import degradations

    return degradations.realistic(hq, _seeded(rng), setting.scale), hq


def _photo(hq: Bytes, setting: Setting, rng: Rng) -> tuple[NDArray[Any], Bytes]:
    from mambair_cli import degradations

    colour = _in_colour(hq)
    return degradations.photo(colour, _seeded(rng), setting.scale, setting.ranges or degradations.Photo()), colour


def _noise(hq: Bytes, setting: Setting, rng: Rng) -> tuple[NDArray[Any], Bytes]:
    from mambair_cli import degradations

    return degradations.gaussian_noise(hq, setting.level or 0.0, rng), hq


def _noises(hq: Bytes, setting: Setting, rng: Rng) -> tuple[NDArray[Any], Bytes]:
    from mambair_cli import degradations

    return degradations.noises(_in_colour(hq), _seeded(rng), setting.ranges or degradations.Noises())


def _rain(hq: Bytes, setting: Setting, rng: Rng) -> tuple[NDArray[Any], Bytes]:
    from mambair_cli import degradations

    return degradations.rain_and_lights(hq, _seeded(rng))


def _measured(name: str) -> Make:
    """A photograph made worse in a fixed way (`degradations.measured`)."""

    def make(hq: Bytes, setting: Setting, rng: Rng) -> tuple[NDArray[Any], Bytes]:
        from mambair_cli.degradations.measured import KEPT, SHRUNK

        colour = _in_colour(hq)
        if name in SHRUNK:
            return SHRUNK[name](colour, _seeded(rng), setting.scale), hq
        return KEPT[name](colour, _seeded(rng))

    return make


def _photograph(name: str, how: str, shrunk: bool = False) -> Degradation:
    words = name.replace("_", " ")
    return Degradation(name, f"x{{scale}} {words}" if shrunk else words, _measured(name), how, seeded=True)


def _seeded(rng: Rng) -> np.random.Generator:
    import numpy as np

    return rng or np.random.default_rng(0)


def _in_colour(hq: Bytes) -> Bytes:
    import numpy as np

    return hq if hq.ndim == 3 else np.repeat(hq[..., None], 3, axis=2)


# ------------------------------------------------------------------------------------------------------------ records

SIGMA = Level(
    name="sigma",
    sign="σ",
    text="noise",
    low=0,
    high=255,
    help="Standard deviation of the noise, real for a camera's, auto to measure it. Default: any noise.",
    assumed=25,
    distance=lambda has, wanted: (has < wanted, abs(has - wanted)),  # at or above: what is left of noise is worse
    measure=noise_of,
    measured_as="auto",
    words=("real",),
    before=noise_before,
)
QUALITY = Level(
    name="quality",
    sign="q",
    text="JPEG quality",
    low=1,
    high=100,
    help="Of the JPEG. Default: read off the file.",
    assumed=10,
    distance=lambda has, wanted: (abs(has - wanted), has),  # the stronger of two equals
    measure=quality_of,
    before=quality_before,
    logarithmic=True,  # from 80 to 90 little changes, from 10 to 20 the error halves
)

STRENGTH = Share("strength", "How much of it: 0 leaves the picture as it is. Default: 1.")
RAIN_STRENGTH = Share(
    "strength", "How much of it. Default: 1, less where streaks are in few places only, as rain is not.", rain_of
)
SHARPNESS = Share(
    "sharpness", "Of photographs: 0 is faithful and soft, 1 crisp, with detail made up. Default: the model's."
)

UPSCALE = Task(
    name="upscale",
    plain="Enlarge",
    about="""Enlarge pictures, by any factor or to a size.

    [bold]Examples[/]

    \b
    mambair upscale photo.jpg                   photo_x4.jpg, next to it
    mambair upscale -s 2 -m base *.png -o big/  another model, into a folder
    mambair upscale --long-edge 3840 photo.jpg  enough for a 4K screen
    mambair upscale -s 1.5 photo.jpg            any factor: 8 as well
    mambair upscale --compare photo.jpg         and a page that shows the gain
    mambair upscale -r album/ -o big/           a tree; again: go on with it
    mambair upscale --watch inbox/ -o big/      what arrives there, as it does
    cat a.png | mambair upscale - > b.png       through pipes

    Without -m the picture decides: what went through JPEG takes a sharp
    model for photographs ([bold]--sharpness[/]), the rest one for clean pictures;
    what is noisy is denoised first, and a rough JPEG decompressed.
    [bold]--clean[/] and [bold]--compressed[/] say otherwise. Most published models are
    for clean pictures.
    Orientation, colour profile, transparency and metadata are kept.
    Models enlarge 2, 3 or 4 times. For other sizes the smallest that is
    enough runs, or two of them one after the other, then the result is
    resampled; pictures that are large enough are shrunk only, unless -s is
    given: then they are restored first.
    """,
    tag="x{scale}",
    channel="y",
    enlarges=True,
    share=SHARPNESS,
    degradations=(
        Degradation(
            name="bicubic",
            text="x{scale}",
            make=_bicubic,
            how="Matlab-exact bicubic, uint8",
            role="LRx{s}",
            whole=True,
            layouts=(
                *("LRx{s}/*", "LR_bicubic/X{s}/*", "LR_bicubic/x{s}/*", "LRbicx{s}/*", "LR/X{s}/*", "LR/x{s}/*"),
                *("X{s}/*", "x{s}/*", "image_SRF_{s}/*_LR.*"),
            ),
        ),
        Degradation(
            name="jpeg",
            text="x{scale} JPEG {level}",
            make=_jpeg,
            how="Matlab-exact bicubic, uint8, then libjpeg baseline encoder",
            layouts=("LRx{s}_q{q}/*", "LR_bicubic/X{s}_q{q}/*"),
            level=QUALITY,
            margin=16,
            compressed=True,
        ),
        Degradation(
            "realistic", "x{scale}, slightly blurred, noisy and compressed", _realistic, margin=16, compressed=True
        ),
        Degradation("photo", "x{scale} of a photograph", _photo, ranges="photo", margin=16, compressed=True),
        _photograph("web", "blur, bicubic, noise of deviation 3, JPEG 80", True),
        _photograph("phone", "a small sensor by day, demosaiced, JPEG 90", True),
        _photograph("night", "the same with two fifths of the light, JPEG 88", True),
        _photograph("old", "shrunk by averaging, JPEG 35", True),
    ),
)

DENOISE = Task(
    name="denoise",
    plain="Remove noise",
    about="""Remove noise.

    [bold]Examples[/]

    \b
    mambair denoise scan.png                    scan_denoised.png
    mambair denoise --strength 0.6 scan.png     leave some of the grain
    mambair denoise --sigma 25 scan.png         white noise of a known strength
    mambair denoise --sigma auto *.png -o out/  measured, picture by picture

    Without --sigma a model for any noise, a camera's above all
    ([bold]--sigma real[/]); a number chooses one for white noise. Where nobody
    trained for the strength, the nearest one above is taken, and named.
    """,
    tag="denoised",
    channel="rgb",
    level=SIGMA,
    share=STRENGTH,
    degradations=(
        Degradation(
            name="noise",
            text="noise {level}",
            make=_noise,
            how="numpy RandomState(0) for every picture, channels drawn as B, G, R, neither clipped nor rounded",
            level=SIGMA,
        ),
        Degradation("noises", "noise of many kinds", _noises, ranges="noises", margin=16),
        Degradation(
            name="real",
            text="noise real",
            level=SIGMA,
            word="real",
            standard=False,
            layouts=("LQ/*", "noisy/*", "input/*", "CroppedImages/*_real.*"),
        ),
        _photograph("camera", "a camera's noise by day, demosaiced, sharpened, JPEG 92"),
        _photograph("camera_night", "the same with two fifths of the light, JPEG 90"),
        _photograph("blotch", "noise of deviation 20 that neighbours share"),
    ),
)

DERAIN = Task(
    name="derain",
    plain="Remove rain",
    about="""Remove rain streaks.

    [bold]Examples[/]

    \b
    mambair derain street.jpg                   street_derained.jpg
    mambair derain -r frames/ -o dry/           a tree, mirrored
    mambair derain --strength 1 street.jpg      wherever streaks are seen

    Streaks in few places of a picture are lit windows rather than rain, and
    stay. For the frames of a video say [bold]--strength 1[/], so that all are
    treated alike.
    """,
    tag="derained",
    channel="y",
    share=RAIN_STRENGTH,
    degradations=(
        Degradation(
            name="rain",
            text="rain",
            make=_rain,
            layouts=("LQ/*", "rain/X2/*", "rain/*", "rainy/*", "input/*", "rain-*"),
            standard=False,
        ),
    ),
)

DEBLUR = Task(
    name="deblur",
    plain="Remove blur",
    about="""Remove blur: a shaken camera, moving things.

    [bold]Examples[/]

    \b
    mambair deblur -m evssm street.jpg          street_deblurred.jpg
    mambair deblur -m defocus flower.jpg        a lens out of focus
    mambair deblur -m evssm -r album/ -o sharp/ a tree, mirrored
    """,
    tag="deblurred",
    channel="rgb",
    share=STRENGTH,
    degradations=(
        Degradation(
            name="blur",
            text="blur",
            layouts=("LQ/*", "blur/*", "*/blur/*", "input/*"),
            standard=False,
        ),
    ),
)

DEHAZE = Task(
    name="dehaze",
    plain="Remove haze",
    about="""Remove haze.

    [bold]Examples[/]

    \b
    mambair dehaze -m mair hills.jpg            hills_dehazed.jpg
    mambair dehaze -m mair -r album/ -o clear/  a tree, mirrored
    """,
    tag="dehazed",
    channel="rgb",
    share=STRENGTH,
    degradations=(
        Degradation(
            name="haze",
            text="haze",
            layouts=("LQ/*", "hazy/*", "input/*"),
            standard=False,
        ),
    ),
)

DECOMPRESS = Task(
    name="decompress",
    plain="Remove JPEG blocks",
    about="""Remove JPEG artefacts.

    [bold]Examples[/]

    \b
    mambair decompress old.jpg                  old_decompressed.jpg
    mambair decompress old.jpg --format png     without a new loss
    mambair decompress --quality 10 shot.png    a JPEG that became a PNG

    The quality is read off the JPEG's own quantisation tables. Grey models
    restore the luma of colour pictures and keep their chroma, as is usual
    in the field.
    """,
    tag="decompressed",
    channel="y",
    level=QUALITY,
    share=STRENGTH,
    degradations=(
        Degradation(
            name="jpeg",
            text="JPEG {level}",
            make=_jpeg,
            how="libjpeg baseline encoder",
            layouts=("LQ_q{q}/*", "JPEG_q{q}/*", "q{q}/*", "{q}/*"),
            level=QUALITY,
            margin=16,
        ),
        Degradation("jpegs", "JPEG, once or twice", _jpegs, ranges="jpegs", measured_at=QUALITY),
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in (UPSCALE, DENOISE, DERAIN, DEBLUR, DEHAZE, DECOMPRESS)}
