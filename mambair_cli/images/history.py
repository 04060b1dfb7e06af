"""Whether pixels were once a JPEG, and of what quality: read off the pixels, whatever file they are in now.

The coefficients of JPEG's blocks lie at multiples of the quantisation steps, and after decoding they still nearly do
(Fan and de Queiroz, "Identification of Bitmap Compression History", IEEE TIP 2003).
"""

from __future__ import annotations

import numpy as np

from mambair_cli.images.color import Array, as_float
from mambair_cli.images.noise import blocks, centre, luma, strength

_BLOCKS = 4_000  # looked at
_FEWEST = 24  # coefficients that tell of a step
_CLEAR = 0.5  # mean cosine at the multiples of a step: 1 where all lie there, 0 for any others
_BUSY = 5.0  # levels of the finest luma detail from which that of the colours can be compared with it
_GREY = 0.1  # levels of colour below which a picture has none
_COARSE = 0.055  # colour detail over luma detail: JPEG 0.02 to 0.06, small clean pictures 0.06 to 0.8
_AGREEING = 3  # frequencies that must tell of one quality

# Zigzag's first frequencies (row, column) and their steps in the table for quality 50 (T.81, annex K.1).
_STEPS = {(0, 1): 11, (1, 0): 12, (2, 0): 14, (1, 1): 12, (0, 2): 10, (0, 3): 16, (1, 2): 14, (2, 1): 13, (3, 0): 14}
_DCT = np.array(
    [[np.cos((2 * x + 1) * k * np.pi / 16) * (0.5 if k else 0.5 / np.sqrt(2)) for x in range(8)] for k in range(8)]
)


def jpeg_quality(pixels: Array) -> int | None:
    """The quality of the JPEG that (H, W, C) pixels of any depth came from, as libjpeg counts it, about; else None.

    The lowest, where it was stored twice. Found wherever the grid of blocks lies, so in crops too, but not after
    resizing or stronger compression, and not above a quality of about 90, where decoded pixels are rounded as
    coarsely as the coefficients.
    """
    plane = luma(as_float(centre(pixels))).astype(np.float64) * 255
    if min(plane.shape) < 32:
        return None
    grids = {(0, 0), _grid(plane)}
    return min((q for top, left in grids if (q := _quality(plane[top:, left:]))), default=None)


def went_through_jpeg(pixels: Array) -> bool:
    """Whether (H, W, C) pixels show it: by their quality, or as their colours have no detail of their own, which JPEG
    (and a sensor's mosaic) store at half the size. The latter outlives resizing by a little."""
    return jpeg_quality(pixels) is not None or _coarse_colours(pixels)


def _coarse_colours(pixels: Array) -> bool:
    if pixels.shape[2] == 1:
        return False
    x = as_float(centre(pixels)) * 255
    plane = luma(x)
    fine = strength(blocks(plane))
    if len(fine) < _FEWEST:
        return False
    busy = fine >= np.percentile(fine, 80)
    chroma = [factor * strength(blocks(x[..., c] - plane))[busy] for c, factor in ((0, 0.713), (2, 0.564))]
    of_chroma, of_luma = np.sqrt(np.square(chroma).sum(axis=0).mean()), np.sqrt(np.square(fine[busy]).mean())
    # Pixels rounded to 8 bits have a third of a level of chroma anyhow: flat pictures tell nothing.
    return bool(of_luma > _BUSY and _GREY < of_chroma < _COARSE * of_luma)


def _grid(plane: Array) -> tuple[int, int]:
    """Where a grid of 8x8 blocks most likely begins: its borders have the largest steps."""
    at = []
    for lines in (plane.T, plane):
        steps = np.minimum(np.abs(np.diff(lines, axis=1)), 20).mean(axis=0)
        at.append((int(np.argmax([steps[k::8].mean() for k in range(8)])) + 1) % 8)
    return at[0], at[1]


def _quality(plane: Array) -> int | None:
    """The one that most frequencies tell of, for a grid that begins at the first pixel."""
    cut = blocks(plane)
    coefficients = _DCT @ cut[:: -(-len(cut) // _BLOCKS)] @ _DCT.T
    told = []
    for (row, column), usual in _STEPS.items():
        if step := _step(np.abs(coefficients[:, row, column])):
            scale = 100 * step / usual
            told.append((200 - scale) / 2 if scale <= 100 else 5000 / scale)
    if len(told) < _AGREEING:
        return None
    quality = float(np.median(told))
    agreeing = sum(abs(other - quality) <= max(4, 0.15 * (100 - quality)) for other in told)
    return max(1, min(100, round(quality))) if agreeing >= max(_AGREEING, len(told) // 2) else None


def _step(values: Array) -> int | None:
    """The largest step at whose multiples nearly all values lie that are not nearly 0; at least 3."""
    steps = np.arange(3, 100)
    values = values[values > 1.5]
    if len(values) < _FEWEST:
        return None
    near = np.cos(2 * np.pi * values[:, None] / steps)
    # Values below half a step are none of its multiples: they speak against it.
    score = np.where(values[:, None] < steps / 2, -1.0, near).mean(axis=0)
    clear = steps[score > _CLEAR]
    return int(clear.max()) if len(clear) else None
