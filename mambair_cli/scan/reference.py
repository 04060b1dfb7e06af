"""The selective scan in plain PyTorch: runs on every device, differentiable, the twin of every kernel.

The recurrence (Mamba, Gu & Dao 2023, eq. 2-3, with the Euler form of B that all four families use):

    dt = softplus(W_dt r + b),  h_t = exp(dt A) h_{t-1} + dt B_t u_t,  y_t = C_t . h_t + D u_t

It is linear in h, so a chunk is solved by a Hillis-Steele scan in log2(CHUNK) elementwise steps. Only decays,
which are <= 1, are ever multiplied: unlike the cumulative-sum form it cannot overflow.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mambair_cli.scan.backend import Backend, ScanInputs

CHUNK = 128  # steps per chunk: bounds the (chunk, B, K, D, N) state history


def scan_sequences(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """y_t = C_t . h_t along dim 0 (time).

    u, dt (T, batch, K, D); A (K, D, N), negative; B, C (T, batch, K, N). Returns (T, batch, K, D).
    """
    state = u.new_zeros((*u.shape[1:], A.shape[-1]))
    ys = []
    for start in range(0, u.shape[0], CHUNK):
        part = slice(start, start + CHUNK)
        decay = torch.exp(dt[part].unsqueeze(-1) * A)
        h = (dt[part] * u[part]).unsqueeze(-1) * B[part].unsqueeze(-2)
        step = 1
        while step < h.shape[0]:
            h = torch.cat([h[:step], h[step:] + decay[step:] * h[:-step]])
            decay = torch.cat([decay[:step], decay[step:] * decay[:-step]])
            step *= 2
        h = h + decay * state
        state = h[-1]
        ys.append((h * C[part].unsqueeze(-2)).sum(-1))
    return torch.cat(ys) if ys else torch.zeros_like(u)


def follow(source: Tensor, orders: Tensor) -> Tensor:
    """What each path finds on its way, zeros at pads: (B, K, L, F), orders (B, K, T) -> (B, K, T, F)."""
    index = orders.clamp(min=0).long().unsqueeze(-1).expand(-1, -1, -1, source.shape[-1])
    return source.gather(2, index) * (orders >= 0).unsqueeze(-1)


def sequences(inputs: ScanInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every path as a sequence of its own, in the type of the parameters: u and the time steps before bias and
    softplus (B, K, T, D), B and C (B, K, T, N).

    K copies of everything, as the published networks make them; the kernels do without.
    """
    dtype, (directions, _, states) = inputs.A.dtype, inputs.A.shape
    u, proj = inputs.u.to(dtype), inputs.proj.to(dtype).transpose(1, 2)
    delta = None if inputs.delta is None else inputs.delta.to(dtype)
    if u.dim() == 3:
        u = u.unsqueeze(1).expand(-1, directions, -1, -1)
    if inputs.orders is not None:
        orders = inputs.orders.expand(u.shape[0], *inputs.orders.shape[-2:])
        u, proj = follow(u, orders), follow(proj, orders)
    low, B, C = proj.split([inputs.rank, states, states], dim=-1)
    if delta is None:
        assert inputs.dt_weight is not None
        delta = low @ inputs.dt_weight.transpose(1, 2)
    return u, delta, B, C


def bring_back(y: Tensor, inputs: ScanInputs) -> Tensor:
    """The steps of `sequences`, (B, K, T, D), added up at the positions that they visited; the type of `inputs.u`."""
    if inputs.orders is None:
        return y.to(inputs.u.dtype)
    orders = inputs.orders.expand(y.shape[0], *inputs.orders.shape[-2:])
    y = y * (orders >= 0).unsqueeze(-1)
    orders = orders.clamp(min=0).long()
    if inputs.reduce:
        y, orders = y.flatten(1, 2).unsqueeze(1), orders.flatten(1, 2).unsqueeze(1)
    out = y.new_zeros(*y.shape[:2], inputs.length, y.shape[-1])
    out = out.scatter_add(2, orders.unsqueeze(-1).expand_as(y), y)
    return (out.squeeze(1) if inputs.reduce else out).to(inputs.u.dtype)


def scan(inputs: ScanInputs) -> Tensor:
    u, dt, B, C = sequences(inputs)
    if inputs.dt_bias is not None:
        dt = dt + inputs.dt_bias[:, None]
    if inputs.softplus:
        dt = F.softplus(dt)

    def time_first(t: Tensor) -> Tensor:
        return t.permute(2, 0, 1, 3)

    y = scan_sequences(time_first(u), time_first(dt), inputs.A, time_first(B), time_first(C)).permute(1, 2, 0, 3)
    if inputs.D is not None:
        y = y + inputs.D[:, None] * u
    return bring_back(y, inputs)


BACKEND = Backend(
    name="torch",
    device=None,
    about="plain PyTorch, any device, slow",
    missing=lambda: "",
    takes=lambda inputs: True,
    scan=scan,
    memory=8,
)
