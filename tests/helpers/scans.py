"""Random scans, and how far two results or their gradients are apart."""

from __future__ import annotations

import torch
from torch import Tensor


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1)).item()


def problem(seed: int, *, B: int, K: int, R: int, N: int, D: int, L: int, T: int, pads: bool, per_image: bool):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    low = -1 if pads else 0
    if T == L and not pads:  # a true path: every position once
        lead = [B, K] if per_image else [K]
        orders = torch.rand(*lead, L, generator=g).argsort(-1)
    else:
        orders = torch.randint(low, L, (B, K, T) if per_image else (K, T), generator=g)
    return dict(
        x=normal(B, L, D),
        proj=normal(B, L, K, R + 2 * N),
        dt_weight=normal(K, D, R) / max(1, R) ** 0.5,
        dt_bias=normal(K, D) - 1,
        A=-torch.exp(normal(K, D, N)),
        D=normal(K, D),
        orders=orders.to(torch.int32),
    )


def to32(p: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.float() if v.is_floating_point() else v for k, v in p.items()}


def gradients(module, p: dict[str, Tensor], reduce: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """The module's `ordered_scan` of a problem and the gradients of a weighted sum of it, by name."""
    leaves = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in p.items()}
    y = module.ordered_scan(**leaves, reduce=reduce)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    (y * weights.to(y)).sum().backward()
    return y.detach(), {k: v.grad for k, v in leaves.items() if v.grad is not None}
