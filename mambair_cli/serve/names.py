"""Names of files that come from clients, made harmless: they reach downloads, archives, pages and terminals."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import quote

from mambair_cli.errors import printable

_LONGEST = 120  # characters; in UTF-8 below the 255 bytes of file systems, with room for what results append
_FORBIDDEN = re.compile(r'[<>:"|?*\\/]')  # on Windows
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


def harmless(name: str) -> str:
    """The last part of a path, without what steers terminals, hides files or is no name on Windows; "" where nothing
    is left."""
    last = re.split(r"[/\\]", name)[-1]
    clean = _FORBIDDEN.sub("_", printable(last)).strip(" .")
    if not clean:
        return ""
    path = PurePosixPath(clean)
    suffix = path.suffix[:10]
    stem = path.stem[: _LONGEST - len(suffix)]
    while len(stem.encode()) > 200:
        stem = stem[:-1]
    return ("_" if _DEVICES.match(stem + suffix) else "") + (stem.rstrip(" .") or "_") + suffix


def disposition(name: str) -> str:
    """The header that has a browser save a file under this name (RFC 6266)."""
    plain = re.sub(r'[^\x20-\x7e]|["\\%]', "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
