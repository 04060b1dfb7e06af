"""Does the GPU path work, and how fast is it? All checks and timings, written to docs/gpu.md: `make gpu`.

    python tools/gpu [--out docs/gpu.md] [--minutes 7.5] [--only scan,op]
    python tools/gpu --dry-run --out FILE     no GPU: tiny shapes on the CPU, kernels in Triton's interpreter

Every part is a process of its own with a time limit: one that fails, hangs or takes the driver down is reported, and
the rest goes on. Checks run side by side, which also compiles what is timed later; then what is timed runs alone. The
page is written anew after every part. Exit status: 0, 1 if a check failed or a part broke, 3 where there is no GPU.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from findings import Findings

NO_GPU = 3
ENOUGH = 10  # seconds that must be left for a part to begin
THREADS = 2  # of each of the parts that run side by side


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the page to write (default: only print)")
    parser.add_argument("--minutes", type=float, default=7.5, help="a part that has no time left is left out")
    parser.add_argument("--only", default="", help="names of parts, or how they begin, with commas between")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--part", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)  # what a process does
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    if args.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    import torch

    if not (args.dry_run or torch.cuda.is_available()):
        print(
            "There is no CUDA device here, so there is nothing to measure (--dry-run tries the tool).",
            file=sys.stderr,
        )
        return NO_GPU

    from bench import Bench
    from parts import PARTS, run_part
    from report import page

    if args.part:
        name, file = args.part
        device = torch.device("cpu" if args.dry_run else "cuda")
        run_part(name, Bench(device, end, Findings(Path(file)), small=args.dry_run))
        return 0

    chosen = args.only.split(",") if args.only else [""]
    parts = {name: part for name, part in PARTS.items() if name.startswith(tuple(chosen))}
    if unknown := [word for word in chosen if not any(name.startswith(word) for name in parts)]:
        parser.error(f"no such part: {', '.join(unknown)}; there are {'; '.join(PARTS)}")
    findings, began = Findings(), time.monotonic()

    def show() -> None:
        if args.out:
            args.out.write_text(page(findings, args.dry_run, time.monotonic() - began))

    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(max(1, cores // THREADS)) as pool:
        checks = [
            pool.submit(in_a_process, name, part.limit, end, min(THREADS, cores))
            for name, part in parts.items()
            if not part.alone
        ]
        for done in as_completed(checks):
            findings.take(done.result())
            show()
    for name, part in parts.items():
        if part.alone:
            findings.take(in_a_process(name, part.limit, end, cores))
            show()
    print(page(findings, args.dry_run, time.monotonic() - began))
    return 1 if findings.failed else 0


def in_a_process(name: str, limit: float, end: float, threads: int) -> Findings:
    """What a part finds, up to where it ends, however it ends."""
    limit = min(limit, end - time.monotonic())
    if limit < ENOUGH:
        found = Findings()
        found.note(f"{name}: no time was left")
        return found
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found"
        options = ["--minutes", str(limit / 60), *(["--dry-run"] if "--dry-run" in sys.argv else [])]
        command = [sys.executable, sys.argv[0], "--part", name, str(file), *options]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        try:
            ran = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr, timeout=limit)
            ended = f"its process ended with status {ran.returncode}" if ran.returncode else ""
        except subprocess.TimeoutExpired:
            ended = f"it took more than {limit:.0f} s"
        found = Findings.read(file)
    if ended:
        found.broke(name, ended)
    return found


if __name__ == "__main__":
    sys.exit(main())
