"""What one server may be asked for, so that no client takes it from the others."""

from __future__ import annotations

from dataclasses import dataclass

MEGABYTE = 1_000_000  # also of pixels


@dataclass(frozen=True)
class Limits:
    """Bounds and deadlines of a server, in pictures, bytes, pixels and seconds."""

    queue: int = 64  # pictures waiting; beyond, clients are told when to come again
    upload: int = 100 * MEGABYTE  # bytes of one picture
    pixels: int = 40 * MEGABYTE  # of one picture, all frames together; known before it is decoded
    result: int = 400 * MEGABYTE  # pixels that may come out
    folder: int = 4_000 * MEGABYTE  # bytes of all uploads and results together
    kept: float = 3600.0  # seconds that a result waits to be fetched
    grace: float = 20.0  # seconds without its page after which the work of a page ends
    silence: float = 15.0  # seconds without a byte of an upload
    slowest: int = 8_000  # bytes a second of an upload, on the average after the first `silence` seconds
    connections: int = 400  # at a time
