"""The training loop: step, average, validate, save; ends on an iteration or on time, resumes exactly."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mambair_cli import degradations, metrics
from mambair_cli.atomic import atomic_write
from mambair_cli.degradations import Bytes
from mambair_cli.errors import BadCheckpoint, MambairError, UsageError
from mambair_cli.train.recipe import Recipe, Training

log = logging.getLogger("mambair")

Pair = tuple[Tensor, Bytes]
Report = Callable[["State", float, float], None]  # after every step: the run, its progress in [0, 1], the loss


@dataclass
class State:
    """All that changes during a run; what a checkpoint holds."""

    network: nn.Module
    average: AveragedModel
    optimizer: Optimizer
    init: dict[str, Any]  # where the first weights came from, for the card
    iteration: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)  # since the last validation
    history: list[dict[str, float]] = field(default_factory=list)  # a row per validation

    @classmethod
    def fresh(cls, network: nn.Module, training: Training, init: dict[str, Any]) -> State:
        average = AveragedModel(network, multi_avg_fn=moving_average(training.ema))
        kind = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
        decay = training.weight_decay
        optimizer = kind(network.parameters(), training.rate, training.betas, weight_decay=decay)
        return cls(network, average, optimizer, init)

    def save(self, path: Path, recipe: Recipe, data: str) -> None:
        """Write a checkpoint, whole or not at all."""
        content = {
            "recipe": recipe.as_dict(),
            "data": data,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "init": self.init,
            "iteration": self.iteration,
            "seconds": self.seconds,
            "losses": self.losses,
            "history": self.history,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        with atomic_write(path) as file:
            torch.save(content, file)

    def load(self, path: Path, recipe: Recipe, data: str) -> None:
        """Continue from a checkpoint. Raises UsageError if it belongs to another recipe or to other pictures."""
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            same = {"recipe": content["recipe"] == recipe.as_dict(), "pictures": content["data"] == data}
        except FileNotFoundError as error:
            raise UsageError(f"Nothing to resume: there is no {path}.") from error
        except Exception as error:  # torch.load promises no types
            raise BadCheckpoint(f"Cannot read {path}: {error}.") from error
        if other := [what for what, equal in same.items() if not equal]:
            raise UsageError(
                f"{path} belongs to a run with another set of {' and '.join(other)}.",
                "Resume with what the run began with, or begin a new one with --init and another --out.",
            )
        self.network.load_state_dict(content["network"])
        self.average.load_state_dict(content["average"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.init, self.iteration, self.seconds = content["init"], content["iteration"], content["seconds"]
        self.losses, self.history = content["losses"], content["history"]
        torch.set_rng_state(content["random"])
        if torch.cuda.is_available() and content["random_cuda"]:
            torch.cuda.set_rng_state_all(content["random_cuda"])


def run(
    state: State,
    recipe: Recipe,
    batches: Callable[[int], Iterator[tuple[Tensor, ...]]],
    pairs: Sequence[Pair],
    save: Callable[[State], None],
    report: Report,
    *,
    device: torch.device,
    bf16: bool = False,
    minutes: float | None = None,
) -> None:
    """Train until `recipe.training.iterations` are done or, if given, `minutes` of work are over.

    `batches(i)` yields the batches from number i on. Every `validation.every` iterations and at the end the averaged
    weights are measured and `save` is called. SIGINT and SIGTERM wait until the step at hand is done and the state
    saved. Raises MambairError when loss, gradient or score stop being numbers; nothing is saved then.
    """
    began = time.monotonic() - state.seconds

    def progress() -> float:
        return state.seconds / (60 * minutes) if minutes is not None else state.iteration / recipe.training.iterations

    with deferred_interrupt() as interrupted:
        feed = batches(state.iteration)
        while progress() < 1:
            rate = recipe.training.rate * schedule(recipe.training, progress())
            loss = step(state, next(feed), recipe, rate, device, bf16)
            state.losses.append(loss)
            state.iteration += 1
            state.seconds = time.monotonic() - began
            stop = interrupted.is_set()
            if state.iteration % recipe.validation.every == 0 or progress() >= 1:
                psnr = validate(state.average.module, recipe, pairs, device)
                finite(psnr, "The score", state)
                row = {"iteration": state.iteration, "seconds": round(state.seconds, 1), "rate": rate}
                state.history.append({**row, "loss": float(np.mean(state.losses)), "psnr": psnr})
                state.losses.clear()
                save(state)
            elif stop:
                save(state)
            report(state, progress(), loss)
            if stop:
                log.warning("Stopped and saved at iteration %d; --resume continues from there.", state.iteration)
                break


def step(
    state: State, batch: Sequence[Tensor], recipe: Recipe, rate: float, device: torch.device, bf16: bool
) -> float:
    """One gradient step on `batch` = lq, hq[, taught]; returns the loss."""
    lq, hq, *taught = (tensor.to(device) for tensor in batch)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        result = state.network(lq)
    loss = LOSSES[recipe.training.loss](result.float(), hq)
    if recipe.teacher and taught:
        share = recipe.teacher.weight
        loss = (1 - share) * loss + share * LOSSES[recipe.training.loss](result.float(), taught[0])
    state.optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(state.network.parameters(), recipe.training.clip)
    value = loss.item()
    finite(value, "The loss", state)
    finite(norm.item(), "The gradient", state)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    state.average.update_parameters(state.network)
    return value


def moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """An exponential moving average that forgets faster at first, so that it never lags behind by the whole start."""

    def update(averaged: Any, current: Any, steps: Any) -> None:
        done = int(steps)
        get_ema_multi_avg_fn(min(decay, (1 + done) / (10 + done)))(averaged, current, steps)

    return update


def charbonnier(result: Tensor, truth: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Mean of sqrt(error^2 + epsilon^2): L1 with a round bottom (Charbonnier et al., ICIP 1994)."""
    return torch.sqrt((result - truth) ** 2 + epsilon**2).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": F.l1_loss, "charbonnier": charbonnier}


def schedule(training: Training, progress: float) -> float:
    """Share of the peak rate at `progress` in [0, 1]: a linear rise, then a cosine to 1 % or halves at milestones."""
    if progress < training.warmup:
        return max(progress / training.warmup, 0.01)
    if training.schedule == "multistep":
        return 0.5 ** sum(progress >= milestone for milestone in training.milestones)
    done = (progress - training.warmup) / (1 - training.warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def validate(network: nn.Module, recipe: Recipe, pairs: Sequence[Pair], device: torch.device) -> float:
    """Mean PSNR in dB of the results, computed in float32 and rounded to 8 bits; NaN where one is not finite."""
    training = network.training
    network.eval()
    scores = []
    with torch.inference_mode():
        for lq, hq in pairs:
            result = network(lq.to(device))[0].permute(1, 2, 0).float().cpu().numpy()
            clean = np.isfinite(result).all()
            scores.append(score(metrics.to_uint8(result), hq, recipe) if clean else math.nan)
    network.train(training)
    return float(np.mean(scores))


def baseline(recipe: Recipe, pairs: Sequence[Pair]) -> float:
    """Mean PSNR in dB of doing nothing: bicubic enlargement, or the degraded picture itself."""
    scores = []
    for lq, hq in pairs:
        nothing = metrics.to_uint8(lq[0].permute(1, 2, 0).numpy())
        scores.append(score(degradations.bicubic(nothing, hq.shape[:2]), hq, recipe))
    return float(np.mean(scores))


def score(result: Bytes, hq: Bytes, recipe: Recipe) -> float:
    """PSNR by the task's protocol: Y for upscaling (border cropped), deraining and JPEG, RGB for denoising."""
    crop = recipe.scale if recipe.task == "upscale" else 0
    return metrics.psnr(result, hq, channel="rgb" if recipe.task == "denoise" else "y", crop=crop)


def finite(value: float, what: str, state: State) -> None:
    if not math.isfinite(value):
        raise MambairError(
            f"{what} became {value} at iteration {state.iteration + 1}.",
            "The last checkpoint is from before and good. Try a lower training.rate or training.clip.",
        )


@contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Within, the first SIGINT or SIGTERM only sets the event; it takes effect at the end. A second one does at once.

    Works in the main thread; elsewhere signals do not arrive, and nothing changes.
    """
    event, arrived = threading.Event(), []
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        restore()
        arrived.append(number)
        event.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        restore()
    for number in arrived:
        signal.raise_signal(number)
