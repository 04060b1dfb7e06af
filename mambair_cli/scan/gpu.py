"""The Triton kernels, forward and backward: layouts, launches and autograd around `gpu_kernels`."""

from __future__ import annotations

import importlib
import time
from collections.abc import MutableMapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from textwrap import shorten
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakIdKeyDictionary

from mambair_cli.scan import library, reference
from mambair_cli.scan.backend import Backend, NormGate, ScanInputs
from mambair_cli.scan.gpu_layout import as_float, as_rows, pieces, power

# Sizes are chosen by what the compiler makes of them (tests/compile_kernels.py): nothing is tuned while running.
LANES = 64 if torch.version.hip else 32  # channels per program: one to a thread
WARPS_PER_SM = 20  # programs that fill a multiprocessor, at up to 96 registers
SHORTEST = 32  # steps that a segment has at least
AHEAD, CHAINED = 256, 8  # segments and channels that a program of `chain` takes at once
CHUNK = 8  # steps per program of `gradients`, each with
WIDTH = 64  # channels
ROWS = 4  # positions per program of `collect`
NUMBERS = 16  # per thread of `collect_normed`, which holds all channels of its positions
MOST = 64  # states, and rank, that a thread holds in registers; published networks have up to 16 and 24

# Said explicitly since its default changes in Triton 3.10: without it every update is two instructions.
FUSED = dict(enable_fp_fusion=True)
ONE_WARP = dict(num_warps=1, **FUSED)
CHAIN = dict(num_warps=8, **FUSED)

RETRY = 60.0  # seconds after which kernels that failed their trial are tried again
_answer: tuple[str, float] | None = None  # of `missing`, and until when it holds if it is no

Inverse = tuple[Tensor, Tensor]  # the steps sorted by the position they visit (..., T); where each begins (..., L+1)
_inverses: MutableMapping[Tensor, tuple[int, Inverse]] = WeakIdKeyDictionary()


def _empty(*shape: int, like: Tensor) -> Tensor:
    return torch.empty(*shape, dtype=torch.float32, device=like.device)


def _kernels(module: str = "gpu_kernels") -> Any:
    return importlib.import_module(f"mambair_cli.scan.{module}")  # and with it Triton, which not everybody has


def missing() -> str:
    """Why the kernels cannot run here, or "". Takes seconds on a GPU: they are built and tried.

    What failed may have been in want of memory, or of a driver that was being replaced: it is tried again, in time.
    """
    global _answer
    if _answer is None or (_answer[0] and time.monotonic() > _answer[1]):
        _answer = _find_out(), time.monotonic() + RETRY
    return _answer[0]


def _find_out() -> str:
    if not torch.cuda.is_available():
        return "no CUDA device"
    if find_spec("triton") is None:
        return "Triton is not installed"
    try:
        _kernels()
    except ImportError as error:
        return f"Triton does not load ({error})"
    return trial(torch.device("cuda"))


def trial(device: torch.device) -> str:
    """Why the kernels are of no use on a device, or "": builds those of the forward and checks a small scan,
    of two segments."""
    generator = torch.Generator().manual_seed(0)
    shapes = (1, 72, 8), (1, 72, 2, 7), (2, 8, 3), (2, 8), (2, 8, 2), (2, 8)
    u, proj, weight, bias, A, D = (torch.randn(shape, generator=generator) for shape in shapes)
    path = torch.arange(72, dtype=torch.int32)
    small = ScanInputs(u, None, proj, weight, bias, -A.exp(), D, torch.stack([path, path.flip(0)]), True, True)
    try:
        there = small.each(lambda t: t.to(device))
        y = scan(there).cpu()
        gated = normed(there, NormGate(D[0].to(device), D[1].to(device), 1e-5, there.u)).cpu()
    except Exception as error:  # anything that a compiler or a driver may throw; the reason is passed on
        return f"its kernels do not run ({type(error).__name__}: {shorten(str(error), 200)})"
    expected = F.layer_norm(y, (8,), D[0], D[1], 1e-5) * F.silu(u)
    wrong = max((a - b).abs().max().item() for a, b in ((y, reference.scan(small)), (gated, expected)))
    return "" if wrong < 1e-3 else f"its kernels are off by {wrong:.1g} on this device"


@dataclass(frozen=True)
class _Path:
    """What the kernels of one scan share: the arguments that make the time steps, and the sizes."""

    inputs: tuple[Tensor | None, ...]  # delta, proj, weight, bias, A, orders
    sizes: dict[str, int]
    images: int
    at_once: int  # programs that fill the chip

    @property
    def paths(self) -> int:
        return self.images * self.sizes["K"]

    def grid(self, parts: int, width: int) -> tuple[int]:
        """Programs of so many parts of every path and so many channels, along the one axis that may be long."""
        return (parts * pieces(self.sizes["D"], width) * self.paths,)

    def segment(self, multiple: int = 1) -> int:
        """Steps per segment, a multiple: the path in one where that fills the chip, else as many as fill it."""
        T, (programs,) = self.sizes["T"], self.grid(1, LANES)
        segments = max(1, min(self.at_once // programs, T // SHORTEST))
        return pieces(pieces(T, segments), multiple) * multiple

    def per_direction(self, t: Tensor) -> bool:
        """True for (B, K, L, D), False for a (B, [1,] L, D) that all directions share."""
        return t.dim() == 4 and t.shape[1] == self.sizes["K"]

    def _states(self, source: Tensor, segment: int, **options: Any) -> None:
        _kernels().states[self.grid(pieces(self.sizes["T"], segment), LANES)](
            *(source, *self.inputs),
            **dict(**self.sizes, **ONE_WARP, **options),
            **dict(SEGMENT=segment, PER_K=self.per_direction(source), BLOCK=LANES),
        )

    def leaving(self, source: Tensor, segment: int, reverse: bool = False) -> Tensor | None:
        """The states that leave the segments (B*K, segments, N, D); None where there is one.

        Against time: the adjoints, from the gradient of y.
        """
        K, D, N, T = (self.sizes[name] for name in "KDNT")
        segments = pieces(T, segment)
        if segments == 1:
            return None
        states, spans = (_empty(self.paths, segments, *rest, D, like=source) for rest in ((N,), ()))
        self._states(source, segment, entering=None, kept=states, spans=spans, REVERSE=reverse, CHUNK=None)
        _kernels().chain[self.grid(N, CHAINED)](
            *(states, spans, self.inputs[4], segments, K, D),
            **dict(N=N, REVERSE=reverse, AHEAD=AHEAD, BLOCK=CHAINED, **CHAIN),
        )
        return states

    def steps(self, u: Tensor, skip: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The output of every step (1, B*K, T, D)."""
        segment, T = self.segment(), self.sizes["T"]
        y = torch.empty(1, self.paths, T, self.sizes["D"], dtype=dtype, device=u.device)
        _kernels().outputs[self.grid(pieces(T, segment), LANES)](
            *(u, *self.inputs, skip, self.leaving(u, segment), y),
            **dict(**self.sizes, **ONE_WARP, SEGMENT=segment, PER_K=self.per_direction(u), BLOCK=LANES),
        )
        return y

    def every_chunk(self, source: Tensor, segment: int, leaving: Tensor | None, reverse: bool) -> Tensor:
        """The states after every chunk (B*K, chunks, N, D), or against time the adjoints."""
        D, N, T = (self.sizes[name] for name in "DNT")
        states = _empty(self.paths, pieces(T, CHUNK), N, D, like=source)
        self._states(source, segment, entering=leaving, kept=states, spans=None, REVERSE=reverse, CHUNK=CHUNK)
        return states


@cache
def _programs_at_once(device: torch.device) -> int:
    return WARPS_PER_SM * torch.cuda.get_device_properties(device).multi_processor_count


def _inverse(orders: Tensor, length: int) -> Inverse:
    """Kept as long as the table lives, except for inference tensors: they hide whether they have been written to."""
    version = -1 if orders.is_inference() else orders._version
    known = _inverses.get(orders)
    if known is not None and known[0] == version and known[1][1].shape[-1] == length + 1:
        return known[1]
    positions, visits = orders.sort(dim=-1, stable=True)
    bounds = torch.arange(length + 1, dtype=orders.dtype, device=orders.device)
    starts = torch.searchsorted(positions, bounds.expand(*orders.shape[:-1], -1).contiguous(), out_int32=True)
    inverse = visits.int(), starts
    recorded = orders.is_cuda and torch.cuda.is_current_stream_capturing()  # into a graph: nothing has run yet
    if version >= 0 and not recorded:
        _inverses[orders] = version, inverse
    return inverse


@lru_cache(maxsize=16)
def _once_each(images: int, length: int, device: torch.device) -> Tensor:
    with library.lasting():
        bounds = torch.arange(length + 1, dtype=torch.int32, device=device)
        return bounds.expand(images, 1, -1).contiguous()


def tell_inverse(orders: Tensor, step_of: Tensor) -> None:
    """Spare the kernels working it out: of orders (B, 1, L) that visit every position once, at step_of (B, 1, L)."""
    if not orders.is_inference():
        starts = _once_each(orders.shape[0], orders.shape[2], orders.device)
        _inverses[orders] = orders._version, (step_of, starts)


def _collect(steps: Tensor, inverse: Inverse, images: int, group: int, dtype: torch.dtype) -> Tensor:
    """steps (parts, B*K, T, D) -> (B, K / group, L, D): parts and every `group` directions added up."""
    visits, starts = inverse
    parts, paths, T, D = steps.shape
    K, length = paths // images, starts.shape[-1] - 1
    out = torch.empty(images, K // group, length, D, dtype=dtype, device=steps.device)
    _kernels().collect[(pieces(length, ROWS) * pieces(D, LANES) * (paths // group),)](
        *(steps, visits, starts, out, parts, group, length, T, K, D),
        **dict(PER_IMAGE=visits.dim() == 3, ROWS=ROWS, BLOCK=LANES, **ONE_WARP),
    )
    return out


def _collect_normed(steps: Tensor, inverse: Inverse, images: int, norm: NormGate, dtype: torch.dtype) -> Tensor:
    """steps (1, B*K, T, D) -> (B, L, D): all directions added up, normalised and gated."""
    visits, starts = inverse
    _, paths, T, D = steps.shape
    length, width, held = starts.shape[-1] - 1, power(D), NUMBERS * LANES
    rows, warps = max(1, held // width), min(16, max(1, width // held))
    out = torch.empty(images, length, D, dtype=dtype, device=steps.device)
    z, z_row = (None, 0) if norm.z is None else as_rows(norm.z)
    _kernels().collect_normed[(pieces(length, rows) * images,)](
        *(steps, visits, starts, as_float(norm.weight), as_float(norm.bias), z, out),
        *(length, T, paths // images, z_row, norm.eps),
        **dict(C=D, PER_IMAGE=visits.dim() == 3, ROWS=rows, WIDTH=width, num_warps=warps, **FUSED),
    )
    return out


def _path(given: ScanInputs) -> _Path:
    K, channels, N = given.A.shape
    sizes = dict(
        L=given.length,
        T=given.steps,
        K=K,
        D=channels,
        N=N,
        R=given.rank,
        PER_IMAGE=given.orders is not None and given.orders.dim() == 3,
        SOFTPLUS=given.softplus,
    )
    inputs = (given.delta, given.proj, given.dt_weight, given.dt_bias, given.A, given.orders)
    return _Path(inputs, sizes, given.u.shape[0], _programs_at_once(given.u.device))


class _Scan(torch.autograd.Function):
    """The fields of `ScanInputs`. Returns (B, K, L, D) or, with `reduce`, (B, 1, L, D)."""

    @staticmethod
    def forward(ctx: Any, *fields: Any) -> Tensor:
        given = ScanInputs(*fields)
        u, orders, length, skip = given.u, given.orders, given.length, given.D
        path = _path(given)
        steps = path.steps(u, skip, u.dtype if orders is None else torch.float32)
        inverse = None if orders is None else _inverse(orders, length)
        ctx.save_for_backward(u, skip, *path.inputs, *(inverse or ()))
        ctx.sizes = path.sizes
        K, channels = path.sizes["K"], path.sizes["D"]
        if inverse is None:
            return steps.view(path.images, K, length, channels)
        return _collect(steps, inverse, path.images, K if given.reduce else 1, u.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u, skip, *rest = ctx.saved_tensors
        inputs, inverse = tuple(rest[:6]), tuple(rest[6:])
        delta, proj, weight, bias = inputs[:4]
        path = _Path(inputs, ctx.sizes, u.shape[0], _programs_at_once(u.device))
        images, grad = path.images, grads[0].contiguous()
        K, T, D, N, R = (ctx.sizes[name] for name in "KTDNR")

        # The states are computed again rather than kept: they take more room than u.
        segment = path.segment(CHUNK)
        states = path.every_chunk(u, segment, path.leaving(u, segment), False)
        adjoints = path.every_chunk(grad, segment, path.leaving(grad, segment, True), True)
        chunks = pieces(T, CHUNK)
        g_u = _empty(1, path.paths, T, D, like=u)
        g_delta = None if delta is None else _empty(*delta.shape, like=u)
        g_proj = _empty(pieces(D, WIDTH), path.paths, T, R + 2 * N, like=u)
        g_parameters = _empty(images, K, chunks, N + R + 2, D, like=u)
        _kernels("gpu_gradients").gradients[path.grid(chunks, WIDTH)](
            *(u, *inputs, skip, grad, states, adjoints, g_u, g_delta, g_proj, g_parameters),
            **dict(PER_K=path.per_direction(u), GRAD_PER_K=path.per_direction(grad), **ctx.sizes),
            **dict(CHUNK=CHUNK, BLOCK=WIDTH, **ONE_WARP),
        )
        if inverse:
            g_u = _collect(g_u, inverse, images, 1 if path.per_direction(u) else K, u.dtype)
            g_proj = _collect(g_proj, inverse, images, 1, proj.dtype)
        g_A, g_weight, g_bias, g_skip = g_parameters.sum((0, 2)).split([N, R, 1, 1], dim=1)
        return (
            g_u.view(u.shape).to(u.dtype),
            None if g_delta is None else g_delta.to(delta.dtype),
            g_proj.view(-1, images, K, proj.shape[1], R + 2 * N).sum(0).transpose(1, 2).to(proj.dtype),
            None if weight is None else g_weight.transpose(1, 2),
            None if bias is None else g_bias.squeeze(1),
            g_A.transpose(1, 2),
            None if skip is None else g_skip.squeeze(1),
            *(None, None, None),
        )


def scan(inputs: ScanInputs) -> Tensor:
    """Positions outside the map count as pads: to look would stall the GPU."""
    with torch.cuda.device_of(inputs.u):
        y = _Scan.apply(*inputs)
    return y.squeeze(1) if inputs.reduce else y


def normed(inputs: ScanInputs, norm: NormGate) -> Tensor:
    """The sum over the paths goes from registers into the norm: without a backward."""
    assert inputs.orders is not None
    with torch.cuda.device_of(inputs.u):
        path = _path(inputs)
        steps = path.steps(inputs.u, inputs.D, torch.float32)
        return _collect_normed(steps, _inverse(inputs.orders, inputs.length), path.images, norm, inputs.u.dtype)


BACKEND = Backend(
    name="triton",
    device="cuda",
    about="Triton kernels, NVIDIA and AMD",
    missing=lambda: missing(),
    takes=lambda inputs: (
        inputs.u.dtype != torch.float64 and inputs.u.numel() > 0 and max(inputs.states, inputs.rank) <= MOST
    ),
    scan=scan,
    normed=normed,
    memory=2,
)
