"""Before and after: a sheet of crops side by side, or a page with a slider that needs no network."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Sequence
from html import escape
from importlib.resources import files as resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mambair_cli.atomic import atomic_write
from mambair_cli.errors import BadImage, UsageError
from mambair_cli.images import color
from mambair_cli.images.decode import read_rgb
from mambair_cli.images.formats import MAX_PIXELS
from mambair_cli.images.software import made_by

Bytes = NDArray[np.uint8]

CROPS = 3  # on a sheet
CROP_SIDE = 96  # pixels of the result that a crop shows,
ENLARGED = 3  # so many times enlarged
COLUMN = CROP_SIDE * ENLARGED
GAP = 12
SHEET_WIDTH = 2 * COLUMN + 3 * GAP
WEBP_SIDE = 16383  # what the format can hold,
WEBP_PIXELS = 16_000_000  # and what it encodes within a second or two; JPEG takes over
SEARCHED_PIXELS = 4_000_000  # larger pictures are searched for details in steps of several pixels


def compare(before: Path, after: Path, target: Path, max_pixels: int = MAX_PIXELS) -> None:
    """Write the comparison of two pictures to `target`, a .png sheet or an .html page.

    The smaller picture is enlarged (bicubic) to the size of the other. Raises UsageError for another kind of
    target or one that is a picture of the two, BadImage where a picture cannot be read, has more than `max_pixels`,
    or the two have different shapes.
    """
    kind = target.suffix.lower()
    if kind not in (".png", ".html"):
        raise UsageError(f"A comparison is written as .png or .html, not {target.suffix or target.name!r}.")
    if target.exists() and any(path.exists() and path.samefile(target) for path in (before, after)):
        raise UsageError(f"{target} is one of the pictures to compare.", "Give another name with -o.")
    pair, notes = aligned(read_flat(before, max_pixels), read_flat(after, max_pixels))
    names = [_readable(path if before.name == after.name else path.name) for path in (before, after)]
    makers = [f" (by {_readable(str(made))})" if (made := made_by(path)) else "" for path in (before, after)]
    captions = [f"{name}{note}{maker}" for name, note, maker in zip(names, notes, makers, strict=True)]
    with atomic_write(target) as stream:
        if kind == ".png":
            sheet(*pair, captions).save(stream, "PNG")
        else:
            body = f"<h1>{' and '.join(map(escape, names))}</h1>{slider(*pair, captions)}"
            stream.write(page(" | ".join(names), body).encode())


def read_flat(path: Path, max_pixels: int = MAX_PIXELS) -> Bytes:
    """A picture as one looks at it: upright, in sRGB, (H, W, 3), transparency on white. Raises BadImage."""
    try:
        return read_rgb(path, max_pixels)
    except BadImage as error:
        raise BadImage(f"{_readable(path)}: {error.message}", error.hint) from error


def aligned(before: Bytes, after: Bytes) -> tuple[tuple[Bytes, Bytes], tuple[str, str]]:
    """Both at the size of the larger one, and what was done to each. Raises BadImage for different shapes."""
    (h, w), (height, width) = before.shape[:2], after.shape[:2]
    if (h, w) == (height, width):
        return (before, after), ("", "")
    # a picture cropped to a multiple of the scale may lack a few pixels
    if abs(w * height - h * width) > 4 * max(w, h, width, height):
        raise BadImage(
            f"The pictures have different shapes: {w}x{h} and {width}x{height}.",
            "Compare a picture with its own restored version.",
        )
    if h * w < height * width:
        return (color.resample(before, (width, height)), after), (f" (enlarged from {w}x{h})", "")
    return (before, color.resample(after, (w, h))), ("", f" (enlarged from {width}x{height})")


def slider(before: Bytes, after: Bytes, captions: Sequence[str]) -> str:
    """HTML of a before/after slider with zoom; the pictures (H, W, 3) are embedded as WebP."""
    height, width = after.shape[:2]
    left, right = (escape(caption) for caption in captions)
    urls = {"before": _embedded(before), "after": _embedded(after)}
    return part("slider.html").format(width=width, height=height, left=left, right=right, **urls)


def part(name: str) -> str:
    """A file of `pages/`: what pages of comparisons, reports and `serve` are made of."""
    return resources(__package__).joinpath("pages", name).read_text("utf-8")


def page(title: str, body: str) -> str:
    """A whole page: style and script are in it, nothing is loaded."""
    style = part("colours.css") + part("page.css") + part("slider.css")
    script = part("slider.js") + part("page.js").removeprefix('"use strict";\n')
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="mambair">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
{body}
<script>
{script}</script>
</body>
</html>
"""


def sheet(before: Bytes, after: Bytes, captions: Sequence[str]) -> Image.Image:
    """The whole result, and under it its most detailed parts enlarged: before on the left, after on the right.

    The columns are as wide for a picture of one pixel, so that there is always room for the captions.
    """
    corners = detailed(after)
    side = min(CROP_SIDE, *after.shape[:2])
    shown = side * ENLARGED
    font = ImageFont.load_default(15)
    overview = Image.fromarray(after)
    overview.thumbnail((SHEET_WIDTH - 2 * GAP, SHEET_WIDTH - 2 * GAP), Image.Resampling.LANCZOS)
    top = overview.height + 3 * GAP + 18
    result = Image.new("RGB", (SHEET_WIDTH, top + len(corners) * (shown + GAP)), "white")
    draw = ImageDraw.Draw(result)
    left = (result.width - overview.width) // 2
    result.paste(overview, (left, GAP))
    ratio = overview.width / after.shape[1]
    for column, caption in enumerate(captions):
        while draw.textlength(caption, font) > COLUMN - 4:
            caption = caption.removesuffix("…")[:-1] + "…"
        draw.text((GAP + column * (COLUMN + GAP), top - GAP - 14), caption, "black", font)
    for row, (y, x) in enumerate(corners):
        box = [left + x * ratio, GAP + y * ratio, left + (x + side) * ratio, GAP + (y + side) * ratio]
        draw.rectangle(box, outline="white", width=3)
        draw.rectangle(box, outline="black", width=1)
        for column, picture in enumerate((before, after)):
            crop = Image.fromarray(np.ascontiguousarray(picture[y : y + side, x : x + side]))
            place = (GAP + column * (COLUMN + GAP), top + row * (shown + GAP))
            result.paste(crop.resize((shown, shown), Image.Resampling.NEAREST), place)
    return result


def detailed(picture: Bytes, count: int = CROPS, side: int = CROP_SIDE) -> list[tuple[int, int]]:
    """Corners (y, x) of up to `count` squares that do not overlap and have the most contrast between neighbours."""
    height, width = picture.shape[:2]
    side = min(side, height, width)
    step = min(math.isqrt(height * width // SEARCHED_PIXELS), min(height, width) // (2 * side))
    if step > 1:
        coarse = picture[: height // step * step : step, : width // step * step : step]
        return [(y * step, x * step) for y, x in detailed(coarse, count, math.ceil(side / step))]
    grey = picture.mean(axis=2)
    contrast = np.abs(np.diff(grey, axis=0, append=grey[-1:])) + np.abs(np.diff(grey, axis=1, append=grey[:, -1:]))
    total = np.pad(contrast.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    corners: list[tuple[int, int]] = []
    while len(corners) < count and np.isfinite(sums).any() and sums.max() >= 0:
        y, x = (int(n) for n in np.unravel_index(sums.argmax(), sums.shape))
        corners.append((y, x))
        sums[max(y - side + 1, 0) : y + side, max(x - side + 1, 0) : x + side] = -1.0
    return corners


def _readable(name: Path | str) -> str:
    """A file name as text: names may hold bytes that are not UTF-8, and line breaks."""
    text = os.fsencode(name).decode("utf-8", "replace")
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def _embedded(picture: Bytes) -> str:
    """A data URI."""
    data, kind = shown(picture)
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def shown(picture: Bytes) -> tuple[bytes, str]:
    """A picture for a browser, and its media type. WebP at a quality whose loss is below what one can see."""
    buffer = io.BytesIO()
    image = Image.fromarray(picture)
    if max(image.size) > WEBP_SIDE or image.width * image.height > WEBP_PIXELS:
        image.save(buffer, "JPEG", quality=92, subsampling="4:4:4")
        return buffer.getvalue(), "image/jpeg"
    image.save(buffer, "WEBP", quality=95, method=4)
    return buffer.getvalue(), "image/webp"
