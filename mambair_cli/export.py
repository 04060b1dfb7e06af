"""A network as a file that other programs run: ONNX, or torch.export's .pt2. One size of input, standard operators.

What is written was run before: its result equals the network's within `TOLERANCE`, or nothing is written. MambaIRv2
takes the likeliest category of each pixel in place of a random one: a file cannot know whose picture it sees.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambair_cli import __version__, archs
from mambair_cli.atomic import atomic_write
from mambair_cli.errors import MambairError, UsageError
from mambair_cli.models import checkpoints
from mambair_cli.models.spec import ModelSpec
from mambair_cli.scan import standard

if TYPE_CHECKING:
    from torch.export import ExportedProgram

OLDEST = "2.13"  # of PyTorch: the loop over chunks
OPSET = 18  # the first with what LayerNorm, ScatterElements and Resize need here
TOLERANCE = 1e-3  # of pixels in [0, 1], a quarter of a step of 8 bits; MambaIR reaches 1e-6
OVERLAP = 32  # pixels of the input that tiles should share
LACKING = "Install what it needs: pip install 'mambair[export]'"


@dataclass(frozen=True)
class Exported:
    """What was written, and how near it is to the network."""

    file: Path
    card: Mapping[str, Any]


def export(spec: ModelSpec, file: Path, tile: int, *, weights: Path | None = None, offline: bool = False) -> Exported:
    """Write the network of a model to `file`, whose suffix says what: .onnx or .pt2. `tile`: the side of its input.

    Raises UsageError for what cannot be exported, MambairError where the result is not that of the network.
    """
    if torch.__version__ < OLDEST:
        raise UsageError(f"Exporting takes PyTorch {OLDEST} or newer; this is {torch.__version__}.", LACKING)
    architecture, write = archs.find(spec.arch), WRITERS.get(file.suffix.lower())
    if write is None:
        raise UsageError(f"{file.name} is neither .onnx nor .pt2.", "The suffix says what to write.")
    if not architecture.exports:
        able = ", ".join(name for name, known in archs.ARCHITECTURES.items() if known.exports)
        raise UsageError(f"{spec.name} is a {spec.arch} network, which cannot be exported.", f"These can: {able}.")
    if not architecture.padding.takes(tile):
        needs = f"a multiple of {architecture.padding.multiple}, at least {architecture.padding.minimum}"
        raise UsageError(f"--tile {tile}: the side of a tile for {spec.arch} networks is {needs}.")
    network, sha256 = checkpoints.load_network(spec, weights, offline=offline)
    if architecture.random:
        network.routing = "argmax"  # type: ignore[assignment]
    example = _example(spec.channels, tile)
    with torch.no_grad():
        truth = network(example)
        program = _traced(network, example)
    card = _card(spec, sha256, tile, architecture.random)
    content, result = write(program, example, card)
    error = float((result - truth).abs().max())
    if not error <= TOLERANCE:
        raise MambairError(
            f"The exported {spec.name} is not the network: pixels differ by up to {error:.2g}.",
            "Nothing was written. Please report this with `mambair doctor --bundle`.",
        )
    with atomic_write(file) as stream:
        stream.write(content)
    return Exported(file, {**card, "largest_difference": error})


def _example(channels: int, side: int) -> Tensor:
    """A smooth random picture, (1, C, side, side)."""
    coarse = torch.rand(1, channels, -(-side // 4), -(-side // 4), generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False).clamp(0, 1)


def _traced(network: nn.Module, example: Tensor) -> ExportedProgram:
    """Of a network that has run on the example: tables of paths are kept from there."""
    with standard.operators(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about itself
        return torch.export.export(network, (example,), strict=False)


def _card(spec: ModelSpec, sha256: str, tile: int, random: bool) -> dict[str, Any]:
    """What goes into the file beside the network."""
    large, kind = tile * spec.scale, "RGB" if spec.channels == 3 else "grey"
    return {
        "schema": 1,
        "made_by": f"mambair {__version__}",
        "model": spec.name,
        "sha256": sha256,
        "arch": spec.arch,
        "task": spec.task,
        "scale": spec.scale,
        "licence": spec.licence,
        "good_for": spec.good_for,
        "input": f"lq: float32 (1, {spec.channels}, {tile}, {tile}), {kind} in [0, 1]",
        "output": f"hq: float32 (1, {spec.channels}, {large}, {large}), to be clamped to [0, 1]",
        "routing": "argmax; mambair's own draws at random, by the picture and a seed" if random else None,
        "tile": tile,
        "overlap": OVERLAP,
        "tiling": (
            f"Cut larger pictures into tiles of {tile}x{tile} that share at least {OVERLAP} pixels with their "
            f"neighbours, the last ones flush with the edge; extend smaller pictures by mirroring. Place results at "
            f"{spec.scale} times the position and blend them linearly over what they share."
        ),
    }


def _onnx(program: ExportedProgram, example: Tensor, card: Mapping[str, Any]) -> tuple[bytes, Tensor]:
    """The file, and what onnxruntime makes of the example with it."""
    try:
        import onnxruntime
        from onnx_ir.passes.common import DeduplicateInitializersPass
    except ImportError as error:
        raise UsageError(f"Writing ONNX takes {error.name}, which is not installed.", LACKING) from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # what it says is about torchvision
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.onnx.export(
            program,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["lq"],
            output_names=["hq"],
            verbose=False,
        )
    assert traced is not None
    DeduplicateInitializersPass(size_limit=1 << 40)(traced.model)  # the paths are the same in every block
    model = traced.model_proto
    for graph in (model.graph, *_bodies(model.graph)):
        for node in graph.node:  # traces of the Python that made them
            del node.metadata_props[:]
            node.doc_string = ""
    model.producer_name, model.producer_version = "mambair", __version__
    model.doc_string = "\n".join(f"{name}: {value}" for name, value in card.items() if value)
    model.metadata_props.add(key="mambair", value=json.dumps(card))
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, torch.from_numpy(session.run(None, {"lq": example.numpy()})[0])


def _bodies(graph: Any) -> list[Any]:
    """The graphs inside the loops of a graph."""
    return [a.g for node in graph.node for a in node.attribute if a.HasField("g")]


def _pt2(program: ExportedProgram, example: Tensor, card: Mapping[str, Any]) -> tuple[bytes, Tensor]:
    """The file, and what torch makes of the example with it."""
    stream = io.BytesIO()
    torch.export.save(program, stream, extra_files={"mambair.json": json.dumps(card)})
    loaded = torch.export.load(io.BytesIO(stream.getvalue()))
    with torch.no_grad():
        return stream.getvalue(), loaded.module()(example)


WRITERS: dict[str, Callable[[ExportedProgram, Tensor, Mapping[str, Any]], tuple[bytes, Tensor]]] = {
    ".onnx": _onnx,
    ".pt2": _pt2,
}
