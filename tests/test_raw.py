"""Camera raw and videos: recognised by name and by content, developed with the extra, never taken for thumbnails."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from helpers.album import encoded, photo
from helpers.raw import dng, picture
from PIL import ExifTags, Image

from mambair_cli.errors import BadImage
from mambair_cli.files import find, left_alone
from mambair_cli.images import encode, formats, raw
from mambair_cli.images.decode import read_picture

DOCS = Path(__file__).resolve().parent.parent / "docs"


def with_thumbnail() -> bytes:
    """A DNG as most cameras make them: its first directory is a small picture, the raw one is in a sub-directory."""
    data = encoded(photo(), "TIFF")
    start = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[start : start + 2], "little")
    data += bytes(len(data) % 2)
    below = struct.pack("<HHHII", 1, 262, 3, 1, 32803) + bytes(4)
    entries = [data[at : at + 12] for at in range(start + 2, start + 2 + 12 * count, 12)]
    entries.append(struct.pack("<HHII", 330, 4, 1, len(data)))
    entries.sort(key=lambda entry: entry[1::-1])
    first = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return data[:4] + struct.pack("<I", len(data) + len(below)) + data[8:] + below + first


def cut_off() -> bytes:
    """The preview of a DNG whose raw part is missing."""
    entries = [(254, 4, 1, 1), (256, 3, 1, 1), (257, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 1)]
    entries.append((50706, 1, 4, 0x0104))
    tags = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + tags + bytes(4)


CONTENTS = {
    "cut": cut_off(),
    "dng": dng(),
    "nef": with_thumbnail(),
    "cr2": b"II*\0\x10\0\0\0CR\2\0" + bytes(100),
    "cr3": struct.pack(">I", 24) + b"ftypcrx " + bytes(100),
    "orf": b"IIRO\x08\0\0\0" + bytes(100),
    "rw2": b"IIU\0\x18\0\0\0" + bytes(100),
    "raf": b"FUJIFILMCCD-RAW 0201" + bytes(100),
}


@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("name", ["{kind}", "tif"])
def test_raw_is_recognised_by_its_content_and_named(
    kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw, "find_spec", lambda library: None)
    path = tmp_path / f"a.{name.format(kind=kind)}"
    path.write_bytes(CONTENTS[kind])
    for source in (path, CONTENTS[kind]):
        with pytest.raises(BadImage) as refusal:
            read_picture(source)
        assert refusal.value.message == "camera raw"
        assert refusal.value.hint == "Develop it first, or pip install 'mambair[raw]'."


@pytest.mark.parametrize("suffix", sorted(formats.RAW_SUFFIXES))
def test_raw_is_recognised_by_its_name(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"broken{suffix.upper()}"
    path.write_bytes(encoded(photo(), "TIFF")[:500])
    monkeypatch.setattr(raw, "find_spec", lambda library: None)
    with pytest.raises(BadImage, match="camera raw"):
        read_picture(path)
    monkeypatch.undo()
    pytest.importorskip("rawpy", reason="needs the extra `raw`")
    with pytest.raises(BadImage, match="camera raw that LibRaw cannot read"):
        read_picture(path)


def test_pictures_are_no_raw() -> None:
    for form in ("PNG", "JPEG", "TIFF", "WEBP", "AVIF"):
        assert not raw.is_raw(BytesIO(encoded(photo(), form)), Path("a.png"))


@pytest.mark.parametrize("orientation", [1, 6])
def test_raw_is_developed_upright_in_srgb_with_16_bits(orientation: int, tmp_path: Path) -> None:
    pytest.importorskip("rawpy", reason="needs the extra `raw`")
    (tmp_path / "a.dng").write_bytes(dng(orientation))
    developed = read_picture(tmp_path / "a.dng")
    expected = np.asarray(picture().rotate(-90, expand=True) if orientation == 6 else picture())
    pixels = developed.frames[0].pixels
    assert pixels.dtype == np.uint16
    assert pixels.shape == expected.shape
    assert np.abs(pixels / 257 - expected).mean() < 4  # a third of the colours is interpolated
    exif = Image.Exif()
    exif.load(developed.metadata.exif)
    assert exif[ExifTags.Base.Model] == "Model"
    assert ExifTags.Base.Orientation not in exif or exif[ExifTags.Base.Orientation] == 1
    assert any("developed plainly" in note for note in developed.warnings)
    stream = BytesIO()
    encode.write(developed, stream, formats.FORMATS["TIFF"], encode.Encoding())
    assert read_picture(stream.getvalue()).frames[0].pixels.shape == expected.shape  # no raw any more
    with pytest.raises(BadImage, match="more than 1,000"):
        read_picture(tmp_path / "a.dng", max_pixels=1000)


def test_folders_give_raw_where_it_can_be_read_and_count_it_where_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.NEF", "b.jpg", "c.mp4", "d.pdf", "e.pdf"):
        (tmp_path / name).touch()
    for there, names in ((None, ["b.jpg"]), (True, ["a.NEF", "b.jpg"])):
        monkeypatch.setattr(formats, "find_spec", lambda library, there=there: there)
        found = find([str(tmp_path)])
        assert [source.path.name for source in found if source.path] == names
        assert found.others[".pdf"] == 2
        assert found.others[".nef"] == (there is None)
    monkeypatch.setattr(formats, "find_spec", lambda library: None)
    assert left_alone(find([str(tmp_path)]).others) == (
        "4 others left alone: .mp4, .nef, .pdf (camera raw needs the extra: pip install 'mambair[raw]') "
        "(videos: docs/video.md)"
    )
    assert left_alone({".txt": 1}) == "1 other left alone: .txt"


# --- videos -----------------------------------------------------------------------------------------------------

VIDEOS = {
    "a.mp4": struct.pack(">I", 32) + b"ftypisom" + bytes(50),
    "a.mov": struct.pack(">I", 32) + b"ftypqt  " + bytes(50),
    "a.mkv": b"\x1a\x45\xdf\xa3" + bytes(50),
    "a.avi": b"RIFF\0\0\0\0AVI LIST" + bytes(50),
    "a.mpg": b"\0\0\1\xba" + bytes(50),
    "empty.webm": b"",
}


@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_is_sent_to_the_recipe(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(VIDEOS[name])
    sources = [tmp_path / name, *([VIDEOS[name]] if VIDEOS[name] else [])]
    for source in sources:
        with pytest.raises(BadImage, match="a video") as refusal:
            read_picture(source)
        assert "docs/video.md" in refusal.value.hint
    assert (DOCS / "video.md").is_file()


def test_the_recipe_for_videos_works(tmp_path: Path) -> None:
    """The commands of docs/video.md, as they stand there, with the true ffmpeg."""
    if not (shutil.which("ffmpeg") and shutil.which("ffprobe")):
        pytest.skip("needs ffmpeg (Debian: apt-get install ffmpeg)")
    sources = "-f lavfi -i testsrc=size=48x32:rate=5:duration=1 -f lavfi -i sine=duration=1"
    subprocess.run(f"ffmpeg -v error {sources} -shortest in.mp4".split(), cwd=tmp_path, check=True)
    [recipe] = (DOCS / "video.md").read_text().split("```sh\n")[1:]
    program = f'mambair() {{ "{sys.executable}" -m mambair_cli "$@"; }}\n'
    subprocess.run(["bash", "-euc", program + recipe.split("```")[0]], cwd=tmp_path, check=True, timeout=250)
    probe = "ffprobe -v error -count_frames -show_entries stream=width,height,nb_read_frames -of csv=p=0 out.mp4"
    told = subprocess.run(probe.split(), cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "96,64,5" in told
