"""Runs that are over in seconds: pictures to train on, a recipe, and the weights it ends with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import skimage.data
import torch
from PIL import Image

from mambair_cli.train import recipe
from mambair_cli.train.recipe import Recipe


def crops(folder: Path) -> Path:
    """Four crops of each of three photographs."""
    for name in ("astronaut", "chelsea", "coffee"):
        picture = getattr(skimage.data, name)()
        for i, (y, x) in enumerate(((0, 80), (0, 230), (150, 80), (150, 230)), 1):
            Image.fromarray(picture[y : y + 146, x : x + 150]).save(folder / f"{name}_s{i:03}.png")
    return folder


def brief(name: str = "brief", **changes: Any) -> Recipe:
    """The smoke recipe, over after 8 iterations; the other arguments replace values of its tables."""
    smoke = recipe.load_recipe("smoke")
    values = {"iterations": 8, "every": 4, **changes}

    def changed(table: Any) -> Any:
        return replace(table, **{key: value for key, value in values.items() if hasattr(table, key)})

    parts = {part: changed(getattr(smoke, part)) for part in ("data", "training", "validation")}
    return changed(replace(smoke, name=name, **parts))


def table(of: Recipe) -> dict[str, Any]:
    """As TOML would give it."""
    return {key: value for key, value in of.as_dict().items() if key != "name" and value is not None}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    return {**content["average"], **{f"raw.{name}": tensor for name, tensor in content["network"].items()}}
