"""`make gpu`: what it does without a GPU, that every part of it runs, and that nothing that was found is lost."""

from __future__ import annotations

import dataclasses
import importlib.util
import runpy
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from mambair_cli import scan
from mambair_cli.restoring import graphs
from mambair_cli.scan import gpu_around, gpu_rates, published

TOOL = Path(__file__).parent.parent / "tools/gpu"
NAMES = ("findings", "bench", "checks", "times", "parts", "report")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOOL / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(TOOL))
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return SimpleNamespace(**{name: load(name) for name in NAMES})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(
    tool: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(TOOL / "__main__.py"), run_name="__main__")
    assert left.value.code == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1


class Anything:
    """In the place of what there is of CUDA: every method may be called."""

    def __init__(self, **options: object) -> None:
        pass

    def __getattr__(self, method: str) -> Any:
        return lambda *arguments: 1.0


@pytest.fixture
def gpu(tool: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A CPU that the tool takes for a GPU: plain PyTorch answers for its kernels, and graphs are plain calls."""
    plain = scan.BACKENDS["torch"]
    for name in ("triton", "mamba_ssm"):
        there = dataclasses.replace(plain, name=name, device="cpu", missing=lambda: "")
        monkeypatch.setitem(scan.BACKENDS, name, there)
    monkeypatch.setattr(tool.bench.Bench, "cuda", True)
    monkeypatch.setattr(graphs, "record", lambda run, inputs: run)
    monkeypatch.setattr(gpu_around, "missing", lambda: "")
    monkeypatch.setattr(gpu_rates, "per_second", lambda *arguments: 4e12)
    monkeypatch.setattr(published, "missing", lambda: "")
    monkeypatch.setattr(torch, "compile", lambda module, **options: module)
    card = SimpleNamespace(name="pretended", total_memory=2**37, multi_processor_count=132)
    answers = {
        **dict(Event=Anything, Stream=Anything, CUDAGraph=Anything, current_stream=Anything),
        **dict(stream=lambda aside: nullcontext(), graph=lambda graph: nullcontext(), synchronize=lambda: None),
        **dict(get_device_properties=lambda i: card, device_count=lambda: 1, mem_get_info=lambda: (2**37, 2**37)),
        **dict(empty_cache=lambda: None, reset_peak_memory_stats=lambda: None),
        **dict(memory_allocated=lambda: 0, max_memory_allocated=lambda: 0),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    return tool


def test_every_part_runs(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real calls in the real order, on tiny shapes."""
    found = gpu.findings.Findings()
    bench = gpu.bench.Bench(torch.device("cpu"), time.monotonic() + 3600, found, small=True)
    monkeypatch.setattr(gpu.times, "SIDES", (64,))
    kept = {"tiles": "mambairv2-light-x4", "network": "mambairv2-light-x4", "compiled": "mambairv2_light"}
    for name in gpu.parts.PARTS:
        if name.split()[-1] == kept.get(name.split()[0], name.split()[-1]):  # one network is as good as another
            before = len(found.checks) + len(found.facts) + sum(map(len, found.tables.values()))
            gpu.parts.run_part(name, bench)
            assert len(found.checks) + len(found.facts) + sum(map(len, found.tables.values())) > before, name
    assert found.notes == ["cuda:1 was not tried: there is one GPU"]
    assert [check for check in found.checks if not check.ok] == []
    assert set(found.tables) == {"The scan", "Networks", "Pictures, mambair-light-x4", "torch.compile, bf16"}
    assert {len(row) for row in found.tables["Networks"]} == {10}
    text = gpu.report.page(found, True, 1.0)
    for word in ("pretended", "busy, one of", "graph / busy", "mamba_ssm / graph", "indices beyond 2^31"):
        assert word in text


def test_a_part_that_fails_hangs_or_dies_loses_nothing(
    gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = gpu.findings.Findings(tmp_path / "found")
    bench = gpu.bench.Bench(torch.device("cpu"), time.monotonic() + 60, found, small=True)

    def fail(bench: Any) -> None:
        bench.found.row("Times", us=1.5)
        raise ValueError("no\nroom")

    monkeypatch.setitem(gpu.parts.PARTS, "failing", gpu.parts.Part(fail, 10, False))
    gpu.parts.run_part("failing", bench)
    assert found.failed
    assert dataclasses.replace(gpu.findings.Findings.read(found.file), file=found.file) == found
    assert found.notes == ["failing broke off: ValueError: no room"]

    main = runpy.run_path(str(TOOL / "__main__.py"), run_name="tool")
    script = tmp_path / "child.py"
    script.write_text(
        "import os, sys, time\n"
        "_, _, name, file, *_ = sys.argv\n"
        'open(file, \'a\').write(\'["check", {"name": "before", "ok": true, "detail": ""}]\\n["check\')\n'
        "os.abort() if name == 'dies' else time.sleep(60)\n"
    )
    monkeypatch.setattr(sys, "argv", [str(script)])
    main["in_a_process"].__globals__["ENOUGH"] = 0
    for name, limit, why in (("dies", 50.0, "status -6"), ("hangs", 1.0, "more than 1 s")):
        got = main["in_a_process"](name, limit, time.monotonic() + 60, 1)
        assert [check.name for check in got.checks] == ["before"]
        assert got.failed
        assert why in got.notes[0]
    late = main["in_a_process"]("late", 50, time.monotonic() - 1, 1)
    assert late.notes == ["late: no time was left"]


def test_what_spans_of_time_cover(tool: SimpleNamespace) -> None:
    assert tool.bench.union([]) == 0
    assert tool.bench.union([(5, 7), (0, 2), (1, 3), (1.5, 2)]) == 5


def test_the_page_says_what_was_met_and_what_failed(tool: SimpleNamespace) -> None:
    found = tool.findings.Findings()
    found.check("right", True)
    assert not found.failed
    found.check("wrong", False, "off by 1")
    found.target("forward", 70.0, 60.0, "us")
    found.target("busy", 95.0, 90.0, "%", True)
    found.row("Times", layer="a", us=1.23456)
    found.row("Times", layer="b", other=None)
    found.broke("large", "ValueError: no\nroom")
    text = tool.report.page(found, True, 1.0)
    assert found.failed
    for line in (
        "| wrong | **failed** | off by 1 |",
        "| forward | 70 us | at most 60 us | **no** |",
        "| busy | 95 % | at least 90 % | yes |",
        "| a | 1.235 | - |",
        "- large broke off: ValueError: no room",
        "1 of 2 passed.",
        "dry run",
    ):
        assert line in text
