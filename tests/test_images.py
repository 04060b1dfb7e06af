"""Files to pixels and back: colour under transparency, noise, JPEG quality, limits, and what Pillow gets wrong."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from helpers.album import cutout, encoded, exif, frames, photo, wide_gamut
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import ExifTags, Image

from mambair_cli.errors import BadImage
from mambair_cli.images import color, decode, encode, headers, metadata
from mambair_cli.images.decode import Frame, Picture, read_picture
from mambair_cli.images.encode import Encoding
from mambair_cli.images.formats import FORMATS
from mambair_cli.images.metadata import Metadata
from mambair_cli.images.noise import noise_level


def written(picture: Picture, form: str, **encoding: object) -> tuple[bytes, tuple[str, ...]]:
    stream = BytesIO()
    notes = encode.write(picture, stream, FORMATS[form], Encoding(**encoding))
    return stream.getvalue(), notes


# --- reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [1, 10, 30, 50, 75, 90, 95, 100])
def test_the_quality_of_a_jpeg_is_read_off_its_tables(quality: int) -> None:
    assert read_picture(encoded(photo(), "JPEG", quality=quality)).jpeg_quality == quality


def test_a_picture_of_more_pixels_than_allowed_is_refused_before_it_is_decoded() -> None:
    for size in (1100, 5000):  # beyond our limit, and beyond that at which Pillow gives up by itself
        with pytest.raises(BadImage, match="more than 1,000,000") as refusal:
            read_picture(encoded(Image.new("1", (size, size)), "PNG"), max_pixels=1_000_000)
        assert "--max-pixels" in refusal.value.hint
    first, *others = frames()
    moving = encoded(first, "WEBP", save_all=True, append_images=others)
    assert len(read_picture(moving, max_pixels=61 * 47 * 3).frames) == 3
    with pytest.raises(BadImage, match="in 3 frames"):
        read_picture(moving, max_pixels=61 * 47 * 2)


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"%!PS-Adobe", b"II*\0\x08\0\0\0", b"BM", b"\xff\xd8\xff"]
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(BadImage):
        read_picture(data)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="no such file"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(BadImage, match="directory"):
        read_picture(tmp_path)


def test_broken_exif_costs_the_exif_and_not_the_picture() -> None:
    data = bytearray(encoded(photo(), "PNG", exif=exif(6)))
    start = data.index(b"eXIf") + 4
    data[start : start + 60] = random.Random(1).randbytes(60)
    import zlib

    length = int.from_bytes(data[start - 8 : start - 4], "big")
    data[start + length : start + length + 4] = zlib.crc32(data[start - 4 : start + length]).to_bytes(4, "big")
    picture = read_picture(bytes(data))
    assert picture.size == (61, 47)
    assert any("broken EXIF" in warning for warning in picture.warnings)


@pytest.mark.parametrize("icc", [b"nonsense", b"\0" * 200])
def test_a_broken_profile_costs_the_profile_and_not_the_picture(icc: bytes) -> None:
    picture = read_picture(encoded(photo(), "PNG", icc_profile=icc))
    assert picture.metadata.icc == b""
    assert any("profile" in warning for warning in picture.warnings)


def test_a_profile_of_srgb_changes_nothing() -> None:
    from PIL import ImageCms

    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert read_picture(encoded(photo(), "PNG", icc_profile=srgb)).space is None
    assert read_picture(encoded(photo(), "PNG", icc_profile=wide_gamut())).space is not None


def test_ten_bit_avif_and_pictures_inside_a_jpeg_are_mentioned() -> None:
    picture = read_picture(encoded(photo(), "MPO", save_all=True, append_images=[photo()]))
    assert len(picture.frames) == 1
    assert "further pictures" in picture.warnings[0]
    data = encoded(photo(), "AVIF")
    place = data.index(b"pixi") + 9
    assert data[place : place + 3] == b"\x08\x08\x08"
    deep = data[:place] + b"\x0a\x0a\x0a" + data[place + 3 :]
    assert headers.avif_bits(BytesIO(deep)) == 10


def test_float_grey_outside_0_to_1_is_refused() -> None:
    bright = Image.fromarray(np.full((4, 4), 2.5, np.float32))
    with pytest.raises(BadImage, match=r"float samples from 2\.5"):
        read_picture(encoded(bright, "TIFF"))


def test_a_transparent_level_of_16_bit_grey_is_mentioned() -> None:
    wide = Image.fromarray(np.full((4, 4), 3000, np.uint16))
    assert read_picture(encoded(wide, "PNG")).warnings == ()
    assert read_picture(encoded(wide, "PNG", transparency=3000)).warnings == (
        "16-bit grey: the transparent level is dropped",
    )


@pytest.mark.parametrize("value", range(1, 9))
def test_orientations_are_pillows(value: int) -> None:
    from PIL import ImageOps

    image = photo()
    image.getexif()[ExifTags.Base.Orientation] = value
    upright = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(metadata.turned(np.asarray(photo()), value), upright)


def test_pictures_are_seen_upright_in_srgb_with_8_bits() -> None:
    """What comparisons show and training learns from."""
    turned = photo().transpose(Image.Transpose.ROTATE_90)
    expected = np.asarray(photo())
    assert np.array_equal(decode.read_rgb(encoded(turned, "PNG", exif=exif(6))), expected)
    wide = encoded(photo(), "PNG", icc_profile=wide_gamut())
    in_srgb = decode.read_rgb(wide)
    assert np.abs(in_srgb.astype(int) - expected).max() > 5
    picture = read_picture(wide)
    deep = replace(picture, frames=(Frame(picture.frames[0].pixels.astype(np.uint16) * 257),))
    for form in ("PNG", "TIFF"):  # 16 bits and a profile
        assert np.array_equal(decode.read_rgb(written(deep, form)[0]), in_srgb)
    grey = decode.read_rgb(encoded(Image.fromarray(np.full((4, 4), 30_000, np.uint16)), "PNG"))
    assert (grey.shape, grey.dtype, int(grey[0, 0, 0])) == ((4, 4, 3), np.uint8, 117)
    assert decode.read_rgb(encoded(cutout(), "PNG"))[0, 0].tolist() == [255, 255, 255]


# --- transparency -----------------------------------------------------------------------------------------------


def test_hidden_colour_is_taken_from_what_can_be_seen_nearby() -> None:
    pixels = np.asarray(cutout())
    colour, alpha = pixels[..., :3], pixels[..., 3]
    filled = color.bleed(colour, alpha)
    seen = alpha > 0
    assert np.array_equal(filled[seen], colour[seen])
    assert not colour[~seen].any()  # black before
    assert filled[~seen].min() >= colour[seen].min()
    rim = np.zeros_like(seen)
    rim[1:-1, 1:-1] = ~seen[1:-1, 1:-1] & (seen[:-2, 1:-1] | seen[2:, 1:-1] | seen[1:-1, :-2] | seen[1:-1, 2:])
    original = np.asarray(photo())
    assert np.abs(filled[rim].astype(float) - original[rim]).mean() < 35  # black would be about 100 off


SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(data=st.data(), shape=SHAPES)
def test_bleeding_never_touches_what_can_be_seen(data: st.DataObject, shape: tuple[int, int]) -> None:
    colour = data.draw(arrays.arrays(np.uint8, (*shape, 3)))
    alpha = data.draw(arrays.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 255])))
    filled = color.bleed(colour, alpha)
    assert np.array_equal(filled[alpha > 0], colour[alpha > 0])
    if (alpha > 0).any():
        assert filled.min() >= colour[alpha > 0].min()
        assert filled.max() <= colour[alpha > 0].max()


# --- levels and sizes -------------------------------------------------------------------------------------------


@given(values=arrays.arrays(st.sampled_from([np.uint8, np.uint16]), (2, 3, 1)))
def test_samples_survive_the_way_to_float_and_back(values: np.ndarray) -> None:
    assert np.array_equal(color.quantise(color.as_float(values), values.dtype), values)


def test_shrinking_is_the_same_at_every_depth() -> None:
    small = np.asarray(photo())
    expected = color.resample(small, (20, 15)).astype(float)
    wide = color.resample(small.astype(np.uint16) * 257, (20, 15)) / 257
    assert np.abs(wide - expected).max() <= 2  # 8-bit rounds twice
    assert np.abs(color.resample(color.as_float(small), (20, 15)) * 255 - expected).max() <= 2
    assert color.resample(small[..., :1], (20, 15)).shape == (15, 20, 1)
    assert color.resample(small[..., 0], (20, 15)).shape == (15, 20)


@pytest.mark.parametrize("sigma", [5, 15, 25, 50])
def test_noise_is_measured(sigma: int) -> None:
    smooth = np.asarray(photo().resize((244, 188), Image.Resampling.BICUBIC)).astype(float)
    noise = np.random.default_rng(sigma).normal(0, sigma, smooth.shape)
    noisy = np.clip((smooth * 0.5 + 64 + noise) / 255, 0, 1).astype(np.float32)
    assert noise_level(noisy) == pytest.approx(sigma, rel=0.1, abs=0.6)
    assert noise_level(noisy[:1]) == 0


# --- writing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("quality", "expected"), [(10, 90), (97, 97)])
def test_a_jpeg_comes_out_as_good_as_it_was_or_better_and_with_all_its_colour(quality: int, expected: int) -> None:
    data, _ = written(read_picture(encoded(photo(), "JPEG", quality=quality)), "JPEG")
    assert read_picture(data).jpeg_quality == expected
    with Image.open(BytesIO(data)) as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3  # 4:4:4


def test_what_a_format_cannot_hold_is_said() -> None:
    picture = read_picture(encoded(cutout(), "PNG", exif=exif()))
    data, notes = written(picture, "JPEG")
    assert notes == ("JPEG has no transparency: the picture is put on white",)
    assert read_picture(data).frames[0].pixels[0, 0].min() > 240
    _, notes = written(picture, "BMP")
    assert "BMP cannot carry it: EXIF is dropped" in notes
    wide = Picture((Frame(np.full((4, 4, 1), 40_000, np.uint16)),))
    data, notes = written(wide, "WEBP")
    assert notes == ("WEBP holds 8 bits a sample: the 16 of the input are rounded",)
    assert np.abs(read_picture(data).frames[0].pixels.astype(int) - 156).max() <= 1


def test_a_profile_that_cannot_be_embedded_is_applied() -> None:
    picture = read_picture(encoded(photo(), "PNG", icc_profile=wide_gamut()))
    data, _ = written(picture, "BMP")
    expected = color.apply(picture.space.to_srgb, picture.frames[0].pixels)
    assert np.array_equal(read_picture(data).frames[0].pixels, expected)


def test_results_too_large_for_a_format_are_refused_before_any_work() -> None:
    with pytest.raises(BadImage, match="WEBP holds 16383 pixels a side"):
        encode.check(FORMATS["WEBP"], (16384, 10), 1)
    encode.check(FORMATS["PNG"], (16384, 10), 1)


@pytest.mark.parametrize(("form", "hint"), [("HEIF", r"mambair\[heif\]"), ("AVIF", "--format webp")])
def test_formats_that_cannot_be_written_here_are_named(form: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encode._writable()
    monkeypatch.delitem(Image.SAVE, form)
    picture = Picture((Frame(np.zeros((4, 4, 3), np.uint8)),))
    for attempt in (lambda: encode.check(FORMATS[form], (4, 4), 1), lambda: written(picture, form)):
        with pytest.raises(BadImage, match=hint) as refusal:
            attempt()
        assert refusal.value.message.endswith("files cannot be written by what is installed")


def test_a_heic_can_be_the_first_thing_that_is_written() -> None:
    pytest.importorskip("pillow_heif", reason="needs the extra `heif`")
    script = (
        "import io, numpy as np\n"
        "from mambair_cli.images import decode, encode, formats\n"
        "picture = decode.Picture((decode.Frame(np.zeros((8, 8, 3), np.uint8)),))\n"
        "encode.write(picture, io.BytesIO(), formats.FORMATS['HEIF'], encode.Encoding())"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_metadata_too_long_for_a_segment_never_costs_the_picture(form: str) -> None:
    long = exif()
    long.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] = b"x" * 70_000
    picture = read_picture(encoded(photo(), "PNG", exif=long))
    data, notes = written(picture, form)
    with Image.open(BytesIO(data)) as image:
        assert image.getexif()[ExifTags.Base.Make] == "Maker"
    expected = {
        "JPEG": ("JPEG cannot carry it: the camera's maker note is dropped",),
        "TIFF": ("written uncompressed: only so can a TIFF's EXIF be kept",),
    }
    assert notes == expected.get(form, ())


@pytest.mark.parametrize("noted", [False, True])
def test_exif_too_long_for_a_jpeg_never_costs_the_picture(noted: bool) -> None:
    long = exif()
    long[ExifTags.Base.ImageDescription] = "x" * 80_000
    if not noted:
        del long.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote]
    data, notes = written(read_picture(encoded(photo(), "PNG", exif=long)), "JPEG")
    assert notes == ("JPEG cannot carry it: EXIF of more than 64 kB is dropped",)
    assert not read_picture(data).metadata.exif


def test_a_comment_too_long_for_a_jpeg_never_costs_the_picture() -> None:
    picture = Picture((Frame(np.zeros((4, 4, 3), np.uint8)),), metadata=Metadata(comment=b"x" * 66_000))
    data, notes = written(picture, "JPEG")
    assert notes == ("JPEG cannot carry it: the comment is dropped",)
    assert read_picture(data).size == (4, 4)
