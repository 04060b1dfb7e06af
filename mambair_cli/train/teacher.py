"""Imitation of a larger network (Hinton et al., 2015): its results for whole pictures are computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from mambair_cli import metrics
from mambair_cli.degradations import Bytes
from mambair_cli.errors import UsageError
from mambair_cli.restorer import Restorer, load_model
from mambair_cli.train.data import store
from mambair_cli.train.recipe import Recipe, Teacher


def teacher(wanted: Teacher, recipe: Recipe, device: torch.device) -> Restorer:
    """The teacher, ready to run. Raises UsageError where it does another task or scale than the recipe."""
    restorer = load_model(wanted.model, device=str(device), precision="auto")
    spec = restorer.spec
    if (spec.task, spec.scale) != (recipe.task, recipe.scale):
        raise UsageError(
            f"{spec.name} cannot teach {recipe.name}: it does {spec.task} x{spec.scale}, "
            f"the recipe {recipe.task} x{recipe.scale}."
        )
    return restorer


def teach(restorer: Restorer, small: Sequence[Bytes], progress: Callable[[int, int], None]) -> list[Bytes]:
    """What the teacher makes of each small picture, rounded to 8 bits."""

    def restored(number: int) -> Bytes:
        lq = torch.from_numpy(np.array(small[number])).permute(2, 0, 1).float() / 255
        result = metrics.to_uint8(restorer.restore(lq).permute(1, 2, 0).numpy())
        progress(number + 1, len(small))
        return result

    return store(map(restored, range(len(small))))
