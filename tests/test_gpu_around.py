"""The Triton kernels around the scan against plain PyTorch: on a GPU where there is one, else in the interpreter."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.scans import relative
from torch import Tensor, nn

from mambair_cli import archs
from mambair_cli.scan import attention, fused
from mambair_cli.scan import gpu_around as around

pytest.importorskip("triton", minversion="3.3")  # the interpreter of older ones lacks much
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR).to(DEVICE)


@pytest.fixture(autouse=True)
def _inference():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("gated", [True, False])
def test_norm_gate(gated: bool) -> None:
    y, wide, weight, bias = normal(3, 7, 24), normal(3, 7, 60), normal(24), normal(24)
    z = wide[..., 30:54] if gated else None
    expected = F.layer_norm(y, (24,), weight, bias) * (F.silu(z) if gated else 1)
    assert relative(around.norm_gate(y, z, weight, bias, 1e-5), expected) < 1e-6
    half = around.norm_gate(y.half(), z, weight, bias, 1e-5)
    assert half.dtype == torch.float16
    assert relative(half, expected) < 1e-2


@pytest.mark.parametrize(
    ("side", "dilation", "activation", "partner"),
    [(3, 1, "silu", ""), (3, 2, "none", ""), (5, 1, "gelu", "plus"), (5, 1, "sigmoid", "times")],
)
def test_depthwise(side: int, dilation: int, activation: str, partner: str) -> None:
    wide, weight, bias = normal(2, 5, 6, 40), normal(20, 1, side, side), normal(20)
    x, other = wide[..., 20:], wide[..., :20]
    number, plain = fused.ACTIVATIONS[activation]
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=side // 2 * dilation, dilation=dilation, groups=20)
    expected = plain(y).permute(0, 2, 3, 1)
    if partner:
        expected = expected * other if partner == "times" else expected + other
    result = around.depthwise(x, weight, bias, dilation, number, other if partner else None, partner == "times")
    assert relative(result, expected) < 1e-6


def test_linear() -> None:
    x, weight, bias, norm = (
        normal(2, 33, 40).half(),
        nn.Parameter(normal(70, 40)),
        normal(70),
        nn.LayerNorm(40).to(DEVICE),
    )
    nn.init.normal_(norm.weight, generator=GENERATOR if DEVICE.type == "cpu" else None)
    add, scale, other = normal(2, 33, 70), normal(70), normal(2, 33, 70)
    exact = weight.half().float()
    plain = F.linear(x.float(), exact, bias)
    result = around.linear(x, weight, bias)
    assert result.dtype == torch.float16
    assert relative(result, plain) < 2e-3
    expected = F.gelu(F.linear(norm(x.float()).half().float(), exact, bias)) + add + scale * other
    result = around.linear(x, weight, bias, norm, around.GELU, add, scale, other)
    assert result.dtype == torch.float32
    assert relative(result, expected) < 1e-3


@pytest.mark.parametrize(("window", "heads", "width", "shifted"), [(4, 2, 12, True), (8, 1, 29, False)])
def test_window_attention(window: int, heads: int, width: int, shifted: bool) -> None:
    qkv, table = normal(2, 2 * window, window * 3, 3 * heads * width), normal((2 * window - 1) ** 2, heads)
    shift = window // 2 if shifted else 0
    index = attention.relative_position_index(window).to(DEVICE)
    with torch.enable_grad():  # plain PyTorch
        expected = attention.window_attention(qkv, table, index, window, shift).detach()
    assert relative(around.window_attention(qkv, table, window, shift, attention.FAR), expected) < 1e-5


def test_the_trial_passes() -> None:
    assert around.trial(DEVICE) == ""


ATTENTIVE = {"embed_dim": 24, "num_heads": [2], "window_size": 8, "d_state": 4, "num_tokens": 8, "inner_rank": 4}
NETWORKS: dict[str, dict[str, Any]] = {
    "mambair": {"embed_dim": 30, "depths": [1], "d_state": 2, "upscale": 2, "upsampler": "pixelshuffledirect"},
    "mambairv2": {**ATTENTIVE, "depths": [2], "upscale": 1, "upsampler": ""},
}


@pytest.mark.skipif(DEVICE.type == "cpu" and "MAMBAIR_SLOW" not in os.environ, reason="a minute in the interpreter")
@pytest.mark.parametrize("arch", NETWORKS)
def test_networks_are_what_they_are_without(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = archs.build(arch, **NETWORKS[arch]).eval().to(DEVICE)
    for parameter in network.parameters():
        parameter.copy_(parameter + 0.02 * torch.randn_like(parameter))
    if arch == "mambairv2":
        network.routing = "argmax"
    x = torch.rand(1, 3, 16, 16, generator=GENERATOR).to(DEVICE)
    expected = network(x)
    monkeypatch.setattr(around, "takes", lambda *tensors: True)
    for native in ("_native", "inference"):
        monkeypatch.setattr(fused, native, lambda *tensors: False)
    with torch.autocast(DEVICE.type, torch.float16):
        result = network(x)
    assert result.shape == expected.shape
    assert relative(result, expected) < 0.01
