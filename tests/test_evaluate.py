"""tools/evaluate.py: a line per model and job, and sheets to look at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
PHOTO = Path(__file__).parent / "pictures" / "photo.png"


def test_lines_and_sheets(tmp_path: Path) -> None:
    for folder in ("Kodak24/HR", "PolyU/HR", "PolyU/LQ"):
        (tmp_path / folder).mkdir(parents=True)
    picture = np.array(Image.open(PHOTO).convert("RGB"))
    picture = np.pad(picture, ((0, 60), (0, 60), (0, 0)), "symmetric")
    Image.fromarray(picture).save(tmp_path / "Kodak24/HR/photo.png")
    Image.fromarray(picture).save(tmp_path / "PolyU/HR/a.png")
    Image.fromarray(picture ^ 8).save(tmp_path / "PolyU/LQ/a.png")
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "tools" / "evaluate.py", "tiny-x4-photo@0", "--data", tmp_path),
            *("--sets", "Kodak24", "--jobs", "web,night", "--sheet", tmp_path / "sheets"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines if "on" in line] == ["web", "night"]
    rows = [line for line in lines if line[0] == "tiny-x4-photo@0"]
    assert len(rows) == 2
    assert float(rows[0][2]) > 0.1  # dB more than bicubic on a picture of the web
    assert all(line[3] == "1.00" for line in lines if line[0] == "truth")
    with Image.open(tmp_path / "sheets" / "web-Kodak24-photo.png") as sheet:
        assert sheet.width == 3 * min(360, picture.shape[1] // 4 * 4)
