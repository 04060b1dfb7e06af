"""What a picture carries besides its pixels: EXIF, XMP, IPTC, text, resolution, colour. Read once, written to any."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from io import SEEK_CUR
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from mambair_cli.images import segments, software
from mambair_cli.images.formats import Format

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
_SOFTWARE = "Software"  # PNG's key
_XMP_ORIENTATION = re.compile(rb'(tiff:Orientation(?:="|>))[1-8]')
_XMP_POINTER = re.compile(rb"""\s+xmpNote:HasExtendedXMP\s*=\s*(?:"[^"]*"|'[^']*')|<xmpNote:HasExtendedXMP>[^>]*>""")
_XMP_KEY = "XML:com.adobe.xmp"
# What says in a PNG, besides an ICC profile, what its colours mean: chunks and the bytes in them, the first one wins.
_PNG_COLOUR = {b"cICP": 4, b"sRGB": 1, b"gAMA": 4, b"cHRM": 32}
_SRGB = {
    b"cICP": (1, 13, 0, 1),
    b"gAMA": (45455,),
    b"cHRM": (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
}


@dataclass(frozen=True)
class Metadata:
    """Everything kept, as bytes that do not depend on the picture's size or orientation."""

    icc: bytes = b""
    exif: bytes = b""  # orientation and thumbnail removed
    xmp: bytes = b""
    xmp_extension: bytes = b""  # JPEG's segments of it
    iptc: bytes = b""  # JPEG's APP13 segments, thumbnails removed
    comment: bytes = b""
    text: tuple[tuple[str, str], ...] = ()  # PNG
    dpi: tuple[float, float] | None = None
    png_colour: tuple[tuple[bytes, bytes], ...] = ()  # chunks
    software: str = ""  # what makes the file that is written; `software.signature`

    def stripped(self) -> Metadata:
        """Only the colour space: without it the colours would change."""
        return Metadata(icc=self.icc, png_colour=self.png_colour)


def collect(image: Image.Image, file: IO[bytes]) -> tuple[Metadata, tuple[str, ...]]:
    """The metadata of a loaded picture and its file, and warnings about what could not be read."""
    warnings = []
    try:
        exif = clean_exif(image.getexif())
    except Exception as error:  # Pillow's EXIF parser raises anything on broken data; the pixels are sound
        exif = b""
        warnings.append(f"broken EXIF data is dropped ({error})")
    info = image.info
    xmp = info.get("xmp") or info.get(_XMP_KEY) or b""
    parts = getattr(image, "applist", ())  # of a JPEG
    text = tuple((key, value) for key, value in getattr(image, "text", {}).items() if _is_text(key))
    dpi = info.get("dpi")
    metadata = Metadata(
        icc=info.get("icc_profile") or b"",
        exif=exif,
        xmp=_XMP_ORIENTATION.sub(rb"\g<1>1", xmp.encode() if isinstance(xmp, str) else bytes(xmp)),
        xmp_extension=segments.xmp_extension(parts),
        iptc=segments.photoshop(parts),
        comment=info.get("comment") or b"" if isinstance(info.get("comment"), bytes) else b"",
        text=text,
        dpi=(float(dpi[0]), float(dpi[1])) if dpi and all(0 < float(d) < 1e6 for d in dpi) else None,
        png_colour=_png_colour(file) if image.format == "PNG" else (),
    )
    return metadata, tuple(warnings)


def _is_text(key: str) -> bool:
    return key != _XMP_KEY and not key.startswith("Raw profile type")


def _png_colour(file: IO[bytes]) -> tuple[tuple[bytes, bytes], ...]:
    """The chunks of `_PNG_COLOUR` by name; the file's position stays."""
    found: dict[bytes, bytes] = {}
    before = file.tell()
    file.seek(8)
    while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
        size, name = int.from_bytes(head[:4], "big"), head[4:]
        if _PNG_COLOUR.get(name) == size:
            found[name] = file.read(size)
            size = 0
        file.seek(size + 4, SEEK_CUR)
    file.seek(before)
    return tuple(found.items())


def _unlike_srgb(metadata: Metadata) -> str:
    """The chunk, if any, by which a PNG is shown otherwise than its profile or sRGB would show it."""
    chunks = dict(metadata.png_colour)
    if b"cICP" in chunks:
        return "" if tuple(chunks[b"cICP"]) == _SRGB[b"cICP"] else "cICP"
    if metadata.icc or b"sRGB" in chunks:
        return ""
    for name in chunks:
        values = np.frombuffer(chunks[name], ">u4").astype(np.int64)  # in steps of 1/100,000
        if np.abs(values - _SRGB[name]).max() > 500:
            return name.decode()
    return ""


def clean_exif(exif: Image.Exif) -> bytes:
    """What is true of the photo, not of the file: without thumbnail and layout."""
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
    metadata, lost = _carried(metadata, form)
    exif = _sized_exif(metadata.exif, size)
    if metadata.software:
        metadata = _signed(metadata, exif, form)
    if form.name == "JPEG" and _too_long(exif):
        noted = exif.get_ifd(ExifTags.IFD.Exif).pop(_TAG.MakerNote, None)
        lost.append("the camera's maker note" if noted and not _too_long(exif) else "EXIF of more than 64 kB")

    if metadata.icc:
        options["icc_profile"] = metadata.icc
    if metadata.dpi:
        options["dpi"] = metadata.dpi
    if metadata.comment:
        options["comment"] = metadata.comment
    if form.name == "TIFF":
        options["exif"] = _tiff_tags(exif, metadata)
    elif len(exif) and not (form.name == "JPEG" and _too_long(exif)):
        options["exif"] = exif
    if form.name == "JPEG":  # not `xmp`, which Pillow would write behind its own extension
        packet = segments.xmp(metadata.xmp) if metadata.xmp else b""
        options["extra"] = metadata.iptc + packet + metadata.xmp_extension
    elif form.name == "PNG":
        options["pnginfo"] = _png_chunks(metadata)
    elif metadata.xmp:
        options["xmp"] = metadata.xmp
    return options, tuple(f"{form.name} cannot carry it: {what} is dropped" for what in lost)


def _carried(metadata: Metadata, form: Format) -> tuple[Metadata, list[str]]:
    """What the format has a place for, and in words what it has not (how long EXIF may be aside)."""
    jpeg, png = form.name == "JPEG", form.name == "PNG"
    xmp = form.exif and not (jpeg and len(metadata.xmp) > segments.LARGEST_XMP)
    comment = form.name == "GIF" or (jpeg and len(metadata.comment) <= segments.LARGEST_SEGMENT)
    unlike_srgb = _unlike_srgb(metadata)
    fields = {  # whether there is a place, and what is missed without
        "icc": (form.name not in ("GIF", "BMP"), ""),  # the colours are converted instead
        "png_colour": (png, unlike_srgb and f"the colour space of the PNG ({unlike_srgb})"),
        "dpi": (png or jpeg or form.name in ("TIFF", "BMP"), ""),
        "exif": (form.exif, "EXIF"),
        "xmp": (xmp, "XMP"),
        "xmp_extension": (xmp and jpeg, "the part of XMP beyond 64 kB" if xmp else ""),
        "iptc": (jpeg, "IPTC"),
        "comment": (comment, "the comment"),
        "text": (png, "PNG text"),
    }
    lost = [what for name, (place, what) in fields.items() if what and not place and getattr(metadata, name)]
    nothing = Metadata()
    kept = replace(metadata, **{name: getattr(nothing, name) for name, (place, _) in fields.items() if not place})
    if kept.xmp and not kept.xmp_extension and metadata.xmp_extension:
        kept = replace(kept, xmp=_XMP_POINTER.sub(b"", kept.xmp))
    return kept, lost


def _signed(metadata: Metadata, exif: Image.Exif, form: Format) -> Metadata:
    """With what made it, in front of what it says already: in EXIF, as text in a PNG, as a GIF's comment."""
    line = metadata.software
    if form.name == "GIF":
        return metadata if metadata.comment else replace(metadata, comment=line.encode())
    if form.name == "PNG":
        texts = dict(metadata.text)
        metadata = replace(
            metadata, text=tuple({**texts, _SOFTWARE: software.joined(line, texts.get(_SOFTWARE, ""))}.items())
        )
    if form.exif and (form.name != "PNG" or len(exif)):
        earlier = exif.get(software.TAG, "")
        exif[software.TAG] = software.joined(line, earlier.strip("\0 ") if isinstance(earlier, str) else "")
    return metadata


def _too_long(exif: Image.Exif) -> bool:
    """For a JPEG."""
    return len(exif.tobytes()) > segments.LARGEST_SEGMENT


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


def _png_chunks(metadata: Metadata) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    for name, data in metadata.png_colour:
        chunks.add(name, data)
    for key, value in metadata.text:
        if isinstance(value, PngImagePlugin.iTXt):
            chunks.add_itxt(key, value, value.lang or "", value.tkey or "")
        else:
            chunks.add_text(key, value)
    if metadata.xmp:
        chunks.add_itxt(_XMP_KEY, metadata.xmp.decode("utf-8", "replace"))
    return chunks
