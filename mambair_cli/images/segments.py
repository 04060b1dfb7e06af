"""JPEG's application segments that go along as they are: Photoshop's resources, IPTC among them, and long XMP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

LARGEST_SEGMENT = 65533  # bytes of data in a segment
_PHOTOSHOP = b"Photoshop 3.0\0"
_THUMBNAILS = (1033, 1036)
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"
LARGEST_XMP = LARGEST_SEGMENT - len(_XMP)


def photoshop(segments: Iterable[tuple[str, bytes]]) -> bytes:
    """The APP13 segments among (name, data), without thumbnails: those show the picture as it was."""
    all_ours = [data for name, data in segments if name == "APP13"]
    split = [data.removeprefix(_PHOTOSHOP) for data in all_ours if data.startswith(_PHOTOSHOP)]
    resources = list(_resources(b"".join(split)))  # a long one goes on in the next segment
    kept = b"".join(data for number, data in resources if number not in _THUMBNAILS)
    if len(kept) < sum(map(len, split)):
        step = LARGEST_SEGMENT - len(_PHOTOSHOP)
        parts = [_PHOTOSHOP + kept[start : start + step] for start in range(0, len(kept), step)]
        all_ours = parts + [data for data in all_ours if not data.startswith(_PHOTOSHOP)]
    return b"".join(_segment(0xED, data) for data in all_ours)


def _resources(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Photoshop's image resources: "8BIM", number, name and data, each padded to an even length."""
    start = 0
    while data[start : start + 4] == b"8BIM" and start + 12 <= len(data):
        after_name = start + 6 + (data[start + 6] + 2) // 2 * 2
        size = int.from_bytes(data[after_name : after_name + 4], "big")
        end = after_name + 4 + size + size % 2
        yield int.from_bytes(data[start + 4 : start + 6], "big"), data[start:end]
        start = end
    if start < len(data):
        yield 0, data[start:]  # of another kind


def xmp(packet: bytes) -> bytes:
    """The segment of an XMP packet of at most `LARGEST_XMP` bytes."""
    return _segment(0xE1, _XMP + packet)


def xmp_extension(segments: Iterable[tuple[str, bytes]]) -> bytes:
    """The segments among (name, data) into which XMP goes on that is too long for one."""
    return b"".join(_segment(0xE1, data) for _, data in segments if data.startswith(_XMP_EXTENSION))


def _segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(data) + 2).to_bytes(2, "big") + data
