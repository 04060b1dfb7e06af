"""What made a file: the line that results carry (EXIF's Software, PNG's text), written and read again."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import version
from os import SEEK_END
from pathlib import Path

from PIL import ExifTags, Image

TAG = int(ExifTags.Base.Software)
_LINE = re.compile(r"mambair (?P<version>[^\s,]+), (?P<model>[^,]+), (?P<how>[^\s,]+)")
_EARLIER = " (before: {})"
_LONGEST = 500  # characters; what stood there earlier is cut
_ENDS = 256 * 1024  # bytes of a file's beginning and end in which the line is looked for
_NAME = b"mambair "
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "AVIF", "GIF")


@dataclass(frozen=True)
class Made:
    """By which version, with which model, and how: x4, denoised."""

    version: str
    model: str
    how: str

    def __str__(self) -> str:
        return f"mambair {self.version}, {self.model}, {self.how}"


def signature(model: str, how: str) -> str:
    """The line for a result made today."""
    return str(Made(version("mambair"), model.replace(",", " "), how))


def joined(line: str, earlier: str) -> str:
    """The line, and after it what the field said before."""
    return (line + _EARLIER.format(earlier) if earlier else line)[:_LONGEST]


def parsed(text: object) -> Made | None:
    """What a field says, if it is such a line."""
    found = _LINE.match(text) if isinstance(text, str) else None
    return Made(found["version"], found["model"], found["how"]) if found else None


def made_by(path: Path) -> Made | None:
    """What made a file, None where it does not say so, or is no picture. Reads its ends, and headers where those
    hold the name."""
    try:
        with path.open("rb") as file:
            ends = file.read(_ENDS)
            size = file.seek(0, SEEK_END)
            file.seek(max(len(ends), size - _ENDS))
            if _NAME not in ends and _NAME not in file.read(_ENDS):
                return None
            file.seek(0)
            with Image.open(
                file, formats=[name for name in _FORMATS if name in Image.OPEN or not Image.OPEN]
            ) as image:
                comment = image.info.get("comment", b"")
                texts = (
                    image.getexif().get(TAG),
                    image.info.get("Software"),
                    comment.decode("utf-8", "replace") if isinstance(comment, bytes) else comment,
                )
    except Exception:  # whatever is wrong with it is said when it is restored
        return None
    return next(filter(None, map(parsed, texts)), None)
