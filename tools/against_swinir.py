"""The time of light networks as a share of SwinIR-light's, which is what one would take instead, in one run.

    pip install spandrel          # SwinIR in plain PyTorch
    python tools/against_swinir.py [--size 128x128] [--threads 1] [--rounds 7] [--prepared] [MODEL ...]

Random weights. The networks take turns, so that other work on the machine meets all of them. What is printed is the
median over the rounds of each time divided by SwinIR's of the same round, the same of the best times, and of the
seconds that the processor worked (which other processes do not add to). With --prepared the process is set up as
mambair's own (`mambair_cli.prepare`), from which SwinIR profits as well; without, it is as Python and torch come.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time

from mambair_cli import prepare

if "--prepared" in sys.argv:
    prepare()
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # in any case: else it is the machine's other work that is timed

import torch
from spandrel.architectures.SwinIR import SwinIR

from mambair_cli import archs
from mambair_cli.models import zoo


def swinir_light(scale: int) -> torch.nn.Module:
    shape = dict(depths=[6] * 4, num_heads=[6] * 4, embed_dim=60, window_size=8, mlp_ratio=2, img_size=64)
    return SwinIR(upscale=scale, upsampler="pixelshuffledirect", **shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["mambairv2-light-x4", "mambair-light-x4"])
    parser.add_argument("--size", default="128x128", help="WxH")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prepared", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    width, height = map(int, arguments.size.split("x"))
    x = torch.rand(1, 3, height, width)
    specs = [zoo.find(name) for name in arguments.models]
    networks = {spec.name: archs.build(spec.arch, **spec.kwargs).eval() for spec in specs}
    networks = {"SwinIR-light": swinir_light(specs[0].scale).eval()} | networks
    times: dict[str, list[float]] = {name: [] for name in networks}
    worked: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode():
        for turn in range(arguments.rounds + 1):
            for name, network in networks.items():
                begin, busy = time.perf_counter(), time.process_time()
                network(x)
                if turn:  # the first is to warm up
                    times[name].append(time.perf_counter() - begin)
                    worked[name].append(time.process_time() - busy)
    base = times["SwinIR-light"]
    print(f"{width}x{height}, {arguments.threads} threads, {arguments.rounds} rounds")
    for name, own in times.items():
        share = statistics.median(a / b for a, b in zip(own, base, strict=True))
        busy = min(worked[name]) / min(worked["SwinIR-light"])
        print(
            f"{name:30} {statistics.median(own):7.3f} s  {share:5.2f} of SwinIR's (best {min(own) / min(base):.2f}; "
            f"processor {min(worked[name]):.2f} s, {busy:.2f})"
        )


if __name__ == "__main__":
    main()
