"""The native CPU kernel, forward and backward: checks, layouts and autograd around `_cpu` (cpu.cpp)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

missing = ""  # why there is no kernel; `backends()` passes it on
try:
    from mambair_cli.scan import _cpu
except ImportError as error:
    missing = f"does not load ({error})"
    if find_spec("mambair_cli.scan._cpu") is None:
        missing = "not built: no C++17 compiler worked when mambair was installed"

MAX_STATES = 64
MAX_RANK = 64
BACKWARD_TASKS = 4  # pieces at least that the backward is cut into, whatever the number of threads

INSTALL_HINT = (
    "the native scan kernel is not installed, so the slow PyTorch scan is used; with a C++17 compiler at hand, "
    "`pip install --force-reinstall --no-deps --no-binary mambair mambair` builds it"
)


def takes(x: Tensor, states: int, rank: int = 0) -> bool:
    """True where the kernel can run: a CPU tensor of a dtype and size it was written for."""
    return (
        not missing
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and 0 < states <= MAX_STATES
        and rank <= MAX_RANK
    )


def instruction_sets() -> list[str]:
    """What this processor can run, best first; empty without the kernel."""
    return [] if missing else _cpu.names()


def _plain(t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return t.detach().to(dtype).contiguous()


class _Scan(torch.autograd.Function):
    """u (B, L, [K,] D), delta like u or None, proj (B, L, K, R + 2N); the parameters of `ordered_scan`."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor | None,
        proj: Tensor,
        dt_weight: Tensor | None,
        dt_bias: Tensor | None,
        A: Tensor,
        D: Tensor | None,
        orders: Tensor | None,
        softplus: bool,
        reduce: bool,
    ) -> Tensor:
        dtype = torch.bfloat16 if u.dtype == torch.bfloat16 else torch.float32
        arguments = (
            _plain(u, dtype),
            None if delta is None else _plain(delta, dtype),
            _plain(proj, dtype),
            None if dt_weight is None else _plain(dt_weight),
            None if dt_bias is None else _plain(dt_bias),
            _plain(A),
            None if D is None else _plain(D),
            orders,
        )
        directions, channels = A.shape[:2]
        batch, length = u.shape[:2]
        halves = min(2, directions)
        shape = (halves, batch, length) if reduce else (batch, directions, length)
        y = torch.zeros(*shape, channels)
        kept = None
        if any(ctx.needs_input_grad):
            steps = length if orders is None else orders.shape[-1]
            kept = torch.empty(_cpu.kept_size(batch, directions, steps, channels, A.shape[2]))
        _cpu.forward(*arguments, softplus, y, kept, reduce, torch.get_num_threads())
        if reduce:
            y = y[0] if halves == 1 else torch.add(y[0], y[1], out=y[0])
        ctx.save_for_backward(*arguments, kept)
        ctx.softplus, ctx.reduce = softplus, reduce
        return y.to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, proj, dt_weight, dt_bias, A, D, orders, kept = ctx.saved_tensors
        batch = u.shape[0]
        halves = min(2, A.shape[0])
        groups = min(-(-A.shape[1] // 16), -(-BACKWARD_TASKS // (halves * batch)))

        def zeros(like: Tensor | None, *lead: int) -> Tensor | None:
            return None if like is None else torch.zeros(*lead, *like.shape)

        g_u, g_delta, g_proj = zeros(u, halves), zeros(delta), zeros(proj, groups)
        g_weight, g_A = zeros(dt_weight, batch), zeros(A, batch)
        g_bias, g_D = torch.zeros(batch, *A.shape[:2]), torch.zeros(batch, *A.shape[:2])
        _cpu.backward(
            *(u, delta, proj, dt_weight, dt_bias, A, D, orders, ctx.softplus, _plain(grads[0]), kept),
            *(g_u, g_delta, g_proj, g_weight, g_bias, g_A, g_D, ctx.reduce, torch.get_num_threads()),
        )
        assert g_u is not None
        assert g_proj is not None
        assert g_A is not None
        return (
            g_u.sum(0).to(u.dtype),
            None if g_delta is None else g_delta.to(u.dtype),
            g_proj.sum(0).to(proj.dtype),
            None if g_weight is None else g_weight.sum(0),
            None if dt_bias is None else g_bias.sum(0),
            g_A.sum(0),
            None if D is None else g_D.sum(0),
            None,
            None,
            None,
        )


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
    """See `mambair_cli.scan.ordered_scan`."""
    orders = orders.to("cpu", torch.int32).contiguous()
    if orders.numel():
        low, high = (int(v) for v in torch.aminmax(orders))
        if low < -1 or high >= x.shape[1]:  # the kernel follows these indices blindly
            raise IndexError(f"orders reach from {low} to {high}; positions are 0 to {x.shape[1] - 1}, pads -1")
    return _Scan.apply(x, None, proj, dt_weight, dt_bias, A, D, orders, True, reduce)


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
    """See `mambair_cli.scan.selective_scan`."""
    batch, rows, length = u.shape
    groups = B.shape[1] if B.dim() == 4 else 1

    def channel_last(t: Tensor) -> Tensor:  # (batch, K*D, L) -> (batch, L, K, D)
        return t.to(u.dtype).transpose(1, 2).reshape(batch, length, groups, rows // groups)

    def row(t: Tensor) -> Tensor:  # (batch, [K,] N, L) -> (batch, L, K, N)
        return (t if t.dim() == 4 else t.unsqueeze(1)).to(u.dtype).permute(0, 3, 1, 2)

    def grouped(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.reshape(groups, rows // groups)

    y = _Scan.apply(
        *(channel_last(u), channel_last(delta), torch.cat([row(B), row(C)], dim=-1), None),
        *(
            grouped(delta_bias),
            A.reshape(groups, rows // groups, -1),
            grouped(D),
            None,
            delta_softplus,
            False,
        ),
    )
    return y.transpose(2, 3).reshape(batch, rows, length)  # (batch, K, L, D) -> (batch, K*D, L)
