"""How fast it is: the scan against its bounds, networks against the time the device is busy, pictures end to end."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import torch
from bench import Bench
from checks import built, here, problem, to
from torch import Tensor

from mambair_cli import scan
from mambair_cli.models import zoo
from mambair_cli.restoring.restorer import Restorer, bytes_per_pixel
from mambair_cli.restoring.running import Running
from mambair_cli.scan import gpu_rates, published
from mambair_cli.scan import orders as paths

NETWORKS = ("mambair-light-x4", "mambair-classic-x4", "mambairv2-light-x4", "mambairv2-base-x4")
#             images, height, width, paths, rank, states, channels
LAYERS = {
    "light 128x128": (1, 128, 128, 4, 4, 10, 72),
    "light 512x512": (1, 512, 512, 4, 4, 10, 72),
    "classic 64x64": (1, 64, 64, 4, 12, 16, 360),
    "classic 256x256": (1, 256, 256, 4, 12, 16, 360),
    "v2-light 128x128": (1, 128, 128, 1, 3, 8, 48),
    "v2-base 256x256": (1, 256, 256, 1, 22, 16, 348),
    "light, 16 of 64x64": (16, 64, 64, 4, 4, 10, 72),
}
SIDES = (64, 128, 256, 512)  # of the pictures of networks
FORWARD = {"light 128x128": 60.0, "classic 64x64": 80.0, "classic 256x256": 1200.0}  # microseconds wanted at most
BACKWARD = 2.5  # times the forward


def environment(bench: Bench) -> None:
    """What it runs on and by."""
    fact = bench.found.fact
    for name, what in (("Python", platform.python_version()), ("torch", torch.__version__)):
        fact(name, what)
    for package in ("triton", "mamba_ssm", "causal_conv1d", "mambair"):
        try:
            fact(package, version(package))
        except PackageNotFoundError:
            fact(package, "not installed")
    if bench.cuda:
        card = torch.cuda.get_device_properties(0)
        fact("GPU", f"{torch.cuda.device_count()} x {card.name}, {card.total_memory / 2**30:.0f} GiB")
        fact("CUDA", str(torch.version.cuda))
        fact("multiprocessors", str(card.multi_processor_count))
    moved, exponentials = rates(bench)
    fact("memory", f"{moved / 1e12:.2f} TB/s by a copy")
    fact("exponentials", f"{exponentials / 1e12:.2f} T/s in registers")
    for info in scan.backends():
        fact(f"scan by {info.name}", info.reason or "ready")


def rates(bench: Bench) -> tuple[float, float]:
    """Bytes and exponentials per second, at most."""
    size = 2**16 if bench.small else 2**28
    a = torch.rand(size, device=bench.device)
    b = torch.empty_like(a)
    moved = 8 * size / bench.seconds(lambda: b.copy_(a))
    return moved, gpu_rates.per_second(bench.device, True, bench.seconds) if bench.cuda else 4e12


def layer(bench: Bench, name: str, dtype: torch.dtype, most: tuple[float, float]) -> tuple[dict[str, Tensor], float]:
    """A scan, and the microseconds that it takes at least: its exponentials, or its bytes read and written once."""
    B, H, W, K, R, N, D = (1, 2, 3, 4, 2, 2, 4) if bench.small else LAYERS[name]
    table = paths.cross(H, W, torch.device("cpu")) if K == 4 else None
    p = to(problem(bench, B, K, R, N, D, H * W, table), dtype)
    p["A"] = -torch.arange(1.0, N + 1, device=bench.device).repeat(K, D, 1)
    p["dt_bias"] = p["dt_bias"] - 3
    exps = B * H * W * K * D * (N + 2)
    moved = B * H * W * (2 * D + K * (R + 2 * N)) * p["x"].element_size()
    return p, 1e6 * max(moved / most[0], exps / most[1])


def op(bench: Bench) -> None:
    """The scan of each network's layers."""
    here(bench)
    theirs, most = not published.missing(), rates(bench)
    if not theirs:
        bench.found.note(f"mamba_ssm was not measured: {published.missing()}")
    for name in list(LAYERS)[:1] if bench.small else LAYERS:
        for dtype in (torch.float32, torch.bfloat16) if bench.cuda else (torch.float32,):
            p, bound = layer(bench, name, dtype, most)
            with torch.no_grad():
                run = partial(scan.ordered_scan, **p)
                seconds = bench.seconds(partial(run, backend="triton"))
                replayed = bench.graph_seconds(partial(run, backend="triton"))
            best = 1e6 * (replayed or seconds)
            back = 1e6 * _backward(bench, p, "triton")
            row = {"layer": name, "type": str(dtype)[6:], "forward us": 1e6 * seconds, "graph us": best}
            row |= {"bound us": bound, "graph / bound": best / bound, "backward us": back}
            if theirs and dtype == torch.float32:
                with torch.no_grad():
                    row["mamba_ssm us"] = 1e6 * bench.seconds(partial(run, backend="mamba_ssm"))
            bench.found.row("The scan", **row)
            if dtype == torch.bfloat16 or not bench.cuda:
                if name in FORWARD:
                    bench.found.target(f"scan forward, {name}", best, FORWARD[name], "us")
                bench.found.target(f"scan backward / forward, {name}", back / best, BACKWARD, "times")


def _backward(bench: Bench, p: dict[str, Tensor], backend: str) -> float:
    leaves = {name: t.detach().requires_grad_(t.is_floating_point()) for name, t in p.items()}
    y = scan.ordered_scan(**leaves, backend=backend)
    grad = torch.ones_like(y)

    def back() -> None:
        for leaf in leaves.values():
            leaf.grad = None
        y.backward(grad, retain_graph=True)

    return bench.seconds(back)


@contextmanager
def by(backend: str) -> Iterator[None]:
    before = os.environ.get("MAMBAIR_SCAN")
    os.environ["MAMBAIR_SCAN"] = backend
    try:
        yield
    finally:
        os.environ.pop("MAMBAIR_SCAN")
        if before is not None:
            os.environ["MAMBAIR_SCAN"] = before


def networks(bench: Bench, name: str) -> None:
    """A network's pictures of several sizes."""
    spec = zoo.find(name)
    network = built(spec, 1 if bench.small else None).to(bench.device)
    for side in SIDES:
        for precision in ("fp32", "bf16"):
            if bench.left() < 15:
                return bench.found.note(f"no time was left for {name} at {side}x{side}, {precision}")
            _network(bench, spec, network, side, precision)
    return None


def runner(bench: Bench, network: torch.nn.Module, x: Tensor, precision: str) -> Callable[[], Tensor]:
    """As `Restorer.run_network` runs it."""

    def run() -> Tensor:
        half = torch.autocast(bench.device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)
        with torch.no_grad(), half, torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            result: Tensor = network(x)
        return result

    return run


def _network(bench: Bench, spec: zoo.ModelSpec, network: torch.nn.Module, side: int, precision: str) -> None:
    pixels = (8 if bench.small else side) ** 2
    x = torch.rand(1, spec.channels, math.isqrt(pixels), math.isqrt(pixels), device=bench.device)
    if hasattr(network, "keys"):
        network.keys = torch.tensor([1], device=bench.device)  # type: ignore[assignment]

    run, memory = runner(bench, network, x, precision), 0.0
    if bench.cuda:
        run()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        memory = (torch.cuda.max_memory_allocated() - before) / pixels
    eager, kernels, replayed = bench.seconds(run), bench.kernels(run), bench.graph_seconds(run)
    row = {"network": spec.name, "side": side, "precision": precision, "eager ms": 1e3 * eager}
    row |= {"busy ms": 1e3 * kernels.busy, "graph ms": replayed and 1e3 * replayed, "launches": kernels.launches}
    row |= {"bytes a pixel": memory, "estimate": bytes_per_pixel(spec, "triton")}
    if not published.missing():
        with by("mamba_ssm"):
            row["mamba_ssm ms"] = 1e3 * bench.seconds(run)
        if replayed:
            bench.found.target(
                f"{spec.name} {side}x{side} {precision}, mamba_ssm / graph",
                row["mamba_ssm ms"] / 1e3 / replayed,
                2,
                "times",
                True,
            )
    bench.found.row("Networks", **row)
    if replayed and kernels.busy and precision == "bf16":
        if side == 64:
            bench.found.target(f"{spec.name} 64x64, graph / busy", replayed / kernels.busy, 1.15, "times")
        if (spec.name, side) == ("mambairv2-base-x4", 256):
            bench.found.target(f"{spec.name} 256x256, eager / busy", eager / kernels.busy, 1.2, "times")


def busy(bench: Bench) -> None:
    """The share of the time in which the device computes, while it restores one large picture and many small ones."""
    spec = zoo.find("mambair-light-x4")
    network = built(spec, 1 if bench.small else None)
    restorer = Restorer(spec, network, Running(str(bench.device), tile=32 if bench.small else "auto"))
    large, count, small = (48, 2, 16) if bench.small else (4096, 100, 128)
    g = torch.Generator().manual_seed(0)
    picture, small_ones = torch.rand(3, large, large, generator=g), torch.rand(count, 3, small, small, generator=g)

    def one() -> None:
        for _ in restorer.restore_bands(picture):
            pass

    def many() -> None:
        for lq in small_ones:
            restorer.restore(lq)

    for name, run, pixels in (
        (f"one of {large}x{large}", one, large**2),
        (f"{count} of {small}x{small}", many, count * small**2),
    ):
        kernels = bench.kernels(run)
        share = kernels.busy / kernels.wall
        row = {"pictures": name, "seconds": kernels.wall, "busy %": 100 * share, "launches": kernels.launches}
        bench.found.row("Pictures, mambair-light-x4", **row, **{"MP/s": pixels / 1e6 / kernels.wall})
        if bench.cuda:
            bench.found.target(f"busy, {name}", 100 * share, 90, "%", True)


def compiled(bench: Bench) -> None:
    """What torch.compile makes of whole networks, beside a graph of what runs without it."""
    for name in ("mambair-light-x4", "mambairv2-light-x4")[: 1 if bench.small else None]:
        torch._dynamo.reset()
        spec, side = zoo.find(name), 8 if bench.small else 128
        network = built(spec, 1 if bench.small else None).to(bench.device)
        if hasattr(network, "routing"):
            network.routing = "argmax"
        x = torch.rand(1, spec.channels, side, side, device=bench.device)
        whole = torch.compile(network, fullgraph=True, backend="eager" if bench.small else "inductor")
        begin = time.perf_counter()
        runner(bench, whole, x, "bf16")()  # type: ignore[arg-type]
        row = {"network": name, "side": side, "compile s": time.perf_counter() - begin}
        for kind, module in (("", network), ("compiled ", whole)):
            run = runner(bench, module, x, "bf16")  # type: ignore[arg-type]
            replayed = bench.graph_seconds(run)
            row |= {f"{kind}ms": 1e3 * bench.seconds(run), f"{kind}graph ms": replayed and 1e3 * replayed}
        bench.found.row("torch.compile, bf16", **row)
