"""The selective scan: one op in two forms, several back ends behind them.

`ordered_scan` is what the networks use: features once, channel last, and a table of paths over the pixels.
`selective_scan` has the signature of `mamba_ssm` for everybody else. `MAMBAIR_SCAN` overrides the choice.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mambair_cli.errors import UsageError
from mambair_cli.scan import cpu, fused, gpu, library, published, reference, standard
from mambair_cli.scan.backend import Backend, NormGate, ScanInputs, without_autocast
from mambair_cli.scan.meter import measure

__all__ = ["BACKENDS", "Backend", "BackendInfo", "NormGate", "ScanInputs", "backends", "chosen_backend"]
__all__ += ["ordered_scan", "selective_scan"]

# The best first; the last one runs everywhere and takes everything.
BACKENDS: dict[str, Backend] = {module.BACKEND.name: module.BACKEND for module in (cpu, gpu, published, reference)}
_warned: set[str] = set()  # devices whose slowness was spoken of


@dataclass(frozen=True)
class BackendInfo:
    """A way to run the scan: `reason` says what it is, or why it is not available."""

    name: str
    available: bool
    reason: str


def backends() -> list[BackendInfo]:
    """Every back end, whether it can run here, and why not."""
    return [BackendInfo(b.name, not b.missing(), b.missing() or b.about) for b in BACKENDS.values()]


def chosen_backend(device: torch.device | str = "cpu") -> str:
    """The back end that tensors on `device` go to. Raises UsageError for an impossible MAMBAIR_SCAN."""
    kind = torch.device(device).type
    name = os.environ.get("MAMBAIR_SCAN", "auto")
    if name != "auto":
        return _find(name, kind, "MAMBAIR_SCAN=").name
    able = (b for b in BACKENDS.values() if b.device in (kind, None) and not b.missing())
    return next(able).name


def _find(name: str, kind: str, setting: str = "backend ") -> Backend:
    """The back end of that name. Raises UsageError where it does not run on devices of that kind."""
    backend, said = BACKENDS.get(name), setting + name
    if backend is None:
        raise UsageError(f"{said}: no such backend", f"Choose from: auto, {', '.join(BACKENDS)}.")
    if backend.missing():
        raise UsageError(f"{said}: {backend.missing()}", "`mambair doctor` lists what is there.")
    if backend.device not in (kind, None):
        raise UsageError(
            f"{said}: runs on {backend.device}, and this is {kind}",
            f"Choose --device {backend.device}, or unset MAMBAIR_SCAN.",
        )
    return backend


def _warn_of_slowness(kind: str) -> None:
    if kind in _warned or os.environ.get("MAMBAIR_SCAN", "auto") != "auto":
        return
    _warned.add(kind)
    better = [b for b in BACKENDS.values() if b.device == kind]
    reasons = "; ".join(f"{b.name}: {b.missing()}" for b in better) or "none is written"
    hints = "".join(f"; {b.hint}" for b in better if b.hint)
    warnings.warn(f"no scan kernel runs on {kind}, so the slow PyTorch scan is used ({reasons}){hints}", stacklevel=5)


def _run(inputs: ScanInputs, name: str | None, norm: NormGate | None = None) -> Tensor:
    if not library.tracing():
        return _scan(inputs, name, norm)
    return _normed(standard.scan(inputs) if standard.active() else _operator(inputs, name), norm)


def _normed(y: Tensor, norm: NormGate | None) -> Tensor:
    """What back ends leave to others: the norm and the gate."""
    if norm is None:
        return y
    weight, bias, eps, z = norm
    return fused.layer_norm(y, weight, bias, eps) if z is None else fused.norm_gate(y, z, weight, bias, eps)


def _scan(inputs: ScanInputs, name: str | None, norm: NormGate | None = None) -> Tensor:
    device = inputs.u.device
    if device.type == "meta":
        return _normed(measure(inputs, inputs.blank), norm)
    backend = _find(name, device.type) if name else BACKENDS[chosen_backend(device)]
    if backend is reference.BACKEND and not name:
        _warn_of_slowness(device.type)
    with without_autocast(device):  # or plain PyTorch would round the time steps to half
        inputs = inputs.laid_out()
        if not backend.takes(inputs):
            backend = reference.BACKEND  # float64, or a size that no published network has
        if norm is not None and backend.normed is not None and not torch.is_grad_enabled():
            return measure(inputs, partial(backend.normed, inputs, norm))
        y = measure(inputs, lambda: backend.scan(inputs))
    return _normed(y, norm)


_operator = library.operator(_scan)


def ordered_scan(
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    orders: Tensor,
    reduce: bool = True,
    *,
    norm: NormGate | None = None,
    backend: str | None = None,
) -> Tensor:
    """Scan the positions of a feature map along K paths and add up what they see.

    Along each path: dt = softplus(W_dt r + b), h_t = exp(dt A) h_{t-1} + dt B_t u_t, y_t = C_t . h_t + D u_t
    (Mamba, Gu & Dao 2023, eq. 2-3), the state in float32 whatever the dtype of x. Differentiable.

    x          (B, L, D)        features, channel last; (B, K, L, D) where every path has channels of its own
    proj       (B, L, K, R+2N)  [dt low-rank | B | C] of every position and direction
    dt_weight  (K, D, R)        dt_bias, D (K, D)        A (K, D, N), negative
    orders     (K, T) or (B, K, T), int32: the position visited at each step; T may differ from L. -1 is a pad:
               u = 0 and proj = 0 there, yet the state still decays by softplus(dt_bias).
               Others outside the map raise IndexError on the CPU; Triton, not to stall the GPU, takes them as -1.
    norm       a LayerNorm of the sum over the directions, and a gate
    backend    the name of a back end to use in place of the chosen one
    Returns (B, L, D) summed over the directions, or (B, K, L, D) with reduce=False; 0 where no path goes.
    """
    if norm is not None and not reduce:
        raise ValueError("a norm follows the sum over the directions: it needs reduce=True")
    if norm is not None and norm.z is not None and norm.z.shape != (shape := (len(x), *x.shape[-2:])):
        raise ValueError(f"a gate for {shape} cannot be {tuple(norm.z.shape)}")
    return _run(ScanInputs(x, None, proj, dt_weight, dt_bias, A, D, orders, True, reduce), backend, norm)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    backend: str | None = None,
) -> Tensor:
    """`mamba_ssm.ops.selective_scan_interface.selective_scan_fn` without its gate z. Differentiable.

    u, delta (B, K*D, L); A (K*D, N); B, C (B, K, N, L) or (B, N, L); D, delta_bias (K*D). Returns y like u.
    """
    groups = B.shape[1] if B.dim() == 4 else 1
    lead = groups, u.shape[1] // groups

    def channel_last(t: Tensor) -> Tensor:  # (B, K*D, L) -> (B, K, L, D)
        return t.unflatten(1, lead).transpose(2, 3)

    def row(t: Tensor) -> Tensor:  # (B, [K,] N, L) -> (B, L, K, N)
        return (t if t.dim() == 4 else t.unsqueeze(1)).permute(0, 3, 1, 2)

    def grouped(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.reshape(lead)

    inputs = ScanInputs(
        u=channel_last(u),
        delta=channel_last(delta),
        proj=torch.cat([row(B), row(C)], dim=-1),
        dt_weight=None,
        dt_bias=grouped(delta_bias),
        A=A.unflatten(0, lead),
        D=grouped(D),
        orders=None,
        softplus=delta_softplus,
        reduce=False,
    )
    return _run(inputs, backend).transpose(2, 3).flatten(1, 2)
