"""`python -m mambair_cli` and the console script."""

from __future__ import annotations

import gc
import signal

from mambair_cli.process import prepare


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while modules load; then `run` takes over
    prepare()
    gc.set_threshold(50_000, 10, 10)  # modules are no garbage: looking for it took a tenth of a command's start
    from mambair_cli.cli.app import run

    run()


if __name__ == "__main__":
    main()
