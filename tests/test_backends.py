"""The back ends: a new one in a few lines, which runs where, what is said where none does, the published kernel."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.scans import BackendTests, problem, to32
from torch import Tensor
from torch.nn.functional import layer_norm, silu, softplus

from mambair_cli import scan
from mambair_cli.errors import UsageError
from mambair_cli.scan import gpu, published, reference

# A whole back end: one function and one record.


def step_by_step(inputs: scan.ScanInputs) -> Tensor:
    """The recurrence as it stands in the paper, a step at a time."""
    u, raw, B, C = reference.sequences(inputs)
    raw = raw if inputs.dt_bias is None else raw + inputs.dt_bias[:, None]
    dt = softplus(raw) if inputs.softplus else raw
    h, ys = 0.0, []
    for t in range(u.shape[2]):
        h = torch.exp(dt[:, :, t, :, None] * inputs.A) * h + (dt * u)[:, :, t, :, None] * B[:, :, t, None]
        ys.append((h * C[:, :, t, None]).sum(-1))
    y = torch.stack(ys, dim=2)
    return reference.bring_back(y if inputs.D is None else y + inputs.D[:, None] * u, inputs)


TOY = scan.Backend(
    name="toy",
    device=None,
    about="one step after the other",
    missing=lambda: "",
    takes=lambda inputs: inputs.states <= 16,
    scan=step_by_step,
)


class TestToy(BackendTests):
    @pytest.fixture
    def backend(self, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setitem(scan.BACKENDS, TOY.name, TOY)
        return TOY.name

    def test_it_is_listed_and_chosen(self, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
        assert scan.BackendInfo("toy", True, "one step after the other") in scan.backends()
        monkeypatch.setenv("MAMBAIR_SCAN", "toy")
        assert scan.chosen_backend("cpu") == "toy"


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
        assert all(t.dtype == torch.float32 and (t.stride(-1) == 1 or t.shape[-1] == 1) for t in given)
        y = scan.selective_scan(u, delta, A, B, C, D, bias, softplus, backend="torch")
        return y, torch.zeros(batch, rows, 1, 2 * states)

    def bwd(self, u, delta, A, B, C, D, z, bias, g_y, states, out, g_z, softplus, recompute):
        self.calls.append("bwd")
        assert g_y.stride(-1) == 1
        leaves = [None if t is None else t.detach().requires_grad_() for t in (u, delta, A, B, C, D, bias)]
        with torch.enable_grad():
            scan.selective_scan(*leaves, softplus, backend="torch").backward(g_y)
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
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)  # to import it raises ImportError
    monkeypatch.setattr(scan, "_warned", set())
    monkeypatch.setattr(gpu, "_answer", None)
    published.missing.cache_clear()
    yield
    published.missing.cache_clear()


class TestPublished(BackendTests):
    @pytest.fixture
    def backend(self, kernel: PublishedKernel, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        here = dataclasses.replace(published.BACKEND, device="cpu", missing=lambda: "")
        monkeypatch.setitem(scan.BACKENDS, "mamba_ssm", here)
        yield "mamba_ssm"
        assert kernel.calls == ["fwd", "bwd"]


def test_why_there_is_no_gpu_kernel(gpu_without_kernels: None) -> None:
    reasons = {b.name: b.reason for b in scan.backends() if not b.available}
    assert reasons["triton"] == "Triton is not installed"
    assert "its kernel does not load" in reasons["mamba_ssm"]


def test_without_a_gpu_kernel_it_says_so_once(gpu_without_kernels: None) -> None:
    assert scan.chosen_backend("cuda") == "torch"
    with pytest.warns(UserWarning, match=r"no scan kernel runs on cuda.*triton: Triton is not installed"):
        scan._warn_of_slowness("cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scan._warn_of_slowness("cuda")


def test_the_best_kernel_that_runs_on_the_device(
    gpu_without_kernels: None, kernel: PublishedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scan.chosen_backend("cuda:1") == "mamba_ssm"
    monkeypatch.setattr(gpu, "missing", lambda: "")
    assert scan.chosen_backend("cuda:1") == "triton"
    assert scan.chosen_backend("cpu") in ("cpu", "torch")
    assert scan.chosen_backend("mps") == "torch"
    monkeypatch.setenv("MAMBAIR_SCAN", "mamba_ssm")
    assert scan.chosen_backend("cuda") == "mamba_ssm"
    with pytest.raises(UsageError, match="runs on cuda, and this is cpu"):
        scan.chosen_backend("cpu")


def test_what_a_kernel_was_not_written_for_goes_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[scan.ScanInputs] = []
    small = dataclasses.replace(TOY, takes=lambda inputs: bool(asked.append(inputs)))
    monkeypatch.setitem(scan.BACKENDS, "toy", small)
    p = to32(problem(2, B=1, K=2, R=3, N=2, D=4, L=9, T=9, pads=False, per_image=False))
    y = scan.ordered_scan(**p, backend="toy")
    assert asked[0].states == 2
    assert torch.equal(y, scan.ordered_scan(**p, backend="torch"))
    takes = published.BACKEND.takes
    assert takes(asked[0])
    assert not takes(asked[0]._replace(u=asked[0].u.double()))
    assert not takes(asked[0]._replace(A=torch.zeros(2, 4, 257)))


def test_norm_and_gate_are_left_to_others_or_taken_over_at_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    p = to32(problem(2, B=2, K=2, R=3, N=2, D=4, L=9, T=9, pads=False, per_image=False))
    norm = scan.NormGate(*p["D"], 1e-5, torch.randn(2, 9, 8)[..., :4])
    y = layer_norm(scan.ordered_scan(**p, backend="torch"), (4,), *norm[:2]) * silu(norm.z)
    whole = dataclasses.replace(TOY, normed=lambda inputs, given: torch.full_like(inputs.u, given.eps))
    for backend in (TOY, whole):
        monkeypatch.setitem(scan.BACKENDS, "toy", backend)
        torch.testing.assert_close(scan.ordered_scan(**p, norm=norm, backend="toy"), y)
    with torch.no_grad():
        assert (scan.ordered_scan(**p, norm=norm, backend="toy") == 1e-5).all()
    with pytest.raises(ValueError, match="needs reduce=True"):
        scan.ordered_scan(**p, reduce=False, norm=norm)
    with pytest.raises(ValueError, match=r"a gate for \(2, 9, 4\) cannot be \(2, 8, 4\)"):
        scan.ordered_scan(**p, norm=norm._replace(z=norm.z[:, 1:]))


@pytest.mark.parametrize(("name", "said"), [("abacus", "no such backend"), ("mamba_ssm", "no CUDA device")])
def test_a_back_end_asked_for_by_name_must_be_there(name: str, said: str) -> None:
    p = to32(problem(2, B=1, K=2, R=3, N=2, D=4, L=9, T=9, pads=False, per_image=False))
    with pytest.raises(UsageError, match=said):
        scan.ordered_scan(**p, backend=name)


def test_half_precision_autocast_leaves_the_time_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAMBAIR_SCAN", "torch")
    p = to32(problem(2, B=1, K=2, R=3, N=2, D=4, L=9, T=9, pads=False, per_image=False))
    with torch.autocast("cpu", torch.bfloat16):
        y = scan.ordered_scan(**p)
    assert torch.equal(y, scan.ordered_scan(**p))
