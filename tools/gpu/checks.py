"""Is what the GPU computes right? Against float64 on the same device, and against the CPU."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from bench import Bench
from torch import Tensor

from mambair_cli import archs, scan
from mambair_cli.models import zoo
from mambair_cli.restoring.graphs import Graphs
from mambair_cli.restoring.restorer import Restorer
from mambair_cli.restoring.running import Running
from mambair_cli.scan import gpu, gpu_around, routing
from mambair_cli.scan import orders as paths

Problem = dict[str, Tensor]
CPU = torch.device("cpu")


def problem(
    bench: Bench, B: int, K: int, R: int, N: int, D: int, T: int, table: Tensor | None = None, pads: bool = False
) -> Problem:
    """A random scan in float64; without a table a random path for each image."""
    g = torch.Generator().manual_seed(T + D)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    if table is None:
        low = torch.randint(-1, T, (B, K, T), generator=g) if pads else None
        table = low if low is not None else torch.rand(B, K, T, generator=g).argsort(-1)
    length = int(table.max()) + 1 if pads else T
    p = dict(
        x=normal(B, length, D),
        proj=normal(B, length, K, R + 2 * N),
        dt_weight=normal(K, D, R) / R**0.5,
        dt_bias=normal(K, D) - 1,
        A=-normal(K, D, N).exp(),
        D=normal(K, D),
        orders=table.to(torch.int32),
    )
    return {name: t.to(bench.device) for name, t in p.items()}


def to(p: Problem, dtype: torch.dtype) -> Problem:
    """Parameters in float32 where the features are in half precision."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    kinds = {name: dtype if name in ("x", "proj") else wide for name in p}
    return {name: t.to(kinds[name]) if t.is_floating_point() else t for name, t in p.items()}


def off(ours: Tensor, exact: Tensor) -> float:
    """The norm of the difference, relative; infinite where something is not finite."""
    if not torch.isfinite(ours).all():
        return float("inf")
    return float((ours.double() - exact.double()).norm() / exact.double().norm().clamp(min=1e-30))


def results(p: Problem, backend: str, reduce: bool) -> list[Tensor]:
    """The scan and the gradients of a weighted sum of it."""
    leaves = {name: t.detach().clone().requires_grad_(t.is_floating_point()) for name, t in p.items()}
    y = scan.ordered_scan(**leaves, reduce=reduce, backend=backend)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    (y * weights.to(y)).sum().backward()
    return [y.detach(), *(leaf.grad for leaf in leaves.values() if leaf.grad is not None)]


def here(bench: Bench) -> None:
    """On a dry run Triton's kernels serve the CPU, in the interpreter."""
    if not bench.cuda:
        scan.BACKENDS["triton"] = dataclasses.replace(gpu.BACKEND, device="cpu", missing=lambda: "")
        gpu._programs_at_once = lambda device: 4  # type: ignore[assignment]
        for name in ("LANES", "WIDTH", "CHUNK", "SHORTEST", "AHEAD", "CHAINED"):
            setattr(gpu, name, 4)


HEIGHT, WIDTH = 40, 56
CASES: dict[str, dict[str, Any]] = {  # `cross`: the four paths of MambaIR; else random ones, for each image its own
    "light": dict(B=1, K=4, R=4, N=10, D=72, T=HEIGHT * WIDTH, cross=True),
    "classic": dict(B=2, K=4, R=12, N=16, D=360, T=HEIGHT * WIDTH, cross=True),
    "v2-light": dict(B=3, K=1, R=3, N=8, D=48, T=HEIGHT * WIDTH),
    "v2-base": dict(B=3, K=1, R=22, N=16, D=348, T=HEIGHT * WIDTH),
    "pads and repeats": dict(B=2, K=2, R=5, N=7, D=33, T=2245, pads=True),
    "channels as positions": dict(B=2, K=2, R=6, N=16, D=4, T=48, channels=True),
    "one step": dict(B=1, K=1, R=1, N=1, D=1, T=1),
    "one more than a warp": dict(B=1, K=3, R=2, N=5, D=65, T=33),
}
SMALLER = dict(B=1, R=2, N=2, D=3)
KINDS = (torch.float32, torch.bfloat16, torch.float16)


def scans(bench: Bench, name: str) -> None:
    """Values and gradients of a scan, and whether they are the same bits every time."""
    here(bench)
    case, (height, width) = dict(CASES[name]), (3, 4) if bench.small else (HEIGHT, WIDTH)
    if bench.small:
        case |= {key: min(value, case[key]) for key, value in SMALLER.items()}
        case["T"] = min(case["T"], height * width)
    table = None
    if case.pop("cross", False):
        table = paths.cross(height, width, CPU)
    elif case.pop("channels", False):
        table = paths.channel(case["T"], CPU)
    for kind in KINDS[:1] if bench.small else KINDS:
        p, reduce = to(problem(bench, **case, table=table), kind), name != "one step"
        _poison(bench)
        exact, ours, again = (
            results(q, backend, reduce)
            for q, backend in ((to(p, torch.float64), "torch"), (p, "triton"), (p, "triton"))
        )
        errors = [off(a, b) for a, b in zip(ours, exact, strict=True)]
        most = (1e-5, 1e-4) if kind == torch.float32 else (5e-3, 1e-2)
        same = all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
        detail = f"y {errors[0]:.1e}, gradients {max(errors[1:]):.1e}" + ("" if same else ", other bits every time")
        ok = errors[0] <= most[0] and max(errors[1:]) <= most[1] and same
        bench.found.check(f"scan, {name}, {str(kind)[6:]}", ok, detail)
        if reduce:
            exact, ours = (normed(q, backend) for q, backend in ((to(p, torch.float64), "torch"), (p, "triton")))
            error = off(ours, exact)
            bench.found.check(f"norm and gate, {name}, {str(kind)[6:]}", error <= most[1], f"{error:.1e}")


def normed(p: Problem, backend: str) -> Tensor:
    """The scan with a norm and a gate after it, by anything that has the right shape."""
    norm = scan.NormGate(p["D"][0], p["dt_bias"][0], 1e-5, p["x"])
    with torch.no_grad():
        return scan.ordered_scan(**p, norm=norm, backend=backend)


def _poison(bench: Bench) -> None:
    """What is allocated from now on holds no numbers: who reads what nobody wrote is found out."""
    held = [torch.full((1 << n,), float("nan"), device=bench.device) for n in range(8, 14 if bench.small else 26)]
    held.clear()


def streams(bench: Bench) -> None:
    """Streams, batches, graphs, many programs, another GPU."""
    here(bench)
    if not bench.cuda:
        return bench.found.note("streams and graphs were not tried: a dry run")
    sizes = dict(R=1, N=1, D=4, T=8) if bench.small else dict(R=4, N=10, D=72, T=4096)
    p = to(problem(bench, B=2, K=4, **sizes), torch.float32)

    def run(**other: Tensor) -> Tensor:
        return scan.ordered_scan(**{**p, **other}, backend="triton")

    with torch.no_grad():
        expected, aside = run(), torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            got = run()
        aside.synchronize()
        bench.found.check("on another stream", torch.equal(got, expected))
        alone = [run(x=p["x"][i : i + 1], proj=p["proj"][i : i + 1], orders=p["orders"][i : i + 1]) for i in range(2)]
        bench.found.check("the bits of an image do not depend on its batch", torch.equal(torch.cat(alone), expected))
        graphs = Graphs()
        replays = [graphs(lambda x: run(x=x), "", p["x"] * factor) for factor in (1, 1, 2, 1)]
        bench.found.check(
            "by a CUDA graph",
            not graphs.refused and torch.equal(replays[3], expected) and torch.equal(replays[2], run(x=p["x"] * 2)),
            graphs.refused,
        )
        q = to(problem(bench, B=17 if bench.small else 17000, K=4, R=1, N=1, D=8, T=4), torch.float32)
        many = [scan.ordered_scan(**q, backend=backend) for backend in ("triton", "torch")]
        bench.found.check("more than 65535 images times paths", off(*many) < 1e-5)
        if torch.cuda.device_count() > 1:
            there = {name: t.to("cuda:1") for name, t in p.items()}
            got = scan.ordered_scan(**there, backend="triton")
            bench.found.check("on cuda:1 while cuda:0 is current", torch.equal(got.cpu(), expected.cpu()))
        else:
            bench.found.note("cuda:1 was not tried: there is one GPU")
    return None


def around(bench: Bench) -> None:
    """The kernels around the scan against plain PyTorch, and the routes of MambaIRv2 against the CPU's."""
    why = gpu_around.missing() if bench.cuda else gpu_around.trial(bench.device)
    bench.found.check("the kernels around the scan", not why, why)
    logits, keys = torch.randn(3, 500, 64, generator=torch.Generator().manual_seed(1)), torch.tensor([1, 2**62, 7])
    with torch.no_grad():
        expected = routing.draw(logits, keys, 3)
        got = routing.draw(logits.to(bench.device), keys.to(bench.device), 3).cpu()
    bench.found.check("categories are those of the CPU", torch.equal(got, expected))


def built(spec: zoo.ModelSpec, depth: int | None) -> torch.nn.Module:
    """The network of a model with fresh weights, whole or one group of so many blocks: they take as long as the
    published ones."""
    one = {"num_heads": spec.kwargs["num_heads"][:1]} if "num_heads" in spec.kwargs else {}
    torch.manual_seed(0)
    return archs.build(spec.arch, **{**spec.kwargs, **one, "depths": [depth]} if depth else spec.kwargs).eval()


def tiles(bench: Bench, name: str) -> None:
    """Pictures by a network, cut into tiles, on the device and on the CPU."""
    side, tile = (40, 32) if bench.small else (150, 64)
    lq = torch.rand(3, side, side + 30, generator=torch.Generator().manual_seed(0))
    spec = zoo.find(name)
    network = built(spec, 1 if bench.small else 2)
    if hasattr(network, "routing"):
        network.routing = "argmax"  # what differs in the last bits may fall into another category otherwise
    expected = Restorer(spec, network, Running("cpu", "fp32", tile, 16)).restore(lq)
    for precision, most in (("fp32", 1e-3), ("bf16", 3e-2)):
        there = Restorer(spec, network, Running(str(bench.device), precision, tile, 16))
        got = [there.restore(lq) for _ in range(3)]  # the first without graphs, the others by them
        worst = float((got[0] - expected).abs().max())
        bench.found.check(f"{name} in tiles, {precision}", worst < most, f"off by {worst:.1e} of 1")
        same = torch.equal(got[0], got[1]) and torch.equal(got[1], got[2])
        bench.found.check(f"{name} in tiles, {precision}, the same again", same)
        bench.found.check(f"{name} in tiles, {precision}, by graphs", not there.graphs.refused, there.graphs.refused)


def compiled(bench: Bench, arch: str) -> None:
    """A small network of a family whole through torch.compile and torch.export."""
    torch.manual_seed(0)
    network = archs.build(arch, **SMALL[arch]).eval().to(bench.device)
    if hasattr(network, "routing"):
        network.routing = "argmax"
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(bench.device)
    with torch.no_grad():
        expected = network(x)
        got = torch.compile(network, fullgraph=True, backend="eager" if bench.small else "inductor")(x)
        exported = torch.export.export(network, (x,)).module()(x)
    worst = max(off(got, expected), off(exported, expected))
    bench.found.check(f"{arch}, compiled and exported", worst < 1e-3, f"{worst:.1e}")


DEPTHS = {"num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1}
# Two blocks: the windows of the second are shifted.
ATTENTIVE = {"embed_dim": 24, "depths": [2], "num_heads": [2], "window_size": 8, "d_state": 4, "num_tokens": 8}
LIGHT = {"embed_dim": 30, "depths": [1], "d_state": 4, "upscale": 2, "upsampler": "pixelshuffledirect"}
SMALL: dict[str, dict[str, Any]] = {
    "mambair": LIGHT,
    "mambair_unet": {"dim": 32, "d_state": 2, **DEPTHS},
    "mambairv2": {**ATTENTIVE, "inner_rank": 4, "upscale": 2, "upsampler": "pixelshuffle"},
    "mambairv2_light": {**ATTENTIVE, "inner_rank": 4, "upscale": 2, "upsampler": "pixelshuffledirect"},
}


def large(bench: Bench) -> None:
    """Indices beyond 2^31: the last channels of a scan whose steps hold 2.3e9 values."""
    if not bench.cuda or torch.cuda.mem_get_info()[0] < 60e9:
        return bench.found.note("indices beyond 2^31 were not tried: that takes 60 GB")
    side, channels, paths_, states, rank = 4 if bench.small else 1024, 544, 4, 2, 2
    g = torch.Generator(bench.device).manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=bench.device, generator=g)

    p = dict(
        x=normal(1, side * side, channels),
        proj=normal(1, side * side, paths_, rank + 2 * states),
        dt_weight=normal(paths_, channels, rank),
        dt_bias=normal(paths_, channels) - 3,
        A=-normal(paths_, channels, states).exp(),
        D=normal(paths_, channels),
    )
    table, last = paths.cross(side, side, bench.device), slice(channels - 32, channels)
    few = {name: t[:, last] for name, t in p.items() if name not in ("x", "proj")}
    with torch.no_grad():
        expected = scan.ordered_scan(p["x"][..., last].contiguous(), p["proj"], **few, orders=table)
        got = scan.ordered_scan(**p, orders=table)
        norm = scan.NormGate(p["D"][0], p["dt_bias"][0], 1e-5)
        gated = scan.ordered_scan(**p, orders=table, norm=norm)
        same = torch.nn.functional.layer_norm(got[:, -9:], (channels,), *norm[:2])
    bench.found.check("indices beyond 2^31", off(got[..., last], expected) < 1e-6)
    bench.found.check("indices beyond 2^31, with a norm", off(gated[:, -9:], same) < 1e-5)
    return None
