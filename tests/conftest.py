"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.browser import CHROMIUM, DRIVER, Browser
from hypothesis import settings

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the program itself does, before torch is imported
os.environ.pop("CI", None)  # with it the program tells its progress in lines: the tests say where they want that

import torch  # only now

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported, by whatever test comes first

# A test fails for what it finds, never for how busy the machine is.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of large optional files (published weights, data sets) that the repository does not carry."""
    folder = Path(os.environ.get("MAMBAIR_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there (set MAMBAIR_SHARED to the folder of optional test files)")
    return folder


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    with Browser(tmp_path_factory.mktemp("chromium")) as window:
        yield window
