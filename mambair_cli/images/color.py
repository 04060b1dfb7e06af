"""Colour: profiles to sRGB and back without loss, colour under transparency, depths and sizes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageCms

Array = np.ndarray[Any, Any]

# A profile within this many levels (of 255) of sRGB is sRGB: nothing is converted.
_SRGB_TOLERANCE = 2
# Rounding in the two conversions costs up to this many levels; what is beyond was out of sRGB's gamut.
_ROUNDING = 2
_STRIP_ROWS = 512


# --- profiles -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Space:
    """An RGB colour space other than sRGB, as 8-bit transforms to sRGB and back."""

    to_srgb: ImageCms.ImageCmsTransform
    from_srgb: ImageCms.ImageCmsTransform


@lru_cache(maxsize=16)
def space_of(icc: bytes, grey: bool) -> Space | None:
    """The space a profile describes; None where the network can take the values as they are.

    Those are sRGB, grey profiles (their tone curves are sRGB's, nearly, and there is no gamut to miss) and
    profiles that work in one direction only. Raises ValueError if it is broken or not for these channels.
    """
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(icc))
        kind = profile.profile.xcolor_space.strip()
    except (ImageCms.PyCMSError, OSError) as error:
        raise ValueError("the colour profile is broken") from error
    if kind != ("GRAY" if grey else "RGB"):
        raise ValueError(f"the colour profile is for {kind} pictures")
    if grey:
        return None
    try:
        space = Space(_transform(profile, _srgb()), _transform(_srgb(), profile))
    except ImageCms.PyCMSError:
        return None
    cube = _colour_cube()
    shift = np.abs(apply(space.to_srgb, cube).astype(np.int16) - cube)
    return None if shift.max() <= _SRGB_TOLERANCE else space


def to_srgb(image: Image.Image, icc: bytes) -> Image.Image:
    """A CMYK or LAB picture in sRGB, by its profile if it has a sound one."""
    try:
        source = ImageCms.createProfile("LAB") if image.mode == "LAB" else ImageCms.ImageCmsProfile(BytesIO(icc))
        result = ImageCms.profileToProfile(image, source, _srgb(), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return image.convert("RGB")
    assert result is not None
    return result


def apply(transform: ImageCms.ImageCmsTransform, pixels: Array) -> Array:
    """(H, W, 3) uint8 through a transform; in strips, so that signals are heard between them."""
    result = np.empty_like(pixels)
    for top in range(0, len(pixels), _STRIP_ROWS):
        strip = Image.fromarray(pixels[top : top + _STRIP_ROWS])
        ImageCms.applyTransform(strip, transform, inPlace=True)
        result[top : top + _STRIP_ROWS] = strip
    return result


def restore_gamut(result: Array, original: Array, space: Space) -> Array:
    """A restored sRGB picture in its original space, with the colours that sRGB could not hold put back.

    What the way to sRGB and back loses of the original is known exactly; it is enlarged and added again.
    result: (H', W', 3), original: (H, W, 3), both uint8.
    """
    back = apply(space.from_srgb, result)
    lost = original.astype(np.int16) - apply(space.from_srgb, apply(space.to_srgb, original))
    lost[np.abs(lost).max(axis=2) <= _ROUNDING] = 0
    if not lost.any():
        return back
    height, width = back.shape[:2]
    channels = [Image.fromarray(lost[..., c].astype(np.float32)) for c in range(3)]
    tall, wide = original.shape[:2]
    for top in range(0, height, _STRIP_ROWS):
        rows = min(_STRIP_ROWS, height - top)
        box = (0, top * tall / height, wide, (top + rows) * tall / height)
        for c, channel in enumerate(channels):
            strip = np.asarray(channel.resize((width, rows), Image.Resampling.BICUBIC, box=box))
            sums = np.rint(back[top : top + rows, :, c] + strip)
            back[top : top + rows, :, c] = np.clip(sums, 0, 255)
    return back


def _transform(source: Any, target: Any) -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(source, target, "RGB", "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC)


@lru_cache(maxsize=1)
def _srgb() -> Any:
    return ImageCms.createProfile("sRGB")


def _colour_cube() -> Array:
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)


# --- transparency ---------------------------------------------------------------------------------------------


def bleed(colour: Array, alpha: Array) -> Array:
    """Colour with what lies under fully transparent pixels replaced by that of the visible ones nearby.

    Networks smear what they see over edges, and what hides there is usually black. Pull-push filling
    (Gortler et al. 1996). colour: (H, W, C), alpha: (H, W); the same dtype comes back.
    """
    seen = alpha > 0
    if seen.all() or not seen.any():
        return colour
    filled = _pull_push(colour.astype(np.float32), seen.astype(np.float32))
    return np.where(seen[..., None], colour, filled.astype(colour.dtype))


def _pull_push(colour: Array, weight: Array) -> Array:
    height, width = weight.shape
    if height == width == 1 or weight.all():
        return colour
    odd = ((0, height % 2), (0, width % 2))
    weights = _quarter(np.pad(weight, odd)[..., None])
    colours = _quarter(np.pad(colour * weight[..., None], (*odd, (0, 0)))) / np.maximum(weights, 1e-6)
    coarse = _pull_push(colours, np.minimum(weights[..., 0], 1.0))
    wide = coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    return np.where(weight[..., None] > 0, colour, wide)


def _quarter(x: Array) -> Array:
    return x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]


# --- depths and sizes ------------------------------------------------------------------------------------------


def as_float(pixels: Array) -> Array:
    """Samples of any depth as float32 in [0, 1]."""
    if pixels.dtype == np.float32:
        return pixels
    return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)


def quantise(values: Array, dtype: np.dtype[Any]) -> Array:
    """Float samples clipped to [0, 1], at a depth, rounded half to even (as published scores expect)."""
    values = np.clip(values, 0.0, 1.0)
    if dtype == np.float32:
        return values
    return np.rint(values * np.iinfo(dtype).max).astype(dtype)


def resample(pixels: Array, size: tuple[int, int]) -> Array:
    """(H, W) or (H, W, C) of any depth at (width, height), bicubic, antialiased where it shrinks."""
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    if pixels.dtype == np.uint8:
        flat = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
        result = np.asarray(Image.fromarray(flat).resize(size, Image.Resampling.BICUBIC))
        return result.reshape(size[1], size[0], *pixels.shape[2:])
    planes = [
        np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC))
        for plane in np.moveaxis(np.atleast_3d(as_float(pixels)), 2, 0)
    ]
    return quantise(np.stack(planes, axis=-1), pixels.dtype).reshape(size[1], size[0], *pixels.shape[2:])
