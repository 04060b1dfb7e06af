"""What Python users get without asking: threads that sleep while they wait, and memory that stays."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def run(code: str, **variables: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | variables
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_the_package_prepares_the_process_before_torch_is_there() -> None:
    code = (
        "import os, sys, mambair_cli; assert 'OMP_WAIT_POLICY' not in os.environ; mambair_cli.prepare()\n"
        "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    assert run(code) == "PASSIVE False\n"
    assert run("import os; from mambair_cli import load_model; print(os.environ['OMP_WAIT_POLICY'])") == "PASSIVE\n"


def test_what_the_user_has_set_stands() -> None:
    code = "import os, mambair_cli; mambair_cli.prepare(); print(os.environ['OMP_WAIT_POLICY'])"
    assert run(code, OMP_WAIT_POLICY="ACTIVE") == "ACTIVE\n"


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux how many pages came and went")
def test_memory_that_was_used_once_is_not_asked_for_again() -> None:
    """Without it glibc gives every block of some megabytes back, and gets it again page by page."""
    code = """if True:
        import resource, sys
        import mambair_cli
        if sys.argv[1:]: mambair_cli.prepare()
        import torch
        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(20):
                torch.zeros(2**24)  # 64 MB
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        faults()
        print(faults())
    """
    plain, prepared = int(run(code)), int(run(code.replace("sys.argv[1:]", "True")))
    assert prepared < plain / 10
