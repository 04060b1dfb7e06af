"""How this process waits and keeps memory: what a restoration wants of the threads and of the allocator."""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MAP, KEEP = 2**28, 2**30  # bytes: larger blocks are mapped apart; more free memory than this is given back


def prepare() -> None:
    """Make restorations on a CPU as quick in this process as on the command line; once is enough.

    OpenMP's threads are to sleep while they wait: spinning, beside any other work on the machine, costs up to twenty
    times the time, asleep at most a tenth. OpenMP asks once, when torch is imported, so call this before; a variable
    OMP_WAIT_POLICY that is set stands.

    glibc is to reuse the feature maps of one layer for the next. It would give blocks of some megabytes back to the
    system when they are freed, and the system would hand them out again page by page, zeroed: on maps of 512x512
    pixels that takes as long as the network itself. Up to a gigabyte that was in use once stays with the process.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # another system, another malloc
        return
    libc.mallopt(M_TRIM_THRESHOLD, KEEP)
    libc.mallopt(M_MMAP_THRESHOLD, MAP)
