"""The head that enlarges by resizing and convolving has no grid of its own."""

from __future__ import annotations

import pytest
import torch

from mambair_cli import archs
from mambair_cli.errors import BadCheckpoint
from mambair_cli.models.mixing import mixed

SMALL = {"in_chans": 3, "embed_dim": 32, "depths": [1], "d_state": 2, "mlp_ratio": 1.0}


def network(upsampler: str, scale: int) -> torch.nn.Module:
    torch.manual_seed(1)
    return archs.build("mambair", **SMALL, upscale=scale, upsampler=upsampler).eval()


@pytest.mark.parametrize("scale", [2, 4])
def test_resize_conv_light(scale: int) -> None:
    model = network("resize+conv-light", scale)
    assert archs.infer(model.state_dict())[1] | {"in_chans": 3} == {
        **SMALL,
        "upscale": scale,
        "upsampler": "resize+conv-light",
    }
    with torch.inference_mode():
        assert model(torch.rand(1, 3, 9, 7)).shape == (1, 3, 9 * scale, 7 * scale)


def test_no_grid_on_a_flat_picture() -> None:
    """Untrained, a pixel shuffle gives every place of a pixel a shade of its own; resizing does not."""
    flat = torch.full((1, 3, 24, 24), 0.4)
    grids = {}
    for upsampler in ("resize+conv-light", "pixelshuffledirect"):
        with torch.inference_mode():
            middle = network(upsampler, 4)(flat)[..., 32:64, 32:64]
        phases = torch.stack([middle[..., y::4, x::4].mean((2, 3)) for y in range(4) for x in range(4)])
        grids[upsampler] = float(phases.std(dim=0).mean())
    assert grids["resize+conv-light"] < 1e-4 < 10 * grids["pixelshuffledirect"]
    assert grids["pixelshuffledirect"] > 1e-2


def test_scales_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="scales 2 and 4, not 3"):
        network("resize+conv-light", 3)


def test_weights_of_one_architecture_can_be_mixed() -> None:
    first, second = (network("resize+conv-light", 2).state_dict() for _ in range(2))
    second = {name: tensor + 1 for name, tensor in second.items()}
    assert all(torch.equal(mixed(first, second, 0)[name], first[name]) for name in first)
    assert all(torch.equal(mixed(first, second, 1)[name], second[name]) for name in first)
    halves = {name: tensor.half() for name, tensor in second.items()}
    between = mixed(first, halves, 0.25)
    assert all(torch.allclose(between[name], first[name] + 0.25, atol=1e-2) for name in first)
    assert {tensor.dtype for tensor in between.values()} == {torch.float32}
    network("resize+conv-light", 2).load_state_dict(between)
    with pytest.raises(BadCheckpoint, match="differ in enlarge"):
        mixed(first, network("pixelshuffledirect", 2).state_dict(), 0.5)
    with pytest.raises(BadCheckpoint, match="differ in"):
        mixed(first, {**second, "norm.bias": torch.zeros(3)}, 0.5)
    with pytest.raises(ValueError, match="from 0 to 1"):
        mixed(first, second, 1.5)
