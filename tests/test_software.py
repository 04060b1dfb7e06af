"""What made a file: written into every format that has a place for it, and read again."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from helpers.album import encoded, exif, photo, png_text
from PIL import ExifTags, Image

from mambair_cli.compare import compare
from mambair_cli.files import Naming, find, plan
from mambair_cli.images import encode, software
from mambair_cli.images.decode import Picture, read_picture
from mambair_cli.images.encode import Encoding
from mambair_cli.images.formats import FORMATS
from mambair_cli.images.software import Made, made_by, signature


def written(picture: Picture, path: Path, form: str, line: str, strip: bool = False) -> Path:
    signed = replace(picture, metadata=replace(picture.metadata, software=line))
    stream = BytesIO()
    encode.write(signed, stream, FORMATS[form], Encoding(strip_metadata=strip))
    path.write_bytes(stream.getvalue())
    return path


LINE = signature("tiny-x4", "x4")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF", "GIF"])
@pytest.mark.parametrize("before", [{}, {"exif": exif(6), "pnginfo": png_text()}])
def test_results_say_what_made_them(form: str, before: dict[str, object], tmp_path: Path) -> None:
    picture = read_picture(encoded(photo(), "PNG", **before))
    path = written(picture, tmp_path / "a", form, LINE)
    made = made_by(path)
    assert made is not None
    assert (made.model, made.how, str(made)) == ("tiny-x4", "x4", LINE)
    assert made_by(written(picture, tmp_path / "b", form, LINE, strip=True)) is None
    assert made_by(written(picture, tmp_path / "c", form, "")) is None


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_deep_results_say_it_too(form: str, tmp_path: Path) -> None:
    picture = read_picture(encoded(photo(), "PNG"))
    wide = tuple(replace(frame, pixels=frame.pixels.astype(np.uint16) * 257) for frame in picture.frames)
    made = made_by(written(replace(picture, frames=wide), tmp_path / "a", form, LINE))
    assert made is not None
    assert made.model == "tiny-x4"


def test_what_the_field_said_before_stays_behind_it(tmp_path: Path) -> None:
    camera = exif()
    camera[ExifTags.Base.Software] = "Firmware 1.0"
    first = written(read_picture(encoded(photo(), "JPEG", exif=camera)), tmp_path / "a.jpg", "JPEG", LINE)
    again = written(read_picture(first), tmp_path / "b.png", "PNG", signature("denoise", "denoised"))
    with Image.open(again) as image:
        said = image.getexif()[ExifTags.Base.Software]
    assert said == f"{signature('denoise', 'denoised')} (before: {LINE} (before: Firmware 1.0))"
    assert made_by(again) == Made(made_by(first).version, "denoise", "denoised")  # type: ignore[union-attr]


def test_comparisons_name_what_made_a_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(photo(), "PNG"))
    after = written(read_picture(tmp_path / "a.png"), tmp_path / "b.png", "PNG", LINE)
    compare(tmp_path / "a.png", after, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert f"b.png (by {LINE})" in page
    assert "a.png (by" not in page


def test_other_programs_and_broken_files_made_themselves(tmp_path: Path) -> None:
    for name, data in {
        "text.png": b"mambair ",
        "none.png": b"",
        "other.jpg": encoded(photo(), "JPEG", comment=b"mambair is a program"),
        "late.png": encoded(photo(), "PNG") + b"mambair 1, a, x2",
    }.items():
        (tmp_path / name).write_bytes(data)
        assert made_by(tmp_path / name) is None, name
    assert made_by(tmp_path / "missing") is None
    assert software.parsed("mambair 0.2, a b, x4 (before: x)") == Made("0.2", "a b", "x4")
    assert len(software.joined(LINE, "x" * 9999)) == 500


# --- results of an earlier run ------------------------------------------------------------------------------------


def planned(folder: Path, tag: str, *inputs: str, output: str | None = "le/") -> list[str]:
    naming = Naming(tag, output and f"{folder}/{output}")
    jobs = plan(find([str(folder / name) for name in inputs] or [str(folder)]), naming)
    return [job.source.name for job in jobs if job.source]


def test_results_beside_their_originals_are_not_enlarged_again(tmp_path: Path) -> None:
    picture = read_picture(encoded(photo(), "PNG"))
    photo().save(tmp_path / "a.png")
    photo().save(tmp_path / "a_x4.png")  # of another program: it says nothing
    written(picture, tmp_path / "a_x4_x4.png", "PNG", LINE)
    written(picture, tmp_path / "a_x2.jpg", "JPEG", signature("tiny-x2", "x2"))
    written(picture, tmp_path / "a_denoised.png", "PNG", signature("denoise", "denoised"))
    written(picture, tmp_path / "b_x4.png", "PNG", LINE)  # its original is not here
    assert planned(tmp_path, "x4") == ["a.png", "a_denoised.png", "a_x4.png", "b_x4.png"]
    assert planned(tmp_path, "3840px") == ["a.png", "a_denoised.png", "a_x4.png", "b_x4.png"]
    assert planned(tmp_path, "denoised") == ["a.png", "a_x2.jpg", "a_x4.png", "a_x4_x4.png", "b_x4.png"]
    assert planned(tmp_path, "x3", output=None) == ["a.png", "a_denoised.png", "a_x4.png", "b_x4.png"]
    assert planned(tmp_path, "x4", "a.png", "a_x2.jpg") == ["a.png", "a_x2.jpg"]  # who names one means it
