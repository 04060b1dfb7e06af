"""Colour with more than 8 bits a sample, and float: what Pillow would squeeze.

Pillow unpacks 16-bit colour, tifffile writes it, and reads whatever TIFF Pillow does not; for rare compressions that
needs imagecodecs, the extra `deep`.
"""

from __future__ import annotations

import logging
import struct
import sys
import zlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from io import SEEK_END, BytesIO
from typing import IO, Any

import numpy as np
import tifffile
from PIL import ExifTags, Image, TiffImagePlugin

from mambair_cli.errors import BadImage
from mambair_cli.images import metadata
from mambair_cli.images.formats import Format
from mambair_cli.images.metadata import Metadata
from mambair_cli.images.structure import LARGEST_PART

Array = np.ndarray[Any, Any]
_STRIP_ROWS = 256
_PAETH = 4  # the number of the filter
_PNG_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels
_DEFLATE = (8, 32946)
_PLAIN_COMPRESSIONS = (1, *_DEFLATE, 32773)  # none, deflate, PackBits: what tifffile unpacks by itself
_FLOAT_PREDICTOR = 3
_DIRECTORIES = (int(ExifTags.IFD.Exif), int(ExifTags.IFD.GPSInfo))

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what matters is raised as well


def read_twice(file: IO[bytes], image: Image.Image) -> list[Array] | None:
    """16-bit colour by Pillow, which keeps 8 bits of each sample: once the upper ones, once the lower.

    Every page as (H, W, 2 to 4), uint16; None where Pillow has no such way of unpacking this file.
    """
    lower = Image.open(file, formats=[str(image.format)])
    pages = []
    for number in range(int(getattr(image, "n_frames", 1)) if image.format == "TIFF" else 1):
        for view in (image, lower):
            view.seek(number)
        unpacking = _raw_mode(image)
        if unpacking == "LA;16B":  # four bytes, which are those of four samples of 8 bits
            _unpack_as(lower, "RGBA")
            pages.append(np.asarray(lower).view(">u2").astype(np.uint16))
            continue
        if unpacking not in _OTHER_BYTES or getattr(image, "_planar_configuration", 1) != 1:
            return None
        _unpack_as(lower, _OTHER_BYTES[unpacking])
        page = np.asarray(image).astype(np.uint16)
        page <<= 8
        page |= np.asarray(lower)
        pages.append(_keyed(page, image.info.get("transparency")))
    return pages


# How Pillow unpacks the upper bytes of 16-bit samples -> how it unpacks the lower ones.
_NATIVE = {"little": "B", "big": "L"}[sys.byteorder]
_OTHER_BYTES = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA")
    for order, other in (("B", "L"), ("L", "B"), ("N", _NATIVE))
}


def _raw_mode(image: Image.Image) -> str:
    arguments = image.tile[0].args  # type: ignore[attr-defined]
    return str(arguments if isinstance(arguments, str) else arguments[0])


def _unpack_as(image: Image.Image, raw_mode: str) -> None:
    image.tile = [  # type: ignore[attr-defined]
        tile._replace(args=raw_mode if isinstance(tile.args, str) else (raw_mode, *tile.args[1:]))
        for tile in image.tile  # type: ignore[attr-defined]
    ]


def _keyed(page: Array, colour: Any) -> Array:
    """With transparency for the one colour that a PNG declares transparent."""
    if not (isinstance(colour, tuple) and page.shape[2] == 3):
        return page
    seen = (page != np.array(colour)).any(axis=2)
    return np.dstack((page, np.where(seen, 65535, 0).astype(np.uint16)))


def read_tiff(file: IO[bytes], check: Callable[[tuple[int, int], int], None]) -> list[Array]:
    """Every page of a TIFF as (H, W, 1 to 4), uint16 or float32 in [0, 1]. `check` gets the size before the decoding.

    Raises BadImage where a codec is missing, or the samples are none of ours.
    """
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        first: Any = tiff.pages[0]
        check((first.imagewidth, first.imagelength), len(tiff.pages))
        return [_samples(_interleaved(page)) for page in tiff.pages]


def _interleaved(page: Any) -> Array:
    size = sum(page.databytecounts)
    if size > LARGEST_PART + 2 * page.nbytes:
        raise BadImage(f"{size:,} bytes for {page.nbytes:,} of pixels: made to fill the memory, or damaged")
    if not find_spec("imagecodecs"):
        _check_codec(page)
    values = np.asarray(page.asarray())
    return np.moveaxis(values, 0, -1) if page.planarconfig == 2 and values.ndim == 3 else values


def _check_codec(page: Any) -> None:
    """What unpacks without the extra: nothing that needs it, nothing that swells beyond the pixels."""
    if page.compression not in _PLAIN_COMPRESSIONS or page.predictor == _FLOAT_PREDICTOR:
        raise BadImage(
            f"a TIFF of {page.bitspersample} bits a sample with {page.compression.name} compression in this layout",
            "The extra reads it: pip install 'mambair[deep]'.",
        )
    if page.compression in _DEFLATE:
        for start, length in zip(page.dataoffsets, page.databytecounts, strict=True):
            page.parent.filehandle.seek(start)
            unpacker = zlib.decompressobj()
            unpacker.decompress(page.parent.filehandle.read(length), page.nbytes + LARGEST_PART)
            if unpacker.unconsumed_tail:
                raise BadImage("its strips unpack to more than its pixels", "The file is damaged.")


def write(pages: Sequence[Array], stream: IO[bytes], form: Format, kept: Metadata, level: int) -> tuple[str, ...]:
    """Encode pages (H, W, 1 to 4) as PNG or TIFF; gives warnings about metadata that cannot go along."""
    if form.name == "PNG":
        if len(pages) > 1:
            raise BadImage(f"{len(pages)} pages of 16 bits: PNG holds one", "Use --format tiff.")
        return _write_png(pages[0], stream, form, kept, level)
    return _write_tiff(pages, stream, form, kept)


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
    """Pillow writes the header and the metadata around one pixel; the true size and pixels take its place."""
    height, width, channels = page.shape
    options, lost = metadata.save_options(kept, form, (width, height))
    carrier = BytesIO()
    Image.new("RGB", (1, 1)).save(carrier, "PNG", **options)
    header = struct.pack(">IIBBBBB", width, height, 16, _PNG_COLOUR_TYPES[channels], 0, 0, 0)
    stream.write(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header))
    stream.writelines(
        data for name, data in _png_chunks(carrier.getvalue()) if name not in (b"IHDR", b"IDAT", b"IEND")
    )
    packer = zlib.compressobj(level)
    for top in range(0, height, _STRIP_ROWS):
        stream.write(_chunk(b"IDAT", packer.compress(_filtered(page, top, top + _STRIP_ROWS))))
    stream.write(_chunk(b"IDAT", packer.flush()) + _chunk(b"IEND", b""))
    return lost


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _filtered(page: Array, top: int, bottom: int) -> bytes:
    """Rows of samples as PNG packs them: differences to Paeth's prediction from left, above, and above left."""
    rows = page[max(top - 1, 0) : bottom].astype(">u2").view(np.uint8).reshape(-1, page.shape[1], 2 * page.shape[2])
    known = np.pad(rows, ((top == 0, 0), (1, 0), (0, 0))).astype(np.int16)
    left, above, corner = known[1:, :-1], known[:-1, 1:], known[:-1, :-1]
    to_left, to_above = np.abs(above - corner), np.abs(left - corner)
    to_corner = np.abs(left + above - 2 * corner)
    near_left = (to_left <= to_above) & (to_left <= to_corner)
    predicted = np.where(near_left, left, np.where(to_above <= to_corner, above, corner))
    differences = (known[1:, 1:] - predicted).astype(np.uint8).reshape(len(predicted), -1)
    return np.pad(differences, ((0, 0), (1, 0)), constant_values=_PAETH).tobytes()


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
    with tifffile.TiffWriter(stream, bigtiff=big, byteorder="<") as tiff:
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
                resolution=kept.dpi,
                resolutionunit="INCH" if kept.dpi else None,
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
