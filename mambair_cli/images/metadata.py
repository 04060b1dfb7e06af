"""What a picture carries besides its pixels: EXIF, XMP, IPTC, text, resolution. Read once, written to any format."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from mambair_cli.formats import Format

_TAG = ExifTags.Base
# How TIFF lays out its pixels, and what is kept elsewhere (XMP, Photoshop, ICC): not facts about the photo.
_LAYOUT_TAGS = frozenset(
    tag
    for first, last in ((254, 267), (273, 274), (277, 281), (284, 293), (301, 301), (317, 347), (512, 559))
    for tag in range(first, last + 1)
) | {700, 34377, 34675}
RESOLUTION_TAGS = (_TAG.XResolution, _TAG.YResolution, _TAG.ResolutionUnit)
_AS_IS, _BACK = slice(None), slice(None, None, -1)
# EXIF orientation -> whether rows and columns are swapped, and which axes then run backwards.
_TURNS = {
    1: (False, (_AS_IS, _AS_IS)),
    2: (False, (_AS_IS, _BACK)),
    3: (False, (_BACK, _BACK)),
    4: (False, (_BACK, _AS_IS)),
    5: (True, (_AS_IS, _AS_IS)),
    6: (True, (_AS_IS, _BACK)),
    7: (True, (_BACK, _BACK)),
    8: (True, (_BACK, _AS_IS)),
}
_XMP_TAG = 700
_XMP_ORIENTATION = re.compile(rb'(tiff:Orientation(?:="|>))[1-8]')
_XMP_KEY = "XML:com.adobe.xmp"
_JPEG_SEGMENT = 65533 - 29  # bytes that fit beside the longest header (XMP's)


@dataclass(frozen=True)
class Metadata:
    """Everything kept, as bytes that do not depend on the picture's size or orientation."""

    icc: bytes = b""
    exif: bytes = b""  # orientation and thumbnail removed
    xmp: bytes = b""
    iptc: bytes = b""  # JPEG's APP13 segments
    comment: bytes = b""
    text: tuple[tuple[str, str], ...] = ()  # PNG
    dpi: tuple[float, float] | None = None

    def stripped(self) -> Metadata:
        """Only the colour profile: without it the colours would change."""
        return Metadata(icc=self.icc)


def collect(image: Image.Image) -> tuple[Metadata, tuple[str, ...]]:
    """The metadata of a loaded picture, and warnings about what could not be read."""
    warnings = []
    try:
        exif = _clean_exif(image)
    except Exception as error:  # Pillow's EXIF parser raises anything on broken data; the pixels are sound
        exif = b""
        warnings.append(f"broken EXIF data is dropped ({error})")
    info = image.info
    xmp = info.get("xmp") or info.get(_XMP_KEY) or b""
    segments = [data for name, data in getattr(image, "applist", ()) if name == "APP13"]
    text = tuple((key, value) for key, value in getattr(image, "text", {}).items() if _is_text(key))
    dpi = info.get("dpi")
    metadata = Metadata(
        icc=info.get("icc_profile") or b"",
        exif=exif,
        xmp=_XMP_ORIENTATION.sub(rb"\g<1>1", xmp.encode() if isinstance(xmp, str) else bytes(xmp)),
        iptc=b"".join(b"\xff\xed" + (len(data) + 2).to_bytes(2, "big") + data for data in segments),
        comment=info.get("comment") or b"" if isinstance(info.get("comment"), bytes) else b"",
        text=text,
        dpi=(float(dpi[0]), float(dpi[1])) if dpi and all(0 < float(d) < 1e6 for d in dpi) else None,
    )
    return metadata, tuple(warnings)


def _is_text(key: str) -> bool:
    return key != _XMP_KEY and not key.startswith("Raw profile type")


def _clean_exif(image: Image.Image) -> bytes:
    exif = image.getexif()
    for ifd in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        if ifd in exif:
            exif.get_ifd(ifd)  # reads it, while the file is open
    for tag in list(exif):
        if tag in _LAYOUT_TAGS:
            del exif[tag]
    return exif.tobytes() if len(exif) else b""


def exif_problem(image: Image.Image) -> tuple[str, ...]:
    """A warning, if the EXIF data cannot be parsed at all."""
    try:
        image.getexif()
    except Exception as error:  # as in `collect`
        return (f"broken EXIF data is dropped ({error})",)
    return ()


def orientation(image: Image.Image) -> int:
    """EXIF's 1 to 8; 1 where the EXIF data is broken."""
    try:
        value = int(image.getexif().get(_TAG.Orientation, 1))
    except Exception:  # as in `collect`
        return 1
    return value if value in _TURNS else 1


def turned(pixels: np.ndarray[Any, Any], value: int) -> np.ndarray[Any, Any]:
    """(H, W, ...) pixels stored with an EXIF orientation, upright."""
    transposed, flips = _TURNS[value]
    return np.ascontiguousarray((pixels.swapaxes(0, 1) if transposed else pixels)[flips])


def save_options(metadata: Metadata, form: Format, size: tuple[int, int]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What to give to Pillow's `save`, and warnings about what the format cannot carry."""
    options: dict[str, Any] = {}
    lost = []
    if metadata.icc and form.name not in ("GIF", "BMP"):
        options["icc_profile"] = metadata.icc
    if metadata.dpi and form.name in ("PNG", "JPEG", "TIFF", "BMP"):
        options["dpi"] = metadata.dpi
    if metadata.comment and form.name in ("JPEG", "GIF"):
        options["comment"] = metadata.comment

    exif = _sized_exif(metadata.exif, size)
    if form.name == "TIFF":
        options["exif"] = _tiff_tags(exif, metadata)
    elif len(exif) and form.exif:
        options["exif"] = exif
        if form.name == "JPEG" and len(exif.tobytes()) > _JPEG_SEGMENT:
            exif.get_ifd(ExifTags.IFD.Exif).pop(_TAG.MakerNote, None)
            lost.append("the camera's maker note")
    elif len(exif):
        lost.append("EXIF")

    if metadata.xmp and form.name == "PNG":
        pass  # below, with the text
    elif metadata.xmp and form.exif and not (form.name == "JPEG" and len(metadata.xmp) > _JPEG_SEGMENT):
        options["xmp"] = metadata.xmp
    elif metadata.xmp:
        lost.append("XMP")
    if metadata.iptc and form.name == "JPEG":
        options["extra"] = metadata.iptc
    elif metadata.iptc:
        lost.append("IPTC")
    if form.name == "PNG":
        options["pnginfo"] = _png_text(metadata)
    elif metadata.text:
        lost.append("PNG text")
    return options, tuple(f"{form.name} cannot carry it: {what} is dropped" for what in lost)


def _sized_exif(data: bytes, size: tuple[int, int]) -> Image.Exif:
    """EXIF that is true of the upright result."""
    exif = Image.Exif()
    if data:
        exif.load(data)
        exif[_TAG.Orientation] = 1
        details = exif.get_ifd(ExifTags.IFD.Exif)
        if _TAG.ExifImageWidth in details:
            details[_TAG.ExifImageWidth], details[_TAG.ExifImageHeight] = size
    return exif


def has_directories(metadata: Metadata) -> bool:
    """Whether there is EXIF beyond the tags that a TIFF has of its own."""
    exif = Image.Exif()
    exif.load(metadata.exif)
    return any(exif.get_ifd(ifd) for ifd in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo))


def _tiff_tags(exif: Image.Exif, metadata: Metadata) -> Image.Exif:
    if metadata.dpi:
        for tag in RESOLUTION_TAGS:
            exif.pop(tag, None)
    if metadata.xmp:
        exif[_XMP_TAG] = metadata.xmp
    return exif


def _png_text(metadata: Metadata) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    for key, value in metadata.text:
        if isinstance(value, PngImagePlugin.iTXt):
            chunks.add_itxt(key, value, value.lang or "", value.tkey or "")
        else:
            chunks.add_text(key, value)
    if metadata.xmp:
        chunks.add_itxt(_XMP_KEY, metadata.xmp.decode("utf-8", "replace"))
    return chunks
