"""Colour with more than 8 bits a sample, and float: what Pillow would squeeze. Needs the extra `deep`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from io import SEEK_END, BytesIO
from types import ModuleType
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from mambair_cli.errors import BadImage
from mambair_cli.images import metadata
from mambair_cli.images.formats import Format
from mambair_cli.images.metadata import Metadata

Array = np.ndarray[Any, Any]
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_DIRECTORIES = (int(ExifTags.IFD.Exif), int(ExifTags.IFD.GPSInfo))

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what matters is raised as well


def read(data: bytes, form: str, check: Callable[[tuple[int, int], int], None]) -> list[Array]:
    """Every page as (H, W, 1 to 4), uint16 or float32 in [0, 1]. `check` gets the size before the decoding.

    Raises BadImage where the extra is missing, or the samples are none of ours.
    """
    if form == "PNG":
        return [_samples(_library("imagecodecs", form).png_decode(data))]
    with _library("tifffile", form).TiffFile(BytesIO(data)) as tiff:
        check((tiff.pages[0].imagewidth, tiff.pages[0].imagelength), len(tiff.pages))
        return [_samples(_interleaved(page)) for page in tiff.pages]


def write(pages: Sequence[Array], stream: IO[bytes], form: Format, kept: Metadata, level: int) -> tuple[str, ...]:
    """Encode pages (H, W, 1 to 4) as PNG or TIFF; gives warnings about metadata that cannot go along."""
    if form.name == "PNG":
        if len(pages) > 1:
            raise BadImage(f"{len(pages)} pages of 16 bits: PNG holds one", "Use --format tiff.")
        return _write_png(pages[0], stream, form, kept, level)
    return _write_tiff(pages, stream, form, kept)


def _library(name: str, form: str) -> ModuleType:
    try:
        return __import__(name)
    except ImportError as error:
        raise BadImage(
            f"{form} in colour with more than 8 bits a sample would be squeezed into 8",
            "The extra reads and writes it whole: pip install 'mambair[deep]'.",
        ) from error


def _interleaved(page: Any) -> Array:
    values = np.asarray(page.asarray())
    return np.moveaxis(values, 0, -1) if page.planarconfig == 2 and values.ndim == 3 else values


def _samples(values: Array) -> Array:
    values = np.atleast_3d(values)
    if values.ndim != 3 or values.shape[2] > 4:
        raise BadImage(f"samples of the shape {values.shape} are not a picture in grey or RGB")
    if values.dtype == np.uint16:
        return values
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if low >= 0.0 and high <= 1.0:
            return values.astype(np.float32)
        raise BadImage(f"float samples from {low:g} to {high:g}: the networks know 0 to 1", "Scale them first.")
    raise BadImage(f"samples of the type {values.dtype} are not supported", "Convert to 16 bits first.")


def _flat(page: Array) -> Array:
    return np.ascontiguousarray(page[..., 0] if page.shape[2] == 1 else page)


def _write_png(page: Array, stream: IO[bytes], form: Format, kept: Metadata, level: int) -> tuple[str, ...]:
    """The codec writes pixels only; Pillow writes the same metadata around one pixel, and its chunks move in."""
    options, lost = metadata.save_options(kept, form, (page.shape[1], page.shape[0]))
    carrier = BytesIO()
    Image.new("RGB", (1, 1)).save(carrier, "PNG", **options)
    extra = b"".join(
        data for name, data in _png_chunks(carrier.getvalue()) if name not in (b"IHDR", b"IDAT", b"IEND")
    )
    data = _library("imagecodecs", "PNG").png_encode(_flat(page), level=level)
    after_header = 8 + 25
    stream.write(data[:after_header] + extra + data[after_header:])
    return lost


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, start = [], 8
    while start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        chunks.append((data[start + 4 : start + 8], data[start:end]))
        start = end
    return chunks


def _write_tiff(pages: Sequence[Array], stream: IO[bytes], form: Format, kept: Metadata) -> tuple[str, ...]:
    options, lost = metadata.save_options(kept, form, (pages[0].shape[1], pages[0].shape[0]))
    exif = options["exif"]
    big = sum(page.nbytes for page in pages) > 3_900_000_000
    directories = {} if big else {tag: ifd for tag in _DIRECTORIES if (ifd := dict(exif.get_ifd(tag)))}
    if big and metadata.has_directories(kept):
        lost = (*lost, "a TIFF of more than 4 GB: only the first part of the EXIF goes along")
    with _library("tifffile", "TIFF").TiffWriter(stream, bigtiff=big, byteorder="<") as tiff:
        for page in pages:
            tiff.write(
                _flat(page),
                photometric="rgb" if page.shape[2] > 2 else "minisblack",
                extrasamples=None if page.shape[2] % 2 else ["unassalpha"],
                planarconfig="contig" if page.shape[2] > 1 else None,
                compression="zlib",
                predictor=page.dtype == np.uint16,
                iccprofile=kept.icc or None,
                software=False,
                extratags=[*_tags(exif), *((tag - 1, "I", 1, 0, True) for tag in directories)],
                metadata=None,
                **({"resolution": kept.dpi, "resolutionunit": "INCH"} if kept.dpi else {}),
            )
    _append(directories, stream)
    return lost


def _tags(exif: Image.Exif) -> list[tuple[int, str, int, Any, bool]]:
    """The tags of the main directory that are text, bytes or whole numbers, as the library takes them."""
    tags: list[tuple[int, str, int, Any, bool]] = []
    for tag, value in exif.items():
        if tag in (*_DIRECTORIES, *metadata.RESOLUTION_TAGS):
            continue
        if isinstance(value, str):
            tags.append((tag, "s", 0, value.encode("utf-8"), True))
        elif isinstance(value, bytes):
            tags.append((tag, "B", len(value), value, True))
        elif isinstance(value, int):
            tags.append((tag, "I", 1, value, True))
    return tags


def _append(directories: dict[int, dict[int, Any]], stream: IO[bytes]) -> None:
    """Write EXIF's own directories at the end of a little-endian TIFF and point its first page to them."""
    for tag, values in directories.items():
        directory = TiffImagePlugin.ImageFileDirectory_v2(group=tag)
        for key, value in values.items():
            directory[key] = value
        end = stream.seek(0, SEEK_END)
        place = end + end % 2  # directories begin at even places
        stream.write(bytes(place - end) + directory.tobytes(place))
        # The library refuses to write these tags: so far the number below holds their place.
        entry = _entry(stream, tag - 1)
        stream.seek(entry)
        stream.write(tag.to_bytes(2, "little"))
        stream.seek(entry + 8)
        stream.write(place.to_bytes(4, "little"))


def _entry(stream: IO[bytes], tag: int) -> int:
    """Where a tag stands in the first directory: number, type, count and value, in 12 bytes."""
    stream.seek(4)
    start = int.from_bytes(stream.read(4), "little")
    stream.seek(start)
    count = int.from_bytes(stream.read(2), "little")
    entries = stream.read(12 * count)
    tags = [int.from_bytes(entries[i : i + 2], "little") for i in range(0, len(entries), 12)]
    return start + 2 + 12 * tags.index(tag)
