"""Tiles on a device: the code for GPUs, with a link and graphs that stand in for those of CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.networks import Nearest, blur, picture, spec
from torch import Tensor, nn

from mambair_cli import archs
from mambair_cli.errors import MambairError
from mambair_cli.models.spec import ModelSpec
from mambair_cli.restoring.device import batch_size
from mambair_cli.restoring.graphs import KEPT, Graphs
from mambair_cli.restoring.restorer import Restorer
from mambair_cli.restoring.running import Running
from mambair_cli.restoring.tiling import TileSize

ATTENTIVE = {"embed_dim": 24, "depths": [1], "num_heads": [2], "window_size": 8, "d_state": 4, "num_tokens": 8}


class Beside:
    """A link whose values arrive when they are waited for."""

    def upload(self, t: Tensor) -> Tensor:
        return t.clone()

    def download(self, t: Tensor) -> Callable[[], Tensor]:
        return lambda: t.clone()


def capture(run: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    """As a CUDA graph: one place for each input and for the result, and shapes that never change."""
    held, result = [t.clone() for t in inputs], run(*inputs).clone()

    def replay(*new: Tensor) -> Tensor:
        for ours, theirs in zip(held, new, strict=True):
            assert ours.shape == theirs.shape
            ours.copy_(theirs)
        return result.copy_(run(*held))

    return replay


def there(network: nn.Module, of: ModelSpec, **options: Any) -> Restorer:
    restorer = Restorer(of, network, Running(device="cpu", **options))
    restorer.link, restorer.graphs = Beside(), Graphs(capture)
    return restorer


def here(network: nn.Module, of: ModelSpec, **options: Any) -> Restorer:
    return Restorer(of, network, Running(device="cpu", **options))


@pytest.mark.parametrize("size", [(20, 30), (70, 150), (150, 70)])
@pytest.mark.parametrize("ensemble", [False, True])
def test_equals_one_tile_after_the_other(size: tuple[int, int], ensemble: bool) -> None:
    options = {"tile": 48, "overlap": 8, "ensemble": ensemble}
    lq, told = picture(*size), []
    expected = here(blur(), spec(), **options).restore(lq)
    restorer = there(blur(), spec(), **options)
    result = restorer.restore(lq, lambda done, total: told.append((done, total)))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)
    assert told[-1][0] == told[-1][1]
    assert told == sorted(told)


def test_random_routes_are_those_of_the_tile_whatever_it_is_run_with() -> None:
    torch.manual_seed(0)
    network = archs.build("mambairv2_light", **ATTENTIVE, inner_rank=4, upsampler="", upscale=1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)  # fresh networks hardly show their routes
    of, lq = spec(arch="mambairv2_light"), picture(16, 38)
    options = {"tile": 16, "overlap": 4, "ensemble": True}
    expected = here(network, of, **options).restore(lq)
    torch.testing.assert_close(there(network, of, **options).restore(lq), expected, rtol=0, atol=1e-5)
    assert not torch.equal(here(network, of, **options, seed=1).restore(lq), expected)


def test_equal_tiles_run_together_and_the_second_row_by_a_graph() -> None:
    network, captured = Nearest(), []
    restorer = there(network, spec(), tile=32, overlap=8)
    restorer.graphs = Graphs(lambda run, inputs: captured.append(inputs[0].shape) or capture(run, inputs))
    lq = picture(60, 200)
    torch.testing.assert_close(restorer.restore(lq), lq, rtol=0, atol=1e-6)
    assert {shape[0] for shape in network.seen} == {len(restorer.smooth(200, TileSize(32)))}
    assert len(captured) == 1


class Small(nn.Module):
    """Has room for so many pixels at a time."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.most = room, 0

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.shape[0] * x.shape[2] * x.shape[3]
        if pixels > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.most = max(self.most, pixels)
        return x


@pytest.mark.parametrize("tiles", [3, 0.5])
def test_out_of_memory_means_fewer_tiles_then_smaller_ones(tiles: float) -> None:
    network, lq = Small(int(tiles * 64 * 64)), picture(100, 300)
    restorer = there(network, spec(), tile=64, overlap=16)
    torch.testing.assert_close(restorer.restore(lq), lq, rtol=0, atol=1e-6)
    assert network.most > network.room // 4
    assert restorer.tile_used == (64 if tiles > 1 else 32)
    with pytest.raises(MambairError, match="Out of memory even"):
        there(Small(100), spec(), tile=64).restore(lq)


class Overflowing(nn.Module):
    """In half precision, on bright pixels."""

    def forward(self, x: Tensor) -> Tensor:
        half = torch.is_autocast_enabled("cpu")
        return torch.where((x > 0.5) & torch.tensor(half), torch.inf, x)


def test_a_row_that_overflows_is_run_again_in_float32() -> None:
    lq = picture(150, 60) * 0.4
    lq[:, 100:] += 0.5
    restorer = there(Overflowing(), spec(), tile=48, overlap=8, precision="bf16")
    torch.testing.assert_close(restorer.restore(lq), lq, rtol=0, atol=1e-6)
    assert restorer.precision_used == "fp32"
    with pytest.raises(MambairError, match="not numbers"):
        there(Nearest(), spec(), tile=48).restore(torch.full((1, 50, 50), torch.nan))


def test_how_many_tiles_at_a_time() -> None:
    assert batch_size(64 * 64, budget=1 << 34, bytes_per_pixel=10_000) == 256
    assert batch_size(64 * 64, budget=1 << 30, bytes_per_pixel=10_000) == 26
    assert batch_size(4096 * 4096, budget=1, bytes_per_pixel=10_000) == 1


def test_graphs_are_made_for_what_comes_again() -> None:
    captured: list[torch.Size] = []
    graphs = Graphs(lambda run, inputs: captured.append(inputs[0].shape) or capture(run, inputs))
    sides = [*range(2, KEPT + 2), 2, 2, 3, KEPT + 40, 2]
    first = None
    for number, side in enumerate(sides):
        x = torch.full((side,), float(number))
        y = graphs(lambda t: t * 2, "fp32", x)
        assert torch.equal(y, 2 * x)
        first = y if first is None else first
    assert first is not None
    assert torch.equal(first, torch.zeros(2)), "a result is not written to by later calls"
    assert captured == [torch.Size([2]), torch.Size([3])]
    assert torch.equal(graphs(lambda t: t * 3, "bf16", torch.ones(2)), torch.full((2,), 3.0))


def test_what_cannot_be_captured_runs_as_it_is() -> None:
    def refuse(run: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = Graphs(refuse)
    for _ in range(3):
        assert torch.equal(graphs(torch.exp, "fp32", torch.zeros(3)), torch.ones(3))
    assert "capturing" in graphs.refused
