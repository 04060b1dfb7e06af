"""Streams that are endless or cannot be wound back."""

from __future__ import annotations

import os
import subprocess
import threading
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from helpers.album import encoded, photo

from mambair_cli import streams
from mambair_cli.errors import BadImage
from mambair_cli.images.decode import read_picture


def test_what_is_piped_is_read_to_its_end_and_not_beyond_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_IN_MEMORY", 1000)  # so that a part of them goes to the disk
    for size in (0, 10, 999, 1000, 1001, 5000):
        for head in (b"", b"head"):
            with streams.held(BytesIO(b"x" * size), 5004, head) as file:
                assert file.read() == head + b"x" * size
    for most in (500, 3000):
        with pytest.raises(BadImage, match=f"more than {most:,} bytes"):
            streams.held(BytesIO(b"x" * 5000), most)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_a_picture_can_come_through_a_named_pipe(form: str, tmp_path: Path) -> None:
    """As of `mambair upscale <(curl ...)`."""
    data = encoded(photo(), form, **({"lossless": True} if form == "WEBP" else {}))
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(data))
    writer.start()
    assert np.array_equal(read_picture(tmp_path / "pipe").frames[0].pixels, np.asarray(photo()))
    writer.join()


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
def test_an_endless_stream_that_is_no_picture_is_refused_at_once() -> None:
    with subprocess.Popen(["cat", "/dev/zero"], stdout=subprocess.PIPE) as endless:
        assert endless.stdout
        with pytest.raises(BadImage, match="not a picture"):
            read_picture(endless.stdout)
        endless.kill()
