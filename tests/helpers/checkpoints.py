"""What tests of checkpoints share: small networks, a manifest of models behind a server, and a cache of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.server import Server
from mambair_cli import archs

GOLDEN = Path(__file__).parent.parent / "golden"
TINY = {"in_chans": 3, "upscale": 1, "embed_dim": 30, "d_state": 4, "depths": [1], "mlp_ratio": 1.2}
SMALL = sorted(
    file.stem
    for file in GOLDEN.glob("*.safetensors")
    if not file.stem.startswith(("full_", "real_", "orders_"))
    and file.stem not in ("mambair_realdn_unet", "selective_scan", "eamamba_dualpixel")  # which takes two views
)

MANIFEST = """
[protocols.p]
channel = "y"
crop = "scale"
[defaults.tiny]
family = "mambair"
arch = "mambair"
protocol = "p"
source.key = "params"
kwargs = { in_chans = 3, upscale = 1, embed_dim = 30, d_state = 4, depths = [1], mlp_ratio = 1.2 }
[models.tiny-x2]
like = "tiny"
task = "upscale"
scale = 2
params = %(x2)d
kwargs = { upscale = 2, upsampler = "pixelshuffledirect" }
source.filename = "tiny_lightSRx2.pth"
source.urls = ["%(server)s/x2.pth"]
[models.sure-x2]
like = "tiny"
task = "upscale"
scale = 2
params = %(x2)d
kwargs = { upscale = 2, upsampler = "pixelshuffledirect" }
source.filename = "sure_x2.pth"
source.urls = ["%(server)s/sure.pth"]
source.sha256 = "%(sha256)s"
[models.tiny-denoise-15]
like = "tiny"
task = "denoise"
sigma = 15
params = %(x1)d
source.filename = "tiny_level15.pth"
source.urls = []
source.folder = "https://example.org/folder"
[models.tiny-denoise-50]
like = "tiny"
task = "denoise"
sigma = 50
params = %(x1)d
source.filename = "tiny_level50.pth"
source.folder = "https://example.org/folder"
"""


def weights(seed: int = 0, **kwargs: object) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return archs.build("mambair", **TINY | kwargs).state_dict()


def saved(content: object) -> bytes:
    stream = BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


X2 = weights(upscale=2, upsampler="pixelshuffledirect")
X1 = weights()
BODY = saved({"params": X2})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAMBAIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MAMBAIR_OFFLINE", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def server(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server, and a manifest of tiny models whose addresses lead to it."""
    with Server() as server:
        size = {"x1": sum(w.numel() for w in X1.values()), "x2": sum(w.numel() for w in X2.values())}
        sha256 = hashlib.sha256(BODY).hexdigest()
        (tmp_path / "zoo.toml").write_text(MANIFEST % {"server": server.url(""), "sha256": sha256, **size})
        monkeypatch.setenv("MAMBAIR_ZOO", str(tmp_path / "zoo.toml"))
        yield server


def cached(cache: Path) -> list[str]:
    return sorted(file.name for file in cache.glob("*") if not file.name.startswith("."))


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
