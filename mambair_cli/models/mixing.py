"""Weights between those of two networks of one architecture: between faithful and sharp, say.

Interpolating weights gives results between those of both without the artefacts of either's extremes (Wang et al.,
"ESRGAN", ECCVW 2018, section 3.4), where one was fine-tuned from the other.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mambair_cli.errors import BadCheckpoint


def mixed(first: Mapping[str, Tensor], second: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """(1 - share) of the first weights and `share` of the second, float32; share in [0, 1].

    Raises BadCheckpoint where the two are no weights of one network, ValueError for a share outside.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share is from 0 to 1, not {share}")
    other = sorted({*first} ^ {*second}) or [name for name in first if first[name].shape != second[name].shape]
    if other:
        raise BadCheckpoint(
            f"These weights cannot be mixed: they differ in {other[0]}.", "Both need one architecture."
        )
    return {name: (1 - share) * first[name].float() + share * second[name].float() for name in first}
