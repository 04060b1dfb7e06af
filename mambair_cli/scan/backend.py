"""What a back end of the scan is: one record, and the inputs that each gets.

A new back end is one file that ends with its `Backend`, and one line in `mambair_cli.scan.BACKENDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)


class ScanInputs(NamedTuple):
    """One scan in the one layout that all back ends take; see `mambair_cli.scan.ordered_scan` for what it means.

    B images, K paths (directions), L positions, T steps, D channels, N states, R the rank of the time steps. All are
    contiguous, but for proj on a CPU, which may lie there as (B, K, L, R + 2N), and on one device. u, delta and proj
    are of one floating type; the parameters are float32 (float64 where u is); orders are int32.
    """

    u: Tensor  # (B, L, D), shared by the paths, or (B, K, L, D)
    delta: Tensor | None  # like u: time steps before bias and softplus; None: dt_weight times the low rank in proj
    proj: Tensor  # (B, L, K, R + 2N): [low rank | B | C]
    dt_weight: Tensor | None  # (K, D, R); None where delta is given, and R is 0
    dt_bias: Tensor | None  # (K, D)
    A: Tensor  # (K, D, N), negative
    D: Tensor | None  # (K, D)
    orders: Tensor | None  # (K, T) or (B, K, T); None: the positions one after another, and `reduce` is False
    softplus: bool
    reduce: bool  # True: y (B, L, D), summed over the paths; False: (B, K, L, D)

    @property
    def rank(self) -> int:
        return 0 if self.dt_weight is None else self.dt_weight.shape[-1]

    @property
    def states(self) -> int:
        return self.A.shape[-1]

    @property
    def length(self) -> int:
        return self.u.shape[-2]

    @property
    def steps(self) -> int:
        return self.length if self.orders is None else self.orders.shape[-1]

    @property
    def updates(self) -> int:
        """State updates, one exponential each."""
        return self.u.shape[0] * self.steps * self.A.numel()

    @property
    def multiply_adds(self) -> int:
        """Of the recurrence as written. Each update: dt A, five for the polynomial of 2^x, dt u B, the state, the
        output. Each step and channel: the time step from the low rank, a softplus of 12, dt u, D u."""
        return 9 * self.updates + (self.rank + 14) * (self.updates // max(1, self.states))

    @property
    def macs(self) -> int:
        """As papers count, after VMamba: 9 an update; each step and channel D u and the time step's projection."""
        return 9 * self.updates + (self.rank + 1) * (self.updates // max(1, self.states))

    def blank(self) -> Tensor:
        """A result with nothing in it."""
        images, length, channels = self.u.shape[0], *self.u.shape[-2:]
        return self.u.new_empty(images, *(() if self.reduce else self.A.shape[:1]), length, channels)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All but the two flags, in order."""
        return self[:8]

    def each(self, change: Callable[[Tensor], Tensor]) -> ScanInputs:
        """With every tensor changed."""
        changed: list[Any] = [None if t is None else change(t) for t in self.tensors]
        return ScanInputs(*[*changed, self.softplus, self.reduce])

    def laid_out(self) -> ScanInputs:
        """Contiguous and of the types above; differentiable."""
        kind = self.u.dtype
        parameter = torch.float64 if kind == torch.float64 else torch.float32

        def as_type(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
            if t is None or (t.dtype is dtype and t.is_contiguous()):  # torch takes longer to do nothing
                return t
            return t.to(dtype).contiguous()

        orders = None if self.orders is None else self.orders.to(self.u.device, torch.int32).contiguous()
        A = self.A.to(parameter).contiguous()
        dt_weight, dt_bias, D = (as_type(t, parameter) for t in (self.dt_weight, self.dt_bias, self.D))
        u, proj = self.u.contiguous(), self.proj.to(kind)
        if not (proj.is_cpu and proj.transpose(1, 2).is_contiguous()):
            proj = proj.contiguous()
        return ScanInputs(
            u, as_type(self.delta, kind), proj, dt_weight, dt_bias, A, D, orders, self.softplus, self.reduce
        )


class NormGate(NamedTuple):
    """What follows the sum y over the paths: LayerNorm(y) * SiLU(z) over the channels; without a z the norm alone."""

    weight: Tensor  # (D)
    bias: Tensor  # (D)
    eps: float
    z: Tensor | None = None  # (B, L, D), possibly a slice of wider rows


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Autocast off; on the meta device, where shapes are worked out and nothing else, there is none, and where it is
    off already nothing is left to be traced by an export."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


@dataclass(frozen=True)
class Backend:
    """A way to run the scan."""

    name: str  # as in MAMBAIR_SCAN
    device: str | None  # type of the devices that it runs on; None: any
    about: str  # what it is, in a line
    missing: Callable[[], str]  # why it cannot run here, or ""
    takes: Callable[[ScanInputs], bool]  # whether it was written for such inputs, on a device of its type
    scan: Callable[[ScanInputs], Tensor]  # differentiable; y is of the type of u
    normed: Callable[[ScanInputs, NormGate], Tensor] | None = None  # both in one, at inference; None: one by one
    memory: int = 1  # peak of a network with it, against one with the native kernel and what is native around it
    hint: str = ""  # how to get it, where it is missing
