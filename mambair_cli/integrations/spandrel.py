"""Every family in spandrel's registry, so that what loads models through it (chaiNNer, ComfyUI) loads these.

from mambair_cli.integrations import spandrel
spandrel.install()
model = ModelLoader().load_from_file("mambairv2_lightSR_x4.pth")
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from spandrel import (
    MAIN_REGISTRY,
    Architecture,
    ArchRegistry,
    ArchSupport,
    ImageModelDescriptor,
    SizeRequirements,
    StateDict,
)
from torch import Tensor, nn

from mambair_cli import archs
from mambair_cli.archs.family import Architecture as Family
from mambair_cli.errors import BadCheckpoint


def install(registry: ArchRegistry = MAIN_REGISTRY) -> None:
    """Add all families to a registry, spandrel's main one by default; once is enough, twice does no harm.

    They are asked before the others: a state dict has to fit in every key and shape, so they take nobody's.
    """
    others = tuple(support.architecture.id for support in registry)
    known = (SpandrelArchitecture(family) for family in archs.ARCHITECTURES.values())
    registry.add(*(ArchSupport.from_architecture(arch, before=others) for arch in known), ignore_duplicates=True)


class SpandrelArchitecture(Architecture[nn.Module]):
    """One family as spandrel knows architectures."""

    def __init__(self, family: Family) -> None:
        super().__init__(id=f"mambair-{family.name}", name=family.name, detect=self._fits)
        self.family = family

    def _fits(self, state_dict: StateDict) -> bool:
        if not all(mark in state_dict for mark in self.family.marks):  # seen at once, and true of most
            return False
        try:
            return archs.infer(_tensors(state_dict))[0] == self.family.name
        except BadCheckpoint:
            return False

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[nn.Module]:
        """The network with its weights. Raises BadCheckpoint for a state dict that is none of this family."""
        state = _tensors(state_dict)
        _, arguments = archs.infer(state)
        network = self.family.build(arguments)
        tables = {name: t for name, t in network.state_dict().items() if not t.is_floating_point()}
        scale, channels = self.family.scale_of(arguments), self.family.channels_of(arguments)
        padding = self.family.padding
        return ImageModelDescriptor(
            network,
            {**state, **tables},  # of positions: some files lack them
            architecture=self,
            purpose="SR" if scale > 1 else "Restoration",
            tags=[f"{self.family.argument(arguments, self.family.width)}dim"],
            supports_half=False,  # weights stay float32; `mambair` computes in half precision by autocast
            supports_bfloat16=False,
            scale=scale,
            input_channels=channels,
            output_channels=channels,
            size_requirements=SizeRequirements(minimum=padding.minimum, multiple_of=padding.multiple),
            call_fn=_call_seeded if self.family.random else None,
        )


def _tensors(state_dict: StateDict) -> dict[str, Tensor]:
    return {name: value for name, value in state_dict.items() if isinstance(value, Tensor)}


def _call_seeded(network: Any, image: Tensor) -> Tensor:
    """With random routes that depend on the picture alone: same picture, same pixels."""
    content = image.detach().to("cpu", torch.float32).numpy().tobytes()
    seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
    network.generator = torch.Generator().manual_seed(seed)
    result: Tensor = network(image)
    return result
