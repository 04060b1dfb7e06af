"""How many kernels a block launches on a GPU at half precision: what torch is asked for, and the Triton kernels."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from helpers.launches import as_on_a_gpu, network
from torch.utils._python_dispatch import TorchDispatchMode

FREE = tuple(f"aten::{name}" for name in ("empty", "new_empty", "empty_like", "_unsafe_view", "detach", "lift_fresh"))


class Launches(TorchDispatchMode):
    """Counts operators that compute or copy; views and what reserves memory launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func.name().split(".")[0] not in FREE:
            self.names[func.name()] += 1
        return func(*args, **(kwargs or {}))


def launches(name: str, depth: int, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Of the network with one group of so many blocks; the second picture, when weights have been cast."""
    counted = Launches()
    as_on_a_gpu(lambda launch: counted.names.update([launch.kernel]), monkeypatch)
    module, x = network(name, depth), torch.zeros(1, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        module(x)
        counted.names.clear()
        with counted:
            module(x)
    return counted.names


@pytest.mark.parametrize(
    ("name", "most"),
    [("mambair-light-x4", 17), ("mambair-classic-x4", 17), ("mambairv2-light-x4", 35), ("mambairv2-base-x4", 35)],
)
def test_a_block_launches_few_kernels(name: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = 2  # of MambaIRv2 one with shifted windows and one without
    block = launches(name, 2 * blocks, monkeypatch)
    block.subtract(launches(name, blocks, monkeypatch))
    assert block.total() <= most * blocks, dict(+block)
