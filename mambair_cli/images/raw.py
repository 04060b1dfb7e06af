"""Camera raw: recognised always, developed by LibRaw (rawpy, the extra `raw`), never taken for its thumbnail."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from io import BytesIO
from pathlib import PurePath
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image

from mambair_cli.errors import BadImage
from mambair_cli.images import metadata
from mambair_cli.images.formats import RAW_SUFFIXES
from mambair_cli.images.metadata import Metadata
from mambair_cli.images.structure import HEAD, TIFF_MAGICS, tiff_directories

Array = np.ndarray[Any, Any]

_MAGICS = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0")  # RAF, ORF, RW2
_DNG_VERSION, _PHOTOMETRIC, _SUBFILE = 50706, 262, 254
_SENSOR = (32803, 34892)  # photometric interpretations: a mosaic of colour filters, and linear raw
_BASE = ExifTags.Base
# What is true of the developed picture as well; the rest tells how a sensor is laid out.
_KEPT = (
    *(_BASE.Make, _BASE.Model, _BASE.DateTime, _BASE.Artist, _BASE.Copyright, _BASE.ImageDescription, _BASE.Software),
    *(ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo),
)
_SRGB_CURVE = (2.4, 12.92)


def is_raw(file: IO[bytes], name: PurePath | None) -> bool:
    """Whether a file is camera raw, by its name or by what is in it; its position ends at 0."""
    if name and name.suffix.lower() in RAW_SUFFIXES:
        return True
    file.seek(0)
    head = file.read(HEAD)
    found = head.startswith(_MAGICS) or head[4:12] == b"ftypcrx " or (head[:2] == b"II" and head[8:10] == b"CR")
    if not found and head.startswith(TIFF_MAGICS):
        directories = [dict(directory) for directory in tiff_directories(file)]
        found = any(directory.get(_PHOTOMETRIC) in _SENSOR for directory in directories)
        # A preview before pixels that cannot be found. Developed pictures, too, may carry the version.
        found |= any(_DNG_VERSION in directory and directory.get(_SUBFILE) == 1 for directory in directories)
    file.seek(0)
    return found


def develop(file: Any, check: Callable[[tuple[int, int], int], None]) -> tuple[Array, Metadata]:
    """The upright picture, (H, W, 3) uint16 in sRGB, by the camera's white balance and without brightening.

    `check` gets the size before the work. Raises BadImage where the extra is missing.
    """
    if not find_spec("rawpy"):
        raise BadImage("camera raw", "Develop it first, or pip install 'mambair[raw]'.")
    import rawpy

    try:
        with rawpy.imread(file) as raw:
            check((raw.sizes.width, raw.sizes.height), 1)
            pixels = raw.postprocess(
                use_camera_wb=True,
                no_auto_bright=True,
                output_bps=16,
                output_color=rawpy.ColorSpace.sRGB,
                gamma=_SRGB_CURVE,
            )
            thumbnail = _thumbnail(raw)
    except rawpy.LibRawError as error:
        reason = error.args[0] if error.args else error
        raise BadImage(f"camera raw that LibRaw cannot read: {_text(reason)}", "Develop it first.") from error
    return pixels, _metadata(file, thumbnail)


def _text(reason: object) -> str:
    return reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)


def _thumbnail(raw: Any) -> bytes:
    """The JPEG inside, which most cameras give all of the EXIF."""
    import rawpy

    try:
        found = raw.extract_thumb()
    except rawpy.LibRawError:
        return b""
    return bytes(found.data) if found.format == rawpy.ThumbFormat.JPEG else b""


def _metadata(file: IO[bytes], thumbnail: bytes) -> Metadata:
    """The EXIF of the thumbnail, else of the file itself where that is built as a TIFF."""
    for exif in (_exif_of_jpeg(thumbnail), _exif_of_tiff(file)):
        if exif:
            return Metadata(exif=exif)
    return Metadata()


def _exif_of_jpeg(data: bytes) -> bytes:
    try:
        with Image.open(BytesIO(data), formats=["JPEG"]) as image:
            return metadata.clean_exif(image.getexif())
    except Exception:  # none, or broken: the picture is whole
        return b""


def _exif_of_tiff(file: IO[bytes]) -> bytes:
    try:
        file.seek(0)
        exif = Image.Exif()
        exif.load_from_fp(file)
        for tag in set(exif) - set(map(int, _KEPT)):
            del exif[tag]
        return metadata.clean_exif(exif)
    except Exception:  # as above
        return b""
