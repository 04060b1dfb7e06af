"""The plug-in for spandrel, with the real spandrel: other programs load these networks through it."""

from __future__ import annotations

import gzip
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers.checkpoints import GOLDEN
from PIL import Image

from mambair_cli import archs, metrics
from mambair_cli.restoring.restorer import load_model

ROOT = Path(__file__).parent.parent
PUBLISHED: dict[str, dict[str, list[int]]] = {
    # one of each kind: the sizes of a family differ in numbers only
    name: shapes
    for table in sorted(GOLDEN.glob("state_dict_shapes*.json.gz"))
    for name, shapes in json.loads(gzip.decompress(table.read_bytes())).items()
    if not re.search(r"_x[23]$|_small|_large|dualpixel", name)
}


@pytest.fixture(autouse=True)
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of spandrel's own networks import three names from torchvision, of which there is no build that goes with
    torch's for CPUs on the package index. None of them is called here."""
    pytest.importorskip("einops", reason="spandrel is not installed")
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        functional = ModuleType("torchvision.transforms.functional")
        functional.InterpolationMode = functional.rotate = functional.normalize = object  # type: ignore[attr-defined]
        for name in ("torchvision", "torchvision.transforms"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.setitem(sys.modules, functional.__name__, functional)
    pytest.importorskip("spandrel")


def loader():
    from spandrel import MAIN_REGISTRY, ModelLoader

    from mambair_cli.integrations import spandrel as plug_in

    registry = MAIN_REGISTRY.copy()
    plug_in.install(registry)
    plug_in.install(registry)
    return ModelLoader(registry=registry)


@pytest.mark.parametrize("published", sorted(PUBLISHED))
def test_published_networks_are_told_from_all_others(published: str) -> None:
    zero = torch.zeros(())
    state = {key: zero.expand(shape) for key, shape in PUBLISHED[published].items()}
    asked = (support for support in loader().registry.architectures("detection") if support.detect(state))
    assert next(asked).architecture.id == f"mambair-{archs.infer(state)[0]}"


def test_networks_of_others_stay_theirs() -> None:
    from spandrel.architectures.Compact import Compact
    from spandrel.architectures.SPAN import SPAN

    span = SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8)
    for network, name in ((Compact(num_feat=8, num_conv=1), "Compact"), (span, "SPAN")):
        assert loader().load_from_state_dict(network.state_dict()).architecture.id == name


def test_the_bundled_model_from_its_file() -> None:
    file = ROOT / "mambair_cli/models/bundled/upscale-x4.safetensors"
    model = loader().load_from_file(file)
    assert (model.scale, model.input_channels, model.output_channels, model.purpose) == (4, 3, 3, "SR")
    assert model.tags == ["48dim"]
    assert model.size_requirements.none or model.size_requirements.minimum == 1
    assert not model.supports_half
    picture = np.asarray(Image.open(ROOT / "docs/sample.png").convert("RGB").crop((0, 0, 40, 30)), np.float32) / 255
    lq = torch.from_numpy(picture.copy()).permute(2, 0, 1)
    assert torch.allclose(model(lq[None])[0], load_model(weights=file).restore(lq), atol=1e-6)


def test_sizes_that_a_network_needs_and_files_without_tables() -> None:
    from spandrel import ImageModelDescriptor

    network = archs.build("mambair_unet", dim=32, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1, d_state=2)
    model = loader().load_from_state_dict(network.state_dict())
    assert isinstance(model, ImageModelDescriptor)
    assert (model.purpose, model.scale, model.size_requirements.multiple_of) == ("Restoration", 1, 8)
    assert model(torch.rand(1, 3, 21, 10)).shape == (1, 3, 21, 10)


def test_random_routes_depend_on_the_picture() -> None:
    state = archs.build("mambairv2_light", embed_dim=48, depths=[1], num_heads=[4], d_state=2).state_dict()
    del state["relative_position_index_SA"]
    model = loader().load_from_state_dict(state)
    assert model.size_requirements.minimum == 8
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(model(x), model(x))


def test_the_published_checkpoint(shared: Path) -> None:
    """Set5 x4, PSNR on Y with 4 pixels cropped: 32.54 dB published, and from these random routes within 0.02."""
    model = loader().load_from_file(shared / "weights/mambairv2_light_x4.pth")
    assert (model.scale, model.tags) == (4, ["48dim"])
    scores = []
    for file in sorted((shared / "data/Set5/LRx4").glob("*.png")):
        lq = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1) / 255
        hq = metrics.to_uint8(model(lq[None])[0].permute(1, 2, 0).numpy())
        truth = np.array(Image.open(shared / "data/Set5/HR" / file.name.replace("x4", "")))
        scores.append(metrics.psnr(hq, truth[: hq.shape[0], : hq.shape[1]], crop=4))
    assert len(scores) == 5
    assert np.mean(scores) == pytest.approx(32.54, abs=0.02)
