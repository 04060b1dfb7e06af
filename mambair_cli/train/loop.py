"""The training loop of a stage: step, average, validate, save; ends on an iteration or on time."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambair_cli import degradations, metrics
from mambair_cli.degradations import Bytes
from mambair_cli.tasks import TASKS
from mambair_cli.train.outcomes import Outcomes, finite
from mambair_cli.train.processes import ALONE, Processes
from mambair_cli.train.recipe import Recipe, Training
from mambair_cli.train.rival import enlarge
from mambair_cli.train.state import State

log = logging.getLogger("mambair")

ValidationPair = tuple[Tensor, Bytes]
EQUAL = 100.0  # dB; of 8-bit pictures no other pair comes near
AfterStep = Callable[[State, float, float], None]  # after every step: the run, its progress in [0, 1], the loss


def run(
    state: State,
    recipe: Recipe,
    batches: Callable[[int], Iterator[tuple[Tensor, ...]]],
    pairs: Sequence[ValidationPair],
    save: Callable[[State], None],
    report: AfterStep,
    *,
    device: torch.device,
    bf16: bool = False,
    minutes: float | None = None,
    processes: Processes = ALONE,
) -> None:
    """Train one stage until `recipe.training.iterations` are done or, if given, `minutes` of work are over.

    `batches(i)` yields the batches from number i on. Every `validation.every` iterations and at the end the averaged
    weights are measured and `save` is called, by the first process only. SIGINT and SIGTERM wait until the step at
    hand is done and the state saved. Raises MambairError when loss, gradient or score stop being numbers; nothing is
    saved then.
    """
    started = time.monotonic() - state.seconds
    first_iteration, first_second = state.began

    def progress() -> float:
        if minutes is not None:
            return (state.seconds - first_second) / (60 * minutes)
        return (state.iteration - first_iteration) / recipe.training.iterations

    outcomes = Outcomes.on(device)
    with deferred_interrupt() as interrupted, precisely(benchmark=True):
        feed = batches(state.iteration)
        while progress() < 1:
            share = schedule(recipe.training, progress())
            outcome = step(state, next(feed), recipe, share, device, bf16, processes)
            state.iteration += 1
            outcomes.add(state.iteration, outcome)
            state.seconds, stop = processes.told(time.monotonic() - started, interrupted.is_set())
            measured = state.iteration % recipe.validation.every == 0 or progress() >= 1
            if outcomes.due or measured or stop:
                state.losses += outcomes.settle()
            if processes.first and measured:
                psnr = validate(state.average.module, recipe, pairs, device)
                finite(psnr, "The score", state.iteration + 1)
                row = {"iteration": state.iteration, "seconds": round(state.seconds, 1)}
                row |= {"stage": state.stage + 1, "rate": recipe.training.rate * share}
                state.history.append({**row, "loss": float(np.mean(state.losses)), "psnr": psnr})
                state.losses.clear()
                save(state)
            elif processes.first and stop:
                save(state)
            report(state, min(progress(), 1.0), outcomes.loss)
            if stop:
                log.warning("Stopped and saved at iteration %d; --resume continues from there.", state.iteration)
                break


def precisely(benchmark: bool = False) -> AbstractContextManager[None]:
    """Float32 that is float32: unless told not to, cuDNN convolves in TF32, with 10 bits.

    `benchmark`: it may look for the fastest way, which pays where all inputs are equally large; runs then differ.
    """
    return torch.backends.cudnn.flags(
        enabled=True, benchmark=benchmark, deterministic=not benchmark, allow_tf32=False
    )


def step(
    state: State,
    batch: Sequence[Tensor],
    recipe: Recipe,
    share: float,
    device: torch.device,
    bf16: bool,
    processes: Processes = ALONE,
) -> Tensor:
    """One gradient step on `batch` = lq, hq[, taught] at `share` of the peak rates.

    Returns the pixels' loss and the norm of the gradient (0 where there was none), still on the device.
    """
    lq, hq, *taught = (tensor.to(device, non_blocking=True) for tensor in batch)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        result = state.network(lq)
    result = result.float()
    loss = LOSSES[recipe.training.loss](result, hq)
    if recipe.teacher and taught:
        weight = recipe.teacher.weight
        loss = (1 - weight) * loss + weight * LOSSES[recipe.training.loss](result, taught[0])
    mean = loss.detach().clone()
    if rival := state.rival:
        enlarged = enlarge(lq, hq)
        seen = rival.learn(result, hq, enlarged, share, processes)
        if state.iteration - state.began[0] < rival.table.alone:
            processes.average([mean])
            return torch.stack([mean, torch.zeros_like(mean)])
        loss = rival.table.pixels * loss + rival.objection(result, hq, enlarged, recipe.scale, seen)
    state.optimizer.zero_grad()
    loss.backward()
    processes.average([mean, *(parameter.grad for parameter in state.network.parameters())])
    norm = nn.utils.clip_grad_norm_(state.network.parameters(), recipe.training.clip)
    for group in state.optimizer.param_groups:
        group["lr"] = recipe.training.rate * share
    state.optimizer.step()
    state.average.update_parameters(state.network)
    return torch.stack([mean, norm])


def charbonnier(result: Tensor, truth: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Mean of sqrt(error^2 + epsilon^2): L1 with a round bottom (Charbonnier et al., ICIP 1994)."""
    return torch.sqrt((result - truth) ** 2 + epsilon**2).mean()


def negative_psnr(result: Tensor, truth: Tensor, floor: float = 1e-5) -> Tensor:
    """Minus the mean PSNR in dB of the samples, none above 50: each counts alike, however much is wrong with it."""
    errors = (result - truth).square().flatten(1).mean(1)
    return 10 * torch.log10(errors + floor).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "psnr": negative_psnr,
    "charbonnier": charbonnier,
}


def schedule(training: Training, progress: float) -> float:
    """Share of the peak rate at `progress` in [0, 1]: a linear rise, then a cosine to 1 % or halves at milestones."""
    if progress < training.warmup:
        return max(progress / training.warmup, 0.01)
    if training.schedule == "multistep":
        return 0.5 ** sum(progress >= milestone for milestone in training.milestones)
    done = (progress - training.warmup) / (1 - training.warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def validate(network: nn.Module, recipe: Recipe, pairs: Sequence[ValidationPair], device: torch.device) -> float:
    """Mean PSNR in dB of the results, computed in float32 and rounded to 8 bits; NaN where one is not finite."""
    training = network.training
    network.eval()
    scores = []
    with torch.inference_mode(), precisely():
        for lq, hq in pairs:
            result = network(lq.to(device))[0].permute(1, 2, 0).float().cpu().numpy()
            clean = np.isfinite(result).all()
            scores.append(score(metrics.to_uint8(result), hq, recipe) if clean else math.nan)
    network.train(training)
    return float(np.mean(scores))


def baseline(recipe: Recipe, pairs: Sequence[ValidationPair]) -> float:
    """Mean PSNR in dB of doing nothing: bicubic enlargement, or the degraded picture itself."""
    scores = []
    for lq, hq in pairs:
        nothing = metrics.to_uint8(lq[0].permute(1, 2, 0).numpy())
        scores.append(score(degradations.bicubic(nothing, hq.shape[:2]), hq, recipe))
    return float(np.mean(scores))


def score(result: Bytes, hq: Bytes, recipe: Recipe) -> float:
    """PSNR by the task's protocol: Y for upscaling (border cropped), deraining and JPEG, RGB for denoising.

    Equal pictures (a flat one that was only enlarged, say) have `EQUAL` dB, so that the mean stays a number.
    """
    protocol = TASKS[recipe.task].protocol(recipe.scale)
    return min(metrics.psnr(result, hq, channel=protocol.channel, crop=protocol.crop), EQUAL)


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
