"""The Triton kernels against the float64 reference: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.scans import gradients, problem, relative, to32
from torch import Tensor

from mambair_cli.scan import orders as paths
from mambair_cli.scan import reference

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported
triton = pytest.importorskip("triton")
gpu = importlib.import_module("mambair_cli.scan.gpu")
kernels = importlib.import_module("mambair_cli.scan.gpu_kernels")

DEVICE = torch.device("cuda" if ON_GPU else "cpu")
H, W = (24, 40) if ON_GPU else (3, 4)  # the interpreter takes 50 us for a state


@pytest.fixture(autouse=True)
def _several_small_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks, channels and links of chunks that do not come out even, at sizes for the interpreter."""
    if not ON_GPU:
        for name, size in (("CHUNK", 4), ("BACKWARD_CHUNK", 4), ("BLOCK", 4), ("LINKS", 2)):
            monkeypatch.setattr(gpu, name, size)


def there(p: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.to(DEVICE) for k, v in to32(p).items()}


def assert_equal_to_float64(p: dict[str, Tensor], reduce: bool = True) -> None:
    expected, expected_grads = gradients(reference, p, reduce)
    y, grads = gradients(gpu, there(p), reduce)
    assert relative(y.cpu(), expected) <= 1e-5
    for name, grad in grads.items():
        assert relative(grad.cpu(), expected_grads[name]) <= 1e-4, name


def on_path(orders: Tensor, length: int, **shape: int) -> dict[str, Tensor]:
    sizes = dict(B=1, K=orders.shape[-2], R=2, N=2, D=3) | shape
    p = problem(0, **sizes, L=length, T=1, pads=False, per_image=False)
    return p | {"orders": orders}


@pytest.mark.parametrize(("reduce", "B", "D"), [(True, 1, 5), (False, 2, 2)])
def test_cross(reduce: bool, B: int, D: int) -> None:
    assert_equal_to_float64(on_path(paths.cross(H, W, torch.device("cpu")), H * W, B=B, D=D), reduce)


def test_windows_with_pads() -> None:
    table = paths.window(H, W, 2 if H < 8 else 16, True, torch.device("cpu"))
    assert (table < 0).any()
    assert_equal_to_float64(on_path(table, H * W))


def test_cross_scale() -> None:
    backwards_by_columns = paths.cross_scale(16, 16, torch.device("cpu"))[3:]
    p = on_path(backwards_by_columns, 320, R=1, N=1, D=1)
    assert relative(gpu.ordered_scan(**there(p)).cpu(), reference.ordered_scan(**p)) <= 1e-5


def test_a_path_of_its_own_for_every_image() -> None:
    assert_equal_to_float64(problem(1, B=2, K=1, R=3, N=3, D=6, L=H * W, T=H * W, pads=False, per_image=True))


@pytest.mark.parametrize("reduce", [True, False])
def test_positions_visited_twice_or_never(reduce: bool) -> None:
    p = problem(2, B=2, K=2, R=1, N=2, D=3, L=H * W, T=H * W + 2, pads=True, per_image=True)
    assert all(row.clamp(min=0).unique().numel() < H * W for row in p["orders"].flatten(0, 1))
    assert_equal_to_float64(p, reduce)


@pytest.mark.parametrize("L", [1, 2])
def test_the_shortest_paths(L: int) -> None:
    assert_equal_to_float64(problem(3, B=1, K=1, R=1, N=1, D=1, L=L, T=L, pads=False, per_image=False))


def test_positions_outside_the_map_are_pads() -> None:
    p = problem(4, B=1, K=1, R=1, N=2, D=3, L=5, T=5, pads=False, per_image=False)
    inside, outside = (torch.tensor([[0, pad, 3, 1, pad]], dtype=torch.int32) for pad in (-1, 5))
    y = gpu.ordered_scan(**there(p | {"orders": outside}))
    assert relative(y.cpu(), reference.ordered_scan(**p | {"orders": inside})) <= 1e-5


def test_a_table_written_to_is_inverted_anew() -> None:
    p = there(problem(5, B=1, K=1, R=1, N=2, D=3, L=6, T=6, pads=False, per_image=False))
    for _ in range(2):
        exact = reference.ordered_scan(**{k: v.double() if v.is_floating_point() else v for k, v in p.items()})
        assert relative(gpu.ordered_scan(**p), exact) <= 1e-5
        p["orders"].copy_(p["orders"].roll(2, -1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_state_in_float32(dtype: torch.dtype) -> None:
    p = to32(problem(6, B=1, K=2, R=2, N=2, D=3, L=H * W, T=H * W, pads=False, per_image=False))
    p |= {k: p[k].to(dtype) for k in ("x", "proj")}
    exact, exact_grads = gradients(
        reference, {k: v.double() if v.is_floating_point() else v for k, v in p.items()}, True
    )
    y, grads = gradients(gpu, {k: v.to(DEVICE) for k, v in p.items()}, True)
    assert y.dtype == dtype
    assert relative(y.cpu(), exact) < 0.01  # the rounding of the result alone
    for name, grad in grads.items():
        assert grad.dtype == p[name].dtype
        assert relative(grad.cpu(), exact_grads[name]) < 0.01


@pytest.mark.parametrize(("softplus", "groups"), [(True, 2), (False, 0)])
def test_selective_scan(softplus: bool, groups: int) -> None:
    g = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    B, rows, N, L = 2, 6, 2, 9
    lead = (B, groups) if groups else (B,)
    delta, optional = normal(B, rows, L), [normal(rows), normal(rows)] if softplus else [None, None]
    tensors = [normal(B, rows, L), delta if softplus else delta.abs(), -torch.exp(normal(rows, N))]
    tensors += [normal(*lead, N, L), normal(*lead, N, L), *optional]

    def results(module, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        leaves = [None if t is None else t.detach().to(device, dtype).requires_grad_() for t in tensors]
        y = module.selective_scan(*leaves, softplus)
        y.square().sum().backward()
        return [y.detach().cpu()] + [leaf.grad.cpu() for leaf in leaves if leaf is not None]

    expected = results(reference, torch.float64, torch.device("cpu"))
    for i, (ours, exact) in enumerate(zip(results(gpu, torch.float32, DEVICE), expected, strict=True)):
        assert ours.shape == exact.shape
        assert relative(ours, exact) <= (1e-4 if i else 1e-5)


def test_softplus_to_the_last_bits() -> None:
    """Trained time steps go down to softplus(-7): log(1 + exp(x)) taken literally would lose five digits there."""
    x = torch.linspace(-40, 40, 64)
    exact = torch.nn.functional.softplus(x.double())
    one = torch.ones(1, 1, 1)
    arguments = (torch.ones(1, 64, 1), x.view(1, 64, 1), -torch.ones(64, 1), one, one)  # hence y = dt
    y = gpu.selective_scan(*(t.to(DEVICE) for t in arguments), delta_softplus=True).cpu()
    assert ((y.flatten().double() - exact).abs() / exact).max() <= 1e-6


def test_the_probe_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.probe.__wrapped__(DEVICE) == ""

    def broken(*_: Tensor) -> Tensor:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(gpu, "ordered_scan", broken)
    assert "RuntimeError: Failed to find C compiler" in gpu.probe.__wrapped__(DEVICE)
    monkeypatch.setattr(gpu, "ordered_scan", lambda x, *_: torch.zeros_like(x))
    assert "its kernels are off by" in gpu.probe.__wrapped__(DEVICE)


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
def test_same_bits_every_time() -> None:
    p = there(problem(7, B=2, K=4, R=4, N=10, D=72, L=4096, T=4096, pads=True, per_image=False))
    first, again = (gradients(gpu, p, True) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(first[1][name], again[1][name]) for name in first[1])


@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux only")
def test_the_kernels_compile_and_keep_time_in_registers(tmp_path: Path) -> None:
    """Without a GPU the compiler still works: no shuffle means that no scan along time leaves its thread."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = Path(__file__).parent / "compile_kernels.py"
    run = subprocess.run(
        [sys.executable, script],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    shuffles = json.loads(run.stdout)
    assert shuffles.pop("gradients") > 0  # its sums over channels
    assert shuffles == {"chunk_ends": 0, "chain": 0, "outputs": 0, "collect": 0}
