"""`python -m mambair_cli` and the console script."""

from __future__ import annotations

import ctypes
import os
import signal

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MAP, KEEP = 2**28, 2**30  # bytes: larger blocks are mapped apart; more free memory than this is given back


def _keep_freed_memory() -> None:
    """Let glibc reuse the feature maps of one layer for the next.

    It would give blocks of some megabytes back to the system when they are freed, and the system would hand them out
    again page by page, zeroed: on maps of 512x512 pixels that takes as long as the network itself.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # another system, another malloc
        return
    libc.mallopt(M_TRIM_THRESHOLD, KEEP)
    libc.mallopt(M_MMAP_THRESHOLD, MAP)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while modules load; then `run` takes over
    # OpenMP's threads spin while they wait; beside any other work on the machine that costs up to twenty times the
    # time, asleep at most a tenth. Read once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _keep_freed_memory()
    from mambair_cli.cli.app import run

    run()


if __name__ == "__main__":
    main()
