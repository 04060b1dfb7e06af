"""Random scans, how far two results or their gradients are apart, and the tests that every back end passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mambair_cli import scan


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1)).item()


def problem(seed: int, *, B: int, K: int, R: int, N: int, D: int, L: int, T: int, pads: bool, per_image: bool):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    low = -1 if pads else 0
    if T == L and not pads:  # a true path: every position once
        lead = [B, K] if per_image else [K]
        orders = torch.rand(*lead, L, generator=g).argsort(-1)
    else:
        orders = torch.randint(low, L, (B, K, T) if per_image else (K, T), generator=g)
    return dict(
        x=normal(B, L, D),
        proj=normal(B, L, K, R + 2 * N),
        dt_weight=normal(K, D, R) / max(1, R) ** 0.5,
        dt_bias=normal(K, D) - 1,
        A=-torch.exp(normal(K, D, N)),
        D=normal(K, D),
        orders=orders.to(torch.int32),
    )


def to32(p: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.float() if v.is_floating_point() else v for k, v in p.items()}


def gradients(backend: str, p: dict[str, Tensor], reduce: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """A back end's `ordered_scan` of a problem and the gradients of a weighted sum of it, by name."""
    leaves = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in p.items()}
    y = scan.ordered_scan(**leaves, reduce=reduce, backend=backend)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    (y * weights.to(y)).sum().backward()
    return y.detach(), {k: v.grad for k, v in leaves.items() if v.grad is not None}


def assert_equal_to_float64(
    backend: str, p: dict[str, Tensor], reduce: bool = True, device: torch.device | str = "cpu"
) -> None:
    """Values and all gradients of `ordered_scan` in float32 against plain PyTorch in float64."""
    expected, expected_grads = gradients("torch", p, reduce)
    y, grads = gradients(backend, {k: v.to(device) for k, v in to32(p).items()}, reduce)
    assert y.shape == expected.shape
    assert relative(y.cpu(), expected) <= 1e-5
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        assert relative(grad.cpu(), expected_grads[name]) <= 1e-4, name


class BackendTests:
    """What every back end shall do; a test file inherits this and says which back end, and where."""

    @pytest.fixture
    def backend(self) -> str:
        raise NotImplementedError

    device = torch.device("cpu")
    length = 60  # positions

    @pytest.mark.parametrize("reduce", [True, False])
    def test_paths_for_all_images(self, backend: str, reduce: bool) -> None:
        p = problem(0, B=2, K=4, R=3, N=3, D=5, L=self.length, T=self.length, pads=False, per_image=False)
        assert_equal_to_float64(backend, p, reduce, self.device)

    def test_a_path_of_its_own_for_every_image(self, backend: str) -> None:
        p = problem(1, B=2, K=1, R=3, N=3, D=6, L=self.length, T=self.length, pads=False, per_image=True)
        assert_equal_to_float64(backend, p, True, self.device)

    @pytest.mark.parametrize("reduce", [True, False])
    def test_channels_of_their_own_for_every_path(self, backend: str, reduce: bool) -> None:
        p = problem(4, B=2, K=3, R=2, N=3, D=5, L=self.length, T=self.length, pads=False, per_image=False)
        x = torch.randn(2, 3, self.length, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        assert_equal_to_float64(backend, p | {"x": x}, reduce, self.device)

    @pytest.mark.parametrize("reduce", [True, False])
    def test_pads_and_positions_visited_twice_or_never(self, backend: str, reduce: bool) -> None:
        p = problem(2, B=2, K=2, R=1, N=2, D=3, L=self.length, T=self.length + 2, pads=True, per_image=True)
        assert all(row.clamp(min=0).unique().numel() < self.length for row in p["orders"].flatten(0, 1))
        assert_equal_to_float64(backend, p, reduce, self.device)

    @pytest.mark.parametrize("length", [1, 2])
    def test_the_shortest_paths(self, backend: str, length: int) -> None:
        p = problem(3, B=1, K=1, R=1, N=1, D=1, L=length, T=length, pads=False, per_image=False)
        assert_equal_to_float64(backend, p, True, self.device)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_keeps_the_state_in_float32(self, backend: str, dtype: torch.dtype) -> None:
        p = to32(problem(6, B=1, K=2, R=2, N=2, D=3, L=self.length, T=self.length, pads=False, per_image=False))
        p |= {k: p[k].to(dtype) for k in ("x", "proj")}
        wide = {k: v.double() if v.is_floating_point() else v for k, v in p.items()}
        exact, exact_grads = gradients("torch", wide, True)
        y, grads = gradients(backend, {k: v.to(self.device) for k, v in p.items()}, True)
        assert y.dtype == dtype
        assert relative(y.cpu(), exact) < 0.01  # the rounding of the result alone
        for name, grad in grads.items():
            assert grad.dtype == p[name].dtype
            assert relative(grad.cpu(), exact_grads[name]) < 0.01

    @pytest.mark.parametrize(("softplus", "groups"), [(True, 2), (False, 0)])
    def test_selective_scan(self, backend: str, softplus: bool, groups: int) -> None:
        g = torch.Generator().manual_seed(3)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        B, rows, N, L = 2, 6, 2, 9
        lead = (B, groups) if groups else (B,)
        delta, optional = normal(B, rows, L), [normal(rows), normal(rows)] if softplus else [None, None]
        tensors = [normal(B, rows, L), delta if softplus else delta.abs(), -torch.exp(normal(rows, N))]
        tensors += [normal(*lead, N, L), normal(*lead, N, L), *optional]

        def results(name: str, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
            leaves = [None if t is None else t.detach().to(device, dtype).requires_grad_() for t in tensors]
            y = scan.selective_scan(*leaves, softplus, backend=name)
            y.square().sum().backward()
            return [y.detach().cpu()] + [leaf.grad.cpu() for leaf in leaves if leaf is not None]

        expected = results("torch", torch.float64, torch.device("cpu"))
        for i, (ours, exact) in enumerate(zip(results(backend, torch.float32, self.device), expected, strict=True)):
            assert ours.shape == exact.shape
            assert relative(ours, exact) <= (1e-4 if i else 1e-5)
