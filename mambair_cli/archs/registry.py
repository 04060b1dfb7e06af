"""Architectures by name, and what their published constructor arguments mean here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

from torch import nn

from mambair_cli.archs.mambacsr import MambaCSR
from mambair_cli.archs.mambair import MambaIR
from mambair_cli.archs.mambair_unet import MambaIRUNet
from mambair_cli.archs.mambairv2 import MambaIRv2, MambaIRv2Light
from mambair_cli.archs.vmambair import DERAIN, REALSR, SISR, VmambaIR
from mambair_cli.errors import UsageError

ARCHS: dict[str, Callable[..., nn.Module]] = {
    "mambair": MambaIR,
    "mambair_unet": MambaIRUNet,
    "mambairv2": MambaIRv2,
    "mambairv2_light": MambaIRv2Light,
    "vmambair_derain": partial(VmambaIR, DERAIN, False),
    "vmambair_sisr": partial(VmambaIR, SISR, True),
    "vmambair_realsr": partial(VmambaIR, REALSR, True),
    "mambacsr": MambaCSR,
}

# Published arguments that change nothing about the result, for networks that do not take them.
WITHOUT_EFFECT = frozenset(
    {"drop_path_rate", "drop_rate", "heads", "img_size", "interval", "norm_layer", "num_heads", "patch_size"}
    | {"scale", "use_checkpoint", "window_size"}
)
# Published arguments of which no published model uses another value.
ONLY_VALUE: dict[str, object] = {
    "LayerNorm_type": "WithBias",
    "ape": False,
    "bias": False,
    "dual_interleaved_scan": True,
    "dual_pixel_task": False,
    "img_range": 1,
    "patch_norm": True,
    "qkv_bias": True,
    "resi_connection": "1conv",
}


def build(arch: str, **kwargs: object) -> nn.Module:
    """A freshly initialised network, in training mode. `kwargs` are the published constructor arguments.

    Raises UsageError on an unknown architecture, on an unknown argument, and on values that no published model
    has and this package does not implement; ValueError where the values contradict each other.
    """
    if arch not in ARCHS:
        raise UsageError(f"There is no architecture {arch!r}.", f"Known: {', '.join(ARCHS)}.")
    taken = inspect.signature(ARCHS[arch]).parameters
    for name, value in kwargs.items():
        if name in taken or name in WITHOUT_EFFECT:
            continue
        if name not in ONLY_VALUE:
            raise UsageError(f"{arch} has no argument {name!r}.", f"It takes {', '.join(taken)}.")
        if value != ONLY_VALUE[name]:
            raise UsageError(f"{arch} is implemented for {name}={ONLY_VALUE[name]!r} only, not {value!r}.")
    return ARCHS[arch](**{name: value for name, value in kwargs.items() if name in taken})
