"""Tiles on a GPU, which should never wait: batches of equal tiles, blended where they were made, and copies beside.

The work of a row of tiles is handed to the device before the row above is waited for, so that the host reads and
writes while the device computes. What the host has to know of a row comes with its pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mambair_cli.restoring import ensemble, graphs, tiling
from mambair_cli.restoring.graphs import Graphs
from mambair_cli.restoring.running import TilesDone
from mambair_cli.restoring.tiling import Span, TileSize

if TYPE_CHECKING:
    from mambair_cli.restoring.restorer import Restorer, Run, Used

KEYS = "keys"  # the attribute of networks that draw at random
LARGEST_BATCH = tiling.LARGEST_AUTOMATIC["cuda"] ** 2  # pixels of all its tiles: more do not make the device busier


class Place(NamedTuple):
    """Where a tile of a batch lies in the picture, in input pixels, and how it is turned (`ensemble.view`)."""

    top: int
    left: int
    view: int


class Link(Protocol):
    """The way to a device and back."""

    def upload(self, t: Tensor) -> Tensor:
        """To the device; work that is asked of it from now on sees the values."""

    def download(self, t: Tensor) -> Callable[[], Tensor]:
        """Begin to fetch what has been asked for so far; the function waits for it."""


class Streams:
    """To a CUDA device: through pinned memory, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.copying = torch.cuda.Stream(device)

    def upload(self, t: Tensor) -> Tensor:
        pinned = torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t)
        with torch.cuda.stream(self.copying):
            there = pinned.to(self.device, non_blocking=True)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self.copying)
        there.record_stream(computing)
        return there

    def download(self, t: Tensor) -> Callable[[], Tensor]:
        pinned = torch.empty(t.shape, dtype=t.dtype, pin_memory=True)
        self.copying.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.copying):
            pinned.copy_(t, non_blocking=True)
        t.record_stream(self.copying)
        arrived: Any = self.copying.record_event()

        def wait() -> Tensor:
            arrived.synchronize()
            return pinned

        return wait


@dataclass
class Row:
    """A row of tiles that the device was asked for."""

    number: int
    before: Tensor  # what earlier rows have put into its upper part
    pixels: Callable[[], Tensor]
    finite: Callable[[], Tensor]


@dataclass(frozen=True)
class Blending:
    """One picture (C, H, W), on the host, and how it is cut.

    `run` maps a batch of turned tiles (B, C, h, w) on the device to (B, C, h * scale, w * scale), float32.
    `overflowed` is called when a row holds values that are not finite; it raises, or the row is run again.
    """

    image: Tensor
    rows: Sequence[Span]
    columns: Sequence[Span]
    scale: int
    run: Callable[[Tensor, Sequence[Place]], Tensor]
    overflowed: Callable[[], None]
    link: Link
    views: int = 1  # of the self-ensemble: 1 or 8
    batch: int = 1  # tiles at a time

    def bands(self) -> Iterator[tuple[int, Tensor]]:
        """Finished bands (y, (C, h, W * scale)) from top to bottom, on the host; y counts output rows."""
        width = self.columns[-1].stop * self.scale
        begun = self.link.upload(self.image.new_zeros(self.image.shape[0], 0, width))
        number, pending = 0, None
        while number < len(self.rows) or pending:
            asked = None
            if number < len(self.rows):
                asked, begun = self._ask(number, begun)
                number += 1
            if pending:
                if not pending.finite():
                    self.overflowed()
                    number, begun, pending = pending.number, pending.before, None
                    continue
                yield self.rows[pending.number].start * self.scale, pending.pixels()
            pending = asked

    @torch.no_grad()
    def _ask(self, number: int, begun: Tensor) -> tuple[Row, Tensor]:
        """Hand a row to the device: the row, and what it has begun of the next one."""
        row, scale = self.rows[number], self.scale
        image = self.link.upload(self.image[:, row.start : row.stop])
        strip = begun.new_zeros(image.shape[0], (row.stop - row.start) * scale, begun.shape[2])
        strip[:, : begun.shape[1]] = begun
        down = self.link.upload(row.weight)[:, None] / self.views
        across = [self.link.upload(column.weight) for column in self.columns]
        for places in self._batches(row):
            tiles = [self._tile(image, place) for place in places]
            results = self.run(torch.stack(tiles), [place for _, place in places])
            for (i, place), result in zip(places, results, strict=True):
                column = self.columns[i]
                part = strip[:, :, column.start * scale : column.stop * scale]
                part += ensemble.undo(result, place.view) * (across[i] * down)
        end = self.rows[number + 1].start if number + 1 < len(self.rows) else row.stop
        done = (end - row.start) * scale
        finite, finished = torch.isfinite(strip).all(), strip[:, :done].clamp(0, 1)
        asked = Row(number, begun, self.link.download(finished), self.link.download(finite))
        return asked, strip[:, done:].clone()

    def _tile(self, image: Tensor, place: tuple[int, Place]) -> Tensor:
        column = self.columns[place[0]]
        return ensemble.view(image[:, :, column.start : column.stop], place[1].view)

    def _batches(self, row: Span) -> Iterator[list[tuple[int, Place]]]:
        """The tiles of a row, by number of the column, in batches of one shape."""
        every = [
            (i, Place(row.start, column.start, view))
            for i, column in enumerate(self.columns)
            for view in range(self.views)
        ]

        def shape(item: tuple[int, Place]) -> tuple[int, int]:
            column = self.columns[item[0]]
            sides = row.stop - row.start, column.stop - column.start
            return sides[::-1] if item[1].view & 4 else sides

        for _, alike in groupby(sorted(every, key=shape), key=shape):
            items = list(alike)
            for start in range(0, len(items), self.batch):
                yield items[start : start + self.batch]


@dataclass
class Tiles:
    """What runs the tiles of one picture on a device: as many at a time as it has room for, by graphs of its kernels.

    `network` maps tiles (B, C, h, w), keys (B,) of what it draws at random, or none, and a precision to
    (B, C, h * scale, w * scale) float32; `key` says the key of a place, `smaller` how to cut a side of so many pixels
    into at most so many.
    """

    network: Callable[[Tensor, Tensor | None, str], Tensor]
    key: Callable[[Place], int] | None
    smaller: Callable[[int, TileSize], Sequence[Span]]
    graphs: Graphs
    link: Link
    scale: int
    most: int  # tiles at a time
    used: Used
    say: Callable[[str], None]

    def run(self, x: Tensor, places: Sequence[Place]) -> Tensor:
        """(B, C, h, w) -> (B, C, h * scale, w * scale): fewer at a time, or from smaller ones, where memory runs out.

        Raises MambairError where there is no room for the smallest tile.
        """
        parts = zip(x.split(self.most), self._in_turn(places), strict=True)
        if len(x) > self.most:
            return torch.cat([self.run(part, some) for part, some in parts])
        try:
            return self._run(x, places)
        except (RuntimeError, MemoryError) as error:
            if not tiling.out_of_memory(error):
                raise
        self.graphs.forget()
        if x.is_cuda:
            torch.cuda.empty_cache()
        if len(x) > 1:
            self.most = len(x) // 2
            return self.run(x, places)
        return self._in_pieces(x[0], places[0])[None]

    def _in_turn(self, places: Sequence[Place]) -> list[Sequence[Place]]:
        return [places[start : start + self.most] for start in range(0, len(places), self.most)]

    def _run(self, x: Tensor, places: Sequence[Place]) -> Tensor:
        precision = self.used.precision
        keys: tuple[Tensor, ...] = ()
        if self.key:
            keys = (self.link.upload(torch.tensor([self.key(place) for place in places])),)
        height, width = x.shape[-2:]

        def run(x: Tensor, keys: Tensor | None = None) -> Tensor:
            return self.network(x, keys, precision)

        if len(x) * height * width > graphs.LARGEST:
            return run(x, *keys)
        return self.graphs(run, precision, x, *keys)

    def _in_pieces(self, x: Tensor, place: Place) -> Tensor:
        _, height, width = x.shape
        size = TileSize(math.isqrt(height * width)).half()
        self.say(f"Out of memory on {x.device}: going on with smaller tiles.")
        self.used.tile = size.side
        rows, columns = (
            [Span(span.start, span.stop, self.link.upload(span.weight)) for span in self.smaller(side, size)]
            for side in (height, width)
        )

        def piece(x: Tensor, y: int, x0: int) -> Tensor:
            return self.run(x[None], [Place(place.top + y, place.left + x0, place.view)])[0]

        return torch.cat([band for _, band in tiling.blend(x, rows, columns, self.scale, piece)], dim=1)


def link_to(device: torch.device) -> Link | None:
    """None where tiles are best run one at a time, by the host itself."""
    return Streams(device) if device.type == "cuda" else None


def blend_there(
    restorer: Restorer,
    link: Link,
    image: Tensor,
    rows: Sequence[Span],
    columns: Sequence[Span],
    run: Run,
    progress: TilesDone | None,
) -> Iterator[tuple[int, Tensor]]:
    """As `tiling.blend`, on the restorer's device."""
    scale, network, generator = restorer.spec.scale, restorer.network, restorer.generator
    views = ensemble.SIZE if restorer.running.ensemble else 1
    area = (rows[0].stop - rows[0].start) * (columns[0].stop - columns[0].start)
    most = batch_size(area, tiling.free_memory(restorer.device) // 2, restorer.bytes_per_pixel)

    def with_keys(x: Tensor, keys: Tensor | None, precision: str) -> Tensor:
        if keys is None:
            return restorer.run_network(x, precision)
        with restorer.drawing:
            setattr(network, KEYS, keys)
            try:
                return restorer.run_network(x, precision)
            finally:
                setattr(network, KEYS, None)

    def key(place: Place) -> int:
        """What the network would draw itself, were the tile alone."""
        assert generator is not None
        with restorer.drawing:
            generator.manual_seed(restorer.seed_of(run.content, *place))
            return int(torch.randint(2**63 - 1, (), generator=generator))

    tiles = Tiles(
        network=with_keys,
        key=key if generator else None,
        smaller=restorer.smooth,
        graphs=restorer.graphs,
        link=link,
        scale=scale,
        most=most,
        used=run.used,
        say=restorer.say,
    )
    overflowed = partial(restorer.overflowed, run.used)
    blending = Blending(image, rows, columns, scale, tiles.run, overflowed, link, views, most)
    for done, band in enumerate(blending.bands(), 1):
        if progress:
            progress(done * len(columns), len(rows) * len(columns))
        yield band


def batch_size(area: int, budget: int, bytes_per_pixel: int) -> int:
    """How many tiles of so many pixels to run at a time, where the device has so many bytes for them."""
    return max(1, min(LARGEST_BATCH, budget // bytes_per_pixel) // area)
