"""All that changes during a run, and the checkpoint that holds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mambair_cli.atomic import atomic_write
from mambair_cli.errors import BadCheckpoint, UsageError
from mambair_cli.models.tensors import check_sums
from mambair_cli.train.recipe import Recipe
from mambair_cli.train.rival import Rival

ANEW = "Begin a new run in another --out; with --init FILE from a model that was exported, if there is one."


@dataclass
class State:
    """The weights, their average, the optimiser, perhaps a discriminator, and how far the run is."""

    network: nn.Module
    average: AveragedModel
    optimizer: Optimizer
    rival: Rival | None
    init: dict[str, Any]  # where the first weights came from, for the card
    first: int = 0  # stage that the run began with
    stage: int = 0
    began: tuple[int, float] = (0, 0.0)  # iteration and seconds when the stage began
    iteration: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)  # since the last validation
    history: list[dict[str, float]] = field(default_factory=list)  # a row per validation

    @classmethod
    def fresh(cls, network: nn.Module, part: Recipe, init: dict[str, Any]) -> State:
        """The state before the first step of a stage, with the network's weights as they are."""
        training, device = part.training, next(network.parameters()).device
        average = AveragedModel(network)
        average.multi_avg_fn = moving_average(training.ema, average)
        kind = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
        decay = training.weight_decay
        optimizer = kind(network.parameters(), training.rate, training.betas, weight_decay=decay)
        rival = Rival.fresh(part.adversarial, device) if part.adversarial else None
        return cls(network, average, optimizer, rival, init)

    def advance(self, part: Recipe) -> None:
        """Go on to the next stage, `part`: from the averaged weights, with a new optimiser and a new average."""
        self.network.load_state_dict(self.average.module.state_dict())
        new = State.fresh(self.network, part, self.init)
        self.average, self.optimizer, self.rival = new.average, new.optimizer, new.rival
        self.stage, self.began = self.stage + 1, (self.iteration, self.seconds)

    def save(self, path: Path, recipe: Recipe, data: str) -> None:
        """Write a checkpoint, whole or not at all."""
        content = {
            "recipe": recipe.as_dict(),
            "data": data,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rival": self.rival and self.rival.state_dict(),
            "init": self.init,
            "first": self.first,
            "stage": self.stage,
            "began": self.began,
            "iteration": self.iteration,
            "seconds": self.seconds,
            "losses": self.losses,
            "history": self.history,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        with atomic_write(path) as file:
            torch.save(content, file)

    @classmethod
    def load(cls, path: Path, network: nn.Module, recipe: Recipe, data: str) -> State:
        """Continue from a checkpoint. Raises UsageError if it belongs to another recipe or to other pictures.

        Raises BadCheckpoint where it is damaged.
        """
        try:
            check_sums(path, path)
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            same = {"recipe": content["recipe"] == recipe.as_dict(), "pictures": content["data"] == data}
        except FileNotFoundError as error:
            raise UsageError(f"Nothing to resume: there is no {path}.") from error
        except BadCheckpoint as error:
            raise BadCheckpoint(error.message, ANEW) from error
        except Exception as error:  # torch.load promises no types
            raise BadCheckpoint(f"Cannot read {path}: {_brief(error)}.", ANEW) from error
        if other := [what for what, equal in same.items() if not equal]:
            raise UsageError(
                f"{path} belongs to a run with another set of {' and '.join(other)}.",
                "Resume with what the run began with, or begin a new one with --init and another --out.",
            )
        try:
            return cls._restored(content, network, recipe)
        except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise BadCheckpoint(f"{path} is damaged: {_brief(error)}.", ANEW) from error

    @classmethod
    def _restored(cls, content: Mapping[str, Any], network: nn.Module, recipe: Recipe) -> State:
        state = cls.fresh(network, recipe.parts()[content["stage"]], content["init"])
        state.network.load_state_dict(content["network"])
        if not all(tensor.isfinite().all() for tensor in state.network.state_dict().values()):
            raise ValueError("not all of its weights are numbers")
        state.average.load_state_dict(content["average"])
        state.optimizer.load_state_dict(content["optimizer"])
        if state.rival:
            state.rival.load_state_dict(content["rival"])
        state.first, state.stage, state.began = content["first"], content["stage"], tuple(content["began"])
        state.iteration, state.seconds = content["iteration"], content["seconds"]
        state.losses, state.history = content["losses"], content["history"]
        torch.set_rng_state(content["random"])
        if torch.cuda.is_available() and content["random_cuda"]:
            torch.cuda.set_rng_state_all(content["random_cuda"])
        return state


def _brief(error: Exception) -> str:
    """In a line: PyTorch lists every tensor."""
    text = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
    return " ".join(text.split())[:200].rstrip(".:")


def moving_average(decay: float, average: AveragedModel) -> Callable[[Any, Any, Any], None]:
    """An exponential moving average that forgets faster at first, so that it never lags behind by the whole start."""

    def update(averaged: Any, current: Any, steps: Any) -> None:
        done = int(average.n_averaged)  # on the host; `steps` is a copy on the device, which would have to be awaited
        get_ema_multi_avg_fn(min(decay, (1 + done) / (10 + done)))(averaged, current, steps)

    return update
