"""Multiply-adds of networks: those of weights.toml are those of the networks, and those of an independent count."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mambair_cli import archs, scan
from mambair_cli.models import zoo
from mambair_cli.speed.count import SQUARE, count, count_model

SHORTER: dict[str, dict[str, object]] = {"mambairv2_light": {"depths": [2], "num_heads": [4]}}
SMALL = sorted((spec for spec in zoo.zoo().values() if spec.params < 1e6), key=lambda spec: -spec.params)
SMALLEST = {spec.arch: spec for spec in SMALL}


def convolved(x: Tensor, weight: Tensor, y: Tensor) -> int:
    return y.numel() * weight[0].numel()


def multiplied(a: Tensor, b: Tensor, y: Tensor) -> int:
    return y.numel() * a.shape[-1]


def summed(equation: str, a: Tensor, b: Tensor) -> int:
    """Of `einsum` with two operands: every combination of their indices once."""
    sides: dict[str, int] = {}
    for indices, tensor in zip(equation.partition("->")[0].replace(" ", "").split(","), (a, b), strict=True):
        sides |= dict(zip(indices, tensor.shape, strict=True))
    return math.prod(sides.values())


class Calls(TorchFunctionMode):
    """Adds up what the functions that multiply do, from the shapes that they are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_function__(
        self, called: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        y = called(*args, **(kwargs or {}))
        if called in (F.conv1d, F.conv2d, torch.conv1d, torch.conv2d, F.linear):
            self.macs += convolved(args[0], args[1], y)
        elif called in (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.__rmatmul__):
            self.macs += multiplied(args[0], args[1], y)
        elif called is torch.einsum:
            self.macs += summed(*args)
        elif called is F.scaled_dot_product_attention:
            self.macs += 2 * args[0].numel() * args[1].shape[-2]
        return y


def by_calls(network: torch.nn.Module, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Products and scan; the scan's from the shapes that it is called with."""
    scans: list[int] = []
    run: Callable[..., Tensor] = scan._run

    def noted(inputs: scan.ScanInputs, *rest: Any) -> Tensor:
        paths, channels, states = inputs.A.shape
        assert inputs.orders is not None
        assert inputs.dt_weight is not None
        steps = len(inputs.u) * inputs.orders.shape[-1] * paths * channels
        scans.append(steps * (9 * states + 1 + inputs.dt_weight.shape[-1]))
        return run(inputs, *rest)

    monkeypatch.setattr(scan, "_run", noted)
    with torch.enable_grad(), Calls() as calls:
        network(torch.empty(1, 3, *size, device="meta"))
    return calls.macs, sum(scans)


@pytest.mark.parametrize("name", ["tiny-x4", "dvmsr-x4", "mambairv2-light-x2", "eamamba-light-x4"])
def test_an_independent_count_agrees(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the calls of torch's functions, where ours counts what they come down to."""
    spec = zoo.find(name)
    network = archs.build(spec.arch, **{**spec.kwargs, **SHORTER.get(spec.arch, {})}).eval().requires_grad_(False)
    expected = count(network, 3, (16, 32))
    assert {p.device.type for p in network.parameters()} == {"cpu"}, "the network is left as it was"
    products, scans = by_calls(network.to("meta"), (16, 32), monkeypatch)
    causal = 16 * 32 * 8 * 120 * 4 if spec.arch == "dvmsr" else 0  # eight blocks, four taps for each channel
    assert (products, scans + causal) == (expected.products, expected.scan)


@pytest.mark.parametrize("name", [SMALLEST[arch].name for arch in sorted(SMALLEST)])
def test_the_card_says_what_the_network_does(name: str) -> None:
    """A small model of every architecture that has one; `tools/count_macs.py` does all."""
    spec = zoo.find(name)
    assert count_model(spec, (SQUARE,)) == (spec.macs or ())[:1]


def test_both_sizes_are_on_the_card() -> None:
    assert count_model(zoo.find("tiny-x4")) == zoo.find("tiny-x4").macs


def test_every_model_has_a_count() -> None:
    """In proportion to the pixels that the network sees, but for windows at the edge."""
    for spec in zoo.zoo().values():
        assert spec.macs, spec.name
        length = archs.find(spec.arch).padding.length
        small, large = (length(h) * length(w) for h, w in ((128, 128), (720 // spec.scale, 1280 // spec.scale)))
        assert spec.macs[1] / spec.macs[0] == pytest.approx(large / small, rel=0.13), spec.name


def test_as_published() -> None:
    """DVMSR's authors print 20.1680 G for 256x256, by fvcore: it sees nothing inside of mamba_ssm's fused op, where
    the scan and two projections are, and takes five for each value of a norm."""
    spec, pixels, width, blocks = zoo.find("dvmsr-x4"), 256 * 256, 60, 8
    unseen = blocks * pixels * 2 * width * ((4 + 2 * 16) + width)
    norms = (blocks + 2) * pixels * 5 * width
    network = archs.build(spec.arch, **spec.kwargs)
    assert round((count(network, 3, (256, 256)).products - unseen + norms) / 1e9, 4) == 20.1680
