"""Tiles side by side on one processor: they come back in order, whatever the number that run at a time.

One tile occupies many cores badly: between its large operations lie small ones, and a scan has only so many channels.
So several run at once and the threads are divided among them. What a tile becomes does not depend on its threads.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar("T")
Mapper = Callable[[Callable[[T], Any], Iterable[T]], Iterator[Any]]  # like `map`
ALONE = 0.1  # share of a tile's time that more threads do not shorten, roughly; `mambair speed --ops` has it exactly


_here = threading.local()  # .left: the event of those whose tile this thread is at


class _Left(BaseException):
    """Ends a tile that nobody waits for any more."""


def make_endable(network: nn.Module) -> None:
    """From now on a tile that nobody waits for ends where the network comes to its next module."""
    for module in network.modules():
        if _end_if_left not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_end_if_left)


def _end_if_left(module: nn.Module, inputs: object) -> None:
    if torch.compiler.is_compiling():  # which takes no thread's own values
        return
    left: threading.Event | None = getattr(_here, "left", None)
    if left is not None and left.is_set():
        raise _Left


def how_many(tiles: int, threads: int, room: int) -> int:
    """How many tiles to run at a time: what takes the least time for all of them, of `room` at most.

    The last ones of a round wait for each other, and a tile on t threads takes ALONE + (1 - ALONE) / t of its time.
    """

    def time(at_once: int) -> float:
        return math.ceil(tiles / at_once) * (ALONE + (1 - ALONE) / (threads // at_once))

    return min(range(1, max(1, min(tiles, threads, room)) + 1), key=time)


def side_by_side(at_once: int) -> Callable[[Callable[[T], Any], Iterable[T]], Generator[Any, None, None]]:
    """`map`, where `at_once` calls run at a time in threads that share those of torch.

    Nothing starts before the results are asked for, and at most twice `at_once` are begun and not fetched. Leaving
    the iterator, by an exception too, ends the calls that still run as soon as they reach a module of a network that
    is endable; who leaves does not wait for them.
    """
    if at_once == 1:
        return lambda run, jobs: (run(job) for job in jobs)
    return lambda run, jobs: _in_order(run, jobs, at_once)


def _in_order(run: Callable[[T], Any], jobs: Iterable[T], at_once: int) -> Generator[Any, None, None]:
    threads, left = torch.get_num_threads(), threading.Event()
    begun: deque[Future[Any]] = deque()

    def prepare() -> None:
        torch.set_num_threads(threads // at_once)
        _here.left = left

    pool = ThreadPoolExecutor(at_once, "tile", prepare)
    try:
        for job in jobs:
            if len(begun) == 2 * at_once:
                yield begun.popleft().result()
            begun.append(pool.submit(run, job))
        while begun:
            yield begun.popleft().result()
    finally:
        left.set()
        pool.shutdown(wait=False, cancel_futures=True)
        torch.set_num_threads(threads)  # it is also what threads begin with that come later
