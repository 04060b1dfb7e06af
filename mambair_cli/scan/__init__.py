"""The selective scan: one op in two forms, several backends behind them.

`ordered_scan` is what the networks use: features once, channel last, and a table of paths over the pixels.
`selective_scan` has the signature of `mamba_ssm` for everybody else.
"""

from __future__ import annotations

from torch import Tensor

from mambair_cli.scan import reference

__all__ = ["ordered_scan", "selective_scan"]


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
    """Scan the pixels of a feature map along K paths and add up what they see."""
    return reference.ordered_scan(x, proj, dt_weight, dt_bias, A, D, orders, reduce)


selective_scan = reference.selective_scan
