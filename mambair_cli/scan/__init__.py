"""The selective scan: one op in two forms, several backends behind them.

`ordered_scan` is what the networks use: features once, channel last, and a table of paths over the pixels.
`selective_scan` has the signature of `mamba_ssm` for everybody else. `MAMBAIR_SCAN` overrides the choice.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from mambair_cli.errors import UsageError
from mambair_cli.scan import cpu, reference
from mambair_cli.scan.meter import measure

__all__ = ["BackendInfo", "backends", "chosen_backend", "ordered_scan", "selective_scan"]

_MODULES: dict[str, ModuleType] = {"cpu": cpu, "torch": reference}
_warned: set[str] = set()


@dataclass(frozen=True)
class BackendInfo:
    """A way to run the scan: `reason` says what it is, or why it is not available."""

    name: str
    available: bool
    reason: str


def backends() -> list[BackendInfo]:
    """Every backend, whether it can run here, and why not."""
    kernel = f"native kernel ({cpu.instruction_sets()[0]})" if cpu.instruction_sets() else cpu.missing
    return [
        BackendInfo("cpu", not cpu.missing, kernel),
        BackendInfo("torch", True, "plain PyTorch, any device, slow"),
    ]


def chosen_backend(device: torch.device | str = "cpu") -> str:
    """The backend that tensors on `device` go to. Raises UsageError for an impossible MAMBAIR_SCAN."""
    wanted = os.environ.get("MAMBAIR_SCAN", "auto")
    there = {b.name: b for b in backends()}
    kind = torch.device(device).type
    if wanted != "auto":
        if wanted not in there:
            raise UsageError(f"MAMBAIR_SCAN={wanted}: no such backend", f"Choose from: auto, {', '.join(there)}.")
        if not there[wanted].available:
            raise UsageError(
                f"MAMBAIR_SCAN={wanted}: {there[wanted].reason}", "`mambair doctor` lists what is there."
            )
        return wanted
    return "cpu" if kind == "cpu" and there["cpu"].available else "torch"


def _backend(x: Tensor, states: int, rank: int) -> ModuleType:
    name = chosen_backend(x.device)
    if name == "cpu" and not cpu.takes(x, states, rank):
        return reference  # float64, or a size no published network has
    if name == "torch" and x.device.type == "cpu" and cpu.missing and "cpu" not in _warned:
        _warned.add("cpu")
        warnings.warn(cpu.INSTALL_HINT, stacklevel=3)
    return _MODULES[name]


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
    """Scan the positions of a feature map along K paths and add up what they see.

    Along each path: dt = softplus(W_dt r + b), h_t = exp(dt A) h_{t-1} + dt B_t u_t, y_t = C_t . h_t + D u_t
    (Mamba, Gu & Dao 2023, eq. 2-3), the state in float32 whatever the dtype of x. Differentiable.

    x          (B, L, D)        features, channel last
    proj       (B, L, K, R+2N)  [dt low-rank | B | C] of every position and direction
    dt_weight  (K, D, R)        dt_bias, D (K, D)        A (K, D, N), negative
    orders     (K, T) or (B, K, T), int32: the position visited at each step; T may differ from L. -1 is a pad:
               u = 0 and proj = 0 there, yet the state still decays by softplus(dt_bias).
    Returns (B, L, D) summed over the directions, or (B, K, L, D) with reduce=False; 0 where no path goes.
    """
    module = _backend(x, A.shape[-1], dt_weight.shape[-1])
    updates = x.shape[0] * orders.shape[-1] * A.numel()
    return measure(updates, lambda: module.ordered_scan(x, proj, dt_weight, dt_bias, A, D, orders, reduce))


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
    """`mamba_ssm.ops.selective_scan_interface.selective_scan_fn` without its gate z. Differentiable.

    u, delta (B, K*D, L); A (K*D, N); B, C (B, K, N, L) or (B, N, L); D, delta_bias (K*D). Returns y like u.
    """
    return _backend(u, A.shape[-1], 0).selective_scan(u, delta, A, B, C, D, delta_bias, delta_softplus)
