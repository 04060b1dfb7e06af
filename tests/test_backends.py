"""Which backend runs where, what is said where none does, and the adapter to the published CUDA kernel."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.scans import gradients, problem, relative, to32
from torch import Tensor

from mambair_cli import scan
from mambair_cli.errors import UsageError
from mambair_cli.scan import published, reference


class PublishedKernel:
    """Stands in for `selective_scan_cuda`: its calls, its checks of what it is given, the reference's results."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def fwd(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Any, z: None, bias: Any, softplus: bool
    ):
        self.calls.append("fwd")
        (batch, rows, length), (groups, states) = u.shape, B.shape[1:3]
        assert delta.shape == u.shape
        assert A.shape == (rows, states)
        assert B.shape == C.shape == (batch, groups, states, length)
        assert all(t is None or t.shape == (rows,) for t in (D, bias))
        given = [t for t in (u, delta, A, B, C, D, bias) if t is not None]
        assert all(t.dtype == torch.float32 and t.stride(-1) == 1 for t in given)
        y = reference.selective_scan(u, delta, A, B, C, D, bias, softplus)
        return y, torch.zeros(batch, rows, 1, 2 * states)

    def bwd(self, u, delta, A, B, C, D, z, bias, g_y, states, out, g_z, softplus, recompute):
        self.calls.append("bwd")
        assert g_y.stride(-1) == 1
        leaves = [None if t is None else t.detach().requires_grad_() for t in (u, delta, A, B, C, D, bias)]
        with torch.enable_grad():
            reference.selective_scan(*leaves, softplus).backward(g_y)
        return [torch.zeros(0) if leaf is None else leaf.grad for leaf in leaves]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> PublishedKernel:
    kernel = PublishedKernel()
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", kernel)
    return kernel


@pytest.fixture
def gpu_without_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A CUDA device, no Triton, and a `selective_scan_cuda` that was built for another torch."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(scan, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)  # to import it raises ImportError
    monkeypatch.setattr(scan, "_warned", set())
    remembered = (scan._triton_missing, published.missing)
    for answer in remembered:
        answer.cache_clear()
    yield
    for answer in remembered:
        answer.cache_clear()


@pytest.mark.parametrize("reduce", [True, False])
def test_ordered_scan_on_the_published_kernel(kernel: PublishedKernel, reduce: bool) -> None:
    p = problem(0, B=2, K=3, R=2, N=4, D=5, L=12, T=17, pads=True, per_image=False)
    expected, expected_grads = gradients(reference, p, reduce)
    y, grads = gradients(published, to32(p), reduce)
    assert kernel.calls == ["fwd", "bwd"]
    assert relative(y, expected) <= 1e-5
    for name, grad in grads.items():
        assert relative(grad, expected_grads[name]) <= 1e-4, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_selective_scan_on_the_published_kernel(kernel: PublishedKernel, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(1)
    u, delta, B, C = (torch.randn(2, 6, 9, generator=g).to(dtype).requires_grad_() for _ in range(4))
    A = -torch.rand(6, 6, generator=g)
    y = published.selective_scan(u, delta, A, B, C, delta_softplus=True)
    assert y.dtype == dtype
    assert relative(y.detach(), reference.selective_scan(u, delta, A, B, C, delta_softplus=True).detach()) <= 1e-2
    y.sum().backward()
    assert [t.grad.shape for t in (u, delta, B, C)] == [t.shape for t in (u, delta, B, C)]


def test_why_there_is_no_gpu_kernel(gpu_without_kernels: None) -> None:
    reasons = {b.name: b.reason for b in scan.backends() if not b.available}
    assert reasons["triton"] == "Triton is not installed"
    assert "its kernel does not load" in reasons["mamba_ssm"]


def test_without_a_gpu_kernel_it_says_so_once(gpu_without_kernels: None) -> None:
    x = SimpleNamespace(device=torch.device("cuda"))  # a tensor there, as far as the choice looks at it
    with pytest.warns(UserWarning, match=r"no scan kernel runs on cuda.*triton: Triton is not installed"):
        assert scan._backend(x, 16, 4) is reference
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scan._backend(x, 16, 4)


def test_the_best_kernel_that_runs_on_the_device(
    gpu_without_kernels: None, kernel: PublishedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scan.chosen_backend("cuda:1") == "mamba_ssm"
    monkeypatch.setattr(scan, "_triton_missing", lambda: "")
    assert scan.chosen_backend("cuda:1") == "triton"
    assert scan.chosen_backend("cpu") in ("cpu", "torch")
    assert scan.chosen_backend("mps") == "torch"
    monkeypatch.setenv("MAMBAIR_SCAN", "mamba_ssm")
    assert scan.chosen_backend("cuda") == "mamba_ssm"
    with pytest.raises(UsageError, match="runs on cuda, and this is cpu"):
        scan.chosen_backend("cpu")


def test_float64_goes_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "chosen_backend", lambda device: "mamba_ssm")
    x = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float64, numel=lambda: 1)
    assert scan._backend(x, 16, 4) is reference
    assert scan._backend(SimpleNamespace(device=x.device, dtype=torch.float32, numel=lambda: 1), 16, 4) is published
    assert scan._backend(SimpleNamespace(device=x.device, dtype=torch.float32, numel=lambda: 1), 257, 4) is reference


def test_half_precision_autocast_leaves_the_time_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAMBAIR_SCAN", "torch")
    p = to32(problem(2, B=1, K=2, R=3, N=2, D=4, L=9, T=9, pads=False, per_image=False))
    with torch.autocast("cpu", torch.bfloat16):
        y = scan.ordered_scan(**p)
    assert torch.equal(y, scan.ordered_scan(**p))
