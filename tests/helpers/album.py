"""Pictures of every kind, made from one small photo."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path

from PIL import ExifTags, Image, ImageCms, PngImagePlugin

PHOTO = Path(__file__).parent.parent / "pictures" / "photo.png"
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description tiff:Orientation="6" dc:subject="wall"/></rdf:RDF></x:xmpmeta>'
)
IPTC = b"Photoshop 3.0\x008BIM\x04\x04\x00\x00\x00\x00\x00\x0c\x1c\x02\x19\x00\x04wall\x00\x00\x00"

# Display P3, adapted to D50, as s15Fixed16.
P3 = {
    b"rXYZ": (0.51512, 0.24120, -0.00105),
    b"gXYZ": (0.29198, 0.69225, 0.04189),
    b"bXYZ": (0.15710, 0.06657, 0.78407),
}


def photo(mode: str = "RGB") -> Image.Image:
    with Image.open(PHOTO) as image:
        return image.convert(mode)


def cutout() -> Image.Image:
    """The photo in a disc with a soft edge; black where it is fully transparent, as most programs leave it."""
    image = photo()
    mask = Image.radial_gradient("L").resize(image.size).point(lambda v: max(0, min(255, (150 - v) * 8)))
    black = Image.new("RGB", image.size)
    black.paste(image, mask=mask.point(lambda v: 255 if v else 0))
    black.putalpha(mask)
    return black


def frames(count: int = 3) -> list[Image.Image]:
    """An animation: the photo, running."""
    image = photo()
    width, height = image.size
    strip = Image.new("RGB", (2 * width, height))
    strip.paste(image, (0, 0))
    strip.paste(image, (width, 0))
    return [strip.crop((9 * i, 0, 9 * i + width, height)) for i in range(count)]


def wide_gamut() -> bytes:
    """Display P3: the profile of sRGB with other primaries."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for index in range(struct.unpack(">I", data[128:132])[0]):
        name, start, _ = struct.unpack(">4sII", data[132 + 12 * index : 144 + 12 * index])
        if name in P3:
            data[start + 8 : start + 20] = struct.pack(">3i", *(round(value * 65536) for value in P3[name]))
    return bytes(data)


def exif(orientation: int = 1) -> Image.Exif:
    """What a camera writes, with a thumbnail."""
    data = Image.Exif()
    data[ExifTags.Base.Make] = "Maker"
    data[ExifTags.Base.Model] = "Model"
    data[ExifTags.Base.DateTime] = "2026:11:21 12:00:00"
    data[ExifTags.Base.Artist] = "Somebody"
    data[ExifTags.Base.Orientation] = orientation
    details = data.get_ifd(ExifTags.IFD.Exif)
    details[ExifTags.Base.DateTimeOriginal] = "2026:11:20 11:00:00"
    details[ExifTags.Base.ExifImageWidth] = 61
    details[ExifTags.Base.ExifImageHeight] = 47
    details[ExifTags.Base.MakerNote] = b"secret of the maker"
    details[ExifTags.Base.FNumber] = 2.8
    places = data.get_ifd(ExifTags.IFD.GPSInfo)
    places[ExifTags.GPS.GPSLatitudeRef] = "N"
    places[ExifTags.GPS.GPSLatitude] = (52.0, 31.0, 12.5)
    return data


def png_text() -> PngImagePlugin.PngInfo:
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "Wall")
    text.add_itxt("Author", "Ğüneş", lang="tr", tkey="Yazar")
    text.add_itxt("XML:com.adobe.xmp", XMP.decode())
    return text


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()
