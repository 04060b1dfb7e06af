"""Compile the Triton kernels for GPUs that need not be there and say what became of them.

    python tests/compile_kernels.py                            # every kernel for every network and target
    python tests/compile_kernels.py --networks classic --targets sm_90

Per thread: registers, spills, shuffles and, on NVIDIA, the instructions of the longest loop, which in the scans is
the one over the steps. Exit status 1 if a figure is beyond its limit. The sizes in `mambair_cli/scan/gpu.py` were
chosen by what this prints.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mambair_cli.scan import gpu, gpu_kernels, gpu_rates, gpu_route

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),  # A100
    "sm_90": GPUTarget("cuda", 90, 32),  # H100, H200
    "gfx942": GPUTarget("hip", "gfx942", 64),  # MI300
}
NETWORKS = {  # states, rank, and the instructions a step may take in `states` and in `outputs`
    "light": (10, 4, 115, 140),
    "classic": (16, 12, 155, 185),
    "v2-light": (8, 3, 110, 140),
    "v2-base": (16, 22, 175, 210),
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

SIZES = ("L", "T", "K", "D", "SEGMENT", "segments", "parts", "group", "key", "layer", "rows", "length", "repeats")
INT32 = ("orders", "visits", "starts", "category")
FIXED = dict(SOFTPLUS=True, REVERSE=False, PER_K=False, GRAD_PER_K=False, PER_IMAGE=False, delta=None, g_delta=None)


@dataclass(frozen=True)
class Figures:
    """Of one kernel, per thread."""

    registers: int
    spills: int
    shuffles: int
    loop: int | None = None  # instructions of the longest loop


@dataclass(frozen=True)
class Case:
    """A kernel with what it is compiled for, and its limits."""

    kernel: Any
    fixed: dict[str, Any]
    registers: int
    shuffles: int = 0
    loop: int | None = None
    options: dict[str, Any] | None = None


def cases(network: str, target: str) -> dict[str, Case]:
    """By name. With 104 registers about 20 warps run on a multiprocessor; AMD has twice as many registers."""
    states, rank, ends, outputs = NETWORKS[network]
    few = 128 if target.startswith("gfx") else 104
    k, scan = gpu_kernels, dict(N=states, R=rank, BLOCK=TARGETS[target].warp_size)
    apart = scan | dict(CHUNK=None, entering=None)
    kept = scan | dict(CHUNK=gpu.CHUNK, spans=None)
    route = dict(KEYS=False, TOKENS=64, QUADS=16, WIDTH=16, ROWS=gpu_route.ROWS)
    rate = dict(CHAINS=gpu_rates.CHAINS, BLOCK=gpu_rates.BLOCK)
    return {
        "states": Case(k.states, apart, few, loop=ends),
        "adjoints": Case(k.states, apart | dict(REVERSE=True), few, loop=ends),
        "kept-states": Case(k.states, kept, few),
        "kept-adjoints": Case(k.states, kept | dict(REVERSE=True), few),
        "chain": Case(k.chain, scan | dict(AHEAD=gpu.AHEAD, BLOCK=gpu.CHAINED), few, 40, options=gpu.CHAIN),
        "outputs": Case(k.outputs, scan, few, loop=outputs),
        "gradients": Case(k.gradients, scan | dict(CHUNK=gpu.CHUNK, BLOCK=gpu.WIDTH), 255, 180),
        "collect": Case(k.collect, scan | dict(ROWS=gpu.ROWS), few, 2),
        "categories": Case(gpu_route.categories, route, few, 20),
        # Four steps of 16 multiply-adds: what else is in the loop does not count.
        "rate": Case(gpu_rates.loop, rate | dict(EXPONENTIAL=False), 64, loop=70, options=gpu.CHAIN),
        "rate-exp": Case(gpu_rates.loop, rate | dict(EXPONENTIAL=True), 64, loop=70, options=gpu.CHAIN),
    }


def compiled(case: Case, target: str) -> Any:
    """The kernel as Triton compiles it for that target."""
    constants = {name: value for name, value in (FIXED | case.fixed).items() if name in case.kernel.arg_names}
    types = dict.fromkeys(SIZES, "i32") | {"key": "i64", "factor": "fp32"} | dict.fromkeys(INT32, "*i32")
    types |= dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "*fp32") for name in case.kernel.arg_names}
    # As torch allocates: what is pointed to begins at a multiple of 16 bytes.
    pointers = [i for i, kind in enumerate(signature.values()) if kind.startswith("*")]
    aligned = {(i,): [["tt.divisibility", 16]] for i in pointers}
    options = case.options or gpu.ONE_WARP
    return triton.compile(
        ASTSource(case.kernel, signature, constants, aligned), target=TARGETS[target], options=options
    )


def figures(built: Any) -> Figures:
    if "cubin" in built.asm:
        return _nvidia(built.asm["cubin"])
    text = built.asm["amdgcn"]
    registers, spills = (
        int(re.findall(rf"\.{name}:\s*(\d+)", text)[0]) for name in ("vgpr_count", "vgpr_spill_count")
    )
    shuffles = re.findall(r"^\s+(?:ds_bpermute|ds_permute|ds_swizzle|v_permlane\w*|v_\w+_dpp)", text, re.MULTILINE)
    return Figures(registers, spills, len(shuffles))


def _nvidia(cubin: bytes) -> Figures:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _output("cuobjdump", "-res-usage", file.name)
        lines = _output("nvdisasm", "-c", file.name).splitlines()
    labels: dict[str, int] = {}
    code: list[str] = []
    for line in lines:
        if label := re.match(r"(\.L_x_\w+):", line):
            labels[label[1]] = len(code)
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            code.append(instruction[1])
    loops = [
        code[labels[back[1]] : i + 1]
        for i, instruction in enumerate(code)
        if (back := re.search(r"BRA.*`\((\.L_x_\w+)\)", instruction)) and labels.get(back[1], i) < i
    ]
    return Figures(
        registers=int(re.findall(r"REG:(\d+)", usage)[0]),
        spills=sum(bool(re.search(r"\b(STL|LDL)\b", i)) for i in code),
        shuffles=sum(bool(re.search(r"\bSHFL\b", i)) for i in code),
        loop=max((len(loop) for loop in loops), default=None),
    )


def _output(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def beyond(case: Case, found: Figures) -> list[str]:
    """The figures that are beyond their limits."""
    limits = dict(registers=case.registers, spills=0, shuffles=case.shuffles, loop=case.loop)
    values = asdict(found)
    return [
        f"{name} > {most}"
        for name, most in limits.items()
        if None not in (most, values[name]) and values[name] > most
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--kernels", nargs="+")
    wanted, broken = parser.parse_args(), 0
    print("network", "target", "kernel", *Figures.__annotations__, sep="\t")
    for network, target in product(wanted.networks, wanted.targets):
        for name, case in cases(network, target).items():
            if name in (wanted.kernels or [name]):
                found = figures(compiled(case, target))
                wrong = beyond(case, found)
                broken += bool(wrong)
                print(network, target, name, *asdict(found).values(), *wrong, sep="\t", flush=True)
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
