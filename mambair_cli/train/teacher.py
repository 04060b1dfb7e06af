"""Imitation of a larger network (Hinton et al., 2015): its results for whole pictures are computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from mambair_cli import metrics
from mambair_cli.atomic import atomic_write
from mambair_cli.degradations import Bytes
from mambair_cli.errors import UsageError
from mambair_cli.restoring.restorer import Restorer, load_model
from mambair_cli.train.data import to_tensor
from mambair_cli.train.pictures import views
from mambair_cli.train.recipe import Recipe, Teacher


def teacher(wanted: Teacher, recipe: Recipe, device: torch.device) -> Restorer:
    """The teacher, ready to run. Raises UsageError where it does another task or scale than the recipe."""
    file = Path(wanted.model)
    restorer = (
        load_model(None, weights=file, device=str(device))
        if file.is_file()
        else load_model(wanted.model, device=str(device))
    )
    spec = restorer.spec
    if (spec.task, spec.scale) != (recipe.task, recipe.scale):
        raise UsageError(
            f"{spec.name} cannot teach {recipe.name}: it does {spec.task} x{spec.scale}, "
            f"the recipe {recipe.task} x{recipe.scale}."
        )
    return restorer


def teach(
    restorer: Restorer, small: Sequence[Bytes], folder: Path, pictures: str, progress: Callable[[int, int], None]
) -> list[Bytes]:
    """What the teacher makes of each small picture, rounded to 8 bits; kept in `folder` for when the run is resumed.

    `pictures` is the hash of the pictures.
    """
    key = hashlib.sha256(f"{restorer.sha256} {pictures}".encode()).hexdigest()
    path, scale = folder / f"taught-{key[:12]}.bin", restorer.spec.scale
    if not path.exists():
        with atomic_write(path) as file:
            for done, lq in enumerate(small, 1):
                result = restorer.restore(to_tensor(lq[None])[0])
                file.write(metrics.to_uint8(result.permute(1, 2, 0).numpy()).tobytes())
                progress(done, len(small))
    return views(
        np.memmap(path, np.uint8, "r"), [(h * scale, w * scale, c) for h, w, c in (lq.shape for lq in small)]
    )
