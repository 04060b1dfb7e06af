"""A network with all it needs to restore a picture of any size: padding, tiles, ensemble, precision, device."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mambair_cli import archs, scan
from mambair_cli.errors import BadImage, MambairError, UsageError
from mambair_cli.models import checkpoints, zoo
from mambair_cli.restoring import abreast, ensemble, frames, tiling
from mambair_cli.restoring.device import blend_there, link_to
from mambair_cli.restoring.graphs import Graphs
from mambair_cli.restoring.running import DEFAULT, PRECISIONS, Running, TilesDone
from mambair_cli.restoring.tiling import Place, Span, TileSize

log = logging.getLogger("mambair")

AnyImage = TypeVar("AnyImage", Image.Image, np.ndarray)
DTYPES = dict(zip(PRECISIONS, (torch.float32, torch.bfloat16, torch.float16), strict=True))
BAND_ROWS = 256  # of output handed over at a time: what the caller makes of them is small beside a row of tiles
MATRIX_BOUND = 5_000_000  # values of a network from which its time is spent in matrix products


def load_model(
    name: str | Path | None = None,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    tile: str | int = "auto",
    overlap: int | None = None,
    ensemble: bool = False,
    seed: int = 0,
    offline: bool = False,
) -> Restorer:
    """A published model by name or alias (`mambair models list`), a checkpoint file of any, or both.

    `weights` alone, or a path in the place of the name: the architecture is read off the file. For the other
    arguments see `Running`. Raises UsageError for an unknown name or option, Unavailable where the weights cannot be
    had.
    """
    running = Running(device, precision, tile, overlap, ensemble, seed)
    model, file = checkpoints.named(name, weights)
    if model is not None:
        spec = zoo.find(model)
    elif file is not None:
        spec = checkpoints.spec_for_file(file)
    else:
        raise UsageError("Neither a model nor a file of weights was named.", "`mambair models list` shows names.")
    return Restorers(running, file, offline)(spec)


@dataclass(frozen=True)
class Restorers:
    """Networks by model, each loaded once. Until one is, this is plain data: it can be sent to another process."""

    running: Running = DEFAULT
    weights: Path | None = None  # of every model, instead of its own file
    offline: bool = False
    _loaded: dict[zoo.ModelSpec, Restorer] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, spec: zoo.ModelSpec) -> Restorer:
        """The model, ready to run. Raises Unavailable where its weights cannot be had."""
        if spec not in self._loaded:
            pick_device(self.running.device)  # what is wrong with it is said before anything is fetched
            network, sha256 = checkpoints.load_network(spec, self.weights, offline=self.offline)
            self._loaded[spec] = Restorer(spec, network, self.running, sha256=sha256)
        return self._loaded[spec]

    def __reduce__(self) -> tuple[type[Restorers], tuple[Running, Path | None, bool]]:
        return Restorers, (self.running, self.weights, self.offline)


@dataclass
class Used:
    """How a picture was restored."""

    tile: int | str = "off"  # side in input pixels, "off" or "paper"
    precision: str = "fp32"


@dataclass
class Run:
    """What changes while one picture is restored; the next one starts afresh, so their order does not matter."""

    content: bytes  # hash of the picture: what the random routes of its tiles are drawn from
    size: TileSize | None  # largest tile to try; None: no limit is known
    used: Used


class Restorer:
    """Restores pictures with one network.

    Several threads may use it at once: what a picture becomes does not depend on the others. `tile_used` (a side,
    "off" or "paper") and `precision_used` tell of the picture that was begun last.
    """

    def __init__(
        self,
        spec: zoo.ModelSpec,
        network: nn.Module,
        running: Running | None = None,
        *,
        sha256: str | None = None,
        **options: Any,
    ) -> None:
        """`options` are the fields of a `Running`, where none is given."""
        self.spec = spec
        self.running = running = running or Running(**options)
        self.device = pick_device(running.device)
        self.precision = pick_precision(running.precision, self.device, spec.params)
        self.sha256 = sha256
        self.scan = scan.chosen_backend(self.device)
        self.network = network.eval().to(self.device)
        self.architecture = archs.find(spec.arch)
        self.link = link_to(self.device)
        if self.device.type == "cpu":
            abreast.make_endable(network)
        self.graphs = Graphs()
        self.generator = torch.Generator() if self.architecture.random else None
        if self.generator is not None:
            network.generator = self.generator  # type: ignore[assignment]
        self.last = Used(running.tile, self.precision)
        self.drawing = threading.Lock()  # seeding the generator and drawing from it belong together
        self._said: set[str] = set()

    @property
    def scale(self) -> int:
        return self.spec.scale

    @property
    def bytes_per_pixel(self) -> int:
        return bytes_per_pixel(self.spec, self.scan)

    @property
    def tile_used(self) -> int | str:
        return self.last.tile

    @property
    def precision_used(self) -> str:
        return self.last.precision

    def __call__(self, image: AnyImage) -> AnyImage:
        """Restore a PIL image or an array (H, W), (H, W, 1) or (H, W, 3), uint8, uint16 or float in [0, 1].

        The result is of the same kind. Alpha of a PIL image is enlarged beside it; arrays must come without. What a
        PIL image carries in `info` (ICC profile, EXIF, resolution, text) goes along, as in Pillow's own methods, as
        far as it is still true. Its pixels are restored as stored: neither turned by EXIF's orientation nor, unless
        CMYK or LAB, converted by the profile. Raises BadImage for what has another shape, type or range.
        """
        if isinstance(image, Image.Image):
            return frames.image_of_frame(frames.restore_frame(frames.frame_of_image(image), None, [self]), image)
        if isinstance(image, np.ndarray):
            return frames.array_of_frame(frames.restore_frame(frames.frame_of_array(image), None, [self]), image)
        raise UsageError(f"Cannot restore a {type(image).__name__}.", "Pass a PIL.Image or a numpy array.")

    def restore(self, lq: Tensor, progress: TilesDone | None = None) -> Tensor:
        """(C, H, W) float32 in [0, 1] -> (C, H * scale, W * scale), clamped to [0, 1], both on the CPU."""
        check_tensor(lq)
        return frames.whole(self, lq, progress)

    def restore_bands(
        self, lq: Tensor, progress: TilesDone | None = None, used: Used | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """As `restore`, in pieces (y, (C, h, W * scale)) from top to bottom, for results larger than memory.

        C is 1 or 3 whatever the network: a colour network sees grey as colour, a grey one sees the luma of a colour
        picture, whose chroma is kept. `progress` is told (tiles done, tiles in all), `used` how it was done. Raises
        BadImage for what is not a picture and MambairError where even small tiles do not fit into memory or numbers
        overflow.
        """
        check_tensor(lq)
        lq = lq.detach().to("cpu", torch.float32)
        scale, (_, height, width) = self.spec.scale, lq.shape
        self.last = used = used or Used()
        run, rows, columns = self._plan(lq, used)
        total, done = len(rows) * len(columns), 0

        side_by_side = abreast.side_by_side(self._at_once(rows, columns))

        def tile(x: Tensor, top: int, left: int) -> Tensor:
            return self._restore_tile(x, top, left, run)

        def each(restore: Callable[[Place], Tensor], places: Iterable[Place]) -> Iterator[Tensor]:
            nonlocal done
            with closing(side_by_side(restore, places)) as tiles:
                for result in tiles:
                    done += 1
                    if progress:
                        progress(done, total)
                    yield result

        image = tiling.extend(lq, rows[-1].stop, columns[-1].stop, edge=False)
        bands = (
            tiling.blend(image, rows, columns, scale, tile, each)
            if self.link is None
            else blend_there(self, self.link, image, rows, columns, run, progress)
        )
        for y, band in bands:
            band = band[:, : height * scale - y, : width * scale]
            for start in range(0, band.shape[1], BAND_ROWS):
                yield y + start, band[:, start : start + BAND_ROWS].clamp(0, 1)
            del band  # else the finished row of tiles would stay in memory beside the next one

    def _plan(self, lq: Tensor, used: Used) -> tuple[Run, list[Span], list[Span]]:
        """How to cut the picture: by `tile`, by its size, and by the memory there is."""
        _, height, width = lq.shape
        scale = self.spec.scale
        paper = self.architecture.paper_tiles
        tile = self.running.tile
        size = TileSize(tile) if isinstance(tile, int) else None
        if tile == "auto":
            size = TileSize.automatic(height, width, self.device, self.bytes_per_pixel)
        if tile == "paper" and paper:
            rows, columns = (tiling.paper(length, *paper, scale) for length in (height, width))
        elif size:
            rows, columns = self.smooth(height, size), self.smooth(width, size)
        else:
            rows, columns = tiling.whole(height, scale), tiling.whole(width, scale)
        tiled = len(rows) * len(columns) > 1
        used.tile, used.precision = (size.side if size else "paper") if tiled else "off", self.precision
        content = hashlib.sha256(lq.numpy().tobytes()).digest() if self.architecture.random else b""
        return Run(content, size, used), rows, columns

    def _at_once(self, rows: list[Span], columns: list[Span]) -> int:
        """How many tiles to run at a time: one, but on a CPU with threads and memory for more. In fp16, where a tile
        that overflows changes the precision of those after it, they come after one another."""
        if self.device.type != "cpu" or self.precision == "fp16":
            return 1
        largest = max(row.stop - row.start for row in rows) * max(column.stop - column.start for column in columns)
        room = tiling.free_memory(self.device) // 2 // (largest * self.bytes_per_pixel)
        return abreast.how_many(len(rows) * len(columns), torch.get_num_threads(), room)

    def smooth(self, length: int, size: TileSize) -> list[Span]:
        overlap = tiling.OVERLAP if self.running.overlap is None else self.running.overlap
        return tiling.smooth(length, size.side, min(overlap, size.side // 2), self.spec.scale)

    def _restore_tile(self, x: Tensor, top: int, left: int, run: Run) -> Tensor:
        """(C, h, w) -> (C, h * scale, w * scale), from smaller tiles where memory runs out."""
        _, height, width = x.shape
        if run.size is None or max(height, width) <= run.size.side:
            try:
                return self._restore_finite(x, top, left, run)
            except (RuntimeError, MemoryError) as error:
                if not tiling.out_of_memory(error):
                    raise
                run.size = TileSize(math.isqrt(height * width)).half()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.say(f"Out of memory on {self.device}: going on with smaller tiles.")
        run.used.tile = run.size.side
        rows, columns = self.smooth(height, run.size), self.smooth(width, run.size)

        def part(x: Tensor, y: int, x0: int) -> Tensor:
            return self._restore_tile(x, top + y, left + x0, run)

        return torch.cat([band for _, band in tiling.blend(x, rows, columns, self.spec.scale, part)], dim=1)

    def _restore_finite(self, x: Tensor, top: int, left: int, run: Run) -> Tensor:
        """One tile that fits, on the device and back; in float32 where the chosen precision overflows."""
        on_device = x.to(self.device)

        def one_view(view: Tensor, index: int) -> Tensor:
            network = self.network
            if self.architecture.random:  # a copy that shares the weights: others may be drawing at the same time
                network = copy(network)
                seed = self.seed_of(run.content, top, left, index)
                network.generator = torch.Generator().manual_seed(seed)  # type: ignore[assignment]
            return self.run_network(view[None], run.used.precision, network)[0]

        with torch.no_grad():
            result = ensemble.average(on_device, one_view) if self.running.ensemble else one_view(on_device, 0)
        if not torch.isfinite(result).all():
            self.overflowed(run.used)
            return self._restore_finite(x, top, left, run)
        return result.cpu()

    def seed_of(self, content: bytes, top: int, left: int, view: int) -> int:
        """Of what the network draws at random for a tile of a picture."""
        place = f"{self.running.seed} {top} {left} {view}".encode()
        return int.from_bytes(hashlib.sha256(content + place).digest()[:8], "big")

    def overflowed(self, used: Used) -> None:
        """Go on in float32. Raises MambairError where that was it already."""
        if used.precision == "fp32":
            raise MambairError(
                f"{self.spec.name} returned values that are not numbers.",
                "Check the weights with `mambair models verify`, and that the picture holds only finite values.",
            )
        self.say(f"Numbers overflow in {used.precision}: going on in fp32.")
        used.precision = "fp32"

    def run_network(self, x: Tensor, precision: str, network: nn.Module | None = None) -> Tensor:
        """(B, 1 or 3, h, w) -> (B, as many, h * scale, w * scale) float32, whatever shapes the network takes.

        `network`: a copy of it, instead of the one that all share.
        """
        scale = self.spec.scale
        if x.shape[1] < self.spec.channels:
            return luma(self.run_network(x.expand(-1, 3, -1, -1), precision, network))
        if x.shape[1] > self.spec.channels:
            # The same change to R, G and B as to the luma is what keeps Cb and Cr.
            enlarged = F.interpolate(x, scale_factor=scale, mode="bicubic") if scale > 1 else x
            return enlarged + (self.run_network(luma(x), precision, network) - luma(enlarged))
        height, width = x.shape[2:]
        padding = self.architecture.padding
        rows, columns = padding.length(height), padding.length(width)
        padded = tiling.extend(x, rows, columns, edge=padding.mode == "symmetric")
        autocast = torch.autocast(self.device.type, DTYPES[precision], enabled=precision != "fp32")
        # Unless told not to, cuDNN computes float32 convolutions in TF32, and differently from run to run. The flags
        # are the whole process's: on a CPU, where tiles run at the same time, they are left alone.
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with autocast, exact if self.device.type == "cuda" else nullcontext():
            result: Tensor = (network or self.network)(padded)
        return result[..., : height * scale, : width * scale].float()

    def say(self, notice: str) -> None:
        if notice not in self._said:
            self._said.add(notice)
            log.warning(notice)


def bytes_per_pixel(spec: zoo.ModelSpec, backend: str) -> int:
    """Peak memory of a network per input pixel, weights aside."""
    return archs.find(spec.arch).bytes_per_pixel(spec.kwargs) * scan.BACKENDS[backend].memory


def check_tensor(lq: Tensor) -> None:
    """Raise BadImage unless this is (1 or 3, H, W) with at least one pixel."""
    if lq.dim() != 3 or lq.shape[0] not in (1, 3) or 0 in lq.shape:
        raise BadImage(f"A picture is (1 or 3, H, W), not {tuple(lq.shape)}.")


def luma(x: Tensor) -> Tensor:
    """(..., 3, H, W) -> (..., 1, H, W): the Y of JPEG, BT.601 in full range."""
    return torch.tensordot(x.new_tensor((0.299, 0.587, 0.114)), x, ([0], [x.dim() - 3])).unsqueeze(-3)


def available_devices() -> list[str]:
    """The devices that torch can use here, best first: "cuda:0", ..., "mps", "cpu"."""
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*cuda, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def pick_device(device: str | torch.device) -> torch.device:
    """The device of that name; "auto": MAMBAIR_DEVICE or the best there is. Raises UsageError where there is none."""
    if device == "auto":
        device = os.environ.get("MAMBAIR_DEVICE") or "auto"
    there = available_devices()
    name = there[0] if device == "auto" else str(device)
    if name not in there and f"{name}:0" not in there:
        raise UsageError(f"There is no device {name} here.", f"Available: {', '.join(there)}.")
    return torch.device(name)


def pick_precision(precision: str, device: torch.device, params: int) -> str:
    """ "auto" is bf16 where the hardware multiplies in it and the network (of `params` values) gains: on CUDA always,
    on a CPU the large ones (1.4 to 1.8 times faster; small ones hardly)."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and params >= MATRIX_BOUND and cpu_multiplies_bf16()
    return "bf16" if fast else "fp32"


def cpu_multiplies_bf16() -> bool:
    """Whether this processor has AVX512-BF16 or AMX: without, bf16 is emulated and slow."""
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))
