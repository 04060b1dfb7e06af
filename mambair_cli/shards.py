"""One of N machines that share a folder's work without knowing of each other: which pictures are its own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mambair_cli.errors import UsageError


@dataclass(frozen=True)
class Scheduler:
    """How something that starts many equal jobs tells each of them its number, by environment variables."""

    name: str
    index: str
    count: str | None = None  # None: it does not say how many there are
    first: str | None = None  # variable of the lowest number; without it numbers begin at `base`
    step: str | None = None
    base: int = 0


# The first of which the index is set. Those within others come first: processes of a job before the job in its array.
SCHEDULERS = (
    Scheduler("torchrun", "RANK", "WORLD_SIZE"),
    Scheduler("Kubernetes", "JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"),  # the count as the manifest passes it on
    Scheduler(
        "SLURM's array",
        "SLURM_ARRAY_TASK_ID",
        "SLURM_ARRAY_TASK_COUNT",
        "SLURM_ARRAY_TASK_MIN",
        "SLURM_ARRAY_TASK_STEP",
    ),
    Scheduler("srun", "SLURM_PROCID", "SLURM_NTASKS"),
    Scheduler("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    Scheduler("MPI", "PMI_RANK", "PMI_SIZE"),
    Scheduler("AWS Batch", "AWS_BATCH_JOB_ARRAY_INDEX", "AWS_BATCH_JOB_ARRAY_SIZE"),
    Scheduler("Cloud Run", "CLOUD_RUN_TASK_INDEX", "CLOUD_RUN_TASK_COUNT"),
    Scheduler("Google Batch", "BATCH_TASK_INDEX", "BATCH_TASK_COUNT"),
    Scheduler("Azure Batch", "AZ_BATCH_TASK_INDEX", "AZ_BATCH_TASK_COUNT"),
    Scheduler("PBS", "PBS_ARRAY_INDEX"),
    Scheduler("GNU parallel", "PARALLEL_SEQ", base=1),
)


@dataclass(frozen=True)
class Shard:
    """The `index`-th (from 1) of `count` parts of all pictures, by a hash of their names.

    What a name's part is depends on nothing else: every picture is in exactly one part, in whatever order and on
    whichever machine a folder is listed. Parts are about equal, as names are many.
    """

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise UsageError(f"There is no part {self.index} of {self.count}.", "Parts are 1/N to N/N.")

    def holds(self, name: str) -> bool:
        """Whether the picture of that name, relative to the folder that was named, belongs to this part."""
        digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.index - 1


WHOLE = Shard()


def parse(text: str, environment: Mapping[str, str]) -> Shard:
    """The part that `text` names. Raises UsageError.

    "2/8"; "auto": by the variables of the scheduler that started this; "auto/8": where those do not say how many.
    """
    match = re.fullmatch(r"(auto|\d{1,9})(?:/(\d{1,9}))?", text.strip())
    if not match or (match[1] != "auto" and match[2] is None):
        raise UsageError(f"--shard {text} makes no sense", "I/N, as in 2/8, or auto where a scheduler tells.")
    if match[1] != "auto":
        return Shard(int(match[1]), int(match[2]))
    scheduler = next((known for known in SCHEDULERS if known.index in environment), None)
    if scheduler is None:
        names = ", ".join(known.index for known in SCHEDULERS)
        raise UsageError("--shard auto: no scheduler tells which part this is", f"I/N, or one of: {names}.")
    count = match[2] or environment.get(scheduler.count or "")
    if count is None:
        raise UsageError(f"{scheduler.index} says which part this is, nothing of how many", "Say it: --shard auto/N.")
    try:
        first = int(environment.get(scheduler.first or "", scheduler.base))
        step = int(environment.get(scheduler.step or "", 1))
        return Shard((int(environment[scheduler.index]) - first) // step + 1, int(count))
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError(f"--shard auto: the variables of {scheduler.name} are no numbers") from error
