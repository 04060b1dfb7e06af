"""One node: restore pictures with a model by name, in tiles, with progress and a seed.

Pictures are ComfyUI's IMAGE: float32 (batch, height, width, 3) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar

import torch

import mambair_cli as mambair
from mambair_cli.models import zoo
from mambair_cli.tasks import TASKS

AUTOMATIC = "the bundled one for the task"
LARGEST_TILE, LARGEST_SEED = 4096, 2**63 - 1


def models() -> list[str]:
    """Names for the menu: those that can be fetched by name, or are here."""
    able = (spec.name for spec in zoo.zoo().values() if spec.source.bundled or spec.source.urls)
    return [AUTOMATIC, *able]


@lru_cache(maxsize=2)  # networks stay loaded from one run of a workflow to the next
def restorer(model: str, task: str, tile: int, seed: int) -> mambair.Restorer:
    spec = zoo.resolve(task) if model == AUTOMATIC else zoo.find(model)
    running = mambair.Running(tile=tile or "auto", seed=seed)
    return mambair.Restorers(running)(spec)


def progress_bar(total: int) -> Callable[[int, int], None]:
    """A bar under the node; nothing outside ComfyUI. Called with (steps done, steps in all)."""
    try:
        from comfy.utils import ProgressBar
    except ImportError:
        return lambda done, total: None
    bar = ProgressBar(total)
    return lambda done, total: bar.update_absolute(done, total)


def stop_if_cancelled() -> None:
    """Raises what ComfyUI ends a node with when its user presses Cancel."""
    try:
        from comfy.model_management import throw_exception_if_processing_interrupted
    except ImportError:
        return
    throw_exception_if_processing_interrupted()


class MambairRestore:
    """Upscale, denoise, derain, deblur, dehaze or decompress pictures."""

    CATEGORY = "image/upscaling"
    DESCRIPTION = "Restore pictures with a state-space model (MambaIR, MambaIRv2 and relatives), by its name."
    FUNCTION = "restore"
    RETURN_TYPES: ClassVar = ("IMAGE",)
    RETURN_NAMES: ClassVar = ("image",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, tuple[Any, ...]]]:  # noqa: N802 -- ComfyUI's name
        tips = {
            "task": "What the bundled model is chosen for; a model named below knows its own task.",
            "model": "Fetched once and verified. `mambair models list` describes them.",
            "tile": "Side of the tiles in pixels of the input; 0 fits them to the free memory.",
            "seed": "Of the random routes in MambaIRv2: same picture, same seed, same pixels.",
        }
        return {
            "required": {
                "image": ("IMAGE",),
                "task": (list(TASKS), {"default": "upscale", "tooltip": tips["task"]}),
                "model": (models(), {"default": AUTOMATIC, "tooltip": tips["model"]}),
                "tile": ("INT", {"default": 0, "min": 0, "max": LARGEST_TILE, "step": 32, "tooltip": tips["tile"]}),
                "seed": ("INT", {"default": 0, "min": 0, "max": LARGEST_SEED, "tooltip": tips["seed"]}),
            }
        }

    def restore(self, image: torch.Tensor, task: str, model: str, tile: int, seed: int) -> tuple[torch.Tensor]:
        """(B, H, W, 3) -> (B, H * scale, W * scale, 3) in a tuple, as ComfyUI takes results."""
        network = restorer(model, task, tile, seed)
        show = progress_bar(len(image))
        results = []
        for number, picture in enumerate(image):

            def tile_done(done: int, total: int, number: int = number) -> None:
                stop_if_cancelled()
                show(number * total + done, len(image) * total)

            lq = picture[..., :3].permute(2, 0, 1).contiguous()
            results.append(network.restore(lq, tile_done).permute(1, 2, 0))
        return (torch.stack(results),)


NODE_CLASS_MAPPINGS = {"MambairRestore": MambairRestore}
NODE_DISPLAY_NAME_MAPPINGS = {"MambairRestore": "Restore (mambair)"}
