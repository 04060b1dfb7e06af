"""upscale, denoise, derain, decompress as a user meets them: real files through the true command line."""

from __future__ import annotations

import json
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.album import IPTC, XMP, cutout, exif, frames, photo, png_text, wide_gamut
from helpers.commands import Mambair, mambair
from helpers.networks import identity, nearest
from PIL import ExifTags, Image, ImageChops, ImageCms, ImageSequence

from mambair_cli.images import deep, metadata
from mambair_cli.images.decode import read_picture
from mambair_cli.images.formats import of_suffix


@pytest.fixture(scope="session")
def x2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nearest(tmp_path_factory.mktemp("weights") / "nearest.pth")


@pytest.fixture(scope="session")
def x1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return identity(tmp_path_factory.mktemp("weights") / "identity.pth")


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Mambair:
    for variable in ("MAMBAIR_MODEL", "MAMBAIR_DEVICE", "MAMBAIR_OFFLINE", "CI"):
        monkeypatch.delenv(variable, raising=False)
    return partial(mambair, capture=capfdbinary)


def records(out: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.splitlines()]


# --- every kind of file -----------------------------------------------------------------------------------------

P3 = wide_gamut()
APP13 = b"\xff\xed" + (len(IPTC) + 2).to_bytes(2, "big") + IPTC
SAVED = {
    # name: (picture, options of save, mode of the result)
    "rgb.png": (photo(), {}, "RGB"),
    "rgba.png": (cutout(), {}, "RGBA"),
    "grey.png": (photo("L"), {}, "L"),
    "grey_alpha.png": (cutout().convert("LA"), {}, "LA"),
    "bits.png": (photo("1"), {}, "L"),
    "palette.png": (photo().quantize(64), {}, "RGB"),
    "palette_transparent.png": (photo().quantize(64), {"transparency": 0}, "RGBA"),
    "grey16.png": (Image.fromarray(np.asarray(photo("L")).astype(np.uint16) * 257), {}, "I;16"),
    "grey16.tif": (Image.fromarray(np.asarray(photo("L")).astype(np.uint16) * 257), {}, "I;16"),
    "float.tiff": (Image.fromarray(np.asarray(photo("L")).astype(np.float32) / 255), {}, "F"),
    "rgb.jpg": (photo(), {"quality": 97, "subsampling": 0}, "RGB"),
    "grey.JPEG": (photo("L"), {"quality": 97}, "L"),
    "lossless.webp": (photo(), {"lossless": True}, "RGB"),
    "lossless_alpha.webp": (cutout(), {"lossless": True, "exact": True}, "RGBA"),
    "lossy.webp": (photo(), {"quality": 95}, "RGB"),
    "lzw.tif": (photo(), {"compression": "tiff_lzw"}, "RGB"),
    "alpha.tif": (cutout(), {}, "RGBA"),
    "rgb.avif": (photo(), {"quality": 97, "subsampling": "4:4:4"}, "RGB"),
    "rgb.bmp": (photo(), {}, "RGB"),
}
LOSSY = ("rgb.jpg", "grey.JPEG", "rgb.avif", "lossy.webp")


@pytest.mark.parametrize("name", SAVED)
def test_every_pixel_of_every_kind_of_file_comes_through(name: str, tmp_path: Path, run: Mambair, x2: Path) -> None:
    image, options, mode = SAVED[name]
    image.save(tmp_path / name, **options)
    outcome = run("upscale", "--weights", x2, "--json", tmp_path / name)
    [record] = records(outcome.out)
    assert (outcome.status, record["status"], record["error"]) == (0, "done", None)
    source, target = Path(name), Path(str(record["output"]))
    assert target == tmp_path / f"{source.stem}_x2{source.suffix}"
    with Image.open(tmp_path / name) as before, Image.open(target) as after:
        assert after.mode == mode
        assert after.size == (122, 94) == tuple(record["output_size"])
        assert after.format == before.format
        kept, original = (np.asarray(x.convert(mode)).astype(float) for x in (after, before))
    difference = kept[::2, ::2] - original
    if mode in ("RGBA", "LA"):
        mask = Image.fromarray(original[..., -1].astype(np.uint8)).resize(after.size, Image.Resampling.BICUBIC)
        assert np.array_equal(kept[..., -1], np.asarray(mask))
        difference = difference[..., :-1][original[..., -1] > 0]  # what cannot be seen has no colour
    full = 65535 if mode == "I;16" else 1 if mode == "F" else 255
    psnr = 10 * np.log10(full**2 / max(np.mean(difference**2), 1e-12 * full**2))
    assert psnr > (30 if name in LOSSY else 100), psnr


def test_lossless_webp_stays_lossless_and_lossy_lossy(tmp_path: Path, run: Mambair, x1: Path) -> None:
    for name, lossless in (("a.webp", True), ("b.webp", False)):
        photo().save(tmp_path / name, lossless=lossless, quality=90)
        run("denoise", "--weights", x1, tmp_path / name)
        result = (tmp_path / name.replace(".", "_denoised.")).read_bytes()
        assert (b"VP8L" in result, b"VP8 " in result) == (lossless, not lossless)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_goes_into_the_pixels_and_the_tag_is_reset(
    orientation: int, tmp_path: Path, run: Mambair, x1: Path
) -> None:
    upright = photo()
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)  # the inverse of what a viewer does
    stored = upright if turn is None else upright.transpose(Image.Transpose(turn))
    stored.save(tmp_path / "a.png", exif=exif(orientation))
    assert run("denoise", "--weights", x1, tmp_path / "a.png").status == 0
    with Image.open(tmp_path / "a_denoised.png") as after:
        assert after.getexif()[ExifTags.Base.Orientation] == 1
        assert np.array_equal(np.asarray(after), np.asarray(upright))


def test_wide_gamut_colours_do_not_shift(tmp_path: Path, run: Mambair, x2: Path) -> None:
    from skimage.color import deltaE_ciede2000

    photo().save(tmp_path / "a.png", icc_profile=P3)
    assert run("upscale", "--weights", x2, tmp_path / "a.png").status == 0
    with Image.open(tmp_path / "a_x2.png") as after:
        assert after.info["icc_profile"] == P3
        shifts = deltaE_ciede2000(lab(after.resize((61, 47), Image.Resampling.BOX)), lab(photo()))
    assert shifts.mean() < 0.2
    assert np.quantile(shifts, 0.999) < 2  # also where sRGB has no such colour


def test_a_published_network_keeps_wide_gamut_colours(tmp_path: Path, run: Mambair, shared: Path) -> None:
    from skimage.color import deltaE_ciede2000

    photo().save(tmp_path / "a.png", icc_profile=P3)
    weights = shared / "weights" / "mambairv2_light_x4.pth"
    assert run("upscale", "--weights", weights, tmp_path / "a.png", "-o", tmp_path / "b.png").status == 0
    with Image.open(tmp_path / "b.png") as after:
        restored = lab(after.reduce(8))  # sharper than bicubic it may be; its colours are what counts
    bicubic = lab(photo().resize((244, 188), Image.Resampling.BICUBIC).reduce(8))
    assert deltaE_ciede2000(restored, bicubic).mean() < 1


def lab(image: Image.Image) -> np.ndarray:
    """A Display P3 picture in CIELAB."""
    profile = ImageCms.ImageCmsProfile(BytesIO(P3))
    values = ImageCms.profileToProfile(image.convert("RGB"), profile, ImageCms.createProfile("LAB"), outputMode="LAB")
    planes = np.asarray(values)
    return np.dstack([planes[..., :1] / 2.55, planes[..., 1:].view(np.int8)])


def test_cmyk_is_converted_with_a_notice(tmp_path: Path, run: Mambair, x1: Path) -> None:
    photo("CMYK").save(tmp_path / "a.jpg", quality=97, subsampling=0)
    outcome = run("denoise", "--weights", x1, tmp_path / "a.jpg")
    assert "CMYK is converted to sRGB" in outcome.err
    with Image.open(tmp_path / "a_denoised.jpg") as after:
        assert (after.mode, outcome.status) == ("RGB", 0)
        assert np.abs(np.asarray(after).astype(float) - np.asarray(photo())).mean() < 4


# --- several frames -----------------------------------------------------------------------------------------------

DURATIONS = [100, 200, 300]
MOVING = {
    "a.gif": {"duration": DURATIONS, "loop": 2},
    "a.webp": {"duration": DURATIONS, "loop": 2, "lossless": True},
    "a.png": {"duration": DURATIONS, "loop": 2},
    "a.avif": {"duration": DURATIONS, "quality": 97, "subsampling": "4:4:4"},
    "a.tiff": {},
}


@pytest.mark.parametrize("name", MOVING)
def test_every_frame_is_restored_and_timing_kept(name: str, tmp_path: Path, run: Mambair, x2: Path) -> None:
    first, *others = frames()
    first.save(tmp_path / name, save_all=True, append_images=others, **MOVING[name])
    assert run("upscale", "--weights", x2, tmp_path / name).status == 0
    with Image.open(tmp_path / name) as before, Image.open(tmp_path / name.replace(".", "_x2.")) as after:
        assert after.n_frames == 3
        assert after.info.get("loop") == before.info.get("loop")
        for old, new in zip(ImageSequence.Iterator(before), ImageSequence.Iterator(after), strict=True):
            assert new.size == (122, 94)
            assert new.info.get("duration") == old.info.get("duration")
            error = np.asarray(new.convert("RGB"))[::2, ::2].astype(float) - np.asarray(old.convert("RGB"))
            assert np.abs(error).mean() < (4 if name in ("a.gif", "a.avif") else 1e-9)


def test_transparent_animations_do_not_pile_up(tmp_path: Path, run: Mambair, x1: Path) -> None:
    disc = cutout()
    hard = disc.getchannel("A").point(lambda value: 255 if value > 127 else 0)
    disc.putalpha(hard)
    moving = [ImageChops.offset(disc, 15 * index, 0) for index in range(3)]
    for name in ("a.gif", "a.webp", "a.png"):
        moving[0].save(
            tmp_path / name, save_all=True, append_images=moving[1:], duration=100, disposal=2, lossless=True
        )
        assert run("denoise", "--weights", x1, tmp_path / name).status == 0
        with Image.open(tmp_path / name.replace(".", "_denoised.")) as after:
            masks = [np.asarray(frame.convert("RGBA"))[..., 3] > 0 for frame in ImageSequence.Iterator(after)]
        expected = [np.asarray(frame)[..., 3] > 0 for frame in moving]
        assert np.array_equal(masks, expected), name


def test_frames_that_a_format_cannot_hold_are_refused(tmp_path: Path, run: Mambair, x2: Path) -> None:
    first, *others = frames()
    first.save(tmp_path / "a.gif", save_all=True, append_images=others)
    outcome = run("upscale", "--weights", x2, "--format", "jpg", tmp_path / "a.gif")
    assert outcome.status == 1
    assert "3 frames: JPEG holds one" in outcome.err
    assert not list(tmp_path.glob("*.jpg"))


# --- more than 8 bits -------------------------------------------------------------------------------------------


def deep_files(folder: Path) -> dict[str, np.ndarray]:
    """Files with more than Pillow can hold, and their samples."""
    import imagecodecs as codecs
    import tifffile

    colour = np.asarray(photo()).astype(np.uint16) * 257 + 3
    clear = np.dstack([colour, np.asarray(cutout())[..., 3].astype(np.uint16) * 257])
    floats = (colour / 65535).astype(np.float32)
    (folder / "rgb.png").write_bytes(codecs.png_encode(colour))
    (folder / "rgba.png").write_bytes(codecs.png_encode(clear))
    tifffile.imwrite(folder / "rgb.tif", colour, photometric="rgb", iccprofile=P3)
    tifffile.imwrite(folder / "rgba.tif", clear, photometric="rgb", extrasamples=["unassalpha"])
    tifffile.imwrite(folder / "float.tif", floats, photometric="rgb")
    return {"rgb.png": colour, "rgba.png": clear, "rgb.tif": colour, "rgba.tif": clear, "float.tif": floats}


def test_deep_colour_keeps_every_bit(tmp_path: Path, run: Mambair, x2: Path) -> None:
    png_decode = pytest.importorskip("imagecodecs", reason="needs the extra `deep`").png_decode
    imread = pytest.importorskip("tifffile", reason="needs the extra `deep`").imread
    for name, samples in deep_files(tmp_path).items():
        outcome = run("upscale", "--weights", x2, tmp_path / name)
        assert outcome.status == 0, outcome.err
        target = tmp_path / name.replace(".", "_x2.")
        result = png_decode(target.read_bytes()) if name.endswith("png") else imread(target)
        assert result.dtype == samples.dtype
        seen = samples[..., -1] > 0 if samples.shape[2] == 4 else np.ones(samples.shape[:2], bool)
        assert np.abs(result[::2, ::2, :3].astype(float) - samples[..., :3])[seen].max() <= 1e-6, name


def test_heic_by_its_extra(tmp_path: Path, run: Mambair, x2: Path) -> None:
    heif = pytest.importorskip("pillow_heif", reason="needs the extra `heif`")
    heif.register_heif_opener()
    photo().save(tmp_path / "a.heic", quality=95, chroma=444, exif=exif(1), icc_profile=P3)
    outcome = run("upscale", "--weights", x2, tmp_path / "a.heic")
    assert outcome.status == 0, outcome.err
    with Image.open(tmp_path / "a_x2.heic") as after:
        assert (after.size, after.info["icc_profile"]) == ((122, 94), P3)
        assert after.getexif()[ExifTags.Base.Make] == "Maker"
        assert np.abs(np.asarray(after)[::2, ::2].astype(float) - np.asarray(photo())).mean() < 5


# --- what a file carries besides its pixels ---------------------------------------------------------------------


def tiff_exif() -> bytes:
    tags = exif(6)
    tags[700] = XMP  # a TIFF's XMP is a tag among the others
    return tags.tobytes()


CARRIERS = {
    "a.jpg": {
        "exif": exif(6),
        "xmp": XMP,
        "dpi": (300, 300),
        "comment": b"a wall",
        "extra": APP13,
        "icc_profile": P3,
    },
    "a.png": {"exif": exif(6), "pnginfo": png_text(), "dpi": (300, 300), "icc_profile": P3},
    "a.webp": {"exif": exif(6), "xmp": XMP, "lossless": True, "icc_profile": P3},
    "a.tif": {"exif": tiff_exif(), "dpi": (300, 300), "icc_profile": P3},
    "a.avif": {"exif": exif(6), "xmp": XMP, "icc_profile": P3},
}


@pytest.mark.parametrize("name", CARRIERS)
def test_metadata_is_kept_field_by_field(name: str, tmp_path: Path, run: Mambair, x2: Path) -> None:
    photo().save(tmp_path / name, **CARRIERS[name])
    assert run("upscale", "--weights", x2, tmp_path / name).status == 0
    with Image.open(tmp_path / name) as before, Image.open(tmp_path / name.replace(".", "_x2.")) as after:
        after.load()
        assert after.size == (94, 122)
        expected = facts(before)
        assert expected["xmp"] == XMP
        assert all(expected[part] for part in ("tags", "details", "places"))
        expected |= {"orientation": 1, "size": (94, 122)}
        upright = b"" if name == "a.tif" else b'tiff:Orientation="1"'  # Pillow turns TIFFs, and takes it out
        expected["xmp"] = XMP.replace(b'tiff:Orientation="6"', upright)
        assert facts(after) == expected


@pytest.mark.parametrize("name", CARRIERS)
def test_metadata_can_be_stripped(name: str, tmp_path: Path, run: Mambair, x2: Path) -> None:
    photo().save(tmp_path / name, **CARRIERS[name])
    assert run("upscale", "--strip-metadata", "--weights", x2, tmp_path / name).status == 0
    with Image.open(tmp_path / name.replace(".", "_x2.")) as after:
        after.load()
        left = {key: value for key, value in facts(after).items() if value}
    left.pop("dpi", None)  # Pillow's TIFFs say 1 where there is none
    assert left == {"icc": P3}


@pytest.mark.parametrize(("name", "library"), [("a.png", "imagecodecs"), ("a.tif", "tifffile")])
def test_deep_colour_carries_as_much(name: str, library: str, tmp_path: Path, run: Mambair, x2: Path) -> None:
    pytest.importorskip(library, reason="needs the extra `deep`")
    carrier = tmp_path / "carrier.jpg"
    photo().save(carrier, **CARRIERS["a.jpg"] | {"comment": None, "extra": b""})
    with carrier.open("rb") as file, Image.open(file) as image:
        kept, _ = metadata.collect(image, file)  # first: Pillow 11.3 writes no EXIF that was asked for a thumbnail
        expected = facts(image) | {"orientation": 1, "size": (94, 122)}
    deep_photo = np.rot90(np.asarray(photo()), -1).astype(np.uint16) * 257
    with (tmp_path / name).open("w+b") as file:
        deep.write([deep_photo], file, of_suffix(Path(name)), kept, 1)
    assert run("upscale", "--weights", x2, tmp_path / name).status == 0
    with Image.open(tmp_path / name.replace(".", "_x2.")) as after:
        after.load()
        assert after.size == (94, 122)
        expected["xmp"] = XMP.replace(b'Orientation="6"', b'Orientation="1"')
        assert facts(after) | {"comment": None} == expected | {"comment": None}
    assert read_picture(tmp_path / name).frames[0].pixels.dtype == np.uint16


def facts(image: Image.Image) -> dict[str, Any]:
    data = image.getexif()
    details, places = data.get_ifd(ExifTags.IFD.Exif), data.get_ifd(ExifTags.IFD.GPSInfo)
    base = ExifTags.Base
    xmp = image.info.get("xmp") or b""
    return {
        "tags": {tag: data[tag] for tag in (base.Make, base.Model, base.DateTime, base.Artist) if tag in data},
        "orientation": data.get(base.Orientation),
        "details": {t: v for t, v in details.items() if t not in (base.ExifImageWidth, base.ExifImageHeight)},
        "size": tuple(details[t] for t in (base.ExifImageWidth, base.ExifImageHeight) if t in details),
        "places": dict(places),
        "thumbnail": data.get_ifd(ExifTags.IFD.IFD1) if image.format != "TIFF" else {},
        "icc": image.info.get("icc_profile"),
        "xmp": xmp,
        "dpi": tuple(round(float(d)) for d in image.info.get("dpi", ())),
        "comment": image.info.get("comment"),
        "iptc": [data for name, data in getattr(image, "applist", ()) if name == "APP13"],
        "text": {
            key: (str(v), getattr(v, "lang", ""))
            for key, v in getattr(image, "text", {}).items()
            if "xmp" not in key and key != "Software"
        },
    }
