"""Camera raw, made from the photo: the smallest DNG that LibRaw develops."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import tifffile
from PIL import Image

from helpers.album import photo

XYZ_TO_SRGB = (3.2404542, -1.5371385, -0.4985314, -0.969266, 1.8760108, 0.041556, 0.0556434, -0.2040259, 1.0572252)
WHITE = 60_000


def picture() -> Image.Image:
    """The photo, large enough for a mosaic of colours to show it."""
    return photo().resize((122, 94), Image.Resampling.BICUBIC)


def dng(orientation: int = 1, compression: str | None = None) -> bytes:
    """`picture` as a sensor whose colours are sRGB's would have seen it, through filters R G / G B."""
    values = np.asarray(picture()) / 255.0
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    samples = np.rint(linear * WHITE).astype(np.uint16)
    mosaic = samples[..., 1].copy()
    mosaic[::2, ::2], mosaic[1::2, 1::2] = samples[::2, ::2, 0], samples[1::2, 1::2, 2]
    matrix = tuple(number for value in XYZ_TO_SRGB for number in (round(value * 10_000), 10_000))
    tags = [
        (271, "s", 0, "Maker", True),
        (272, "s", 0, "Model", True),
        (274, "H", 1, orientation, True),
        (306, "s", 0, "2026:11:21 12:00:00", True),
        (33421, "H", 2, (2, 2), True),  # the pattern of the filters
        (33422, "B", 4, b"\0\1\1\2", True),
        (50706, "B", 4, b"\1\4\0\0", True),  # DNG 1.4
        (50708, "s", 0, "Maker Model", True),
        (50717, "I", 1, WHITE, True),
        (50721, "2i", 9, matrix, True),
        (50728, "2I", 3, (1, 1, 1, 1, 1, 1), True),  # white balance
        (50778, "H", 1, 21, True),  # daylight
    ]
    stream = BytesIO()
    tifffile.imwrite(stream, mosaic, photometric=32803, metadata=None, software=False, byteorder="<", extratags=tags)
    return stream.getvalue()
