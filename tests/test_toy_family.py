"""A family is one file: this one has a network and its record, and everything else follows."""

import json
from pathlib import Path

import pytest
import torch
from helpers.commands import mambair
from PIL import Image
from torch import Tensor, nn

from mambair_cli import archs
from mambair_cli.archs import Architecture, Padding


class Toy(nn.Module):
    """Repeats every pixel; one convolution that learned to change nothing."""

    def __init__(self, *, colours: int = 3, factor: int = 2) -> None:
        super().__init__()
        self.toy = nn.Conv2d(colours, colours * factor**2, 1, bias=False)
        nn.init.dirac_(self.toy.weight)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2] % 4 == x.shape[3] % 4 == 0
        return x.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3) + 0 * self.toy(x).mean()


TOY = Architecture(
    name="toy",
    builder=Toy,
    marks=("toy.weight",),
    hyperparameters=lambda s: {"colours": s["toy.weight"][1], "factor": int((s["toy.weight"][0] / 3) ** 0.5)},
    bytes_per_channel=100,
    width="colours",
    channels="colours",
    scale="factor",
    padding=Padding(multiple=4),
)


def test_a_family_needs_nothing_but_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary) -> None:
    monkeypatch.setitem(archs.ARCHITECTURES, TOY.name, TOY)
    torch.save(Toy().state_dict(), tmp_path / "toy.pth")
    picture = Image.effect_noise((61, 47), 50).convert("RGB")
    picture.save(tmp_path / "a.png")
    upscale = ["upscale", "--weights", tmp_path / "toy.pth", "--tile", 32, tmp_path / "a.png", "--json"]
    outcome = mambair(*upscale, "-o", tmp_path / "b.png", capture=capfdbinary)
    record = json.loads(outcome.out)
    assert (record["model"], record["scale"], record["tile"]) == ("toy", 2, 32)
    with Image.open(tmp_path / "b.png") as result:
        assert result.convert("RGB").tobytes() == picture.resize((122, 94), Image.Resampling.NEAREST).tobytes()

    manifest = '[protocols.p]\nchannel = "y"\ncrop = 0\n[models.toy-x2]\nfamily = "toy"\narch = "toy"\nkwargs = {}\n'
    manifest += 'task = "upscale"\nscale = 2\nprotocol = "p"\nparams = 36\nsource.filename = "toy.pth"\n'
    (tmp_path / "zoo.toml").write_text(manifest)
    monkeypatch.setenv("MAMBAIR_ZOO", str(tmp_path / "zoo.toml"))
    assert b"toy-x2" in mambair("models", "list", capture=capfdbinary).out
    assert b"toy-x2" in mambair("models", "import", tmp_path / "toy.pth", capture=capfdbinary).out + b"toy-x2"
