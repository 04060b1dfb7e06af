"""Files to pixels: upright, with their colour space, transparency, bit depth, frames and metadata."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from mambair_cli.errors import BadImage
from mambair_cli.images import color, deep, headers, metadata, raw, structure
from mambair_cli.images.color import Array
from mambair_cli.images.formats import FORMATS, MAX_PIXELS, MAX_RESULT_PIXELS, VIDEO_SUFFIXES
from mambair_cli.images.metadata import Metadata
from mambair_cli.streams import held

_opening = threading.Lock()
_RAISE_LIMIT = "If the file is sound, raise --max-pixels."
_READ = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "AVIF", "HEIF", "GIF", "BMP", "PPM")


@dataclass(frozen=True)
class Frame:
    """Upright pixels in the file's own colour space, (H, W, 1 or 3), uint8, uint16 or float32 in [0, 1]."""

    pixels: Array
    alpha: Array | None = None  # (H, W), the same depth
    duration: float = 0.0  # milliseconds

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)"""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def grey(self) -> bool:
        return self.pixels.shape[2] == 1


@dataclass(frozen=True)
class Picture:
    """A whole file, decoded: its frames and all that is needed to write it back."""

    frames: tuple[Frame, ...]
    format: str = "PNG"  # Pillow's name
    metadata: Metadata = field(default_factory=Metadata)
    warnings: tuple[str, ...] = ()
    jpeg_quality: int | None = None
    lossless: bool = True
    compression: str | None = None  # TIFF
    loop: int | None = None
    default_image: bool = False  # APNG: the first frame is not part of the animation

    @property
    def size(self) -> tuple[int, int]:
        return self.frames[0].size

    @property
    def space(self) -> color.Space | None:
        """The colour space to come back to, None where the network takes the values as they are."""
        first = self.frames[0]
        if not self.metadata.icc or first.pixels.dtype != np.uint8:
            return None  # littleCMS is 8-bit here: deep pictures stay in their own space all the way
        return color.space_of(self.metadata.icc, first.grey)


# --- reading --------------------------------------------------------------------------------------------------


Source = Path | bytes | IO[bytes]  # an open file or stream may be one in which nobody can seek


def read_picture(source: Source, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode a file, its bytes, or a stream of them. Raises BadImage, whatever the bytes are."""
    with _opened(source, max_pixels) as file:
        if raw.is_raw(file, source if isinstance(source, Path) else None):
            return _read_raw(file, max_pixels)
        file, notes = structure.checked(file)
        image = _identify(file, max_pixels)
        if image is None:
            picture = _read_deep(file, None, max_pixels)
        else:
            _check_pixels(image.size, _count(image), max_pixels)
            read = _read_deep if _is_deep(file, image) else _read_with_pillow
            picture = read(file, image, max_pixels)
        return replace(picture, warnings=(*notes, *picture.warnings))


def size_of(path: Path) -> tuple[int, int] | None:
    """(width, height) as `read_picture` would give it, read off the header; None where that does not tell."""
    try:
        with _opened(path, MAX_RESULT_PIXELS) as file:
            if raw.is_raw(file, path):
                return None
            file, _ = structure.checked(file)
            image = _identify(file, MAX_RESULT_PIXELS)
            if image is None:
                return None
            return image.size[::-1] if metadata.orientation(image) > 4 else image.size
    except BadImage:
        return None


def read_rgb(source: Source, max_pixels: int = MAX_PIXELS) -> Array:
    """The first frame as one looks at it: (H, W, 3), uint8, upright, in sRGB, transparency on white. Raises BadImage.

    What comparisons show and training learns from.
    """
    picture = read_picture(source, max_pixels)
    frame = _at_8_bits(picture.frames[0])
    pixels, space = frame.pixels, replace(picture, frames=(frame,)).space
    if space:
        pixels = color.apply(space.to_srgb, pixels)
    pixels = pixels.repeat(3, axis=2) if frame.grey else pixels
    if frame.alpha is None:
        return pixels
    alpha = color.as_float(frame.alpha)[..., None]
    return color.quantise(color.as_float(pixels) * alpha + 1.0 - alpha, np.dtype(np.uint8))


def _at_8_bits(frame: Frame) -> Frame:
    def reduced(plane: Array) -> Array:
        return plane if plane.dtype == np.uint8 else color.quantise(color.as_float(plane), np.dtype(np.uint8))

    return replace(frame, pixels=reduced(frame.pixels), alpha=None if frame.alpha is None else reduced(frame.alpha))


def longest(max_pixels: int) -> int:
    """Bytes that no file of so many pixels is longer than."""
    return structure.LARGEST_PART + structure.BYTES_PER_PIXEL * max_pixels


@contextmanager
def _opened(source: Source, max_pixels: int) -> Iterator[IO[bytes]]:
    """The source as a file to seek in, at its beginning.

    The one place where what a decoder raises on bad bytes becomes BadImage.
    """
    head = b""
    try:
        with _seekable(source, max_pixels) as file:
            head = file.read(structure.HEAD)
            file.seek(0)
            yield file
    except BadImage:
        raise
    except FileNotFoundError as error:
        raise BadImage("no such file") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"more than {max_pixels:,} pixels", _RAISE_LIMIT) from error
    except UnidentifiedImageError as error:
        raise _unread(source, head) from error
    except OSError as error:
        why = "it is closed" if error.errno == errno.EBADF else error
        raise BadImage(f"cannot be read: {why}") from error
    except Exception as error:  # decoders raise anything: struct.error, KeyError, zlib.error, SyntaxError, ...
        raise BadImage(f"cannot be read: {error or type(error).__name__}") from error


@contextmanager
def _seekable(source: Source, max_pixels: int) -> Iterator[IO[bytes]]:
    """The source as a file to seek in; closed in the end, unless the caller opened it."""
    if isinstance(source, bytes):
        yield BytesIO(source)
        return
    with source.open("rb") if isinstance(source, Path) else nullcontext(source) as stream:
        if stream.seekable():
            yield stream
            return
        head = stream.read(structure.HEAD)
        if not structure.is_picture(head) or structure.is_video(head):
            raise _unread(source, head)
        with held(stream, longest(max_pixels), head) as file:
            yield file


def _identify(file: IO[bytes], max_pixels: int) -> Image.Image | None:
    try:
        # Pillow allocates for some formats before we see the size; its limit is global, hence the lock.
        with _opening:
            before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
            try:
                return Image.open(file, formats=readable())
            finally:
                Image.MAX_IMAGE_PIXELS = before
    except UnidentifiedImageError:
        file.seek(0)
        if file.read(4) in structure.TIFF_MAGICS:
            return None
        raise


@lru_cache(maxsize=1)
def readable() -> tuple[str, ...]:
    """Formats that are safe to try and can be read here; HEIF where the extra is installed."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in _READ if name in Image.OPEN)


def _unread(source: Source, head: bytes) -> BadImage:
    """Why a file that nobody knows is not read."""
    suffix = source.suffix.lower() if isinstance(source, Path) else ""
    if suffix in VIDEO_SUFFIXES or structure.is_video(head):
        return BadImage("a video", "Take it apart into frames and put them together again: docs/video.md tells how.")
    if suffix in FORMATS["HEIF"].suffixes and "HEIF" not in readable():
        return BadImage("HEIC cannot be read", "It needs the extra: pip install 'mambair[heif]'.")
    return BadImage(
        "not a picture, or not one that can be read", "Read are PNG, JPEG, WebP, TIFF, AVIF, GIF, BMP, PPM."
    )


def _count(image: Image.Image) -> int:
    """Frames or pages; one for the JPEGs (MPO) that carry previews and depth maps along."""
    return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))


def _check_pixels(size: tuple[int, int], frames: int, max_pixels: int) -> None:
    if not min(size):
        raise BadImage(f"it has no pixels ({size[0]}x{size[1]})")
    if size[0] * size[1] * frames > max_pixels:
        each = f" in {frames} frames" if frames > 1 else ""
        raise BadImage(
            f"{size[0]}x{size[1]} pixels{each} are more than {max_pixels:,}",
            _RAISE_LIMIT,
        )


def _read_with_pillow(file: IO[bytes], image: Image.Image, max_pixels: int) -> Picture:
    frames, notes = [], list(_notes(file, image))
    for index in range(_count(image)):
        image.seek(index)
        image.load()
        if index == 0:
            notes += metadata.exif_problem(image)
            traits = _traits(file, image)
        frames.append(_frame(image))
    image.seek(0)
    kept, problems = metadata.collect(image, file)
    if kept.icc and image.mode in ("CMYK", "LAB"):
        kept = replace(kept, icc=b"")
    if kept.icc:
        try:
            color.space_of(kept.icc, frames[0].grey)
        except ValueError as error:
            problems = (*problems, f"{error}: it is dropped")
            kept = replace(kept, icc=b"")
    return Picture(tuple(frames), metadata=kept, warnings=(*notes, *problems), **traits)


def _notes(file: IO[bytes], image: Image.Image) -> Iterator[str]:
    """What reading this file changes or leaves behind."""
    if image.mode in ("CMYK", "LAB"):
        yield f"{image.mode} is converted to sRGB"
    if image.mode.startswith("I;16") and image.has_transparency_data:
        yield "16-bit grey: the transparent level is dropped"
    if image.format == "MPO" and getattr(image, "n_frames", 1) > 1:
        yield "the further pictures inside this JPEG (preview, depth, gain map) are left out"
    if image.format == "AVIF" and headers.avif_bits(file) > 8:
        yield f"{headers.avif_bits(file)}-bit AVIF is read as 8-bit"
    if image.info.get("bit_depth", 8) > 8:
        yield f"{image.info['bit_depth']}-bit {image.format} is read as 8-bit"


def _traits(file: IO[bytes], image: Image.Image) -> dict[str, Any]:
    """How the file was encoded, so that the result can be encoded likewise."""
    info, form = image.info, str(image.format)
    tables = getattr(image, "quantization", None)
    return {
        "format": "JPEG" if form == "MPO" else form,
        "jpeg_quality": headers.jpeg_quality(tables[min(tables)]) if tables else None,
        "lossless": form in ("PNG", "TIFF", "GIF", "BMP", "PPM")
        or (form == "WEBP" and headers.is_lossless_webp(file)),
        "compression": info.get("compression") if form == "TIFF" else None,
        "loop": info.get("loop"),
        "default_image": bool(info.get("default_image", False)),
    }


def _frame(image: Image.Image) -> Frame:
    duration = float(image.info.get("duration", 0) or 0)
    wide = image.mode in ("I", "F") or image.mode.startswith("I;16")
    pixels = _wide_grey(np.asarray(image)) if wide else np.asarray(canonical(image))
    return split(metadata.turned(np.atleast_3d(pixels), metadata.orientation(image)), duration)


def split(pixels: Array, duration: float = 0.0) -> Frame:
    """(H, W, 1 to 4): the even numbers have transparency."""
    if pixels.shape[2] % 2:
        return Frame(pixels, None, duration)
    return Frame(pixels[..., :-1], pixels[..., -1], duration)


def canonical(image: Image.Image) -> Image.Image:
    """Any 8-bit mode as L, LA, RGB or RGBA."""
    if image.mode in ("CMYK", "LAB"):
        return color.to_srgb(image, image.info.get("icc_profile", b""))
    if image.mode in ("1", "L", "LA", "La"):
        grey = True
    elif image.mode in ("P", "PA"):
        palette = np.asarray(image.getpalette() or [0, 0, 0]).reshape(-1, 3)
        grey = bool((palette == palette[:, :1]).all())
    else:
        grey = False
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return image.convert("LA") if grey else image
    return image.convert("L" if grey else "RGB")


def _wide_grey(values: Array) -> Array:
    """Pillow's 16-bit, 32-bit and float grey as uint16 or float32. Raises BadImage rather than squeeze it."""
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f":
        if not (low >= 0.0 and high <= 1.0):
            raise BadImage(
                f"float samples from {low:g} to {high:g}: the networks know 0 to 1", "Scale the picture first."
            )
        return values.astype(np.float32)
    if not (low >= 0 and high <= 65535):
        raise BadImage(f"grey levels from {low:g} to {high:g} do not fit in 16 bits", "Scale the picture first.")
    return values.astype(np.uint16)


# --- more than 8 bits -----------------------------------------------------------------------------------------


def _is_deep(file: IO[bytes], image: Image.Image) -> bool:
    """Whether Pillow would squeeze several channels of more than 8 bits into 8."""
    if image.format == "TIFF":
        bits = image.tag_v2.get(258, (1,))  # type: ignore[attr-defined]
        return len(bits) > 1 and max(bits) > 8
    if image.format == "PNG":
        bit_depth, colour_type = headers.peek(file, 24, 2)
        return bit_depth == 16 and colour_type != 0
    if image.format == "PPM" and image.mode == "RGB" and image.tile[0].codec_name == "ppm":  # type: ignore[attr-defined]
        raise BadImage("16-bit PPM cannot be read without loss", "Convert it to a 16-bit PNG or TIFF first.")
    return False


def _read_deep(file: IO[bytes], image: Image.Image | None, max_pixels: int) -> Picture:
    if image is None:
        pages = deep.read_tiff(file, lambda size, count: _check_pixels(size, count, max_pixels))
        return Picture(tuple(map(split, pages)), "TIFF", warnings=("its metadata is dropped",))
    notes: list[str] = []
    if image.format == "PNG" and _count(image) > 1:
        notes.append("a 16-bit animation: only its first picture is kept")
    arrays = deep.read_twice(file, image)
    if arrays is None:
        arrays = deep.read_tiff(file, lambda size, count: _check_pixels(size, count, max_pixels))
    kept, problems = metadata.collect(image, file)
    turn = metadata.orientation(image)
    frames = tuple(split(metadata.turned(array, turn)) for array in arrays)
    return Picture(frames, str(image.format), kept, (*notes, *problems))


def _read_raw(file: IO[bytes], max_pixels: int) -> Picture:
    pixels, kept = raw.develop(file, lambda size, count: _check_pixels(size, count, max_pixels))
    notes = ("camera raw: developed plainly, by the camera's white balance and without brightening",)
    return Picture((split(pixels),), "RAW", kept, notes if kept.exif else (*notes, "its metadata is dropped"))
