"""Every model of the manifest, from its published container through a server, the cache and its own command.

The networks are small stand-ins of the same kind: the full ones would take minutes, and their sizes, keys and
parameter counts are tested elsewhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import mambair
from helpers.server import Server
from PIL import Image

from mambair_cli import archs
from mambair_cli.models import zoo
from mambair_cli.models.spec import ModelSpec

SMALL: dict[str, dict[str, Any]] = {
    "mambair": dict(embed_dim=30, depths=[1], d_state=2),
    "mambair_unet": dict(dim=30, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1),
    "mambairv2": dict(embed_dim=12, depths=[2], num_heads=[2], inner_rank=4, num_tokens=4, d_state=2),
    "mambairv2_light": dict(embed_dim=12, depths=[2], num_heads=[2], inner_rank=4, num_tokens=4, d_state=2),
    "vmambair_derain": dict(dim=8, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1),
    "vmambair_sisr": dict(dim=8, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1),
    "vmambair_realsr": dict(dim=8, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1),
    "mambacsr": dict(embed_dim=24, depths=[1], depths2=[1], d_state=2),
    "dvmsr": dict(embed_dim=8, depths=[1]),
    "pfvm": dict(embed_dim=8, depths=[1], d_state=2),
    "mair": dict(embed_dim=8, depths=[2], d_state=2),
    "mair_unet": dict(dim=4, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1),
    "evssm": dict(dim=4, num_blocks=[1, 1, 1]),
    "eamamba": dict(dim=8, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1),
    "eamamba_sr": dict(dim=8, num_blocks=[1]),
}
PUBLISHED = [spec for spec in zoo.zoo().values() if not spec.source.bundled]


def stand_in(spec: ModelSpec) -> tuple[ModelSpec, bytes]:
    """A small model of the same kind, and its checkpoint in the published container."""
    kwargs = {**spec.kwargs, **SMALL[spec.arch]}
    torch.manual_seed(0)
    network = archs.build(spec.arch, **kwargs)
    file = io.BytesIO()
    content: Any = network.state_dict()
    for container in reversed((spec.source.key or "params").split(".")):
        content = {container: content}
    torch.save(content, file)
    params = sum(p.numel() for p in network.parameters())
    return dataclasses.replace(spec, kwargs=kwargs, params=params), file.getvalue()


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)


def manifest(spec: ModelSpec, weights: bytes, url: str | None) -> str:
    """A weights.toml of this one model, whose file lies at `url`."""
    fields = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
    for name in ("name", "kwargs", "source", "protocol", "published", "aliases", "citation"):
        fields.pop(name)
    source = {"filename": spec.source.filename, "sha256": hashlib.sha256(weights).hexdigest(), "bytes": len(weights)}
    source |= {"urls": [url]} if url else {"folder": spec.source.folder}
    source |= {"key": spec.source.key} if spec.source.key else {}
    tables = {f"models.{spec.name}": fields | {"protocol": "any"}, f"models.{spec.name}.kwargs": dict(spec.kwargs)}
    tables |= {f"models.{spec.name}.source": source, "protocols.any": {"channel": spec.protocol.channel, "crop": 0}}
    lines = []
    for table, values in tables.items():
        lines.append(f"[{table}]")
        lines += [f"{key} = {toml(value)}" for key, value in values.items() if value is not None]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """61x47 in colour, in grey, and in colour with transparency."""
    folder = tmp_path_factory.mktemp("pictures")
    y, x = np.mgrid[:47, :61]
    colour = Image.fromarray(np.stack([x * 4, y * 5, (x + y) * 2], axis=-1).astype(np.uint8))
    colour.save(folder / "colour.png")
    colour.convert("L").save(folder / "grey.png")
    colour.putalpha(Image.fromarray((x * 4).astype(np.uint8)))
    colour.save(folder / "alpha.png")
    return folder


@pytest.mark.parametrize("spec", PUBLISHED, ids=lambda spec: spec.name)
def test_from_the_server_to_the_picture(
    spec: ModelSpec, server: Server, pictures: Path, tmp_path: Path, monkeypatch, capfdbinary
) -> None:
    spec, weights = stand_in(spec)
    by_hand = spec.source.folder is not None
    url = None if by_hand else server.put(f"/{spec.name}/{spec.source.filename}", weights)
    (tmp_path / "weights.toml").write_text(manifest(spec, weights, url), encoding="utf-8")
    monkeypatch.setenv("MAMBAIR_ZOO", str(tmp_path / "weights.toml"))
    monkeypatch.setenv("MAMBAIR_CACHE", str(tmp_path / "cache"))

    def run(*args: object, status: int = 0) -> bytes:
        outcome = mambair(*args, capture=capfdbinary)
        assert outcome.status == status, outcome.err
        return outcome.out

    if by_hand:  # a folder shared by the authors: the download explains, the import finishes
        run("models", "download", spec.name, status=3)
        (tmp_path / spec.source.filename).write_bytes(weights)
        run("models", "import", tmp_path / spec.source.filename, "--as", spec.name)
    else:
        run("models", "download", spec.name)
    run("models", "verify", spec.name)

    level = ["-s", spec.scale] if spec.task == "upscale" else []
    out = run(spec.task, *level, "-m", spec.name, pictures, "-o", tmp_path / "out", "--json", "--offline")
    records = [json.loads(line) for line in out.splitlines()]
    assert [r["status"] for r in records] == ["done"] * 3
    for name, mode in (("colour", "RGB"), ("grey", "L"), ("alpha", "RGBA")):
        with Image.open(tmp_path / "out" / f"{name}.png") as picture:
            assert picture.size == (61 * spec.scale, 47 * spec.scale)
            assert picture.mode == mode
