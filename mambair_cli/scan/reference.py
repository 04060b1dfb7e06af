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

CHUNK = 128  # steps per chunk: bounds the (chunk, B, K, D, N) state history


def _state_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 state whatever the input, except that float64 stays float64 (it is the tests' truth)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


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
    dtype = _state_dtype(u.dtype)
    dt = delta.to(dtype)
    if delta_bias is not None:
        dt = dt + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        dt = F.softplus(dt)

    def rows_first(t: Tensor) -> Tensor:  # (batch, K*D, L) -> (L, batch, K, D)
        return t.to(dtype).permute(2, 0, 1).reshape(length, batch, groups, rows // groups)

    def groups_first(t: Tensor) -> Tensor:  # (batch, [K,] N, L) -> (L, batch, K, N)
        t = t if t.dim() == 4 else t.unsqueeze(1)
        return t.to(dtype).permute(3, 0, 1, 2)

    A = A.to(dtype).reshape(groups, rows // groups, -1)
    y = scan_sequences(rows_first(u), rows_first(dt), A, groups_first(B), groups_first(C))
    y = y.reshape(length, batch, rows).permute(1, 2, 0)
    if D is not None:
        y = y + D.to(dtype)[:, None] * u.to(dtype)
    return y.to(u.dtype)


def follow(source: Tensor, orders: Tensor) -> Tensor:
    """What each path finds on its way, zeros at pads: (B, K, L, F), orders (B, K, T) -> (B, K, T, F)."""
    index = orders.clamp(min=0).long().unsqueeze(-1).expand(-1, -1, -1, source.shape[-1])
    return source.gather(2, index) * (orders >= 0).unsqueeze(-1)


def bring_back(y: Tensor, orders: Tensor, length: int, reduce: bool) -> Tensor:
    """(B, K, T, D) added up at the positions that the steps visited: (B, K, L, D), or summed over K (B, L, D)."""
    y = y * (orders >= 0).unsqueeze(-1)
    orders = orders.clamp(min=0).long()
    if reduce:
        y, orders = y.flatten(1, 2).unsqueeze(1), orders.flatten(1, 2).unsqueeze(1)
    out = y.new_zeros(*y.shape[:2], length, y.shape[-1])
    out = out.scatter_add(2, orders.unsqueeze(-1).expand_as(y), y)
    return out.squeeze(1) if reduce else out


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
    """See `mambair_cli.scan.ordered_scan`. Materialises the K sequences; the kernels do not."""
    length, states, rank = x.shape[1], A.shape[-1], dt_weight.shape[-1]
    dtype = _state_dtype(x.dtype)
    orders = orders.expand(x.shape[0], *orders.shape[-2:])  # (batch, K, T)
    u = follow(x.to(dtype).unsqueeze(1).expand(-1, orders.shape[1], -1, -1), orders)
    low, B, C = follow(proj.to(dtype).transpose(1, 2), orders).split([rank, states, states], dim=-1)
    dt = F.softplus(low @ dt_weight.to(dtype).transpose(1, 2) + dt_bias.to(dtype)[:, None])

    def time_first(t: Tensor) -> Tensor:
        return t.permute(2, 0, 1, 3)

    y = scan_sequences(time_first(u), time_first(dt), A.to(dtype), time_first(B), time_first(C))
    y = y.permute(1, 2, 0, 3) + D.to(dtype)[:, None] * u  # (batch, K, T, D)
    return bring_back(y, orders, length, reduce).to(x.dtype)
