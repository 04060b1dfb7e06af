"""The node for ComfyUI, driven as ComfyUI does: by its mappings and INPUT_TYPES, with a stand-in for comfy.utils."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from mambair_cli.models import zoo
from mambair_cli.restoring.restorer import load_model

FOLDER = Path(__file__).parent.parent / "integrations/comfyui"


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The folder as ComfyUI imports those in custom_nodes: by its path, under a name of ComfyUI's own."""
    spec = importlib.util.spec_from_file_location("custom_node", FOLDER / "__init__.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "custom_node", module)
    monkeypatch.delitem(sys.modules, "custom_node.nodes", raising=False)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the node uses of ComfyUI."""
    seen = SimpleNamespace(steps=[], cancelled=False)

    class ProgressBar:
        def __init__(self, total: int) -> None:
            pass

        def update_absolute(self, value: int, total: int) -> None:
            seen.steps.append((value, total))

    def throw_exception_if_processing_interrupted() -> None:
        if seen.cancelled:
            raise InterruptedError

    for name, content in (
        ("comfy", {}),
        ("comfy.utils", {"ProgressBar": ProgressBar}),
        (
            "comfy.model_management",
            {"throw_exception_if_processing_interrupted": throw_exception_if_processing_interrupted},
        ),
    ):
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return seen


def defaults(node: Any) -> dict[str, Any]:
    """What ComfyUI sends for inputs that nobody touched."""
    required = node.INPUT_TYPES()["required"]
    return {name: options[1]["default"] for name, options in required.items() if name != "image"}


def test_the_interface(package: ModuleType) -> None:
    assert package.NODE_CLASS_MAPPINGS.keys() == package.NODE_DISPLAY_NAME_MAPPINGS.keys()
    (node,) = package.NODE_CLASS_MAPPINGS.values()
    assert node.RETURN_TYPES == ("IMAGE",)
    assert callable(getattr(node, node.FUNCTION))
    inputs = node.INPUT_TYPES()["required"]
    assert inputs["image"] == ("IMAGE",)
    for kind, *options in list(inputs.values())[1:]:
        assert kind == "INT" or options[0]["default"] in kind
    names = inputs["model"][0]
    assert {"tiny-x4", "mambairv2-light-x4"} <= set(names)
    by_hand = next(s.name for s in zoo.zoo().values() if s.source.folder and not s.source.urls)
    assert by_hand not in names


def test_a_batch_in_tiles(package: ModuleType, comfy: SimpleNamespace) -> None:
    node = package.NODE_CLASS_MAPPINGS["MambairRestore"]()
    batch = torch.rand(2, 40, 64, 3, generator=torch.Generator().manual_seed(0))
    (result,) = getattr(node, node.FUNCTION)(image=batch, **{**defaults(node), "tile": 48})
    assert result.shape == (2, 160, 256, 3)
    assert result.dtype == torch.float32
    expected = load_model("tiny-x4", device="auto", tile=48).restore(batch[1].permute(2, 0, 1).contiguous())
    assert torch.equal(result[1], expected.permute(1, 2, 0))
    assert comfy.steps[-1][0] == comfy.steps[-1][1] == len(comfy.steps) >= 4
    assert comfy.steps == sorted(comfy.steps)


def test_cancel(package: ModuleType, comfy: SimpleNamespace) -> None:
    node = package.NODE_CLASS_MAPPINGS["MambairRestore"]()
    comfy.cancelled = True
    with pytest.raises(InterruptedError):
        node.restore(torch.rand(1, 16, 16, 3), **defaults(node))


def test_a_model_by_name_without_comfyui(package: ModuleType) -> None:
    node = package.NODE_CLASS_MAPPINGS["MambairRestore"]()
    (result,) = node.restore(torch.rand(1, 12, 12, 4), **{**defaults(node), "model": "tiny-denoise"})
    assert result.shape == (1, 12, 12, 3)
