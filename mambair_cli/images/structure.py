"""What the parts of a file claim, looked at before a decoder believes it: how long they are, and a PNG's checksums.

Decoders read a part as long as it says it is, and some (WebP, AVIF, HEIF) all there is. A file may be sparse: of
gigabytes that take no room on the disk.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import SEEK_END, BytesIO
from typing import IO

from mambair_cli.errors import BadImage

LARGEST_PART = 64_000_000  # bytes of a profile, of EXIF, of text: of whatever is not pixels
BYTES_PER_PIXEL = 16  # of a picture that is not compressed at all: four samples of 32 bits
HEAD = 32  # bytes at the beginning that tell what a file is
_PIECE = 1 << 20  # bytes looked at at a time
_ANOTHER_COPY = "Take another copy of the file."
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # lengths of all there ever were
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TIFF_LAYOUT = (258, 273, 279, 324, 325)  # tags without which there are no pixels: their bits, strips and tiles
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
# Tags that point to further directories: EXIF, GPS, interoperability, small versions of the picture.
_TIFF_SUB_DIRECTORIES = 330
_TIFF_DIRECTORIES = (34665, 34853, 40965, _TIFF_SUB_DIRECTORIES)
_MOST_SUB_DIRECTORIES = 16
_MOST_DIRECTORIES = 100_000  # pages
_WEBP_PIXELS = (b"VP8 ", b"VP8L", b"ALPH", b"ANMF")
_WEBP_OTHERS = (b"VP8X", b"ICCP", b"ANIM", b"EXIF", b"XMP ")
_STILLS = (b"avif", b"avis", b"mif1", b"msf1", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"crx ", b"jxl ")
_BOXES = (b"ftyp", b"meta", b"mdat", b"moov", b"idat")  # of AVIF and HEIF, that hold anything


def is_video(head: bytes) -> bool:
    """Whether a file that begins so is a film: MP4, MOV, Matroska, WebM, AVI, MPEG, Flash."""
    if head[4:8] == b"ftyp":
        return head[8:12] not in _STILLS
    begins = (b"\x1a\x45\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3", b"FLV\1")
    return head.startswith(begins) or (head[:4] == b"RIFF" and head[8:12] == b"AVI ") or head[4:8] == b"moov"


def is_picture(head: bytes) -> bool:
    """Whether a file that begins so can be one of the formats that are read."""
    begins = (_PNG, b"\xff\xd8", b"RIFF", b"II", b"MM", b"GIF8", b"BM", b"FUJIFILM")
    return head.startswith(begins) or head[4:8] == b"ftyp" or (head[:1] == b"P" and head[1:2].isalnum())


def checked(file: IO[bytes]) -> tuple[IO[bytes], tuple[str, ...]]:
    """The file as far as a decoder may see it, from its beginning, and warnings.

    Raises BadImage where a part claims more than any picture needs, or where a PNG's pixels fail their checksum.
    """
    size = file.seek(0, SEEK_END)
    file.seek(0)
    head = file.read(HEAD)
    notes: tuple[str, ...] = ()
    if head.startswith(_PNG):
        notes = _check_png(file, size)
    elif head.startswith(TIFF_MAGICS):
        _check_tiff(file, size)
    elif size > LARGEST_PART:  # below that, nothing read whole can hurt
        if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            file = _part(file, *_webp(file, size))
        elif head[4:8] == b"ftyp":
            file = _part(file, *_boxes(file, size))
        elif head[:2] == b"BM" and int.from_bytes(head[14:18], "little") not in _BMP_HEADERS:
            raise BadImage("not a BMP: its header has a length that no version knows")
    file.seek(0)
    return file, notes


def _part(file: IO[bytes], length: int, pixels: int) -> IO[bytes]:
    """The first bytes of a file that its decoder would read to the end."""
    if length > LARGEST_PART + BYTES_PER_PIXEL * pixels:
        raise BadImage(f"{length:,} bytes for {pixels:,} pixels: made to fill the memory, or damaged")
    file.seek(0)
    return BytesIO(file.read(length))


# --- PNG ------------------------------------------------------------------------------------------------------


def _check_png(file: IO[bytes], size: int) -> tuple[str, ...]:
    """The length of each chunk, and the checksums of those that hold pixels: the decoder looks at all others."""
    file.seek(8)
    header = file.read(18)
    if len(header) < 18 or header[4:8] != b"IHDR" or header[17] not in _PNG_CHANNELS:
        return ()  # the decoder says so
    width, height, depth = struct.unpack(">IIB", header[8:17])
    raw = 2 * height * (1 + width * depth * _PNG_CHANNELS[header[17]] // 8)  # twice: interlaced rows are more
    spans, broken, total, frames = [], 0, 0, 1
    for name, start, length in _chunks(file, size):
        if name not in (b"IDAT", b"fdAT"):
            frames += name == b"fcTL"
            if length > LARGEST_PART:
                raise BadImage(f"its {name.decode()} chunk claims {length:,} bytes", "The file is damaged.")
            continue
        total += length
        if total > LARGEST_PART + raw * frames:
            raise BadImage(f"{total:,} bytes for {width}x{height} pixels: made to fill the memory, or damaged")
        spans.append((start, length))
        if start + length + 4 <= size and not _sound(file, name, start, length):  # else it is truncated
            broken = broken or start
    if not broken:
        return ()
    if frames == 1 and _inflates(file, spans, raw):
        return ("damaged: a checksum is wrong, though the pixels are whole",)
    raise BadImage(
        f"damaged: its pixels fail their checksum at byte {broken:,}",
        "Take another copy of the file. Programs that ignore checksums may show what is left of it.",
    )


def _chunks(file: IO[bytes], size: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, place and length of a PNG's chunks, up to the end or to what is none."""
    start = 8
    while start + 8 <= size:
        file.seek(start)
        length, name = struct.unpack(">I4s", file.read(8))
        if name == b"IEND" or not name.isalpha():
            return
        yield name, start + 8, length
        start += 12 + length


def _sound(file: IO[bytes], name: bytes, start: int, length: int) -> bool:
    file.seek(start)
    checksum = zlib.crc32(name)
    for piece in _pieces(file, length):
        checksum = zlib.crc32(piece, checksum)
    return checksum == int.from_bytes(file.read(4), "big")


def _inflates(file: IO[bytes], spans: list[tuple[int, int]], most: int) -> bool:
    """Whether the pixels can be unpacked up to zlib's own checksum, giving at most so many bytes."""
    unpacker, count = zlib.decompressobj(), 0
    try:
        for start, length in spans:
            file.seek(start)
            for piece in _pieces(file, length):
                while piece and count <= most:
                    count += len(unpacker.decompress(piece, _PIECE))
                    piece = unpacker.unconsumed_tail
    except zlib.error:
        return False
    return unpacker.eof


def _pieces(file: IO[bytes], length: int) -> Iterator[bytes]:
    while length > 0 and (piece := file.read(min(length, _PIECE))):
        length -= len(piece)
        yield piece


# --- the others, where they are long ----------------------------------------------------------------------------


def _webp(file: IO[bytes], size: int) -> tuple[int, int]:
    """Where the last chunk of a WebP ends, and pixels of all its frames."""
    start, end, frames, canvas = 12, 12, 0, 0
    while start + 8 <= size:
        file.seek(start)
        head = file.read(18)
        name, length = head[:4], int.from_bytes(head[4:8], "little")
        if name in _WEBP_PIXELS:
            frames += name != b"ALPH"
            canvas = canvas or _webp_pixels(name, head[8:])
        elif name == b"VP8X":
            canvas = (int.from_bytes(head[12:15], "little") + 1) * (int.from_bytes(head[15:18], "little") + 1)
        elif name not in _WEBP_OTHERS:
            break
        start += 8 + length + length % 2
        end = min(start, size)
    return end, canvas * max(frames, 1)


def _webp_pixels(name: bytes, data: bytes) -> int:
    """Of a bitstream, from its first bytes."""
    if name == b"VP8 ":
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (6, 8))
        return width * height
    if name == b"VP8L":
        bits = int.from_bytes(data[1:5], "little")
        return ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
    return 0


def _boxes(file: IO[bytes], size: int) -> tuple[int, int]:
    """Where the last box of an AVIF or HEIF ends that holds anything, and pixels of the largest picture times those
    in a sequence."""
    start = end = pixels = 0
    frames = 1
    while start + 8 <= size:
        file.seek(start)
        length, name, long = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
        length = {0: size - start, 1: long}.get(length, length)
        if length < 8 or not name.isalnum():
            break
        if name in (b"meta", b"moov"):
            if length > LARGEST_PART:
                raise BadImage(f"its {name.decode()} box claims {length:,} bytes", "The file is damaged.")
            file.seek(start)
            data = file.read(length)
            for place in _places(data, b"ispe"):
                pixels = max(pixels, _number(data, place + 8) * _number(data, place + 12))
            frames = max([frames, *(_number(data, place + 12) for place in _places(data, b"stsz"))])
        start += length
        if name in _BOXES:
            end = min(start, size)
    return end, pixels * frames


def _places(data: bytes, word: bytes) -> Iterator[int]:
    place = -1
    while (place := data.find(word, place + 1)) >= 0:
        yield place


def _number(data: bytes, place: int) -> int:
    return int.from_bytes(data[place : place + 4], "big")


@dataclass(frozen=True)
class _Tag:
    number: int
    length: int  # bytes
    values: int  # so many
    value: int  # the first one, or where they are
    apart: bool  # they are elsewhere


def tiff_directories(file: IO[bytes]) -> Iterator[list[tuple[int, int]]]:
    """Numbers and first values (or where these are) of the tags in each directory of a TIFF; what is cut off ends
    them."""
    with suppress(BadImage):
        for _, tags in _tiff_tags(file):
            yield [(tag.number, tag.value) for tag in tags]


def _check_tiff(file: IO[bytes], size: int) -> None:
    """The length of every tag in every directory that a decoder follows, and whether the first directory is there."""
    first = True
    for whole, tags in _tiff_tags(file):
        if first and not (whole and tags):
            raise BadImage("truncated: it ends before what describes its pixels", _ANOTHER_COPY)
        for tag in tags:
            if tag.length > LARGEST_PART:
                raise BadImage(f"its tag {tag.number} claims {tag.values:,} values", "The file is damaged.")
            if first and tag.number in _TIFF_LAYOUT and tag.apart and tag.value + tag.length > size:
                raise BadImage("truncated: it ends before what describes its pixels", _ANOTHER_COPY)
        first = False


def _tiff_tags(file: IO[bytes]) -> Iterator[tuple[bool, list[_Tag]]]:
    """Every directory once: whether all of it is there, and its tags."""
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = struct.unpack(order + "H", head[2:4])[0] == 43
    count, entry, pointer = (f"{order}{code}" for code in (("Q", "HHQQ", "Q") if big else ("H", "HHII", "I")))
    todo = [_unpacked(pointer, head[8:16] if big else head[4:8])]
    seen: set[int] = set()
    while todo and len(seen) < _MOST_DIRECTORIES:
        offset = todo.pop()
        if not offset or offset in seen:
            continue
        seen.add(offset)
        file.seek(offset)
        number = _unpacked(count, file.read(struct.calcsize(count)))
        if number > 0xFFFF:
            raise BadImage(f"a directory of {number:,} tags", "The file is damaged.")
        step = struct.calcsize(entry)
        data = file.read(number * step)
        following = _unpacked(pointer, file.read(struct.calcsize(pointer)))
        tags = []
        for tag, kind, values, value in struct.iter_unpack(entry, data[: len(data) // step * step]):
            width = _TIFF_SIZES.get(kind, 1)
            if order == ">" and values == 1 and width < struct.calcsize(pointer):
                value >>= 8 * (struct.calcsize(pointer) - width)  # short values are on the left
            tags.append(_Tag(tag, width * values, values, value, width * values > struct.calcsize(pointer)))
            if tag in _TIFF_DIRECTORIES and values == 1:
                todo.append(value)
            elif tag == _TIFF_SUB_DIRECTORIES and values <= _MOST_SUB_DIRECTORIES:
                file.seek(value)
                todo += [_unpacked(pointer, file.read(struct.calcsize(pointer))) for _ in range(values)]
        yield len(data) == number * step, tags
        todo.append(following)


def _unpacked(code: str, data: bytes) -> int:
    """A number, or 0 where the file has ended."""
    return int(struct.unpack(code, data)[0]) if len(data) == struct.calcsize(code) else 0
