"""The selective scan: one op in two forms, several backends behind them.

`ordered_scan` is what the networks use: features once, channel last, and a table of paths over the pixels.
`selective_scan` has the signature of `mamba_ssm` for everybody else. `MAMBAIR_SCAN` overrides the choice.
"""

from __future__ import annotations

import importlib
import os
import warnings
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from mambair_cli.errors import UsageError
from mambair_cli.scan import cpu, published
from mambair_cli.scan.meter import measure

__all__ = ["BackendInfo", "backends", "chosen_backend", "ordered_scan", "selective_scan"]

_DEVICES = {"cpu": "cpu", "triton": "cuda", "mamba_ssm": "cuda"}  # the best first; "torch" runs anywhere
_MODULES = {"cpu": "cpu", "triton": "gpu", "mamba_ssm": "published", "torch": "reference"}
_warned: set[str] = set()


@dataclass(frozen=True)
class BackendInfo:
    """A way to run the scan: `reason` says what it is, or why it is not available."""

    name: str
    available: bool
    reason: str


@cache
def _triton_missing() -> str:
    if not torch.cuda.is_available():
        return "no CUDA device"
    if find_spec("triton") is None:
        return "Triton is not installed"
    try:
        gpu = _module("triton")
    except ImportError as error:
        return f"Triton does not load ({error})"
    return gpu.probe(torch.device("cuda"))


def _missing(name: str) -> str:
    """Why a backend cannot run here, or "". Asked only of what is needed: Triton takes seconds to answer on a GPU."""
    if name == "cpu":
        return cpu.missing
    if name == "triton":
        return _triton_missing()
    return published.missing() if name == "mamba_ssm" else ""


def backends() -> list[BackendInfo]:
    """Every backend, whether it can run here, and why not."""
    sets = cpu.instruction_sets()
    is_what = {
        "cpu": f"native kernel ({sets[0]})" if sets else "",
        "triton": "Triton kernels, NVIDIA and AMD",
        "mamba_ssm": "the published CUDA kernel",
        "torch": "plain PyTorch, any device, slow",
    }
    return [BackendInfo(name, not _missing(name), _missing(name) or what) for name, what in is_what.items()]


def chosen_backend(device: torch.device | str = "cpu") -> str:
    """The backend that tensors on `device` go to. Raises UsageError for an impossible MAMBAIR_SCAN."""
    wanted = os.environ.get("MAMBAIR_SCAN", "auto")
    kind = torch.device(device).type
    if wanted == "auto":
        return next((name for name, runs_on in _DEVICES.items() if runs_on == kind and not _missing(name)), "torch")
    if wanted not in _MODULES:
        raise UsageError(f"MAMBAIR_SCAN={wanted}: no such backend", f"Choose from: auto, {', '.join(_MODULES)}.")
    if _missing(wanted):
        raise UsageError(f"MAMBAIR_SCAN={wanted}: {_missing(wanted)}", "`mambair doctor` lists what is there.")
    if _DEVICES.get(wanted, kind) != kind:
        raise UsageError(
            f"MAMBAIR_SCAN={wanted}: runs on {_DEVICES[wanted]}, and this is {kind}",
            f"Choose --device {_DEVICES[wanted]}, or unset MAMBAIR_SCAN.",
        )
    return wanted


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"mambair_cli.scan.{_MODULES[name]}")


def _warn_of_slowness(kind: str) -> None:
    if kind in _warned or os.environ.get("MAMBAIR_SCAN", "auto") == "torch":
        return
    _warned.add(kind)
    reasons = [f"{name}: {_missing(name)}" for name, runs_on in _DEVICES.items() if runs_on == kind]
    hint = (
        f"no scan kernel runs on {kind}, so the slow PyTorch scan is used ({'; '.join(reasons) or 'none is written'})"
    )
    warnings.warn(cpu.INSTALL_HINT if kind == "cpu" else hint, stacklevel=4)


def _backend(x: Tensor, states: int, rank: int) -> ModuleType:
    name = chosen_backend(x.device)
    module = _module(name)
    if name == "torch":
        _warn_of_slowness(x.device.type)
    elif not module.takes(x, states, rank):
        return _module("torch")  # float64, or a size no published network has
    return module


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
               Others outside the map raise IndexError on the CPU; Triton, not to stall the GPU, takes them as -1.
    Returns (B, L, D) summed over the directions, or (B, K, L, D) with reduce=False; 0 where no path goes.
    """
    module = _backend(x, A.shape[-1], dt_weight.shape[-1])
    updates = x.shape[0] * orders.shape[-1] * A.numel()
    with torch.autocast(x.device.type, enabled=False):  # or plain PyTorch would round the time steps to half
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
