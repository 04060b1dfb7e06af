"""`make gpu`: what it does without a GPU, how it counts busy time, and the page that it writes."""

from __future__ import annotations

import importlib.util
import runpy
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

TOOL = Path(__file__).parent.parent / "tools/gpu"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOOL / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOL))
    for name in ("bench", "checks", "times", "report"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return load("bench")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(TOOL / "__main__.py"), run_name="__main__")
    assert left.value.code == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1


def test_what_spans_of_time_cover(tool: ModuleType) -> None:
    assert tool.union([]) == 0
    assert tool.union([(5, 7), (0, 2), (1, 3), (1.5, 2)]) == 5


def test_the_page_says_what_was_met_and_what_failed(tool: ModuleType) -> None:
    bench = tool.Bench(torch.device("cpu"), time.monotonic() + 60)
    bench.check("right", True)
    assert not bench.failed
    bench.check("wrong", False, "off by 1")
    bench.target("forward", 70.0, 60.0, "us")
    bench.target("busy", 95.0, 90.0, "%", True)
    bench.row("Times", layer="a", us=1.23456)
    bench.row("Times", layer="b", other=None)
    bench.broke("large", ValueError("no\nroom"))
    text = load("report").page(bench)
    assert bench.failed
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
