"""Tiles side by side: the same pixels, in order, and nothing that runs on for nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import count

import pytest
import torch
from helpers.networks import Nearest, blur, picture, spec
from test_restorer import small_v2
from torch import Tensor

from mambair_cli.restoring import abreast, tiling
from mambair_cli.restoring.restorer import Restorer, bytes_per_pixel


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_how_many_tiles_at_once() -> None:
    assert abreast.how_many(1, 16, 100) == abreast.how_many(9, 1, 100) == abreast.how_many(9, 16, 0) == 1
    assert abreast.how_many(6, 2, 100) == 2
    assert abreast.how_many(100, 16, 100) == 15, "7 rounds; with 14 it is 8, with 16 not less"
    assert abreast.how_many(100, 16, 3) <= 3
    assert abreast.how_many(5, 4, 100) == 1, "four and one left over take two rounds of slow ones"


@pytest.mark.parametrize(("arch", "scale"), [("mambair", 1), ("mambairv2_light", 2)])
def test_pixels_do_not_depend_on_the_threads(arch: str, scale: int) -> None:
    network = small_v2() if scale == 2 else blur()
    lq, told = picture(50, 110), []
    restorer = Restorer(spec(scale, arch), network, tile=32, overlap=8, device="cpu")
    together = restorer.restore(lq, lambda done, total: told.append(done))
    assert told == list(range(1, 11))
    torch.set_num_threads(1)
    assert torch.equal(restorer.restore(lq), together)


class Endless(Nearest):
    """Black tiles come back once four tiles run; others never do by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.running, self.calls, self.others = set[int](), count(), threading.Barrier(4, timeout=60)

    def forward(self, x: Tensor) -> Tensor:
        call = next(self.calls)
        self.running.add(call)
        try:
            self.others.wait()
            while x.any():
                time.sleep(0.01)
            return super().forward(x)
        finally:
            self.running.discard(call)


def test_who_leaves_leaves_nothing_running() -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    restorer = Restorer(spec(), network := Endless(), tile=32, overlap=0, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        restorer.restore(picture(32, 128) * (torch.arange(128) >= 32), stop)
    while network.running:
        time.sleep(0.01)
    assert next(network.calls) == 4
    assert torch.get_num_threads() == 4
    lq = picture(40, 70)
    torch.testing.assert_close(Restorer(spec(), Nearest(), tile=32).restore(lq), lq)


def test_memory_bounds_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    restorer = Restorer(spec(), Nearest(), device="cpu")
    spans = tiling.smooth(32, 32, 0), tiling.smooth(128, 32, 0)
    of_one = 32 * 32 * bytes_per_pixel(spec(), restorer.scan)
    at_once = []
    for memory in (of_one, 5 * of_one, 100 * of_one):
        monkeypatch.setattr(tiling, "free_memory", lambda device, free=memory: free)
        at_once.append(restorer._at_once(*spans))
    assert at_once == [1, 2, 4]
