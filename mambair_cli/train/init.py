"""Fine-tuning: take over from another model what fits, say from x2 for x4 as the papers do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mambair_cli.errors import UsageError
from mambair_cli.models import checkpoints, zoo


@dataclass(frozen=True)
class TakenOver:
    """How many of the network's tensors came from elsewhere, and the names of those that did not."""

    tensors: int
    left: tuple[str, ...]


def read_weights(model: str) -> dict[str, Tensor]:
    """The tensors of a model of the zoo (fetched if need be) or of a file."""
    if Path(model).is_file():
        return checkpoints.read_tensors(Path(model))
    spec = zoo.find(model)
    return checkpoints.read_tensors(checkpoints.fetch(spec), spec.source.key)


def take_over(network: nn.Module, tensors: Mapping[str, Tensor]) -> TakenOver:
    """Copy every tensor whose name and shape the network has too. Raises UsageError if there is none."""
    own = network.state_dict()
    fitting = {name for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape}
    if not fitting:
        raise UsageError("None of the tensors fit the recipe's network.", "It is of another architecture or size.")
    with torch.no_grad():
        for name in fitting:
            own[name].copy_(tensors[name])
    return TakenOver(len(fitting), tuple(name for name in own if name not in fitting))
