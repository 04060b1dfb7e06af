"""The true command line, in this process: arguments in, exit status and streams out."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from mambair_cli.cli.app import run


@dataclass(frozen=True)
class Outcome:
    status: int
    out: bytes
    err: str


Mambair = Callable[..., Outcome]


def mambair(*args: object, stdin: bytes = b"", capture: pytest.CaptureFixture[bytes]) -> Outcome:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(stdin))
    capture.readouterr()
    try:
        with pytest.raises(SystemExit) as ended:
            run([str(arg) for arg in args])
    finally:
        sys.stdin = before
        for number, handler in handlers.items():
            signal.signal(number, handler)
    streams = capture.readouterr()
    return Outcome(int(ended.value.code or 0), streams.out, streams.err.decode())
