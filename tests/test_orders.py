"""Scan orders: every path visits every token once, in the order that its definition says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from mambair_cli.archs import eamamba, mair
from mambair_cli.scan import orders

CPU = torch.device("cpu")
side = st.integers(1, 20)
window_multiple = st.integers(1, 4).map(lambda n: n * orders.CROSS_WINDOW)


def window_walk(height: int, width: int, size: int) -> list[int]:
    """The definition, step by step: windows in raster order, pixels in raster order inside, -1 outside the map."""
    return [
        y * width + x if y < height and x < width else -1
        for top in range(0, height, size)
        for left in range(0, width, size)
        for y in range(top, top + size)
        for x in range(left, left + size)
    ]


def transposed(path: list[int], height: int, width: int) -> list[int]:
    """A path over the transposed map, in the numbering of the map."""
    return [i if i < 0 else i % height * width + i // height for i in path]


@given(side, side)
def test_cross_is_rows_columns_and_their_reverses(height: int, width: int) -> None:
    table = orders.cross(height, width, CPU)
    rows = list(range(height * width))
    columns = [y * width + x for x in range(width) for y in range(height)]
    assert table.dtype == torch.int32
    assert table.tolist() == [rows, columns, rows[::-1], columns[::-1]]


@given(side, side, st.integers(1, 9))
def test_window_follows_its_definition(height: int, width: int, size: int) -> None:
    rows = window_walk(height, width, size)
    columns = transposed(window_walk(width, height, size), height, width)
    assert orders.window(height, width, size, False, CPU).tolist() == [rows, rows[::-1]]
    assert orders.window(height, width, size, True, CPU).tolist() == [columns, columns[::-1]]


@given(window_multiple, window_multiple)
def test_cross_scale_puts_each_low_pixel_ahead_of_the_four_it_covers(height: int, width: int) -> None:
    table = orders.cross_scale(height, width, CPU).long()
    for path in table:
        assert torch.equal(path.sort().values, torch.arange(height * width * 5 // 4))
        low, high = path.view(-1, 5)[:, :1] - height * width, path.view(-1, 5)[:, 1:]
        assert torch.equal(high // width // 2, (low // (width // 2)).expand_as(high))
        assert torch.equal(high % width // 2, (low % (width // 2)).expand_as(high))
    ahead, back = table[0].view(-1, 5), table[1].view(-1, 5)
    assert torch.equal(back, torch.cat([ahead[:, :1], ahead[:, 1:].flip(1)], dim=1).flip(0))


@given(window_multiple, window_multiple)
def test_cross_scale_readout_scrambles_only_where_the_published_code_does(height: int, width: int) -> None:
    readout = orders.cross_scale_readout(height, width, CPU)
    pixels = torch.arange(height * width, dtype=torch.int32)
    assert torch.equal(readout.sort().values, pixels)
    if height == width:
        assert torch.equal(readout, pixels)
    elif min(height, width) > orders.CROSS_WINDOW:
        assert not torch.equal(readout, pixels)


@given(st.integers(1, 50))
def test_channel_is_forward_and_reversed(length: int) -> None:
    assert orders.channel(length, CPU).tolist() == [list(range(length)), list(range(length))[::-1]]


def test_a_table_is_made_once_and_serves_training_after_inference() -> None:
    with torch.inference_mode():
        table = orders.cross(3, 5, CPU)
    assert orders.cross(3, 5, CPU) is table
    assert not table.is_inference()


def test_large_tables_are_let_go() -> None:
    first = orders.channel(3, CPU)
    for length in range(100, 140):
        orders.channel(length, CPU)
    assert orders.channel(3, CPU) is not first


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_table_is_where_it_is_asked_for() -> None:
    assert orders.cross(3, 5, torch.device("cuda", 0)).is_cuda


with safe_open(Path(__file__).parent / "golden" / "orders_2.safetensors", "pt") as content:
    PUBLISHED = {name: content.get_tensor(name) for name in content.keys() if "zigzag" not in name}  # noqa: SIM118


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_paths_of_the_published_code(name: str) -> None:
    family, kind, variant, size = name.split("/")
    height, width = map(int, size.split("x"))
    if family == "nss":
        table = mair.nested(height, width, int(kind), int(kind) // 2 if variant == "shift" else 0, CPU)
    else:  # diagonals and rasters are the two halves of one table; smaller counts are its beginning
        ways = eamamba.heads(height, width, CPU)
        table = ways[4 if kind == "raster" else 0 :][: int(variant)]
    assert torch.equal(table, PUBLISHED[name])


@given(side, side, st.sampled_from([4, 8]), st.booleans())
def test_stripes_and_heads_visit_every_pixel_once(height: int, width: int, stripe: int, shifted: bool) -> None:
    pixels = torch.arange(height * width, dtype=torch.int32)
    for table in (
        mair.nested(height, width, stripe, stripe // 2 * shifted, CPU),
        eamamba.heads(height, width, CPU),
    ):
        assert torch.equal(table.sort().values, pixels.expand(len(table), -1))
    for table in (mair.nested(height, width, stripe, stripe // 2 * shifted, CPU), eamamba.heads(height, width, CPU)):
        assert torch.equal(table.sort().values, pixels.expand(len(table), -1))
