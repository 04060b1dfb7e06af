"""The Triton kernels against the float64 reference: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from helpers.scans import BackendTests, assert_equal_to_float64, gradients, problem, relative, to32
from torch import Tensor

from mambair_cli import scan
from mambair_cli.scan import gpu, routing
from mambair_cli.scan import orders as paths

ON_GPU = torch.cuda.is_available()
triton = pytest.importorskip("triton", minversion="3.3")  # the interpreter of older ones lacks much
tl = triton.language

Interpreted = importlib.import_module("triton.runtime.interpreter").InterpretedFunction


@triton.jit
def counted(out, steps):  # type: ignore[no-untyped-def]
    for i in range(steps):
        tl.store(out + i, i)


if not ON_GPU:
    try:
        counted[(1,)](torch.empty(3), 3)
    except Exception as error:  # such as Triton 3.6 with numpy 2.4, which makes no number of an array of one number
        both = f"Triton {triton.__version__} with numpy {numpy.__version__}"
        pytest.skip(f"the interpreter of {both} does not work: {error}", allow_module_level=True)

DEVICE = torch.device("cuda" if ON_GPU else "cpu")
H, W = (24, 40) if ON_GPU else (3, 4)  # the interpreter takes 50 us for a state


def call(function: Any, *arguments: Any, original: Any = Interpreted.__call__, **named: Any) -> Any:
    """Of a kernel to a function of ours: Triton would make its language ready again, in half of the time of all."""
    ours = function.fn.__module__.startswith("mambair_cli")
    return function.rewrite()(*arguments, **named) if ours else original(function, *arguments, **named)


@pytest.fixture(autouse=True)
def _several_small_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter: on the CPU, with chunks, channels and links of chunks that do not come out even."""
    if not ON_GPU:
        here = dataclasses.replace(gpu.BACKEND, device="cpu", missing=lambda: "")
        monkeypatch.setitem(scan.BACKENDS, "triton", here)
        sizes = dict(LANES=8, WIDTH=8, CHUNK=4, SHORTEST=4, AHEAD=2, CHAINED=4)
        for name, size in sizes.items():
            monkeypatch.setattr(gpu, name, size)
        monkeypatch.setattr(gpu, "_programs_at_once", lambda device: 24)
        monkeypatch.setattr(Interpreted, "__call__", call)


class TestTriton(BackendTests):
    device, length = DEVICE, 960 if ON_GPU else 9

    @pytest.fixture
    def backend(self) -> str:
        return "triton"


def there(p: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.to(DEVICE) for k, v in to32(p).items()}


def on_triton(p: dict[str, Tensor]) -> Tensor:
    return scan.ordered_scan(**p, backend="triton")


def exactly(p: dict[str, Tensor]) -> Tensor:
    wide = {k: v.double() if v.is_floating_point() else v for k, v in p.items()}
    return scan.ordered_scan(**wide, backend="torch")


def on_path(orders: Tensor, length: int, **shape: int) -> dict[str, Tensor]:
    sizes = dict(B=1, K=orders.shape[-2], R=2, N=2, D=3) | shape
    p = problem(0, **sizes, L=length, T=1, pads=False, per_image=False)
    return p | {"orders": orders}


@pytest.mark.parametrize(("reduce", "B", "D"), [(True, 1, 5), (False, 2, 2)])
def test_cross(reduce: bool, B: int, D: int) -> None:
    p = on_path(paths.cross(H, W, torch.device("cpu")), H * W, B=B, D=D)
    assert_equal_to_float64("triton", p, reduce, DEVICE)


def test_windows_with_pads() -> None:
    table = paths.window(H, W, 2 if H < 8 else 16, True, torch.device("cpu"))
    assert (table < 0).any()
    assert_equal_to_float64("triton", on_path(table, H * W), True, DEVICE)


def test_cross_scale_in_one_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_programs_at_once", lambda device: 1)
    backwards_by_columns = paths.cross_scale(16, 16, torch.device("cpu"))[3:]
    p = on_path(backwards_by_columns, 320, R=1, N=1, D=1)
    assert relative(on_triton(there(p)).cpu(), exactly(p)) <= 1e-5


def test_several_blocks_of_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    if not ON_GPU:
        monkeypatch.setattr(gpu, "LANES", 2)
        monkeypatch.setattr(gpu, "WIDTH", 4)
    p = problem(4, B=1, K=1, R=2, N=2, D=7 if not ON_GPU else 100, L=9, T=9, pads=False, per_image=False)
    assert_equal_to_float64("triton", p, True, DEVICE)


def test_norm_and_gate_follow_the_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, columns and both reversed, of a map of odd sides; without gradients y itself is never made."""
    p = there(on_path(paths.cross(H - 1, 3, torch.device("cpu")), 3 * (H - 1), B=2, R=1, N=1))
    p |= {name: p[name].bfloat16() for name in ("x", "proj")}
    z, (weight, bias) = torch.randn(2, 3 * (H - 1), 8).to(DEVICE).bfloat16()[..., 4:7], p["D"][:2]
    y = exactly(p)
    expected = F.layer_norm(y, (3,), weight.double(), bias.double()) * F.silu(z.double())
    monkeypatch.setattr(gpu, "_collect", None)
    with torch.no_grad():
        result = scan.ordered_scan(**p, norm=scan.NormGate(weight, bias, 1e-5, z), backend="triton")
    assert result.dtype == torch.bfloat16
    assert relative(result, expected) < 1e-2


TABLES = {
    "cross": paths.cross(3, 5, torch.device("cpu")),
    "windows, with pads": paths.window(3, 5, 2, True, torch.device("cpu")),
    "of each image, with repeats": torch.randint(-1, 15, (2, 3, 20), generator=torch.Generator().manual_seed(3)),
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(("D", "gated"), [(3, True), (48, False), (360, True)])
def test_collecting_with_norm_and_gate(D: int, table: str, gated: bool) -> None:
    """Several positions to a program, or several warps to a position; some that no path visits."""
    orders, g = TABLES[table].int(), torch.Generator().manual_seed(D)
    each = orders.expand(2, *orders.shape[-2:])
    K, T = each.shape[1:]
    steps, weight, bias = (torch.randn(size, generator=g) for size in ((1, 2 * K, T, D), D, D))
    z = torch.randn(2, 15, 2 * D, generator=g)[..., D:] if gated else None
    y = torch.zeros(2, 16, D, dtype=torch.float64)  # the last for what pads see
    for image, path in product(range(2), range(K)):
        y[image].index_add_(0, each[image, path] % 16, steps[0, image * K + path].double())
    y = F.layer_norm(y[:, :15], (D,), weight.double(), bias.double()) * (1 if z is None else F.silu(z.double()))
    norm = scan.NormGate(weight.to(DEVICE), bias.to(DEVICE), 1e-5, None if z is None else z.to(DEVICE))
    inverse = gpu._inverse(orders.to(DEVICE), 15)
    result = gpu._collect_normed(steps.to(DEVICE), inverse, 2, norm, torch.float32)
    assert relative(result.cpu(), y) < 1e-6


def test_positions_outside_the_map_are_pads() -> None:
    p = problem(4, B=1, K=1, R=1, N=2, D=3, L=5, T=5, pads=False, per_image=False)
    inside, outside = (torch.tensor([[0, pad, 3, 1, pad]], dtype=torch.int32) for pad in (-1, 5))
    y = on_triton(there(p | {"orders": outside}))
    assert relative(y.cpu(), exactly(p | {"orders": inside})) <= 1e-5


def test_a_table_written_to_is_inverted_anew() -> None:
    p = there(problem(5, B=1, K=1, R=1, N=2, D=3, L=6, T=6, pads=False, per_image=False))
    for _ in range(2):
        assert relative(on_triton(p), exactly(p)) <= 1e-5
        p["orders"].copy_(p["orders"].roll(2, -1))


@pytest.mark.parametrize("tokens", [64, 128, 5, 1])
def test_categories_are_those_of_the_twin(tokens: int) -> None:
    logits, key = torch.randn(37, tokens, generator=torch.Generator().manual_seed(8)), 2**62 + 5
    noisy = logits + routing.gumbel(37, tokens, key, 3)
    category = importlib.import_module("mambair_cli.scan.gpu_route").draw(logits.to(DEVICE), key, 3)
    assert torch.equal(category.cpu().long(), noisy.argmax(-1))


def test_images_with_keys_of_their_own() -> None:
    logits, keys = torch.randn(2, 10, 6, generator=torch.Generator().manual_seed(9)), torch.tensor([2**62 + 5, 7])
    category = importlib.import_module("mambair_cli.scan.gpu_route").draw(
        logits.view(20, 6).to(DEVICE), keys.to(DEVICE), 1
    )
    assert torch.equal(category.cpu().view(2, 10).long(), routing.noisy(logits, keys, 1).argmax(-1))


def test_softplus_to_the_last_bits() -> None:
    """Trained time steps go down to softplus(-7): log(1 + exp(x)) taken literally would lose five digits there."""
    x = torch.linspace(-40, 40, 64)
    exact = torch.nn.functional.softplus(x.double())
    one = torch.ones(1, 1, 1)
    arguments = (torch.ones(1, 64, 1), x.view(1, 64, 1), -torch.ones(64, 1), one, one)  # hence y = dt
    y = scan.selective_scan(*(t.to(DEVICE) for t in arguments), delta_softplus=True, backend="triton").cpu()
    assert ((y.flatten().double() - exact).abs() / exact).max() <= 1e-6


@pytest.mark.parametrize("exponential", [False, True])
def test_loops_of_the_rates(exponential: bool) -> None:
    """They compute what they say: x -> x / 2 + 1 tends to 2, x -> 2^-x to 0.6412."""
    rates, out = importlib.import_module("mambair_cli.scan.gpu_rates"), torch.empty(8, device=DEVICE)
    rates.loop[(2,)](out, 30, 0.5, EXPONENTIAL=exponential, CHAINS=2, BLOCK=4)
    torch.testing.assert_close(
        out.cpu(), torch.full((8,), 2 * (0.6411857 if exponential else 2.0)), rtol=1e-4, atol=0
    )


def test_the_trial_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.trial(DEVICE) == ""

    def broken(*_: Tensor) -> Tensor:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(gpu, "scan", broken)
    assert "RuntimeError: Failed to find C compiler" in gpu.trial(DEVICE)
    monkeypatch.setattr(gpu, "scan", lambda inputs: torch.zeros_like(inputs.u))
    assert "its kernels are off by" in gpu.trial(DEVICE)


def test_what_failed_once_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial may fail for want of memory that another process gives back; what works is not tried again."""
    answers = iter(["its kernels do not run (OutOfMemoryError)", "", "never asked for"])
    now = 1000.0
    monkeypatch.setattr(gpu, "_answer", None)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now)
    monkeypatch.setattr(gpu, "trial", lambda device: next(answers))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "OutOfMemoryError" in gpu.missing()
    now += gpu.RETRY - 1
    assert "OutOfMemoryError" in gpu.missing()
    now += 2
    assert gpu.missing() == ""
    now += 10 * gpu.RETRY
    assert gpu.missing() == ""


# Those of the networks on an H200: 132 multiprocessors of 20 warps. A few images of a batch fill them.
@pytest.mark.parametrize(
    ("images", "directions", "channels", "steps", "segments"),
    [
        (1, 4, 72, 128 * 128, 219),
        (1, 4, 360, 64 * 64, 55),
        (1, 1, 348, 256 * 256, 240),
        (1, 1, 48, 64 * 64, 128),
        (16, 4, 360, 64 * 64, 3),
        (60, 4, 360, 64 * 64, 1),
        (1, 4, 72, 20, 1),
    ],
)
def test_as_many_segments_as_fill_the_chip(
    images: int, directions: int, channels: int, steps: int, segments: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "LANES", 32)
    monkeypatch.setattr(gpu, "SHORTEST", 32)
    path = gpu._Path((), dict(T=steps, K=directions, D=channels), images, at_once=132 * 20)
    whole, chunked = path.segment(), path.segment(8)
    assert -(-steps // whole) == segments
    assert chunked % 8 == 0
    assert whole <= chunked < whole + 8


class Recorder:
    """Stands in for the module of kernels: notes the grids, computes nothing."""

    def __init__(self) -> None:
        self.launches: list[tuple[str, tuple[int, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        return Launcher(self.launches, name)


class Launcher:
    def __init__(self, launches: list[tuple[str, tuple[int, ...]]], name: str) -> None:
        self.launches, self.name = launches, name

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments, **options: self.launches.append((self.name, grid))


def test_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 65535 paths fit into a grid, and what fills the chip is run in one pass."""
    recorder = Recorder()
    monkeypatch.setattr(gpu, "_kernels", lambda *names: recorder)
    monkeypatch.setattr(gpu, "_programs_at_once", lambda device: 40)
    many = to32(problem(0, B=17000, K=4, R=1, N=1, D=1, L=4, T=4, pads=False, per_image=False))
    gradients("triton", {k: v.to(DEVICE) for k, v in many.items()}, True)
    assert [name for name, _ in recorder.launches] == [
        "outputs",
        "collect",
        *["states"] * 2,
        "gradients",
        *["collect"] * 2,
    ]
    assert all(len(grid) == 1 for _, grid in recorder.launches)
    assert max(grid[0] for _, grid in recorder.launches) >= 4 * 17000
    recorder.launches.clear()
    few = there(problem(0, B=1, K=4, R=1, N=1, D=1, L=320, T=320, pads=False, per_image=False))
    with torch.no_grad():
        on_triton(few)
    assert [name for name, _ in recorder.launches] == ["states", "chain", "outputs", "collect"]


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
def test_same_bits_every_time() -> None:
    p = there(problem(7, B=2, K=4, R=4, N=10, D=72, L=4096, T=4096, pads=True, per_image=False))
    first, again = (gradients("triton", p, True) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(first[1][name], again[1][name]) for name in first[1])


@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux only")
@pytest.mark.parametrize(
    ("network", "targets", "kernels"),
    [
        ("classic", ["sm_90"], ["states", "chain", "outputs", "gradients", "collect", "collect_normed"]),
        ("classic", ["sm_80", "gfx942"], ["outputs", "linear", "collect_normed", "collect_normed-fp32"]),
        ("v2-base", ["sm_80", "sm_90"], ["norm_gate", "depthwise", "linear", "attention", "attention-fp32"]),
    ],
)
def test_what_the_compiler_makes_of_the_kernels(
    network: str, targets: list[str], kernels: list[str], tmp_path: Path
) -> None:
    """Of the scan's and of those around it. Without a GPU the compiler still works; `tests/compile_kernels.py`
    without arguments looks at all there are."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = Path(__file__).parent / "compile_kernels.py"
    run = subprocess.run(
        [sys.executable, script, "--networks", network, "--targets", *targets, "--kernels", *kernels],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr  # within the limits of registers, shuffles and instructions
    found = {(row["target"], row["kernel"]): row for row in csv.DictReader(run.stdout.splitlines(), delimiter="\t")}
    assert found.keys() == set(product(targets, kernels))
    assert all(row["spills"] == "0" for row in found.values())
    for target in targets:
        if "outputs" in kernels:
            assert found[target, "outputs"]["shuffles"] == "0"  # time stays in its thread
