"""`python -m mambair_cli` and the console script."""

from __future__ import annotations

import os
import signal


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while modules load; then `run` takes over
    # OpenMP's threads spin while they wait; beside any other work on the machine that costs up to twenty times the
    # time, asleep at most a tenth. Read once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from mambair_cli.cli.app import run

    run()


if __name__ == "__main__":
    main()
