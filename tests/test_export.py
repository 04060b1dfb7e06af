"""`mambair export`: the files are run by onnxruntime and torch alone, and equal the networks."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import Mambair, mambair
from safetensors.torch import save_file

from mambair_cli import archs
from mambair_cli import export as exporting
from mambair_cli.archs import mambairv2
from mambair_cli.scan import standard

DOCS = Path(__file__).parent.parent / "docs/export.md"
ATTENTIVE = {"embed_dim": 24, "depths": [1], "num_heads": [2], "window_size": 8, "d_state": 4, "num_tokens": 8}
SMALL: dict[str, dict[str, Any]] = {
    "mambair": {"embed_dim": 30, "depths": [1], "d_state": 4, "upscale": 2, "upsampler": "pixelshuffledirect"},
    "mambair_unet": {"dim": 32, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "d_state": 2},
    "mambairv2": {**ATTENTIVE, "inner_rank": 4, "upscale": 2, "upsampler": "pixelshuffle"},
    "mambairv2_light": {**ATTENTIVE, "inner_rank": 4, "upscale": 2, "upsampler": "pixelshuffledirect"},
}
needs_torch = pytest.mark.skipif(torch.__version__ < exporting.OLDEST, reason=f"needs torch {exporting.OLDEST}")


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Mambair:
    return partial(mambair, capture=capfdbinary)


def network(arch: str, folder: Path) -> tuple[torch.nn.Module, Path]:
    """A small network whose every part shows in the result, and its file."""
    torch.manual_seed(0)
    module = archs.build(arch, **SMALL[arch]).eval()
    for name, value in module.named_parameters():
        if name.endswith(("scale1", "scale2")):
            torch.nn.init.ones_(value)
    if isinstance(module, mambairv2.MambaIRv2):
        module.routing = "argmax"
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, folder / "net.safetensors")
    return module, folder / "net.safetensors"


@needs_torch
def test_onnx(run: Mambair, tmp_path: Path) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    module, weights = network("mambairv2_light", tmp_path)
    file = tmp_path / "net.onnx"
    done = run("export", "--weights", weights, "--tile", 24, file, "--json")
    assert done.status == 0, done.err
    told = json.loads(done.out)
    assert told["file"] == str(file)
    assert (told["scale"], told["tile"], told["model"]) == (2, 24, "net")
    assert told["largest_difference"] < 1e-5

    model = onnx.load(file)
    onnx.checker.check_model(model)
    assert [(used.domain, used.version) for used in model.opset_import] == [("", 18)]
    assert "Scan" in {node.op_type for node in model.graph.node}
    assert "share at least 32 pixels" in model.doc_string
    assert str(tmp_path).encode() not in file.read_bytes(), "nothing of the machine that made it"

    session = onnxruntime.InferenceSession(file)
    x = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        truth = module(x).numpy()
    assert np.abs(session.run(None, {"lq": x.numpy()})[0] - truth).max() < 1e-3
    tiled_as_the_documentation_says(session, module)


def tiled_as_the_documentation_says(session: object, module: torch.nn.Module) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    for height, width, most in ((24, 24, 1e-4), (37, 50, 0.1), (24, 10, 0.1)):
        picture = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(6))
        hq = names["restore"](session, picture[0].permute(1, 2, 0).numpy())
        assert hq.shape == (2 * height, 2 * width, 3)
        with torch.no_grad():
            whole = module(picture)[0].permute(1, 2, 0).clamp(0, 1).numpy()
        assert np.abs(hq - whole).mean() < most


@pytest.mark.parametrize("arch", SMALL)
def test_standard_operators_equal_the_kernels(arch: str, tmp_path: Path) -> None:
    module, _ = network(arch, tmp_path)
    x = torch.rand(1, 3, 24, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = module(x)
        with standard.operators():
            assert torch.allclose(module(x), expected, atol=1e-5)
    assert {name for name, known in archs.ARCHITECTURES.items() if known.exports} == set(SMALL)


@needs_torch
def test_pt2(run: Mambair, tmp_path: Path) -> None:
    module, weights = network("mambair", tmp_path)
    file = tmp_path / "net.pt2"
    done = run("export", "--weights", weights, "--tile", 16, file)
    assert (done.status, done.out) == (0, f"{file}\n".encode()), done.err
    extra = {"mambair.json": ""}
    program = torch.export.load(file, extra_files=extra)
    card = json.loads(extra["mambair.json"])
    assert (card["tile"], bool(card["routing"])) == (16, False)
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        assert (program.module()(x) - module(x)).abs().max() < 1e-3


@needs_torch
def test_refusals(run: Mambair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, weights = network("mambair", tmp_path)
    unet = tmp_path / "unet"
    unet.mkdir()
    there = tmp_path / "there.onnx"
    there.write_text("mine")
    for expected, arguments in (
        ("there already", ("--weights", weights, there)),
        ("neither .onnx nor .pt2", ("--weights", weights, tmp_path / "net.tflite")),
        ("cannot be exported", ("-m", "evssm-deblur", tmp_path / "net.onnx")),
        ("multiple of 8", ("--weights", network("mambair_unet", unet)[1], "--tile", 20, tmp_path / "net.onnx")),
    ):
        done = run("export", *arguments)
        assert done.status == 2, done.err
        assert expected in done.err
    assert there.read_text() == "mine"
    monkeypatch.setitem(exporting.WRITERS, ".onnx", lambda program, example, card: (b"wrong", example.new_ones(1)))
    done = run("export", "--weights", weights, "--tile", 16, tmp_path / "net.onnx")
    assert done.status == 1
    assert "Nothing was written" in done.err
    assert not (tmp_path / "net.onnx").exists()
    monkeypatch.setattr(exporting, "OLDEST", "99.0")
    done = run("export", "--weights", weights, "--tile", 16, tmp_path / "net.onnx")
    assert (done.status, "takes PyTorch 99.0 or newer" in done.err) == (2, True)
