"""The selective scan on the CPU: against the published op's outputs and the float64 reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.scans import BackendTests, gradients, problem, relative, to32
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from mambair_cli import scan
from mambair_cli.errors import UsageError
from mambair_cli.scan import cpu

GOLDEN = Path(__file__).parent / "golden" / "selective_scan.safetensors"
needs_kernel = pytest.mark.skipif(bool(cpu.missing), reason=f"native kernel {cpu.missing}")


def golden_cases() -> list[str]:
    with safe_open(GOLDEN, "pt") as file:
        return sorted(json.loads(file.metadata()["fixture"])["cases"])


def load_case(name: str) -> tuple[dict[str, Tensor], dict[str, bool]]:
    with safe_open(GOLDEN, "pt") as file:
        flags = json.loads(file.metadata()["fixture"])["cases"][name]
        keys = [k for k in file.keys() if k.startswith(f"{name}/")]  # noqa: SIM118
        return {k.split("/")[1]: file.get_tensor(k) for k in keys}, flags


@pytest.fixture(params=cpu.instruction_sets() or ["none"])
def instruction_set(request: pytest.FixtureRequest):
    if cpu.missing:
        pytest.skip(f"native kernel {cpu.missing}")
    cpu._cpu.use_instruction_set(request.param)
    yield request.param
    cpu._cpu.use_instruction_set(cpu.instruction_sets()[0])


@pytest.mark.parametrize("case", golden_cases())
@pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=needs_kernel)])
def test_selective_scan_equals_published(case: str, backend: str) -> None:
    t, flags = load_case(case)
    args = [t[k].float() for k in ("u", "delta", "A", "B", "C")]
    optional = [t[k].float() if k in t else None for k in ("D", "delta_bias")]
    y = scan.selective_scan(*args, *optional, flags["delta_softplus"], backend=backend)
    assert relative(y, t["out"]) <= 1e-5


class TestTorch(BackendTests):
    @pytest.fixture
    def backend(self) -> str:
        return "torch"


@needs_kernel
class TestNative(BackendTests):
    @pytest.fixture
    def backend(self) -> str:
        return "cpu"


shapes = st.fixed_dictionaries(
    dict(
        B=st.integers(1, 3),
        K=st.integers(1, 8),
        R=st.integers(1, 14),
        N=st.sampled_from([1, 3, 8, 10, 16, 17]),
        D=st.integers(1, 40),
        L=st.integers(1, 70),
        pads=st.booleans(),
        per_image=st.booleans(),
    )
)


@needs_kernel
@settings(max_examples=60, deadline=None)
@given(shape=shapes, longer=st.integers(0, 20), reduce=st.booleans(), seed=st.integers(0, 2**16))
def test_ordered_scan_equals_float64(shape: dict, longer: int, reduce: bool, seed: int) -> None:
    p = problem(seed, T=shape["L"] + longer, **shape)
    expected = scan.ordered_scan(**p, reduce=reduce, backend="torch")
    assert relative(scan.ordered_scan(**to32(p), reduce=reduce, backend="cpu"), expected) <= 1e-5


@pytest.mark.parametrize("reduce", [True, False])
def test_every_instruction_set_and_its_gradients(instruction_set: str, reduce: bool) -> None:
    for seed, (N, D, L, longer) in enumerate([(16, 36, 67, 0), (10, 72, 40, 30), (8, 5, 33, 0), (3, 17, 1, 2)]):
        p = problem(seed, B=2, K=4, R=3, N=N, D=D, L=L, T=L + longer, pads=longer > 0, per_image=seed == 1)
        expected, expected_grads = gradients("torch", p, reduce)
        y, grads = gradients("cpu", to32(p), reduce)
        assert relative(y, expected) <= 1e-5
        for name, grad in grads.items():
            assert relative(grad, expected_grads[name]) <= 1e-4, (instruction_set, name)


def test_reference_gradcheck() -> None:
    p = problem(1, B=1, K=2, R=2, N=2, D=3, L=7, T=9, pads=True, per_image=False)
    orders = p.pop("orders")
    leaves = [v.requires_grad_() for v in p.values()]
    assert torch.autograd.gradcheck(lambda *a: scan.ordered_scan(*a, orders, backend="torch"), leaves)


WIDE = {"B": 1, "K": 4, "R": 4, "N": 10, "D": 72, "L": 500, "T": 500, "pads": False, "per_image": False}
NARROW = WIDE | {"B": 2, "K": 3, "R": 2, "N": 8, "D": 20, "L": 2500, "T": 2600}  # cut into segments


@needs_kernel
@pytest.mark.parametrize("instruction_set", cpu.instruction_sets())
@pytest.mark.parametrize("shape", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("reduce", [True, False])
def test_same_bits_whatever_the_threads(instruction_set: str, shape: dict[str, Any], reduce: bool) -> None:
    p = to32(problem(6, **shape))
    p["dt_bias"] -= 8  # what a segment begins with is felt to its end
    steps, positions = p["orders"].shape[-1], p["x"].shape[-2]
    once = torch.stack([torch.randperm(steps) for _ in range(p["A"].shape[0])]).int()
    p["orders"] = once.where(once < positions, -1)
    before = torch.get_num_threads()
    results = []
    cpu._cpu.use_instruction_set(instruction_set)
    try:
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            results.append(scan.ordered_scan(**p, reduce=reduce, backend="cpu"))
    finally:
        torch.set_num_threads(before)
        cpu._cpu.use_instruction_set(cpu.instruction_sets()[0])
    assert all(torch.equal(results[0], result) for result in results)
    expected = scan.ordered_scan(**p, reduce=reduce, backend="torch")
    assert relative(results[0], expected) <= 1e-5


@needs_kernel
def test_directions_may_lie_apart(instruction_set: str) -> None:
    p = to32(problem(9, B=2, K=3, R=2, N=10, D=20, L=40, T=40, pads=False, per_image=False))
    p["orders"] = torch.stack([torch.randperm(40) for _ in range(3)]).int()  # every position once: nothing is zeroed
    expected, expected_grads = gradients("cpu", p, True)
    p["proj"] = p["proj"].transpose(1, 2).contiguous().transpose(1, 2)
    with torch.inference_mode():
        assert torch.equal(scan.ordered_scan(**p, backend="cpu"), expected)
    y, grads = gradients("cpu", p, True)
    assert torch.equal(y, expected)
    assert all(torch.equal(grad, expected_grads[name]) for name, grad in grads.items())
    p["orders"][1, 5] = p["orders"][1, 6]  # no longer: a place that no direction but two visits
    assert relative(scan.ordered_scan(**p, backend="cpu"), scan.ordered_scan(**p, backend="torch")) <= 1e-5


@needs_kernel
def test_nothing_is_kept_for_a_backward_that_cannot_come(monkeypatch: pytest.MonkeyPatch) -> None:
    p = to32(problem(10, B=1, K=1, R=1, N=1, D=1, L=4, T=4, pads=False, per_image=False))
    p["A"].requires_grad_()  # as the weights of networks do
    monkeypatch.delattr(cpu._cpu, "kept_size")
    with torch.no_grad():
        scan.ordered_scan(**p)
    with pytest.raises(AttributeError):
        scan.ordered_scan(**p)


@needs_kernel
def test_orders_outside_the_map_are_refused() -> None:
    p = to32(problem(7, B=1, K=1, R=1, N=1, D=1, L=4, T=4, pads=False, per_image=False))
    p["orders"] = torch.tensor([[0, 1, 2, 4]], dtype=torch.int32)
    with pytest.raises(IndexError, match="0 to 3"):
        scan.ordered_scan(**p)


def test_backend_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAMBAIR_SCAN", "torch")
    assert scan.chosen_backend("cpu") == "torch"
    monkeypatch.setenv("MAMBAIR_SCAN", "abacus")
    with pytest.raises(UsageError, match="abacus"):
        scan.chosen_backend("cpu")


def test_without_the_kernel_it_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "missing", "not built")
    monkeypatch.setattr(scan, "_warned", set())
    p = to32(problem(8, B=1, K=1, R=1, N=2, D=3, L=5, T=5, pads=False, per_image=False))
    with pytest.warns(UserWarning, match=r"no scan kernel runs on cpu.*cpu: not built.*pip install"):
        scan.ordered_scan(**p)
    assert [b.available for b in scan.backends() if b.name == "cpu"] == [False]
    scan.ordered_scan(**p)  # no second warning: it would be an error here
