"""The published CUDA kernel: `selective_scan_cuda`, which `pip install mamba_ssm` compiles.

Its backward adds with atomics, so gradients differ in the last bits from run to run.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mambair_cli.scan import reference
from mambair_cli.scan.backend import Backend, ScanInputs

MAX_STATES = 256


@cache
def missing() -> str:
    """Why the kernel cannot run here, or "". The package may well be importable without it: only loading it tells."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        _kernel()
    except ImportError as error:  # not there, or built for another torch
        return f"its kernel does not load ({error})"
    return ""


def _kernel() -> Any:
    return importlib.import_module("selective_scan_cuda")


class _Scan(torch.autograd.Function):
    """`selective_scan` of tensors that are float32, contiguous and of the shapes (B, K*D, L) and (B, K, N, L)."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
    ) -> Tensor:
        y, states, *_ = _kernel().fwd(u, delta, A, B, C, D, None, delta_bias, delta_softplus)
        ctx.save_for_backward(u, delta, A, B, C, D, delta_bias, states)
        ctx.delta_softplus = delta_softplus
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, A, B, C, D, delta_bias, states = ctx.saved_tensors
        g_u, g_delta, g_A, g_B, g_C, g_D, g_bias, *_ = _kernel().bwd(
            *(u, delta, A, B, C, D, None, delta_bias, grads[0].contiguous(), states, None, None),
            *(ctx.delta_softplus, False),
        )
        optional = None if D is None else g_D, None if delta_bias is None else g_bias
        return g_u, g_delta, g_A, g_B.to(B.dtype), g_C.to(C.dtype), *optional, None


def scan(inputs: ScanInputs) -> Tensor:
    """In float32: the kernel would round the time steps to half as well."""
    lead = inputs.A.shape[:2]
    u, delta, B, C = (t.transpose(2, 3).contiguous() for t in reference.sequences(inputs))
    D, bias = (None if t is None else t.flatten() for t in (inputs.D, inputs.dt_bias))
    y = _Scan.apply(u.flatten(1, 2), delta.flatten(1, 2), inputs.A.flatten(0, 1), B, C, D, bias, inputs.softplus)
    return reference.bring_back(y.unflatten(1, lead).transpose(2, 3), inputs)


BACKEND = Backend(
    name="mamba_ssm",
    device="cuda",
    about="the published CUDA kernel",
    missing=lambda: missing(),
    takes=lambda inputs: inputs.u.dtype != torch.float64 and inputs.u.numel() > 0 and inputs.states <= MAX_STATES,
    scan=scan,
    memory=4,
)
