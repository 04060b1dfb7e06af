"""Pixels to files: as they came, or as close as the format allows, saying what it does not allow."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np
from PIL import Image

from mambair_cli.errors import BadImage
from mambair_cli.images import color, deep, metadata
from mambair_cli.images.decode import Frame, Picture, readable
from mambair_cli.images.formats import Format
from mambair_cli.images.metadata import Metadata

_LOWEST_QUALITY = 90  # a restored picture is not squeezed through a bad JPEG's tables again
_TIFF_COMPRESSIONS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma")


@dataclass(frozen=True)
class Encoding:
    """How results are encoded."""

    png_level: int = 1  # zlib, 0 to 9
    quality: int | None = None  # lossy formats, 1 to 100; None: like the input's
    strip_metadata: bool = False


def check(form: Format, size: tuple[int, int], frames: int) -> None:
    """Raise BadImage, before any work, if a result of this kind does not fit, or nobody here can write the format."""
    if form.name not in _writable():
        hint = (
            "pip install 'mambair[heif]', or --format avif." if form.name == "HEIF" else "Use another: --format webp."
        )
        raise BadImage(f"{form.suffixes[0]} files cannot be written by what is installed", hint)
    if max(size) > form.max_side:
        raise BadImage(
            f"{size[0]}x{size[1]} is too large: {form.name} holds {form.max_side} pixels a side",
            "Choose another format with --format, such as png.",
        )
    if frames > 1 and not form.frames:
        raise BadImage(f"{frames} frames: {form.name} holds one", "Use --format webp, png or tiff.")


def _writable() -> Collection[str]:
    readable()  # makes formats of extras known
    return Image.SAVE


def write(picture: Picture, stream: IO[bytes], form: Format, encoding: Encoding) -> tuple[str, ...]:
    """Encode into a seekable binary stream; gives warnings about what the format cannot hold.

    Raises BadImage where it cannot be written at all.
    """
    if form.name not in _writable():
        check(form, picture.size, 1)
    kept = picture.metadata.stripped() if encoding.strip_metadata else picture.metadata
    if form.name in ("GIF", "BMP") and picture.space is not None:
        picture = replace(picture, frames=tuple(_in_srgb(frame, picture.space) for frame in picture.frames))
    try:
        return _encoded(picture, stream, form, encoding, kept)
    except (BadImage, OSError, MemoryError):
        raise
    except Exception as error:  # broken metadata that could be read, and that the library cannot write
        if kept == kept.stripped():
            raise
        stream.seek(0)
        stream.truncate()
        notes = _encoded(picture, stream, form, encoding, kept.stripped())
        return (*notes, f"its metadata is broken and cannot be written as {form.name}: it is dropped ({error})")


def _encoded(
    picture: Picture, stream: IO[bytes], form: Format, encoding: Encoding, kept: Metadata
) -> tuple[str, ...]:
    frames, problems = _fitted(picture.frames, form)
    if frames[0].pixels.dtype != np.uint8 and not (frames[0].grey and frames[0].alpha is None):
        return (*problems, *deep.write([_stack(f) for f in frames], stream, form, kept, encoding.png_level))
    options, lost = metadata.save_options(kept, form, picture.size)
    coding = _coding(picture, form, encoding)
    if form.name == "TIFF" and coding["compression"] != "raw" and metadata.has_directories(kept):
        coding["compression"] = "raw"  # Pillow has libtiff compress, which cannot write EXIF's own directories
        problems = (*problems, "written uncompressed: only so can a TIFF's EXIF be kept")
    images = [_to_pillow(frame) for frame in frames]
    if len(images) > 1:
        options |= _animation(picture, images, form)
    if form.name == "GIF":
        problems = (*problems, "GIF holds 256 colours a frame; --format webp or png holds all")
    images[0].save(stream, form.name, **options, **coding)
    return (*problems, *lost)


def _coding(picture: Picture, form: Format, encoding: Encoding) -> dict[str, Any]:
    """The encoder's settings: lossless stays lossless, and lossy is as good as it was, or better."""
    quality = encoding.quality or max(picture.jpeg_quality or 0, _LOWEST_QUALITY)
    if form.name == "PNG":
        return {"compress_level": encoding.png_level}
    if form.name == "JPEG":
        return {"quality": quality, "subsampling": 0}
    if form.name == "WEBP":
        lossless = picture.lossless and encoding.quality is None
        return {"lossless": lossless, "quality": 50 if lossless else quality, "method": 2, "exact": lossless}
    if form.name == "AVIF":
        return {"quality": quality, "subsampling": "4:4:4"}
    if form.name == "HEIF":
        return {"quality": quality, "chroma": 444}
    if form.name == "TIFF":
        known = picture.compression in _TIFF_COMPRESSIONS
        size = sum(frame.pixels.nbytes for frame in picture.frames)
        return {
            "compression": picture.compression if known else "tiff_adobe_deflate",
            "big_tiff": size > 3_900_000_000,
        }
    return {}


def _animation(picture: Picture, images: list[Image.Image], form: Format) -> dict[str, Any]:
    options: dict[str, Any] = {"save_all": True, "append_images": images[1:]}
    if form.timing:
        durations = [frame.duration for frame in picture.frames]
        options["duration"] = [round(d) for d in durations] if form.name != "PNG" else durations
    if picture.loop is not None and form.timing:
        options["loop"] = picture.loop
    if form.name == "PNG":
        options |= {"disposal": 0, "blend": 0, "default_image": picture.default_image}
        if picture.default_image:
            options["duration"] = options["duration"][1:]
    if form.name == "GIF":
        options["disposal"] = 2
    return options


def _fitted(frames: tuple[Frame, ...], form: Format) -> tuple[tuple[Frame, ...], tuple[str, ...]]:
    """Frames as the format can hold them: depth, transparency, and one mode for all of an animation."""
    problems = []
    depth = frames[0].pixels.dtype
    if depth == np.float32 and not form.floats:
        problems.append(f"{form.name} holds no float samples: written with {16 if form.wide else 8} bits")
        frames = tuple(_at_depth(frame, np.uint16 if form.wide else np.uint8) for frame in frames)
    elif depth == np.uint16 and not form.wide:
        problems.append(f"{form.name} holds 8 bits a sample: the 16 of the input are rounded")
        frames = tuple(_at_depth(frame, np.uint8) for frame in frames)
    if not form.alpha and any(frame.alpha is not None for frame in frames):
        problems.append(f"{form.name} has no transparency: the picture is put on white")
        frames = tuple(_on_white(frame) for frame in frames)
    if form.timing and len(frames) > 1:
        frames = _alike(frames)
    return frames, tuple(problems)


def _at_depth(frame: Frame, depth: type[np.generic]) -> Frame:
    dtype = np.dtype(depth)
    alpha = None if frame.alpha is None else color.quantise(color.as_float(frame.alpha), dtype)
    return replace(frame, pixels=color.quantise(color.as_float(frame.pixels), dtype), alpha=alpha)


def _on_white(frame: Frame) -> Frame:
    if frame.alpha is None:
        return frame
    alpha = color.as_float(frame.alpha)[..., None]
    mixed = color.as_float(frame.pixels) * alpha + (1 - alpha)
    return replace(frame, pixels=color.quantise(mixed, frame.pixels.dtype), alpha=None)


def _alike(frames: tuple[Frame, ...]) -> tuple[Frame, ...]:
    """All grey or all colour, all with or all without transparency: the frames of one animation share a mode."""
    grey = all(frame.grey for frame in frames)
    clear = any(frame.alpha is not None for frame in frames)
    if grey and clear:  # animations have no grey with transparency
        grey = False
    result = []
    for frame in frames:
        pixels = frame.pixels.repeat(3, axis=2) if frame.grey and not grey else frame.pixels
        opaque = np.full(pixels.shape[:2], 255, np.uint8) if clear and frame.alpha is None else frame.alpha
        result.append(replace(frame, pixels=pixels, alpha=opaque))
    return tuple(result)


def _in_srgb(frame: Frame, space: color.Space) -> Frame:
    return replace(frame, pixels=color.apply(space.to_srgb, frame.pixels))


def _stack(frame: Frame) -> color.Array:
    return frame.pixels if frame.alpha is None else np.dstack((frame.pixels, frame.alpha))


def _to_pillow(frame: Frame) -> Image.Image:
    stacked = _stack(frame)
    return Image.fromarray(np.ascontiguousarray(stacked[..., 0] if stacked.shape[2] == 1 else stacked))
