"""Measure weights on photographs made worse (`mambair_cli.degradations.measured`), one line per job.

    python tools/evaluate.py --data DATA [--limit N] [--jobs web,night] [--sheet FOLDER] MODEL|FILE|upscale ...

`upscale` and `denoise` stand for the whole command as it is without options, steps before enlarging included, and
`upscale@0` for --sharpness 0.
DATA holds Kodak24/HR, CBSD68/HR and PolyU/{HR,LQ}. Per job: PSNR (Y, or RGB for white25 and PolyU) of doing
nothing and of the result, gradient kept, NIQE, energy at periods of 2 and 4 pixels over that beside them (`grid`).
"""

from __future__ import annotations

import argparse
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mambair_cli import Request, Restorers, degradations, load_model, metrics, restore
from mambair_cli.bench.niqe import niqe
from mambair_cli.degradations.measured import MEASURED
from mambair_cli.models.mixing import mixed
from mambair_cli.tasks import TASKS

Bytes = NDArray[np.uint8]
RESTORERS = Restorers()
X4 = ("web", "phone", "night", "old")
SAME = ("camera", "camera_night", "blotch", "white25", "PolyU")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("models", nargs="*", help="names or files; without any, doing nothing is measured")
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--limit", type=int, default=0, help="pictures per set, evenly spread (0: all)")
    options.add_argument("--sets", default="Kodak24,CBSD68")
    options.add_argument("--jobs", default="", help="default: all that the model can do")
    options.add_argument(
        "--mix", nargs="+", default=[], help="FAITHFUL SHARP SHARE...: weights between the two as well"
    )
    options.add_argument("--sheet", type=Path, help="folder for 100 %% sheets: bicubic or input, results, truth")
    args = options.parse_args()
    models = {name: load(name) for name in args.models}
    for share in args.mix[2:]:
        models[f"mix {share}"] = load_mixed(*args.mix[:2], float(share))
    jobs = args.jobs.split(",") if args.jobs else [*X4] if any(scale(m) == 4 for m in models.values()) else [*SAME]
    for job in jobs:
        for name in ["PolyU"] if job == "PolyU" else args.sets.split(","):
            measure(job, name, args, models)


def load(name: str) -> Any:
    command, _, share = name.partition("@")
    if command in TASKS:
        asked = {TASKS[command].share.name: float(share)} if share else {}
        return Request(command, scale=4 if TASKS[command].enlarges else None, **asked)
    return (
        load_model(None, weights=Path(name), device="cpu") if Path(name).is_file() else load_model(name, device="cpu")
    )


def scale(model: Any) -> float:
    return (model.scale if isinstance(model, Request) else model.spec.scale) or 1


def load_mixed(faithful: str, sharp: str, share: float) -> Any:
    model, other = load(faithful), load(sharp)
    model.network.load_state_dict(mixed(model.network.state_dict(), other.network.state_dict(), share))
    return model


def measure(job: str, set_name: str, args: argparse.Namespace, models: dict[str, Any]) -> None:
    files = spread(sorted((args.data / set_name / "HR").iterdir()), args.limit)
    rows: dict[str, list[list[float]]] = {}
    spent: dict[str, float] = {}
    channel: Any = "rgb" if job in ("white25", "PolyU") else "y"
    crop = 4 if job in X4 else 0
    for file in files:
        lq, truth = worse(job, file)
        nothing = degradations.bicubic(to_bytes(lq), truth.shape[:2])
        results = {"nothing": nothing}
        for name, model in models.items():
            began = time.perf_counter()
            results[name] = restored(model, lq)
            spent[name] = spent.get(name, 0) + time.perf_counter() - began
        results["truth"] = truth
        for name, result in results.items():
            psnr = metrics.psnr(result, truth, channel=channel, crop=crop) if name != "truth" else np.inf
            quality = niqe(result, crop=crop)
            figures = [psnr, metrics.gradient_kept(result, truth, crop=crop), np.nan if quality is None else quality]
            rows.setdefault(name, []).append([*figures, grid(result)])
        if args.sheet:
            args.sheet.mkdir(parents=True, exist_ok=True)
            sheet = np.hstack([picture[:360, :360] for picture in results.values()])
            Image.fromarray(sheet).save(args.sheet / f"{job}-{set_name}-{file.stem}.png")
    print(f"{job} on {set_name}, {len(files)} pictures")
    print(f"  {'':32} {'PSNR':>6} {'gain':>6} {'kept':>5} {'NIQE':>5} {'grid':>6} {'s':>5}")
    base = np.mean(rows["nothing"], axis=0)[0]
    for name, values in rows.items():
        psnr, kept, quality, energy = np.mean(values, axis=0)
        took = spent.get(name, 0) / len(files)
        print(
            f"  {name[-32:]:32} {psnr:6.2f} {psnr - base:+6.2f} {kept:5.2f} {quality:5.2f} {energy:6.2f} {took:5.2f}"
        )


def spread(files: list[Path], limit: int) -> list[Path]:
    return files[:: max(1, len(files) // limit)][:limit] if limit else files


def worse(job: str, file: Path) -> tuple[NDArray[Any], Bytes]:
    """The input and its truth; the same every time."""
    truth = np.array(Image.open(file).convert("RGB"))
    if job == "PolyU":
        (low,) = (file.parents[1] / "LQ").glob(f"{file.stem}.*")
        return np.array(Image.open(low).convert("RGB")), truth
    truth = degradations.modcrop(truth, 4)
    if job == "white25":
        return degradations.gaussian_noise(truth, 25), truth
    made = MEASURED[job](truth, np.random.default_rng(zlib.crc32(file.stem.encode())))
    return made if isinstance(made, tuple) else (made, truth)


def restored(model: Any, lq: NDArray[Any]) -> Bytes:
    if isinstance(model, Request):
        return np.asarray(restore(to_bytes(lq), model, RESTORERS).image.convert("RGB"))
    pixels = lq.astype(np.float32) / 255 if lq.dtype == np.uint8 else lq
    result = model.restore(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))))
    return metrics.to_uint8(result.permute(1, 2, 0).numpy())


def to_bytes(picture: NDArray[Any]) -> Bytes:
    return picture if picture.dtype == np.uint8 else metrics.to_uint8(picture)


def grid(picture: Bytes) -> float:
    """Energy at periods of exactly 4 and 2 pixels over that of their neighbours, in dB: the most of rows and columns.

    0: no more than beside them. A grid of an upsampler stands out, whatever the picture shows.
    """
    plane = metrics.studio_luma(picture)
    total = []
    for lines in (plane, plane.T):
        length = lines.shape[1] // 8 * 8
        power = (np.abs(np.fft.rfft(lines[:, :length] * np.hanning(length))) ** 2).mean(axis=0)
        for period in (4, 2):
            at = length // period
            beside = power[at - 12 : at - 4]
            near = power[at : min(at + 2, len(power))] if period == 2 else power[at - 1 : at + 2]
            total.append(10 * np.log10((near.mean() + 1e-9) / (np.median(beside) + 1e-9)))
    return float(max(total))


if __name__ == "__main__":
    main()
