"""Pictures larger than the device: cut into overlapping tiles, blended back band by band.

Tiling is separable: a plan is one list of spans for the rows and one for the columns, and the weight of a
pixel is the product of both. The weights of all spans over a pixel add up to 1, so the weighted sum of the
tiles is already the weighted mean, and rows that no later tile touches are final.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from mambair_cli.errors import MambairError, UsageError
from mambair_cli.restoring.abreast import Mapper
from mambair_cli.restoring.running import GRAIN

OVERLAP = 32  # input pixels shared by neighbouring tiles
SMALLEST = 32  # input pixels; a device without room for less than this has no room for the network
LARGEST_AUTOMATIC = {
    "cpu": 384,
    "cuda": 1024,
    "mps": 512,
}  # side; on CPUs larger ones are slower
CPU_BUDGET = 1 << 30  # bytes that the tile may take there, so that the machine stays usable
ASSUMED = 4 << 30  # free bytes where the system does not say


@dataclass(frozen=True, eq=False)
class Span:
    """One tile along one axis: it reads input pixels [start, stop).

    `weight`, of (stop - start) * scale values, says how much each of its output pixels counts.
    """

    start: int
    stop: int
    weight: Tensor


Place = tuple[Span, Span]  # of a tile: rows, columns


def whole(length: int, scale: int = 1) -> list[Span]:
    """The plan that does not tile."""
    return [Span(0, length, torch.ones(length * scale))]


def smooth(length: int, size: int, overlap: int, scale: int = 1) -> list[Span]:
    """Equal tiles of at most `size` pixels, neighbours sharing at least `overlap`, with raised-cosine ramps.

    Counts first, then divides: the tiles are as small as the same number of them allows. Raises UsageError
    unless 0 <= overlap < size.
    """
    if not 0 <= overlap < size:
        raise UsageError(
            f"An overlap of {overlap} pixels does not go with tiles of {size}.",
            "The overlap must be at least 0 and smaller than the tile.",
        )
    if length <= size:
        return whole(length, scale)
    grain = GRAIN if size - size % GRAIN > overlap else 1
    size -= size % grain
    count = math.ceil((length - overlap) / (size - overlap))
    side = math.ceil((length + (count - 1) * overlap) / count)
    side = min(math.ceil(side / grain) * grain, size)
    starts = [i * (length - side) // (count - 1) for i in range(count)]

    weights = []
    for i, start in enumerate(starts):
        before = starts[i - 1] + side - start if i > 0 else 0
        after = start + side - starts[i + 1] if i < count - 1 else 0
        rise = _ramp(side * scale, before * scale)
        weights.append(torch.minimum(rise, _ramp(side * scale, after * scale).flip(0)))
    total = torch.zeros(length * scale, dtype=torch.float64)
    for start, weight in zip(starts, weights, strict=True):
        total[start * scale : (start + side) * scale] += weight
    return [
        Span(start, start + side, (weight / total[start * scale : (start + side) * scale]).float())
        for start, weight in zip(starts, weights, strict=True)
    ]


def _ramp(length: int, rise: int) -> Tensor:
    """Raised cosine over the first `rise` of `length` samples, 1 after it; positive everywhere."""
    position = (torch.arange(length, dtype=torch.float64) + 0.5) / max(rise, 0.5)
    return torch.sin(math.pi / 2 * position.clamp(max=1)) ** 2


def paper(length: int, piece: int, divisor: int, scale: int = 1) -> list[Span]:
    """The tiles of the published scores: length // piece + 1 equal cores, pasted without blending.

    Each tile also reads a `divisor`-th of its core beyond either inner edge. The plan covers the length
    rounded up to a multiple of the number of tiles: the picture must be extended to `spans[-1].stop`.
    """
    count = length // piece + 1
    core = math.ceil(length / count)
    margin = core // divisor
    spans = []
    for i in range(count):
        start, stop = max(i * core - margin, 0), min((i + 1) * core + margin, count * core)
        weight = torch.zeros((stop - start) * scale)
        weight[(i * core - start) * scale : ((i + 1) * core - start) * scale] = 1
        spans.append(Span(start, stop, weight))
    return spans


def blend(
    image: Tensor,
    rows: Sequence[Span],
    columns: Sequence[Span],
    scale: int,
    run: Callable[[Tensor, int, int], Tensor],
    each: Mapper[Place] = map,
) -> Iterator[tuple[int, Tensor]]:
    """Run every tile of `image` (C, H, W) and yield finished bands (y, (C, h, W * scale)) from top to bottom.

    `run(tile, top, left)` maps (C, h, w) to (C, h * scale, w * scale) on the image's device; y counts output
    rows; `each` is `map` or does as it does. What is held beside the image is two rows of tiles, however tall the
    picture, and what `each` runs ahead.
    """

    def tile(place: Place) -> Tensor:
        row, column = place
        return run(image[:, row.start : row.stop, column.start : column.stop], row.start, column.start)

    tiles = each(tile, product(rows, columns))
    if len(rows) == len(columns) == 1:  # as it is: weights would round
        yield 0, next(tiles)
        return
    begun = image.new_zeros(image.shape[0], 0, columns[-1].stop * scale)
    for i, row in enumerate(rows):
        strip = image.new_zeros(image.shape[0], (row.stop - row.start) * scale, begun.shape[2])
        strip[:, : begun.shape[1]] = begun
        for column in columns:
            part = strip[:, :, column.start * scale : column.stop * scale]
            part += next(tiles) * column.weight * row.weight[:, None]
        end = rows[i + 1].start if i + 1 < len(rows) else row.stop
        done = (end - row.start) * scale
        begun = strip[:, done:].clone()  # a view would keep the whole strip alive
        yield row.start * scale, strip[:, :done]


def extend(image: Tensor, height: int, width: int, *, edge: bool) -> Tensor:
    """Mirror (..., H, W) at its bottom and right up to height and width, as often as it takes.

    With `edge` the last row and column are repeated (numpy's "symmetric"), without they are not ("reflect").
    """
    for dim, length in ((-2, height), (-1, width)):
        have = image.shape[dim]
        if length > have:
            period = 2 * have if edge else max(2 * have - 2, 1)
            index = torch.arange(length, device=image.device) % period
            image = image.index_select(dim, torch.minimum(index, period - int(edge) - index))
    return image


@dataclass(frozen=True)
class TileSize:
    """How large a tile may be, in input pixels a side: picked from free memory, halved when that was too much."""

    side: int

    @classmethod
    def automatic(cls, height: int, width: int, device: torch.device, bytes_per_pixel: int) -> TileSize | None:
        """What half the free memory has room for, by a network that takes so much; None: the whole picture.

        In steps of 64 pixels, as the size shows in the result and must not follow every whim of the free memory.
        """
        budget = min(free_memory(device) // 2, CPU_BUDGET if device.type == "cpu" else sys.maxsize)
        side = math.isqrt(max(budget // bytes_per_pixel, 0)) // 64 * 64
        size = cls(max(min(side, LARGEST_AUTOMATIC[device.type]), SMALLEST))
        return None if height * width <= size.side**2 else size

    def half(self) -> TileSize:
        """The next size after running out of memory; raises MambairError when there is none."""
        if self.side < 2 * SMALLEST:
            raise MambairError(
                f"Out of memory even with tiles of {self.side} pixels.",
                "Close other programs, take a smaller model (`mambair models list`) or --device cpu.",
            )
        return TileSize(self.side // 2)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on the device; on the CPU within the limit of the container."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    try:
        free = _fields(Path("/proc/meminfo"))["MemAvailable:"] * 1024
    except (OSError, LookupError, ValueError):  # no such file, or one without this line
        return ASSUMED
    try:
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        return free if limit == "max" else min(free, int(limit) - _fields(group / "memory.stat")["anon"])
    except (OSError, LookupError, ValueError):
        return free


def _fields(file: Path) -> dict[str, int]:
    return {name: int(value) for name, value, *_ in map(str.split, file.read_text().splitlines())}


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, on any device, means that memory ran out."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        phrase in str(error) for phrase in ("can't allocate memory", "out of memory")
    )
