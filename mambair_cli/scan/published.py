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

from mambair_cli.scan.reference import bring_back, follow

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


def takes(x: Tensor, states: int, rank: int = 0) -> bool:
    """True where the kernel can run: a CUDA tensor of a dtype and a number of states that it was written for."""
    return x.device.type == "cuda" and x.dtype != torch.float64 and x.numel() > 0 and states <= MAX_STATES


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


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """See `mambair_cli.scan.selective_scan`. In float32: the kernel would round the time steps to half as well."""

    def plain(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.float().contiguous()

    B, C = (t if t.dim() == 4 else t.unsqueeze(1) for t in (B, C))
    return _Scan.apply(*map(plain, (u, delta, A, B, C, D, delta_bias)), delta_softplus).to(u.dtype)


def ordered_scan(
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    orders: Tensor,
    reduce: bool = True,
) -> Tensor:
    """See `mambair_cli.scan.ordered_scan`. Materialises the K sequences, as the published networks do."""
    (batch, length, channels), (directions, _, rank) = x.shape, dt_weight.shape
    orders = orders.to(x.device).expand(batch, *orders.shape[-2:])  # (batch, K, T)
    u = follow(x.float().unsqueeze(1).expand(-1, directions, -1, -1), orders)
    low, B, C = follow(proj.float().transpose(1, 2), orders).split([rank, A.shape[-1], A.shape[-1]], dim=-1)
    delta = low @ dt_weight.float().transpose(1, 2)
    u, delta = (t.transpose(2, 3).flatten(1, 2) for t in (u, delta))  # (batch, K*D, T)
    B, C = B.transpose(2, 3), C.transpose(2, 3)
    y = selective_scan(u, delta, A.flatten(0, 1), B, C, D.flatten(), dt_bias.flatten(), True)
    y = y.unflatten(1, (directions, channels)).transpose(2, 3)
    return bring_back(y, orders, length, reduce).to(x.dtype)
