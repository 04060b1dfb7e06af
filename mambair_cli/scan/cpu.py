"""The native CPU kernel, forward and backward: checks, copies and autograd around `_cpu` (cpu.cpp)."""

from __future__ import annotations

from collections.abc import MutableMapping
from functools import reduce
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakIdKeyDictionary

from mambair_cli.scan.backend import Backend, ScanInputs

missing = ""  # why there is no kernel
try:
    from mambair_cli.scan import _cpu
except ImportError as error:
    missing = f"does not load ({error})"
    if find_spec("mambair_cli.scan._cpu") is None:
        missing = "not built: no C++17 compiler worked when mambair was installed"

BACKWARD_TASKS = 4  # pieces at least that the backward is cut into, whatever the number of threads

INSTALL_HINT = (
    "with a C++17 compiler at hand, installing mambair again builds the native kernel: "
    "`pip install --force-reinstall --no-deps --no-cache-dir` with what it was installed from"
)


def instruction_sets() -> list[str]:
    """What this processor can run, best first; empty without the kernel."""
    return [] if missing else _cpu.instruction_sets()


def _forward(inputs: ScanInputs, kept: Tensor | None) -> Tensor:
    """y; `kept` is filled with what a backward starts from."""
    once = _once(inputs.orders, inputs.length)
    directions, channels, _ = inputs.A.shape
    batch, length = inputs.u.shape[0], inputs.length
    parts, threads = 1, torch.get_num_threads()
    if inputs.reduce:
        parts = _cpu.scan_parts(batch, directions, channels, threads)
    shape = (parts, batch, length) if inputs.reduce else (batch, directions, length)
    y = (torch.empty if once else torch.zeros)(*shape, channels)
    u, delta, _, *rest = inputs.tensors
    proj = inputs.proj
    _cpu.forward(u, delta, proj, proj.stride(2), *rest, inputs.softplus, y, kept, inputs.reduce, once, threads)
    if inputs.reduce:
        # The directions of either half in turn, then the halves: the same sums with any number of parts.
        halves = [y[: parts // 2], y[parts // 2 :]] if parts > 1 else [y]
        y = reduce(Tensor.add_, [reduce(Tensor.add_, half) for half in halves])
    return y.to(inputs.u.dtype)


class _Scan(torch.autograd.Function):
    """The fields of `ScanInputs`, u in float32 or bfloat16."""

    @staticmethod
    def forward(ctx: Any, *fields: Any) -> Tensor:
        inputs = ScanInputs(*fields)
        inputs = inputs._replace(proj=inputs.proj.contiguous())  # as its gradient is
        batch, (directions, channels, states) = inputs.u.shape[0], inputs.A.shape
        kept = torch.empty(_cpu.kept_size(batch, directions, inputs.steps, channels, states))
        y = _forward(inputs, kept)
        ctx.save_for_backward(*inputs.tensors, kept)
        ctx.flags = inputs.softplus, inputs.reduce
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, kept = ctx.saved_tensors
        softplus, reduce = ctx.flags
        u, delta, proj, dt_weight, dt_bias, A, D, _ = tensors
        batch = u.shape[0]
        halves = min(2, A.shape[0])
        groups = min(-(-A.shape[1] // 16), -(-BACKWARD_TASKS // (halves * batch)))

        def zeros(like: Tensor | None, *lead: int) -> Tensor | None:
            return None if like is None else torch.zeros(*lead, *like.shape)

        g_u, g_delta, g_proj = torch.zeros(halves, *u.shape), zeros(delta), torch.zeros(groups, *proj.shape)
        g_weight, g_A = zeros(dt_weight, batch), torch.zeros(batch, *A.shape)
        g_bias, g_D = torch.zeros(batch, *A.shape[:2]), torch.zeros(batch, *A.shape[:2])
        g_y = grads[0].float().contiguous()
        results = (g_u, g_delta, g_proj, g_weight, g_bias, g_A, g_D)
        _cpu.backward(*tensors, softplus, g_y, kept, *results, reduce, torch.get_num_threads())
        return (
            g_u.sum(0).to(u.dtype),
            None if g_delta is None else g_delta.to(u.dtype),
            g_proj.sum(0).to(proj.dtype),
            None if g_weight is None else g_weight.sum(0),
            None if dt_bias is None else g_bias.sum(0),
            g_A.sum(0),
            None if D is None else g_D.sum(0),
            *(None, None, None),
        )


def takes(inputs: ScanInputs) -> bool:
    return inputs.u.dtype != torch.float64 and 0 < inputs.states <= _cpu.MAX_STATES and inputs.rank <= _cpu.MAX_RANK


_seen: MutableMapping[Tensor, tuple[tuple[int, ...], bool]] = WeakIdKeyDictionary()  # orders that were looked at


def _once(orders: Tensor | None, length: int) -> bool:
    """Whether it is known that every path visits every position once; what (K, T) orders are is remembered with them.

    Raises IndexError for positions that are none: the kernel follows them blindly."""
    if orders is None or not orders.numel():
        return orders is None
    low, high = (int(v) for v in torch.aminmax(orders))
    if low < -1 or high >= length:
        raise IndexError(f"orders reach from {low} to {high}; positions are 0 to {length - 1}, pads -1")
    if orders.is_inference() or orders.dim() == 3:
        return False
    state = orders._version, orders.data_ptr(), length
    seen = _seen.get(orders)
    if seen and seen[0] == state:
        return seen[1]
    visited = torch.zeros(orders.shape[0], length, dtype=torch.bool)
    once = low >= 0 and orders.shape[1] == length and bool(visited.scatter_(1, orders.long(), True).all())
    _seen[orders] = state, once
    return once


def scan(inputs: ScanInputs) -> Tensor:
    if inputs.u.dtype == torch.float16:
        delta = None if inputs.delta is None else inputs.delta.float()
        return scan(inputs._replace(u=inputs.u.float(), delta=delta, proj=inputs.proj.float())).half()
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs.tensors):
        return _Scan.apply(*inputs)
    return _forward(inputs, None)


BACKEND = Backend(
    name="cpu",
    device="cpu",
    about=f"native kernel ({instruction_sets()[0]})" if not missing else "",
    missing=lambda: missing,
    takes=takes,
    scan=scan,
    hint=INSTALL_HINT,
)
