"""The file formats: what they are called, and what they can hold. Imports nothing, so listing files stays cheap."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

from mambair_cli.errors import UsageError

MAX_PIXELS = 250_000_000  # of an input, all frames together; more is taken for a bomb
MAX_RESULT_PIXELS = 1_000_000_000  # of a result: more, and 4 bytes or more each, is taken for a slip of the finger


@dataclass(frozen=True)
class Format:
    """What a file format can hold."""

    name: str  # Pillow's name
    suffixes: tuple[str, ...]  # the first one is the usual one
    alpha: bool = True
    frames: bool = False  # several frames
    timing: bool = False  # ... with durations
    wide: bool = False  # 16 bits per sample
    floats: bool = False  # 32-bit float samples
    lossy: bool = False
    exif: bool = True
    max_side: int = 2**31 - 1


FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format("PNG", (".png", ".apng"), frames=True, timing=True, wide=True),
        Format("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), alpha=False, lossy=True, max_side=65535),
        Format("WEBP", (".webp",), frames=True, timing=True, lossy=True, max_side=16383),
        Format("TIFF", (".tiff", ".tif"), frames=True, wide=True, floats=True),
        Format("AVIF", (".avif",), frames=True, timing=True, lossy=True, max_side=65536),
        Format("HEIF", (".heic", ".heif"), lossy=True, max_side=65536),
        Format("GIF", (".gif",), frames=True, timing=True, exif=False, max_side=65535),
        Format("BMP", (".bmp",), exif=False),
    )
}

_BY_SUFFIX = {suffix: form for form in FORMATS.values() for suffix in form.suffixes}

# Read, but written as PNG: nobody restores a picture to keep it in these.
_READ_ONLY = frozenset({".ppm", ".pgm", ".pbm", ".pnm", ".mpo", ".dib"})
READABLE_SUFFIXES = frozenset(_BY_SUFFIX) | _READ_ONLY
# Camera raw, which the extra `raw` reads: Canon, Nikon, Sony, Adobe, Olympus, Panasonic, Fujifilm, Pentax.
RAW_SUFFIXES = frozenset({".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef"})
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".mts", ".wmv", ".flv"})

# What `--format` takes.
CHOICES = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "tiff": "TIFF", "avif": "AVIF"}


def readable_suffixes() -> frozenset[str]:
    """Of the files that are taken from folders: with camera raw where it can be read."""
    return READABLE_SUFFIXES | RAW_SUFFIXES if find_spec("rawpy") else READABLE_SUFFIXES


class Named(Protocol):
    """A path, or what has a suffix as paths have."""

    @property
    def suffix(self) -> str: ...


def of_suffix(path: Named) -> Format | None:
    """The format that a file name asks for, or None."""
    return _BY_SUFFIX.get(path.suffix.lower())


def of_choice(choice: str) -> Format:
    """The format that `--format` names. Raises UsageError."""
    try:
        return FORMATS[CHOICES[choice.lower()]]
    except KeyError:
        raise UsageError(f"unknown format {choice!r}", f"One of: {', '.join(CHOICES)}.") from None
