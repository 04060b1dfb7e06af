"""A trained network as a file others can use: safetensors and, beside it, a card that says how it came about."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from mambair_cli import __version__
from mambair_cli.atomic import atomic_write
from mambair_cli.train.recipe import Recipe

HALF_LOSS = 0.005  # dB that float16 may cost


def export(
    path: Path, network: nn.Module, recipe: Recipe, score: Callable[[nn.Module], float], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Write `path` and the card `path`.json; return the card.

    The weights are stored in float16 where that costs less than 0.005 dB of `score(network)`, else in float32.
    The network is left with the weights that were written.
    """
    exact = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    full = score(network)
    network.load_state_dict({name: tensor.half().to(tensor.dtype) for name, tensor in exact.items()})
    half = score(network)
    keep_half = full - half < HALF_LOSS  # False for NaN, too
    if not keep_half:
        network.load_state_dict(exact)
    dtype = torch.float16 if keep_half else torch.float32
    arch, kwargs = recipe.arguments()
    told = {"arch": arch, "kwargs": kwargs, "task": recipe.task, "scale": recipe.scale}
    told["compressed"] = recipe.degradation.compressed
    tensors: dict[str, Tensor] = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in exact.items()}
    content = save(tensors, {"mambair": json.dumps(told)})  # one entry: the order of several is left to chance
    card = {
        "schema": 1,
        "file": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "dtype": str(dtype).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        **told,
        "psnr": round(half if keep_half else full, 3),
        **facts,
        "recipe": recipe.as_dict(),
        "made": f"mambair {__version__}, torch {torch.__version__}, {time.strftime('%Y-%m-%d', time.gmtime())}",
    }
    with atomic_write(path) as file:
        file.write(content)
    with atomic_write(path.with_suffix(".json")) as file:
        text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
        file.write(text.encode(errors="backslashreplace"))  # names of files need not be UTF-8
    return card
