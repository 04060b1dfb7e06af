"""Native operations that run at inference only equal their plain PyTorch twins; the random routes are Philox's."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mambair_cli.archs.layers import ChannelAttention
from mambair_cli.scan import attention, cpu, fused, products, routing

needs_kernel = pytest.mark.skipif(bool(cpu.missing), reason=f"native kernel {cpu.missing}")


@pytest.fixture(params=cpu.instruction_sets() or ["none"])
def instruction_set(request: pytest.FixtureRequest):
    if cpu.missing:
        pytest.skip(f"native kernel {cpu.missing}")
    cpu._cpu.use_instruction_set(request.param)
    yield request.param
    cpu._cpu.use_instruction_set(cpu.instruction_sets()[0])


def compare(function, *tensors: Tensor, tolerance: float = 2e-6, **options) -> None:
    """With gradients on, the plain twin runs, here in float64; without them the native one."""
    exact = function(*(t.double() for t in tensors), **options)
    with torch.no_grad():
        ours = function(*tensors, **options)
    assert ours.dtype == torch.float32
    assert (ours - exact).abs().max() <= tolerance * max(1.0, exact.abs().max().item())


@pytest.mark.parametrize(("rows", "inside", "out"), [(64, 48, 144), (97, 5, 3), (200, 60, 72), (300, 130, 33)])
def test_linear(instruction_set: str, monkeypatch: pytest.MonkeyPatch, rows: int, inside: int, out: int) -> None:
    monkeypatch.setattr(products, "WIDE_VECTORS", True)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, rows, inside), torch.randn(out, inside) / inside**0.5, torch.randn(out)
    add, other, scale = torch.randn(1, rows, out), torch.randn(1, rows, out), torch.randn(out)
    compare(products.linear, x, weight)
    compare(products.linear, x, weight, bias, gelu=True)

    def everything(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor, other: Tensor, scale: Tensor) -> Tensor:
        norm = nn.LayerNorm(inside, dtype=x.dtype)
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(-1, 2, inside))
            norm.bias.copy_(torch.linspace(3, -1, inside))
        return products.linear(x, weight, bias, norm=norm.requires_grad_(False), add=add, scaled=(scale, other))

    compare(everything, x, weight, bias, add, other, scale, tolerance=5e-6)


@pytest.mark.parametrize(("directions", "size"), [(4, 24), (4, 19), (3, 5), (2, 1), (1, 33)])
def test_projections_of_several_directions(
    instruction_set: str, monkeypatch: pytest.MonkeyPatch, directions: int, size: int
) -> None:
    monkeypatch.setattr(products, "WIDE_VECTORS", True)
    torch.manual_seed(0)
    compare(products.project, torch.randn(2, 67, 9), torch.randn(directions, size, 9))


@pytest.mark.parametrize(("channels", "hidden", "side"), [(60, 2, 40), (7, 1, 3), (48, 3, 17)])
def test_channel_attention(instruction_set: str, channels: int, hidden: int, side: int) -> None:
    torch.manual_seed(0)
    attention = ChannelAttention(channels, channels // hidden)
    exact = deepcopy(attention).double()
    x, residual, scale = (
        torch.randn(2, side, side + 1, channels),
        torch.randn(2, side, side + 1, channels),
        torch.randn(channels),
    )
    expected = exact.residual(x.double(), residual.double(), scale.double())
    before, results = torch.get_num_threads(), list[Tensor]()
    try:
        with torch.no_grad():
            for threads in (1, 3):
                torch.set_num_threads(threads)
                ours = attention.residual(x, residual, scale)
                assert (ours - expected).abs().max() <= 2e-6 * expected.abs().max()
                results.append(ours)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_gelu_far_from_zero(instruction_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "WIDE_VECTORS", True)
    x = torch.linspace(-12, 12, 999)[:, None]
    with torch.no_grad():
        y = products.linear(x, torch.ones(1, 1), gelu=True)
    exact = torch.nn.functional.gelu(x.double())
    assert ((y - exact).abs() <= 3e-7 * exact.abs().clamp(min=1)).all()


@pytest.mark.parametrize(("window", "heads", "width"), [(16, 2, 12), (8, 3, 5), (4, 1, 33), (3, 2, 29), (18, 1, 7)])
@pytest.mark.parametrize("shifted", [False, True])
def test_window_attention(instruction_set: str, window: int, heads: int, width: int, shifted: bool) -> None:
    torch.manual_seed(1)
    qkv = torch.randn(2, 2 * window, 3 * window, 3 * heads * width)
    table, index = torch.randn((2 * window - 1) ** 2, heads), attention.relative_position_index(window)
    shift = window // 2 if shifted else 0
    compare(attention.window_attention, qkv, table, index=index, window=window, shift=shift, tolerance=5e-6)


def test_shift_mask_follows_its_definition() -> None:
    window, height, width = 4, 8, 12

    def band(side: int) -> Tensor:
        return torch.tensor([0] * (side - window) + [1] * (window // 2) + [2] * (window // 2))

    region = 3 * band(height)[:, None] + band(width)
    for top in range(0, height, window):
        for left in range(0, width, window):
            labels = region[top : top + window, left : left + window].flatten()
            expected = torch.where(labels[:, None] == labels, 0.0, -100.0)
            last_row, last_column = top + window == height, left + window == width
            mask = attention.shift_mask(window, last_row, last_column, torch.device("cpu"))
            assert torch.equal(mask, expected)


@pytest.mark.parametrize("shape", [(2, 7, 5, 36), (1, 1, 1, 3), (1, 9, 11, 16)])
@pytest.mark.parametrize("side", [3, 5, 7])
@pytest.mark.parametrize("activation", ["none", "silu", "sigmoid", "gelu"])
def test_convolve_gated(instruction_set: str, shape: tuple[int, ...], side: int, activation: str) -> None:
    torch.manual_seed(2)
    channels = shape[-1]
    arguments = torch.randn(shape), torch.randn(channels, 1, side, side), torch.randn(channels), torch.randn(shape)
    for product in (True, False):
        compare(fused.convolve_gated, *arguments, activation=activation, product=product, tolerance=5e-6)


@pytest.mark.parametrize("options", [{}, {"silu": True}, {"gelu": True}])
@pytest.mark.parametrize("dilation", [1, 2])
def test_depthwise(instruction_set: str, dilation: int, options: dict[str, bool]) -> None:
    torch.manual_seed(3)
    x, weight, bias = torch.randn(2, 5, 23, 40), torch.randn(36, 1, 3, 3), torch.randn(36)

    def of_a_slice(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fused.depthwise(x[..., 2:38], weight, bias, dilation=dilation, **options)

    compare(of_a_slice, x, weight, bias, tolerance=5e-6)


@needs_kernel
def test_slices_of_wider_rows_are_read_where_they_are() -> None:
    wide = torch.randn(2, 6, 5, 24)
    weight, bias = torch.randn(12, 1, 5, 5), torch.randn(12)
    with torch.no_grad():
        a, b = wide.chunk(2, dim=-1)
        y = fused.convolve_gated(b, weight, bias, a)
        assert torch.equal(y, fused.convolve_gated(b.contiguous(), weight, bias, a.contiguous()))
        assert torch.equal(
            fused.layer_norm(b, weight[:, 0, 0, 0], bias), fused.layer_norm(b.contiguous(), weight[:, 0, 0, 0], bias)
        )


def test_philox_gives_the_published_numbers() -> None:
    """Vectors of Random123 (Salmon et al. 2011), philox4x32-10."""
    ones = 2**32 - 1
    for counter, key, expected in (
        ([0] * 4, 0, ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]),
        ([ones] * 4, 2**64 - 1, ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0A4093822,
            ["d16cfe09", "94fdcceb", "5001e420", "24126ea1"],
        ),
    ):
        words = routing.philox(key, [torch.tensor([c]) for c in counter])
        assert [f"{int(word):08x}" for word in words] == expected


@pytest.mark.parametrize("tokens", [64, 128, 5, 1, 70])
def test_native_draws_are_those_of_the_twin(instruction_set: str, tokens: int) -> None:
    logits, key = torch.randn(2, 500, tokens, generator=torch.Generator().manual_seed(3)), 2**62 + 12345
    noisy = logits + routing.gumbel(1000, tokens, key, 7).view_as(logits)
    with torch.no_grad():
        category = routing.draw(logits, key, 7)
    assert torch.equal(category.long(), noisy.argmax(-1))
    assert tokens == 1 or not torch.equal(category.long(), logits.argmax(-1))
    assert tokens == 1 or not torch.equal(category, routing.draw(logits, key, 8))


def test_the_noise_is_gumbel() -> None:
    noise = routing.gumbel(1000, 200, key=1, layer=2)
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.01)
    assert noise.var() == pytest.approx(np.pi**2 / 6, abs=0.02)
    assert noise.isfinite().all()


@pytest.mark.parametrize("native", [True, False])
def test_by_category_is_stable(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(cpu, "missing", "not built")
    category = torch.randint(0, 9, (3, 100), generator=torch.Generator().manual_seed(4), dtype=torch.int32)
    visits, step_of = routing.by_category(category, 9)
    assert torch.equal(visits.long(), category.argsort(dim=-1, stable=True))
    assert torch.equal(visits.gather(1, step_of.long()), torch.arange(100, dtype=torch.int32).expand(3, -1))
