"""Tiling invariants: nothing is missed, nothing is counted twice, nothing changes that the network did not change."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mambair_cli.errors import MambairError, UsageError
from mambair_cli.restoring import tiling
from mambair_cli.restoring.tiling import TileSize

lengths = st.integers(1, 400)


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int]:
    size = draw(st.integers(1, 300))
    return size, draw(st.integers(max(0, size - 100), size - 1) | st.integers(0, size - 1))


def total_weight(spans: list[tiling.Span], scale: int) -> Tensor:
    total = torch.zeros(spans[-1].stop * scale)
    for span in spans:
        total[span.start * scale : span.stop * scale] += span.weight
    return total


def nearest(tile: Tensor, scale: int) -> Tensor:
    return tile.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


@settings(deadline=None)
@given(lengths, sizes(), st.integers(1, 4))
def test_smooth_plan_covers_every_pixel_once(length: int, size: tuple[int, int], scale: int) -> None:
    side, overlap = size
    spans = tiling.smooth(length, side, overlap, scale)
    assert (spans[0].start, spans[-1].stop) == (0, length)
    assert len({span.stop - span.start for span in spans}) == 1, "tiles of one plan are equally large"
    assert spans[0].stop <= side
    assert all(a.start < b.start <= a.stop - overlap for a, b in pairwise(spans))
    assert all((span.weight > 0).all() for span in spans)
    torch.testing.assert_close(total_weight(spans, scale), torch.ones(length * scale))


def test_smooth_plan_uses_the_fewest_tiles_and_divides_evenly() -> None:
    spans = tiling.smooth(600, 512, 32)
    assert [(span.start, span.stop) for span in spans] == [(0, 320), (280, 600)]


def test_smooth_weights_have_no_jump() -> None:
    for span in tiling.smooth(300, 96, 16, scale=4):
        steps = torch.diff(span.weight).abs()
        assert steps.max() < 1.6 / (16 * 4), "slope of a raised cosine over 16 pixels at scale 4 is pi/2 at most"


@pytest.mark.parametrize(("size", "overlap"), [(64, 64), (64, 80), (64, -1), (0, 0)])
def test_overlap_must_fit_the_tile(size: int, overlap: int) -> None:
    with pytest.raises(UsageError):
        tiling.smooth(100, size, overlap)


def test_paper_plan_is_the_published_one() -> None:
    # 512 pixels: 3 columns of ceil(512 / 3) = 171 after padding to 513, 17 more on inner sides, hard paste.
    spans = tiling.paper(512, 200, 10)
    assert [(span.start, span.stop) for span in spans] == [(0, 188), (154, 359), (325, 513)]
    assert [int(span.weight.sum()) for span in spans] == [171, 171, 171]
    assert spans[1].weight[:17].sum() == 0
    assert spans[1].weight[17] == 1


@settings(deadline=None)
@given(lengths, st.integers(1, 3))
def test_paper_plan_pastes_every_pixel_once(length: int, scale: int) -> None:
    spans = tiling.paper(length, 200, 10, scale)
    assert length <= spans[-1].stop < length + len(spans)
    assert torch.equal(total_weight(spans, scale), torch.ones(spans[-1].stop * scale))


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), sizes(), st.integers(1, 3), st.booleans())
def test_tiles_of_an_identity_give_the_picture_back(
    height: int, width: int, size: tuple[int, int], scale: int, paper: bool
) -> None:
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(height * 97 + width))
    side, overlap = size
    plan = [
        tiling.paper(length, 20, 10, scale) if paper else tiling.smooth(length, side, overlap, scale)
        for length in (height, width)
    ]
    image = tiling.extend(image, plan[0][-1].stop, plan[1][-1].stop, edge=False)
    bands = list(tiling.blend(image, *plan, scale, lambda tile, top, left: nearest(tile, scale)))
    assert [y for y, _ in bands] == [0, *torch.tensor([b.shape[1] for _, b in bands]).cumsum(0).tolist()[:-1]]
    torch.testing.assert_close(torch.cat([b for _, b in bands], 1), nearest(image, scale), rtol=0, atol=1e-6)


def test_run_is_told_where_its_tile_lies() -> None:
    image = torch.rand(1, 70, 90)
    seen = []

    def run(tile: Tensor, top: int, left: int) -> Tensor:
        seen.append((top, left))
        assert torch.equal(tile, image[:, top : top + tile.shape[1], left : left + tile.shape[2]])
        return tile

    list(tiling.blend(image, tiling.smooth(70, 48, 8), tiling.smooth(90, 48, 8), 1, run))
    assert len(seen) == len(set(seen)) == 6


@pytest.mark.parametrize("rows", [3, 12])
def test_memory_does_not_grow_with_the_number_of_tile_rows(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is allocated beside the picture are strips, one tile high; each band is handed over at once."""
    heights: list[int] = []
    new_zeros = Tensor.new_zeros
    monkeypatch.setattr(Tensor, "new_zeros", lambda self, *s: heights.append(s[1]) or new_zeros(self, *s))
    image = torch.rand(3, 16 * rows + 16, 64)
    plan = tiling.smooth(image.shape[1], 32, 16), tiling.smooth(64, 32, 16)
    tiles_run = []
    bands = tiling.blend(image, *plan, 1, lambda tile, top, left: tiles_run.append(top) or tile)
    for done, _ in enumerate(bands, 1):
        assert len(tiles_run) == done * len(plan[1]), "a band leaves before the next row of tiles begins"
    assert done == rows
    assert max(heights) <= 32


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 30), st.integers(0, 30), st.booleans())
def test_extend_mirrors_like_numpy(height: int, width: int, down: int, right: int, edge: bool) -> None:
    import numpy as np

    image = torch.arange(2.0 * height * width).reshape(2, height, width)
    expected = np.pad(image.numpy(), ((0, 0), (0, down), (0, right)), "symmetric" if edge else "reflect")
    assert torch.equal(tiling.extend(image, height + down, width + right, edge=edge), torch.from_numpy(expected))


def test_tile_size_follows_free_memory_and_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    def automatic(free: int, height: int, width: int) -> TileSize | None:
        monkeypatch.setattr(tiling, "free_memory", lambda device: free)
        return TileSize.automatic(height, width, torch.device("cpu"), bytes_per_pixel=4000)

    enough = 2 * 384 * 384 * 4000  # half of it is for the network
    assert automatic(enough, 3000, 2000) == TileSize(384)
    assert automatic(100 * enough, 3000, 2000) == TileSize(384)
    assert automatic(enough, 384 * 12, 32) is None, "it is the area that takes memory"
    assert automatic(enough, 384 * 12, 33) == TileSize(384)
    assert automatic(enough - 1, 3000, 2000) == TileSize(320)
    assert automatic(-1, 3000, 2000) == TileSize(32)
    assert TileSize(512).half() == TileSize(256)
    with pytest.raises(MambairError, match="Out of memory"):
        TileSize(48).half()


def test_free_memory_is_positive_and_real() -> None:
    assert 1 << 20 < tiling.free_memory(torch.device("cpu")) < 1 << 50


@pytest.mark.parametrize("told", ["", "MemFree: 7 kB\n", "MemAvailable: much\n"])
def test_memory_that_is_not_told_is_assumed(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda file: told)
    assert tiling.free_memory(torch.device("cpu")) == tiling.ASSUMED


def test_a_container_that_does_not_tell_its_use_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"meminfo": "MemAvailable: 9 kB\n", "memory.max": "5000\n", "memory.stat": "file 1\n"}
    monkeypatch.setattr(Path, "read_text", lambda file: told[file.name])
    assert tiling.free_memory(torch.device("cpu")) == 9 * 1024
    told["memory.stat"] = "anon 1000\n"
    assert tiling.free_memory(torch.device("cpu")) == 4000


def test_out_of_memory_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert tiling.out_of_memory(caught.value)
    assert tiling.out_of_memory(MemoryError())
    assert tiling.out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not tiling.out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
