"""Colour with more than 8 bits a sample, and float: what Pillow would squeeze. Needs the extra `deep`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from io import BytesIO
from types import ModuleType
from typing import IO, Any

import numpy as np
from PIL import Image

from mambair_cli.errors import BadImage
from mambair_cli.formats import Format
from mambair_cli.images import metadata
from mambair_cli.images.metadata import Metadata

Array = np.ndarray[Any, Any]
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_XMP_TAG = 700

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
    return _write_tiff(pages, stream, kept)


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


def _write_png(page: Array, stream: IO[bytes], form: Format, kept: Metadata, level: int) -> tuple[str, ...]:
    """The codec writes pixels only; Pillow writes the same metadata around one pixel, and its chunks move in."""
    options, lost = metadata.save_options(kept, form, (page.shape[1], page.shape[0]))
    carrier = BytesIO()
    Image.new("RGB", (1, 1)).save(carrier, "PNG", **options)
    extra = b"".join(
        data for name, data in _png_chunks(carrier.getvalue()) if name not in (b"IHDR", b"IDAT", b"IEND")
    )
    data = _library("imagecodecs", "PNG").png_encode(np.squeeze(page), level=level)
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


def _write_tiff(pages: Sequence[Array], stream: IO[bytes], kept: Metadata) -> tuple[str, ...]:
    dpi = {"resolution": kept.dpi, "resolutionunit": "INCH"} if kept.dpi else {}
    xmp = [(_XMP_TAG, "B", len(kept.xmp), kept.xmp, True)] if kept.xmp else []
    with _library("tifffile", "TIFF").TiffWriter(
        stream, bigtiff=sum(p.nbytes for p in pages) > 3_900_000_000
    ) as tiff:
        for page in pages:
            tiff.write(
                np.ascontiguousarray(page[..., 0] if page.shape[2] == 1 else page),
                photometric="rgb" if page.shape[2] > 2 else "minisblack",
                extrasamples=None if page.shape[2] % 2 else ["unassalpha"],
                planarconfig="contig" if page.shape[2] > 1 else None,
                compression="zlib",
                predictor=page.dtype == np.uint16,
                iccprofile=kept.icc or None,
                extratags=xmp,
                metadata=None,
                **dpi,
            )
    return ("EXIF does not go along into a deep TIFF: it is dropped",) if kept.exif else ()
