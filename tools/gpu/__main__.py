"""Does the GPU path work, and how fast is it? All checks and timings, written to docs/gpu.md: `make gpu`.

    python tools/gpu [--out docs/gpu.md] [--minutes 7.5] [--only checks,op]
    python tools/gpu --dry-run --out FILE     no GPU: tiny shapes on the CPU, kernels in Triton's interpreter

Every part stands on its own: one that fails is reported, and the rest goes on. Exit status: 0, 1 if a check failed or
a part broke, 3 where there is no GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from pathlib import Path

NO_GPU = 3


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, help="the page to write (default: only print)")
    options.add_argument("--minutes", type=float, default=7.5, help="a part that has no time left is left out")
    options.add_argument("--only", default="", help="names of parts, with commas between")
    options.add_argument("--dry-run", action="store_true")
    args = options.parse_args()
    if args.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    import torch

    if not (args.dry_run or torch.cuda.is_available()):
        print(
            "There is no CUDA device here, so there is nothing to measure (--dry-run tries the tool).",
            file=sys.stderr,
        )
        return NO_GPU

    import checks
    import times
    from bench import Bench
    from report import page

    bench = Bench(torch.device("cpu" if args.dry_run else "cuda"), time.monotonic() + 60 * args.minutes)
    parts = {
        "environment": times.environment,
        "checks": checks.scans,
        "around": checks.around,
        "restorer": checks.restorer,
        "op": times.op,
        "networks": times.networks,
        "busy": times.busy,
        "compiled": checks.compiled,
        "large": checks.large,
    }
    chosen = args.only.split(",") if args.only else list(parts)
    if unknown := [name for name in chosen if name not in parts]:
        options.error(f"no such part: {', '.join(unknown)}; there are {', '.join(parts)}")
    for name in chosen:
        if bench.left() < 10:
            bench.note(f"{name}: no time was left")
            continue
        bench.say(f"--- {name}")
        try:
            parts[name](bench)
        except Exception as error:
            bench.broke(name, error)
            traceback.print_exc(limit=6)
    text = page(bench)
    if args.out:
        args.out.write_text(text)
    print(text)
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
