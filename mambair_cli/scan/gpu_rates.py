"""What a GPU does at most in a second, in registers alone: loops of nothing but multiply-adds, or exponentials."""

# What a kernel is given has types of Triton only, and tuples in kernels grow by concatenation, not by unpacking:
# mypy: disable-error-code="no-untyped-def,assignment,var-annotated"
# ruff: noqa: RUF005

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

BLOCK, WARPS, CHAINS = (
    256,
    8,
    16,
)  # numbers that a thread works on side by side: more than the latency of an operation
PROGRAMS_PER_SM = 8


@triton.jit(do_not_specialize=["repeats"])
def loop(out, repeats, factor, EXPONENTIAL: tl.constexpr, CHAINS: tl.constexpr, BLOCK: tl.constexpr):
    """`repeats` times in every thread, on each of its numbers: x -> factor x + 1, or x -> 2^-x."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    numbers = ()
    for c in tl.static_range(CHAINS):
        numbers = numbers + (i * 1e-6 + c,)
    for _ in range(repeats):
        after = ()
        for c in tl.static_range(CHAINS):
            if EXPONENTIAL:
                after = after + (tl.exp2(-numbers[c]),)
            else:
                after = after + (numbers[c] * factor + 1.0,)
        numbers = after
    total = tl.zeros([BLOCK], tl.float32)
    for c in tl.static_range(CHAINS):
        total += numbers[c]
    tl.store(out + i, total)


def per_second(
    device: torch.device, exponential: bool, seconds: Callable[[Callable[[], object]], float], repeats: int = 20_000
) -> float:
    """Multiply-adds or exponentials per second; `seconds` says how long a call takes."""
    programs = PROGRAMS_PER_SM * torch.cuda.get_device_properties(device).multi_processor_count
    out = torch.empty(programs * BLOCK, device=device)
    sizes = dict(CHAINS=CHAINS, BLOCK=BLOCK, num_warps=WARPS, enable_fp_fusion=True)
    with torch.cuda.device_of(out):
        took = seconds(lambda: loop[(programs,)](out, repeats, 0.5, EXPONENTIAL=exponential, **sizes))
    return out.numel() * CHAINS * repeats / took
