"""What tests of downloads share: a file, a server that misbehaves as told, and pauses that are not slept through."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

import pytest

from helpers.server import Server, page, status
from mambair_cli.models import download as module

BODY = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
PAGES = {
    "by its type": page("<p>Please log in</p>"),
    "by its start": status(
        200, b"\n<!DOCTYPE html><html><p>Please log in</p>", Content_Type="application/octet-stream"
    ),
}


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, recorded instead of slept through."""
    pauses: list[float] = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    monkeypatch.delenv("MAMBAIR_OFFLINE", raising=False)
    return pauses
