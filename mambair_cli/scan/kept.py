"""What is made of a weight once, not on every call: its cast to half precision, its transpose, its exponential."""

from __future__ import annotations

from collections.abc import Callable, Hashable, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from mambair_cli.scan.library import lasting, tracing

_kept: MutableMapping[Tensor, dict[Hashable, tuple[Any, Tensor]]] = WeakIdKeyDictionary()


def kept(weight: Tensor, what: Hashable, make: Callable[[Tensor], Tensor], *others: Tensor) -> Tensor:
    """`make(weight)`, remembered for as long as the weight lives and nobody writes to it or to the others.

    Without gradients only: with them, and for what is traced, it is made anew.
    """
    lasts = isinstance(weight, torch.nn.Parameter) or weight in _kept
    if torch.is_grad_enabled() or tracing() or weight.is_inference() or not lasts:
        return make(weight)
    state = [(t._version, t.data_ptr(), t.dtype, t.device) for t in (weight, *others)]
    made = _kept.setdefault(weight, {})
    if what not in made or made[what][0] != state:
        with lasting(), torch.no_grad():
            result = make(weight.detach())  # which does not keep the weight itself alive
        made[what] = state, result
        _kept.setdefault(result, {})  # something may be made of it in turn
    return made[what][1]
