"""What networks take at their peak, by the tensors that are alive, against the estimate that tiles are sized by."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mambair_cli import archs, scan
from mambair_cli.models import zoo
from mambair_cli.restoring.restorer import bytes_per_pixel
from mambair_cli.scan import fused, published

SIDE = 32


class Alive(TorchDispatchMode):
    """The peak of the bytes of all tensors that operators have made and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for storage in (t.untyped_storage() for t in tree_leaves(made) if isinstance(t, Tensor)):
            self._storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._storages = {key: kept for key, kept in self._storages.items() if not kept[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._storages.values()))
        return made


class Kernel:
    """What `selective_scan_cuda` allocates."""

    def fwd(self, u: Tensor, delta: Tensor, A: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return torch.empty_like(u), u.new_empty(*u.shape[:2], -(-u.shape[2] // 2048), 2 * A.shape[1])


@pytest.mark.parametrize(
    "name", ["mambair-light-x4", "mambair-classic-x4", "mambairv2-light-x4", "mambairv2-base-x4"]
)
def test_the_estimate_is_enough_for_the_published_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In plain PyTorch around it, as on a GPU."""
    here = dataclasses.replace(published.BACKEND, device="cpu", missing=lambda: "")
    monkeypatch.setitem(scan.BACKENDS, "mamba_ssm", here)
    monkeypatch.setenv("MAMBAIR_SCAN", "mamba_ssm")
    monkeypatch.setattr(published, "_kernel", Kernel)
    for native in ("_native", "inference"):
        monkeypatch.setattr(fused, native, lambda *tensors: False)
    spec = zoo.find(name)
    one = {key: [spec.kwargs[key][0]] for key in ("num_heads",) if key in spec.kwargs}
    network = archs.build(spec.arch, **spec.kwargs | one | {"depths": [1]}).eval()
    x = torch.rand(1, 3, SIDE, SIDE)
    with torch.no_grad():
        network(x)  # tables of paths are kept
        with Alive() as alive:
            network(x)
    assert 0.15 < alive.peak / SIDE**2 / bytes_per_pixel(spec, "mamba_ssm") < 1
