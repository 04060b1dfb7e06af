"""The scan as an operator of torch, `torch.ops.mambair.scan`: what `torch.compile` and `torch.export` see of it.

Traced code holds one opaque call that a back end answers at run time. Code that is not traced goes to the back end
directly, which saves the dispatch. Around the scan, traced networks consist of plain PyTorch (`tracing`), which
compilers fuse by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from mambair_cli.scan import standard
from mambair_cli.scan.backend import ScanInputs

Run = Callable[[ScanInputs, "str | None"], Tensor]

ARGUMENTS = (
    "Tensor u, Tensor? delta, Tensor proj, Tensor? dt_weight, Tensor? dt_bias, Tensor A, Tensor? D, Tensor? orders, "
    "bool softplus, bool reduce, str backend"
)


def tracing() -> bool:
    """Whether `torch.compile` or `torch.export` looks on: nothing native may run then, as they cannot see into it."""
    return torch.compiler.is_compiling() or standard.active()


@contextmanager
def lasting() -> Iterator[None]:
    """For tensors that are kept for later calls: what is made at inference or while something is traced must also
    serve training and what is not traced."""
    with _disable_current_modes(), torch.inference_mode(False):
        yield


def operator(run: Run) -> Run:
    """Register `run` as the operator, with its shapes and its gradient; returns the function that calls it.

    The gradient runs the scan again, this time followed by autograd: an operator can keep nothing for its backward
    but tensors that its caller sees.
    """

    def scan(*arguments: object) -> Tensor:
        *fields, backend = arguments
        return run(ScanInputs(*fields), str(backend) or None).contiguous()  # type: ignore[arg-type]

    def gradients(grad: Tensor, *arguments: object) -> list[Tensor]:
        *fields, backend = arguments
        # Operators run below autograd; this one has to come back up to it.
        below = torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradOther, False)
        with below, torch.enable_grad():
            inputs = ScanInputs(*fields).each(_leaf)  # type: ignore[arg-type]
            leaves = _differentiable(inputs)
            results = torch.autograd.grad(run(inputs, str(backend) or None), leaves, grad)
        return [result.contiguous() for result in results]

    scan_op = torch.library.custom_op("mambair::scan", scan, mutates_args=(), schema=f"({ARGUMENTS}) -> Tensor")
    gradients_op = torch.library.custom_op(
        "mambair::scan_gradients", gradients, mutates_args=(), schema=f"(Tensor grad, {ARGUMENTS}) -> Tensor[]"
    )

    @scan_op.register_fake
    def _(*arguments: object) -> Tensor:
        return ScanInputs(*arguments[:-1]).blank()  # type: ignore[arg-type]

    @gradients_op.register_fake
    def _(grad: Tensor, *arguments: object) -> list[Tensor]:
        inputs = ScanInputs(*arguments[:-1])  # type: ignore[arg-type]
        return [t.new_empty(t.shape) for t in _differentiable(inputs)]

    def setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*inputs[:8])
        ctx.options = inputs[8:]

    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        tensors = ctx.saved_tensors
        each = iter(gradients_op(grad, *tensors, *ctx.options))
        given = [None if t is None or not t.is_floating_point() else next(each) for t in tensors]
        return *given, None, None, None

    scan_op.register_autograd(backward, setup_context=setup)
    return lambda inputs, name: scan_op(*inputs, name or "")


def _leaf(t: Tensor) -> Tensor:
    return t.detach().requires_grad_(t.is_floating_point())


def _differentiable(inputs: ScanInputs) -> list[Tensor]:
    return [t for t in inputs.tensors if t is not None and t.is_floating_point()]
