"""What tests of `bench` share: a cache and three pictures of their own, and the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.commands import Outcome, mambair
from helpers.sets import parts


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAMBAIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MAMBAIR_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return parts(tmp_path / "pictures")


@pytest.fixture
def bench(capsysbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Outcome]:
    return lambda *args: mambair("bench", *args, capture=capsysbinary)
