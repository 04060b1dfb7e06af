"""The fused operations around the scan equal their plain PyTorch twins, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mambair_cli.scan import cpu, fused

pytestmark = pytest.mark.skipif(bool(cpu.missing), reason=f"native kernel {cpu.missing}")


@pytest.fixture(autouse=True, params=cpu.instruction_sets())
def instruction_set(request: pytest.FixtureRequest):
    cpu._cpu.use_instruction_set(request.param)
    yield
    cpu._cpu.use_instruction_set(cpu.instruction_sets()[0])


def compare(ours, plain, *inputs: Tensor, tolerance: float = 1e-5) -> None:
    """Values and all gradients of two functions, the plain one in float64."""
    results = []
    for function, dtype in ((ours, torch.float32), (plain, torch.float64)):
        leaves = [t.detach().clone().to(dtype).requires_grad_() for t in inputs]
        y = function(*leaves)
        weight = torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape)
        (y * weight).sum().backward()
        results.append([y.detach(), *(leaf.grad for leaf in leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("shape", [(2, 7, 5, 36), (1, 1, 1, 3), (1, 1, 9, 16), (3, 4, 2, 17)])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("silu", [False, True])
def test_depthwise(shape: tuple[int, ...], dilation: int, silu: bool) -> None:
    torch.manual_seed(0)
    channels = shape[-1]

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=dilation, dilation=dilation, groups=channels)
        return (F.silu(y) if silu else y).permute(0, 2, 3, 1)

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fused.depthwise(x, weight, bias, dilation=dilation, silu=silu)

    compare(ours, plain, torch.randn(shape), torch.randn(channels, 1, 3, 3), torch.randn(channels))


def test_depthwise_of_a_slice() -> None:
    wide = torch.randn(2, 6, 5, 24)
    weight, bias = torch.randn(12, 1, 3, 3), torch.randn(12)
    y = fused.depthwise(wide[..., 12:], weight, bias)
    torch.testing.assert_close(y, fused.depthwise(wide[..., 12:].contiguous(), weight, bias), rtol=0, atol=0)


@pytest.mark.parametrize("rows", [1, 37])
@pytest.mark.parametrize("channels", [3, 60, 72])
def test_norm_gate(rows: int, channels: int) -> None:
    torch.manual_seed(0)

    def plain(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(y, (channels,), weight, bias) * F.silu(z)

    def norm(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(y, (channels,), weight, bias) + 0 * z

    inputs = (
        torch.randn(2, rows, channels),
        torch.randn(2, rows, channels),
        torch.randn(channels),
        torch.randn(channels),
    )
    compare(fused.norm_gate, plain, *inputs)
    compare(lambda y, z, w, b: fused.layer_norm(y, w, b) + 0 * z, norm, *inputs)


def test_bfloat16() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, 6, 5, 20).bfloat16(), torch.randn(20, 1, 3, 3), torch.randn(20)
    y = fused.depthwise(x, weight, bias)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), fused.depthwise(x.float(), weight, bias), rtol=0.01, atol=0.01)
    gated = fused.norm_gate(x, x, bias, bias)
    torch.testing.assert_close(gated.float(), fused.norm_gate(x.float(), x.float(), bias, bias), rtol=0.01, atol=0.02)
