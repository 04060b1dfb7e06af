"""The pixels of a picture through a network, whatever holds them: a file's frames, a PIL image, an array."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mambair_cli.errors import BadImage
from mambair_cli.images import color, decode
from mambair_cli.images.decode import Frame
from mambair_cli.restoring.fit import Size, resampled_bands, visible_colours
from mambair_cli.restoring.running import TilesDone

Array = np.ndarray[Any, Any]
_ROWS = 256  # that are mixed at once
FLOAT_MARGIN = 0.01  # by which float arrays may leave [0, 1]: resampling overshoots


class Network(Protocol):
    """What restores a tensor (C, H, W) in [0, 1], in bands (y, (C, h, W * scale)) from top to bottom."""

    @property
    def scale(self) -> int: ...
    def restore_bands(
        self, lq: Tensor, progress: TilesDone | None = None, used: Any = None
    ) -> Iterator[tuple[int, Tensor]]: ...


def restore_frame(
    frame: Frame,
    space: color.Space | None,
    networks: Sequence[Network],
    size: Size | None = None,
    progress: TilesDone | None = None,
    used: Any = None,
    strength: float = 1.0,
) -> Frame:
    """A frame through networks, one after the other: in sRGB and back, transparency apart, at the depth it came in.

    `size`: (width, height) of the result, None: what the networks give. Nothing larger than what goes into the last
    network is held beside the result. `progress` and `used` are handed to the networks, which tell them of their
    tiles and of how they ran. `strength`: share of the result, where it has the size of the frame; the rest is the
    frame as it was.
    """
    original = visible_colours(frame)
    view = original if space is None else color.apply(space.to_srgb, original)
    lq = torch.from_numpy(color.as_float(view)).permute(2, 0, 1)
    untouched = lq
    works = _works([network.scale**2 for network in networks], progress)
    for network, work in zip(networks[:-1], works, strict=False):
        lq = whole(network, lq, work, used)
    last = networks[-1]
    given = lq.shape[2] * last.scale, lq.shape[1] * last.scale
    width, height = size or given
    result = np.empty((height, width, view.shape[2]), view.dtype)
    restored = last.restore_bands(lq, works[-1], used)
    if strength < 1:
        restored = ((y, torch.lerp(untouched[:, y : y + band.shape[1]], band, strength)) for y, band in restored)
    bands = ((y, band.numpy()) for y, band in restored)
    for y, band in resampled_bands(bands, given, (width, height)):
        for channel, plane in enumerate(band):  # one at a time: bands of large pictures are large
            result[y : y + band.shape[1], :, channel] = color.quantise(plane, view.dtype)
    if space is not None:
        result = color.restore_gamut(result, original, space)
    alpha = None if frame.alpha is None else color.resample(frame.alpha, (width, height))
    return Frame(result, alpha, frame.duration)


def mixed(before: Frame, after: Frame, share: float) -> Frame:
    """`share` of a result, the rest of the frame of the same size that it was made of."""
    pixels = after.pixels.copy()
    for top in range(0, len(pixels), _ROWS):  # in floats a large picture is large
        rows = slice(top, top + _ROWS)
        one, other = color.as_float(before.pixels[rows]), color.as_float(after.pixels[rows])
        pixels[rows] = color.quantise(one + np.float32(share) * (other - one), pixels.dtype)
    return replace(after, pixels=pixels)


def whole(network: Network, lq: Tensor, progress: TilesDone | None = None, used: Any = None) -> Tensor:
    """(C, H, W) -> (C, H * scale, W * scale), as a network gives it in bands."""
    channels, height, width = lq.shape
    result = torch.empty(channels, height * network.scale, width * network.scale)
    for y, band in network.restore_bands(lq, progress, used):
        result[:, y : y + band.shape[1]] = band
    return result


def _works(areas: Sequence[int], progress: TilesDone | None) -> list[TilesDone | None]:
    """Whom each of several networks tells of its tiles: as parts of all the work. `areas`: by how much each one
    enlarges that of the next."""
    if progress is None:
        return [None] * len(areas)
    works = [math.prod(areas[:index]) for index in range(len(areas))]  # by pixels that go in

    def telling(before: int, work: int) -> TilesDone:
        return lambda done, total: progress(before * total + work * done, sum(works) * total)

    return [telling(sum(works[:index]), work) for index, work in enumerate(works)]


def frame_of_array(image: Array) -> Frame:
    """An array (H, W), (H, W, 1) or (H, W, 3), uint8, uint16 or float in [0, 1]. Raises BadImage for others."""
    if image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,)):
        raise BadImage(
            f"An array of shape {image.shape} is not a picture (H, W), (H, W, 1) or (H, W, 3).",
            "Restore colour and alpha apart." if image.ndim == 3 and image.shape[2] in (2, 4) else "",
        )
    if image.dtype.kind != "f" and image.dtype.name not in ("uint8", "uint16"):
        raise BadImage(f"Pixels of type {image.dtype} have no known range.", "Use uint8, uint16 or float in [0, 1].")
    floats = image.dtype.kind == "f"
    if floats and image.size and not (image.min() >= -FLOAT_MARGIN and image.max() <= 1 + FLOAT_MARGIN):
        raise BadImage(
            f"Float pixels from {image.min():g} to {image.max():g}: the networks know 0 to 1.",
            "Scale them first; those of 8 bits by 1/255.",
        )
    pixels = np.atleast_3d(image)
    return Frame(pixels.astype(np.float32) if floats else pixels)


def array_of_frame(frame: Frame, like: Array) -> Array:
    """The pixels of a frame in the layout and type of the array that its original was."""
    pixels = frame.pixels.astype(like.dtype, copy=False)
    return pixels.reshape(*pixels.shape[:2], *like.shape[2:])


def frame_of_image(image: Image.Image) -> Frame:
    """A PIL image as its pixels are stored. Raises BadImage for modes without a known range."""
    wide = image.mode.startswith("I;16")
    if image.mode in ("I", "F"):
        raise BadImage(f"Pixels of a PIL image of mode {image.mode} have no known range.", "Pass a numpy array.")
    if wide and image.has_transparency_data:
        raise BadImage("16-bit grey with a transparent level is not supported.", "Restore grey and alpha apart.")
    return decode.split(np.atleast_3d(np.asarray(image if wide else decode.canonical(image))))


def pillow_image(frame: Frame) -> Image.Image:
    """A frame as a PIL image. Raises BadImage for 16-bit colour, which Pillow does not have."""
    if frame.pixels.dtype != np.uint8 and not frame.grey:
        raise BadImage(f"Pillow holds no colour of type {frame.pixels.dtype}.", "Take the array, or save a file.")
    result = Image.fromarray(frame.pixels[..., 0] if frame.grey else frame.pixels)
    if frame.alpha is not None:
        result.putalpha(Image.fromarray(frame.alpha))
    return result


def image_of_frame(frame: Frame, like: Image.Image) -> Image.Image:
    """A frame as a PIL image, with what its original carried in `info` as far as it is still true."""
    result = pillow_image(frame)
    gone = {"transparency", "compression"}
    if like.mode in ("CMYK", "LAB") or frame.grey != (Image.getmodebase(like.mode) == "L"):
        gone.add("icc_profile")  # of colours that the result has not
    result.info = {key: value for key, value in like.info.items() if key not in gone}
    return result
