"""What a network launches on a GPU, found out on a CPU: its Triton kernels note their calls and do nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mambair_cli import archs, scan
from mambair_cli.archs import mambairv2
from mambair_cli.models import zoo
from mambair_cli.scan import fused, gpu, gpu_around


class Launch(NamedTuple):
    """A kernel, by the name it has in its module, and what it was given."""

    kernel: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Kernels:
    """In the place of a module of them."""

    note: Callable[[Launch], object]

    def __getattr__(self, kernel: str) -> Any:
        return _Kernel(lambda arguments, options: self.note(Launch(kernel, arguments, options)))


@dataclasses.dataclass(frozen=True)
class _Kernel:
    launched: Callable[[tuple[Any, ...], dict[str, Any]], object]

    def __getitem__(self, grid: object) -> Callable[..., object]:
        return lambda *arguments, **options: self.launched(arguments, options)


def as_on_a_gpu(note: Callable[[Launch], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on networks on the CPU take the way of a GPU, and every launch is noted."""
    here = dataclasses.replace(gpu.BACKEND, device="cpu", missing=lambda: "")
    monkeypatch.setitem(scan.BACKENDS, "triton", here)
    monkeypatch.setenv("MAMBAIR_SCAN", "triton")
    for module in (gpu, gpu_around):
        monkeypatch.setattr(module, "_kernels", lambda *names: Kernels(note))
    monkeypatch.setattr(gpu, "_programs_at_once", lambda device: 20 * 132, raising=False)
    monkeypatch.setattr(gpu_around, "takes", lambda *tensors: True)
    for native in ("_native", "inference"):
        monkeypatch.setattr(fused, native, lambda *tensors: False)

    category = torch.zeros(1, 1, dtype=torch.int32)

    def draw(logits: Tensor, key: object, layer: int) -> Tensor:
        note(Launch("categories", (logits, category, key, layer), {}))
        return category.expand(logits.shape[:-1])

    monkeypatch.setattr(mambairv2, "draw", draw)
    monkeypatch.setattr("mambair_cli.scan.cpu.missing", "it is a GPU")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)


def network(name: str, depth: int) -> nn.Module:
    """A published one with one group of so many blocks and fresh weights."""
    spec = zoo.find(name)
    heads = {"num_heads": spec.kwargs["num_heads"][:1]} if "num_heads" in spec.kwargs else {}
    return archs.build(spec.arch, **spec.kwargs | heads | {"depths": [depth]}).eval()
