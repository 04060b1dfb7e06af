"""Compile the Triton kernels for a GPU that need not be there; print how many shuffles each has, as JSON."""

from __future__ import annotations

import json
from typing import Any

from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from mambair_cli.scan import gpu, gpu_kernels, gpu_route

TARGET = GPUTarget("cuda", 80, 32)
SIZES = ("L", "T", "K", "D", "chunks", "parts", "group", "layer", "rows")
INT32 = ("orders", "visits", "starts", "category")
FIXED = dict(N=16, R=12, CHUNK=gpu.CHUNK, BLOCK=gpu.BLOCK, ROWS=gpu.ROWS, SOFTPLUS=True, REVERSE=False)
FIXED |= dict(PER_K=False, GRAD_PER_K=False, PER_IMAGE=False, delta=None, g_delta=None)


def shuffles(kernel: Any, **fixed: Any) -> int:
    while not isinstance(kernel, JITFunction):  # the autotuner's wrapper
        kernel = kernel.fn
    constants = {name: value for name, value in (FIXED | fixed).items() if name in kernel.arg_names}
    types = (
        {"key": "i64"}
        | dict.fromkeys(SIZES, "i32")
        | dict.fromkeys(INT32, "*i32")
        | dict.fromkeys(constants, "constexpr")
    )
    signature = {name: types.get(name, "*fp32") for name in kernel.arg_names}
    compiled = compile(ASTSource(kernel, signature, constants), target=TARGET, options=gpu.ONE_WARP)
    return compiled.asm["ptx"].count("shfl.sync")


if __name__ == "__main__":
    counts = {name: shuffles(getattr(gpu_kernels, name)) for name in ("chunk_ends", "chain", "outputs", "collect")}
    counts["gradients"] = shuffles(gpu_kernels.gradients, CHUNK=gpu.BACKWARD_CHUNK)
    counts["categories"] = shuffles(gpu_route.categories, TOKENS=64, QUADS=16, WIDTH=16, ROWS=gpu_route.ROWS)
    print(json.dumps(counts))
