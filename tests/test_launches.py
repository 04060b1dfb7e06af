"""How many kernels a block launches on a GPU at half precision: what torch is asked for, and the Triton kernels."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mambair_cli import archs, scan
from mambair_cli.archs import mambairv2
from mambair_cli.models import zoo
from mambair_cli.scan import fused, gpu, gpu_around

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


class Kernels:
    """Triton kernels that do nothing but being counted."""

    def __init__(self, names: Counter[str]) -> None:
        self.names = names

    def __getattr__(self, kernel: str) -> Any:
        return _Kernel(lambda: self.names.update([kernel]))


@dataclasses.dataclass
class _Kernel:
    count: Callable[[], None]

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *arguments, **options: self.count()


def launches(name: str, depth: int, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Of the network with one group of so many blocks; the second picture, when weights have been cast."""
    counted = Launches()
    here = dataclasses.replace(gpu.BACKEND, device="cpu", missing=lambda: "")
    monkeypatch.setitem(scan.BACKENDS, "triton", here)
    monkeypatch.setenv("MAMBAIR_SCAN", "triton")
    for module in (gpu, gpu_around):
        monkeypatch.setattr(module, "_kernels", lambda: Kernels(counted.names))
    monkeypatch.setattr(gpu, "_programs_at_once", lambda device: 20 * 132, raising=False)
    monkeypatch.setattr(gpu_around, "takes", lambda *tensors: True)
    for native in ("_native", "inference"):
        monkeypatch.setattr(fused, native, lambda *tensors: False)

    category = torch.zeros(1, 1, dtype=torch.int32)

    def draw(logits: Tensor, key: object, layer: int) -> Tensor:
        counted.names["categories"] += 1
        return category.expand(logits.shape[:-1])

    monkeypatch.setattr(mambairv2, "draw", draw)
    monkeypatch.setattr("mambair_cli.scan.cpu.missing", "it is a GPU")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    spec = zoo.find(name)
    heads = {"num_heads": spec.kwargs["num_heads"][:1]} if "num_heads" in spec.kwargs else {}
    network = archs.build(spec.arch, **spec.kwargs | heads | {"depths": [depth]}).eval()
    x = torch.zeros(1, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        network(x)
        counted.names.clear()
        with counted:
            network(x)
    return counted.names


@pytest.mark.parametrize(
    ("name", "most"),
    [("mambair-light-x4", 20), ("mambair-classic-x4", 20), ("mambairv2-light-x4", 35), ("mambairv2-base-x4", 35)],
)
def test_a_block_launches_few_kernels(name: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = 2  # of MambaIRv2 one with shifted windows and one without
    block = launches(name, 2 * blocks, monkeypatch)
    block.subtract(launches(name, blocks, monkeypatch))
    assert block.total() <= most * blocks, dict(+block)
