"""The causal convolution: equal to its definition, on the published kernel where that loads."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mambair_cli.scan import causal


def inputs(batch: int, length: int, channels: int, taps: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(length * 97 + channels)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()

    return randn(batch, length, channels), randn(channels, 1, taps), randn(channels)


def defined(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    padded = F.pad(x.transpose(1, 2), (weight.shape[-1] - 1, 0))
    return F.silu(F.conv1d(padded, weight, bias, groups=len(bias))).transpose(1, 2)


@settings(deadline=None)
@given(st.integers(1, 2), st.integers(1, 12), st.integers(1, 9), st.integers(1, 5))
def test_equals_its_definition_with_gradients(batch: int, length: int, channels: int, taps: int) -> None:
    arguments = inputs(batch, length, channels, taps)
    y, expected = causal.causal_conv(*arguments), defined(*arguments)
    torch.testing.assert_close(y, expected)
    weights = torch.randn_like(y)
    for one, other in zip(
        torch.autograd.grad((y * weights).sum(), arguments),
        torch.autograd.grad((expected * weights).sum(), arguments),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@settings(deadline=None)
@given(st.integers(1, 2), st.integers(1, 30), st.integers(1, 9), st.integers(1, 5))
def test_inference_in_pieces_is_the_same(batch: int, length: int, channels: int, taps: int) -> None:
    x, weight, bias = (t.detach().float() for t in inputs(batch, length, channels, taps))
    with torch.no_grad(), patch.object(causal, "PIECE", 7):
        torch.testing.assert_close(
            causal.causal_conv(x, weight, bias), defined(x, weight, bias), rtol=1e-5, atol=1e-5
        )


def test_no_step_sees_a_later_one() -> None:
    x, weight, bias = inputs(1, 10, 8, 4)
    y = causal.causal_conv(x, weight, bias)
    changed = x.detach().clone()
    changed[:, 6:] += 1
    assert torch.equal(causal.causal_conv(changed, weight, bias)[:, :6], y[:, :6])


def test_the_published_kernel_is_called_as_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own signature and layout: (B, D, L) with channels next to each other, weight (D, taps)."""
    seen = []

    def causal_conv1d_fn(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
        seen.append((x.shape, x.stride(1), weight.shape, activation))
        return defined(x.transpose(1, 2), weight[:, None], bias).transpose(1, 2)

    monkeypatch.setitem(sys.modules, "causal_conv1d", SimpleNamespace(causal_conv1d_fn=causal_conv1d_fn))
    monkeypatch.setattr(causal, "missing", lambda: "")
    monkeypatch.setattr(causal, "takes", lambda x, taps: True)
    arguments = inputs(2, 9, 16, 4)
    torch.testing.assert_close(causal.causal_conv(*arguments), defined(*arguments))
    assert seen == [((2, 16, 9), 1, (16, 4), "silu")]


def test_where_the_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not causal.takes(torch.zeros(1, 4, 8), 4)
    on_cuda = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32, shape=(1, 4, 8))
    assert causal.takes(on_cuda, 4)  # type: ignore[arg-type]
    assert not causal.takes(on_cuda, 5)  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    causal.missing.cache_clear()
    monkeypatch.setitem(sys.modules, "causal_conv1d", None)
    assert "does not load" in causal.missing()
    causal.missing.cache_clear()


def test_on_a_gpu() -> None:
    if not torch.cuda.is_available() or causal.missing():
        pytest.skip("needs a GPU with causal_conv1d")
    x, weight, bias = (t.detach().float().cuda() for t in inputs(2, 300, 120, 4))
    torch.testing.assert_close(causal.causal_conv(x, weight, bias), defined(x, weight, bias), rtol=1e-5, atol=1e-5)
