"""The architectures this package knows. A new one is a file beside this one, and its records here."""

from __future__ import annotations

from torch import nn

from mambair_cli.archs import dvmsr, eamamba, evssm, mair, mambacsr, mambair, mambairv2, pfvm, vmambair
from mambair_cli.archs.family import Architecture
from mambair_cli.errors import UsageError

RECORDS = (
    *(mambair.MAMBAIR, mambair.UNET),
    *(mambairv2.MAMBAIRV2, mambairv2.LIGHT),
    *(vmambair.DERAIN, vmambair.SISR, vmambair.REALSR),
    mambacsr.MAMBACSR,
    *(dvmsr.RECORD, pfvm.RECORD),
    *(mair.MAIR, mair.UNET),
    evssm.RECORD,
    *(eamamba.UNET, eamamba.SR),
)
ARCHITECTURES: dict[str, Architecture] = {record.name: record for record in RECORDS}


def find(arch: str) -> Architecture:
    """What is known about an architecture. Raises UsageError on an unknown one."""
    if arch not in ARCHITECTURES:
        raise UsageError(f"There is no architecture {arch!r}.", f"Known: {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[arch]


def build(arch: str, **kwargs: object) -> nn.Module:
    """A freshly initialised network, in training mode. `kwargs` are the published constructor arguments.

    Raises UsageError on an unknown architecture, on an unknown argument, and on values that no published model
    has and this package does not implement; ValueError where the values contradict each other.
    """
    return find(arch).build(kwargs)
