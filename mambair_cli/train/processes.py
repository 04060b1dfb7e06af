"""Several processes that train one network together, as `torchrun` starts them: one per GPU, or on CPUs for a test.

Each process makes its own samples; the gradients are averaged, so that all weights stay the same. The first process
decides when to stop, measures, saves and speaks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mambair_cli.errors import UsageError


@dataclass(frozen=True)
class Processes:
    """This process, and how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that measures, saves and speaks."""
        return self.rank == 0

    def average(self, tensors: Iterable[Tensor | None]) -> None:
        """Replace each tensor by its mean over the processes; all at once, in one message."""
        present = [tensor for tensor in tensors if tensor is not None]
        if self.size == 1 or not present:
            return
        flat = torch.cat([tensor.reshape(-1).float() for tensor in present])
        dist.all_reduce(flat)
        flat /= self.size
        for tensor, mean in zip(present, flat.split([tensor.numel() for tensor in present]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def share(self, module: nn.Module) -> None:
        """Give all processes the weights and buffers that the first one has."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)

    def told(self, seconds: float, stop: bool) -> tuple[float, bool]:
        """The first process's: how long the run has taken, and whether it ends. By the host, so that no GPU waits."""
        if self.size > 1:
            numbers = torch.tensor([seconds, stop], dtype=torch.float64)
            dist.broadcast(numbers, 0)
            seconds, stop = float(numbers[0]), bool(numbers[1])
        return seconds, stop


ALONE = Processes()


@contextmanager
def connected(device: str) -> Iterator[tuple[Processes, str]]:
    """The processes `torchrun` started together, and the device of this one; without it, one on its own.

    Raises UsageError where there are more processes than GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE, device
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"torchrun starts more processes than the {torch.cuda.device_count()} GPUs here.",
                f"Take torchrun --nproc-per-node {torch.cuda.device_count()}.",
            )
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield Processes(rank, size), f"cuda:{local}" if cuda else "cpu" if device == "auto" else device
    finally:
        dist.destroy_process_group()
