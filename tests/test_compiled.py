"""`torch.compile` and `torch.export` take the networks whole, and the scan is one operator in what they make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from helpers.scans import gradients, problem, relative, to32
from torch import Tensor

from mambair_cli import archs, scan
from mambair_cli.scan import orders, routing

# Two blocks: the windows of the second are shifted.
ATTENTIVE = {"embed_dim": 24, "depths": [2], "num_heads": [2], "window_size": 8, "d_state": 4, "num_tokens": 8}
SMALL: dict[str, dict[str, Any]] = {
    "mambair": {"embed_dim": 30, "depths": [1], "d_state": 4, "upscale": 2, "upsampler": "pixelshuffledirect"},
    "mambairv2_light": {**ATTENTIVE, "inner_rank": 4, "upscale": 2, "upsampler": "pixelshuffledirect"},
}


def network(arch: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return archs.build(arch, **SMALL[arch]).eval()


def picture(height: int, width: int) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_a_network_compiles_whole() -> None:
    """One that draws its routes, from torch's generator, anew in every call; `tools/gpu` compiles more."""
    module, x = network("mambairv2_light"), picture(16, 16)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    with torch.no_grad():
        for seed in (1, 2):
            torch.manual_seed(seed)
            expected = module(x)
            torch.manual_seed(seed)
            torch.testing.assert_close(compiled(x), expected, rtol=0, atol=1e-5)


def test_a_table_is_a_constant_of_what_is_compiled() -> None:
    calls: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        calls.extend(node.name for node in graph.graph.nodes if node.op.startswith("call"))
        return graph.forward

    def added(x: Tensor) -> Tensor:
        return x + orders.cross(4, 6, x.device)

    x = torch.rand(4, 24)
    torch.testing.assert_close(torch.compile(added, fullgraph=True, backend=backend)(x), added(x))
    assert calls == ["add"]


def test_a_network_is_exported_with_the_scan_as_an_operator() -> None:
    module, x = network("mambair"), picture(16, 16)
    with torch.no_grad():
        program = torch.export.export(module, (x,))
        torch.testing.assert_close(program.module()(x), module(x), rtol=0, atol=1e-5)
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert calls.count("mambair.scan.default") == 1


def test_gradients_through_the_operator() -> None:
    p = to32(problem(0, B=2, K=2, R=2, N=3, D=5, L=20, T=22, pads=True, per_image=True))
    y, expected = gradients("cpu", p, True)
    leaves = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in p.items()}
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(y)

    def loss(**tensors: Tensor) -> Tensor:
        return (scan.ordered_scan(**tensors) * weights).sum()

    torch.compile(loss, fullgraph=True, backend="aot_eager")(**leaves).backward()
    for name, grad in expected.items():
        assert relative(leaves[name].grad, grad) <= 1e-6, name


def test_the_operators_do_what_they_declare() -> None:
    p = to32(problem(1, B=1, K=2, R=2, N=3, D=5, L=9, T=9, pads=False, per_image=False))
    floats = [p[name].requires_grad_() for name in ("dt_weight", "dt_bias", "A", "D")]
    arguments = (p["x"].requires_grad_(), None, p["proj"].requires_grad_(), *floats, p["orders"], True, False, "cpu")
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.mambair.scan.default, arguments, test_utils=checks)
    drawn = torch.randn(2, 7, 5), torch.tensor([3, 4]), 1
    torch.library.opcheck(torch.ops.mambair.categories.default, drawn, test_utils=checks)


def test_the_noise_of_an_image_is_that_of_its_key() -> None:
    logits, keys = torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([7, 2**62])
    alone = [routing.draw(one, int(key), 3) for one, key in zip(logits.split(1), keys, strict=True)]
    with torch.no_grad():
        assert torch.equal(routing.draw(logits, keys, 3), torch.cat(alone))
    with torch.enable_grad():  # where nothing native runs
        assert torch.equal(routing.draw(logits, keys, 3), torch.cat(alone))
    module, x = network("mambairv2_light"), picture(16, 16)
    with torch.no_grad():
        module.keys = keys
        both = module(torch.cat([x, x]))
        module.keys = keys[1:]
        torch.testing.assert_close(both[1:], module(x), rtol=0, atol=1e-6)
        assert not torch.equal(both[0], both[1])
