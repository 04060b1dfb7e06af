"""Compile the Triton kernels for GPUs that need not be there and say what became of them.

    python tests/compile_kernels.py                            # every kernel for every network and target
    python tests/compile_kernels.py --networks classic --targets sm_90

Per thread: registers, spills, shuffles and, on NVIDIA, the instructions of the longest loop, which in the scans is
the one over the steps. Exit status 1 if a figure is beyond its limit. The sizes in `mambair_cli/scan/gpu.py` were
chosen by what this prints. What stands around the scan is compiled as two blocks of the network launch it, in bf16
and in float32; a kernel that they launch in several ways is numbered.
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

import pytest
import torch
import triton
from helpers.launches import Launch, as_on_a_gpu
from helpers.launches import network as blocks_of
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mambair_cli.scan import gpu, gpu_fused, gpu_gradients, gpu_kernels, gpu_rates, gpu_route

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),  # A100
    "sm_90": GPUTarget("cuda", 90, 32),  # H100, H200
    "gfx942": GPUTarget("hip", "gfx942", 64),  # MI300
}
NETWORKS = {  # a model, states, rank, and the instructions a step may take in `states` and in `outputs`
    "light": ("mambair-light-x4", 10, 4, 115, 140),
    "classic": ("mambair-classic-x4", 16, 12, 155, 185),
    "v2-light": ("mambairv2-light-x4", 8, 3, 110, 140),
    "v2-base": ("mambairv2-base-x4", 16, 22, 175, 210),
}
# Registers at most.
AROUND = {"collect_normed": 80, "norm_gate": 48, "depthwise": 144, "linear": 128, "attention": 176}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

SIZES = ("L", "T", "K", "D", "SEGMENT", "segments", "parts", "group", "key", "layer", "rows", "length", "repeats")
INT32 = ("orders", "visits", "starts", "category")
POINTERS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int32: "i32"}
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
    signature: dict[str, str]
    constants: dict[str, Any]
    aligned: frozenset[str]  # arguments that are multiples of 16
    options: dict[str, Any]
    registers: int
    shuffles: int | None = 0
    loop: int | None = None


def cases(network: str, target: str) -> dict[str, Case]:
    """Of the scan and of the routes, by name. With 104 registers about 20 warps run on a multiprocessor; AMD has
    twice as many registers."""
    _, states, rank, ends, outputs = NETWORKS[network]
    few = 128 if target.startswith("gfx") else 104
    k, scan = gpu_kernels, dict(N=states, R=rank, BLOCK=TARGETS[target].warp_size)
    apart = scan | dict(CHUNK=None, entering=None)
    kept = scan | dict(CHUNK=gpu.CHUNK, spans=None)
    route = dict(KEYS=False, TOKENS=64, QUADS=16, WIDTH=16, ROWS=gpu_route.ROWS)
    rate = dict(CHAINS=gpu_rates.CHAINS, BLOCK=gpu_rates.BLOCK)
    return {
        "states": case(k.states, apart, few, loop=ends),
        "adjoints": case(k.states, apart | dict(REVERSE=True), few, loop=ends),
        "kept-states": case(k.states, kept, few),
        "kept-adjoints": case(k.states, kept | dict(REVERSE=True), few),
        "chain": case(k.chain, scan | dict(AHEAD=gpu.AHEAD, BLOCK=gpu.CHAINED), few, 40, options=gpu.CHAIN),
        "outputs": case(k.outputs, scan, few, loop=outputs),
        "gradients": case(gpu_gradients.gradients, scan | dict(CHUNK=gpu.CHUNK, BLOCK=gpu.WIDTH), 255, 180),
        "collect": case(k.collect, scan | dict(ROWS=gpu.ROWS), few, 2),
        "categories": case(gpu_route.categories, route, few, 20),
        # Four steps of 16 multiply-adds: what else is in the loop does not count.
        "rate": case(gpu_rates.loop, rate | dict(EXPONENTIAL=False), 64, loop=70, options=gpu.CHAIN),
        "rate-exp": case(gpu_rates.loop, rate | dict(EXPONENTIAL=True), 64, loop=70, options=gpu.CHAIN),
    }


def case(
    kernel: Any, fixed: dict[str, Any], *limits: Any, options: dict[str, Any] = gpu.ONE_WARP, **loop: Any
) -> Case:
    """By the names of its arguments, in float32."""
    constants = {name: value for name, value in (FIXED | fixed).items() if name in kernel.arg_names}
    types = dict.fromkeys(SIZES, "i32") | {"key": "i64", "factor": "fp32"} | dict.fromkeys(INT32, "*i32")
    types |= dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "*fp32") for name in kernel.arg_names}
    # As torch allocates: what is pointed to begins at a multiple of 16 bytes.
    pointers = frozenset(name for name, kind in signature.items() if kind.startswith("*"))
    return Case(kernel, signature, constants, pointers, options, *limits, **loop)


def around(network: str, target: str) -> dict[str, Case]:
    """What stands around the scan, as it is launched there."""
    found: dict[str, Case] = {}
    for suffix, half in (("", True), ("-fp32", False)):
        launches: list[Launch] = []
        with pytest.MonkeyPatch.context() as patch, torch.no_grad(), torch.autocast("cpu", torch.bfloat16, half):
            patch.setattr(torch.version, "hip", "7" if target.startswith("gfx") else None)
            as_on_a_gpu(launches.append, patch)
            blocks_of(NETWORKS[network][0], 2)(torch.zeros(1, 3, 32, 32))
        for name in AROUND:
            every = [launched(launch) for launch in launches if launch.kernel == name]
            alike = [one for i, one in enumerate(every) if one not in every[:i]]
            found |= {f"{name}{suffix}{f'-{i}' if i > 1 else ''}": one for i, one in enumerate(alike, 1)}
    return found


def launched(launch: Launch) -> Case:
    """A call of a kernel, as Triton specialises it."""
    kernel = getattr(gpu_kernels if launch.kernel.startswith("collect") else gpu_fused, launch.kernel)
    options = {name: value for name, value in launch.options.items() if name not in kernel.arg_names}
    given = dict(zip(kernel.arg_names, launch.arguments, strict=False)) | {
        name: value for name, value in launch.options.items() if name in kernel.arg_names
    }
    signature, constants, aligned = {}, {}, set()
    for parameter in kernel.params:
        name, value = parameter.name, given[parameter.name]
        if isinstance(value, torch.Tensor):
            signature[name] = f"*{POINTERS[value.dtype]}"
            aligned.add(name)
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif parameter.is_constexpr or value is None or (value == 1 and not parameter.do_not_specialize):
            signature[name], constants[name] = "constexpr", value
        else:
            signature[name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                aligned.add(name)
    return Case(kernel, signature, constants, frozenset(aligned), options, AROUND[launch.kernel], None)


def compiled(case: Case, target: str) -> Any:
    """The kernel as Triton compiles it for that target."""
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(case.signature) if name in case.aligned}
    source = ASTSource(case.kernel, case.signature, case.constants, aligned)
    return triton.compile(source, target=TARGETS[target], options=case.options)


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
        for name, one in (cases(network, target) | around(network, target)).items():
            if name in (wanted.kernels or [name]):
                found = figures(compiled(one, target))
                wrong = beyond(one, found)
                broken += bool(wrong)
                print(network, target, name, *asdict(found).values(), *wrong, sep="\t", flush=True)
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
