"""Everything in operators that every runtime has, for networks that are exported (`models/export.py`).

Inside `operators()` nothing native runs, and the scan is a loop over chunks of steps: `Scan` of ONNX, `scan` of
torch.export. The sizes are those of the example that is traced.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from mambair_cli.scan.backend import ScanInputs

CHUNK = 64  # steps that are solved at once: 6 doublings, and a state history of (64, K, D, N)
_active = False


@contextmanager
def operators() -> Iterator[None]:
    """Within it networks consist of standard operators; for one thread at a time."""
    global _active
    _active = True
    try:
        yield
    finally:
        _active = False


def active() -> bool:
    return _active


def scan(inputs: ScanInputs) -> Tensor:
    """As every back end's; one picture, float32, no gradient."""
    assert inputs.u.shape[0] == 1
    assert inputs.orders is not None
    assert inputs.dt_weight is not None
    assert inputs.dt_bias is not None
    directions, _, states = inputs.A.shape
    orders = inputs.orders.reshape(directions, -1).long()  # (K, T)
    u, proj = _follow(inputs.u, orders), _follow(inputs.proj.transpose(1, 2), orders)  # (T, K, F)
    low, B, C = proj.split([inputs.rank, states, states], dim=-1)
    dt = F.softplus(torch.einsum("tkr,kdr->tkd", low, inputs.dt_weight) + inputs.dt_bias)
    y = _recurrence(u, dt, inputs.A, B, C)
    if inputs.D is not None:
        y = y + inputs.D * u
    return _bring_back(y, orders, inputs)


def _follow(source: Tensor, orders: Tensor) -> Tensor:
    """What the paths find on their ways, zeros at pads: (1, L, F) or (1, K, L, F) -> (T, K, F)."""
    directions, steps = orders.shape
    index = orders.clamp(min=0).t()
    if source.dim() == 4:
        index = index + torch.arange(directions, device=orders.device) * source.shape[2]
    found = source.flatten(0, -2).index_select(0, index.flatten()).view(steps, directions, -1)
    return found * (orders >= 0).t().unsqueeze(-1)


def _bring_back(y: Tensor, orders: Tensor, inputs: ScanInputs) -> Tensor:
    """The steps (T, K, D) at the positions that they visited: (1, L, D), their sum, or (1, K, L, D)."""
    steps, directions, channels = y.shape
    step, path = (torch.arange(n, device=y.device) for n in (steps, directions))
    if steps == inputs.length:  # every path visits every position once
        step_of = torch.zeros_like(orders).scatter(1, orders, step.expand_as(orders))
        index = step_of * directions + path.unsqueeze(-1)  # (K, L)
        out = y.flatten(0, 1).index_select(0, index.flatten()).view(directions, -1, channels)
    else:
        index = (orders.clamp(min=0) + path.unsqueeze(-1) * inputs.length).t().flatten()
        y = y * (orders >= 0).t().unsqueeze(-1)
        out = y.new_zeros(directions * inputs.length, channels)
        out = out.index_put((index,), y.flatten(0, 1), accumulate=True).view(directions, -1, channels)
    return (out.sum(0) if inputs.reduce else out).unsqueeze(0)


def _recurrence(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """y_t = C_t . h_t with h_t = exp(dt A) h_{t-1} + dt u B: u, dt (T, K, D); A (K, D, N); B, C (T, K, N)."""
    steps = u.shape[0]
    size = min(CHUNK, steps)

    def chunks(t: Tensor) -> Tensor:  # a step of time 0 changes nothing
        return F.pad(t, (0, 0, 0, 0, 0, -steps % size)).unflatten(0, (-1, size))

    def one(state: Tensor, u: Tensor, dt: Tensor, B: Tensor, C: Tensor, A: Tensor) -> list[Tensor]:
        """Hillis & Steele's scan of one chunk, as in reference.py: the state after it, and its y."""
        decay = torch.exp(dt.unsqueeze(-1) * A)
        h = (dt * u).unsqueeze(-1) * B.unsqueeze(-2)
        step = 1
        while step < size:
            h = torch.cat([h[:step], h[step:] + decay[step:] * h[:-step]])
            decay = torch.cat([decay[:step], decay[step:] * decay[:-step]])
            step *= 2
        h = h + decay * state
        return [h[-1].clone(), (h * C.unsqueeze(-2)).sum(-1)]

    state, pieces = torch.zeros_like(A), [chunks(t) for t in (u, dt, B, C)]
    if torch.compiler.is_compiling():
        from torch._higher_order_ops.scan import scan_op  # its public face compiles the body again in every block

        y = scan_op(one, [state], pieces, (A,))[1]
    else:
        parts = []
        for u, dt, B, C in zip(*pieces, strict=True):
            state, part = one(state, u, dt, B, C, A)
            parts.append(part)
        y = torch.stack(parts)
    return y.flatten(0, 1)[:steps]
