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
    """Black tiles come back once four tiles run; others go from module to module for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.running, self.calls, self.others = set[int](), count(), threading.Barrier(4, timeout=60)
        self.step = torch.nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        call = next(self.calls)
        self.running.add(call)
        try:
            self.others.wait()
            while x.any():
                time.sleep(0.01)
                x = self.step(x)
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


def test_tiles_of_those_who_left_end_silently_wherever_they_are(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """One before its next module, one past its last: neither is stopped at any other place, nor says anything."""
    died, begun, left, ends = list[object](), threading.Barrier(3, timeout=60), threading.Event(), list[str]()
    monkeypatch.setattr(threading, "excepthook", died.append)
    module = torch.nn.Identity()
    abreast.make_endable(module)
    abreast.make_endable(module)
    assert len(module._forward_pre_hooks) == 1

    def run(job: str) -> str:
        if job == "first":
            return job
        begun.wait()
        left.wait(60)
        if job == "before its next module":
            module(torch.zeros(1))
        ends.append(job)
        return job

    results = abreast.side_by_side(2)(run, ["first", "before its next module", "past its last module", "not begun"])
    before = set(threading.enumerate())
    assert next(results) == "first"
    workers = set(threading.enumerate()) - before
    begun.wait()
    results.close()
    left.set()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    assert ends == ["past its last module"]
    assert not died
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    assert torch.equal(module(torch.ones(1)), torch.ones(1)), "others are not ended"


def test_memory_bounds_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    restorer = Restorer(spec(), Nearest(), device="cpu")
    spans = tiling.smooth(32, 32, 0), tiling.smooth(128, 32, 0)
    of_one = 32 * 32 * bytes_per_pixel(spec(), restorer.scan)
    at_once = []
    for memory in (of_one, 5 * of_one, 100 * of_one):
        monkeypatch.setattr(tiling, "free_memory", lambda device, free=memory: free)
        at_once.append(restorer._at_once(*spans))
    assert at_once == [1, 2, 4]
