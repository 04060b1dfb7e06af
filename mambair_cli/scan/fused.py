"""What stands around the scan in every block, in one pass over memory each where the native kernel is there.

On a CPU with the kernel these run natively, forward and backward; on a GPU at inference by `gpu_around`; everywhere
else plain PyTorch does the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mambair_cli.scan import cpu, gpu_around, library
from mambair_cli.scan.kept import kept

GRADIENT_BANDS = 16  # pieces of a batch whose parameter gradients are summed apart, whatever the number of threads


def _native(x: Tensor) -> bool:
    return (
        not cpu.missing
        and not library.tracing()
        and x.is_cpu
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.stride(-1) == 1
        and x.numel() > 0
    )


def _rows(x: Tensor) -> Tensor | None:
    """(..., C) as (rows, C) without a copy, or None: dense, or a slice of the channels of dense rows."""
    step = x.stride(-2) if x.dim() > 1 else x.shape[-1]
    for size, stride in zip(reversed(x.shape[:-1]), reversed(x.stride()[:-1]), strict=True):
        if size > 1 and stride != step:
            return None
        step *= size
    return x.as_strided((x.numel() // x.shape[-1], x.shape[-1]), (x.stride(-2) if x.dim() > 1 else x.shape[-1], 1))


def inference(*tensors: Tensor | None) -> bool:
    """Whether the native operations that have no backward may run on these."""
    return (
        not cpu.missing
        and not library.tracing()
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and all(t is None or (t.is_cpu and t.dtype is torch.float32 and t.numel() > 0) for t in tensors)
    )


def _floats(t: Tensor) -> Tensor:
    return t.detach().float().contiguous()


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dilation: int, silu: bool) -> Tensor:
        taps = _floats(weight).view(-1, 9).t().contiguous()
        y = torch.empty(x.shape, dtype=x.dtype)
        x, bias = x.detach(), _floats(bias)
        cpu._cpu.depthwise(x, x.stride(2), taps, bias, dilation, silu, y, torch.get_num_threads())
        ctx.save_for_backward(x, taps, bias)
        ctx.options = dilation, silu
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, taps, bias = ctx.saved_tensors
        dilation, silu = ctx.options
        gy = grads[0].to(x.dtype).contiguous()
        scratch, gx = torch.empty(x.shape) if silu else None, torch.empty(x.shape)
        g = torch.empty(x.shape[0], 10, x.shape[-1])
        cpu._cpu.depthwise_backward(
            *(x, x.stride(2), taps, bias, dilation, silu, gy, scratch, gx, g, torch.get_num_threads())
        )
        g = g.sum(0)
        return gx.to(x.dtype), g[:9].t().reshape(-1, 1, 3, 3), g[9], None, None


class _NormGate(torch.autograd.Function):
    """Rows of y (R, C) and z (R, C), or no z."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, z: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, z = y.detach(), None if z is None else z.detach()
        weight, bias = _floats(weight), _floats(bias)
        out = torch.empty(y.shape, dtype=y.dtype)
        ctx.z_row, ctx.eps = 0 if z is None else z.stride(0), eps
        cpu._cpu.norm_gate(y, y.stride(0), z, ctx.z_row, weight, bias, eps, out, torch.get_num_threads())
        ctx.save_for_backward(y, z, weight, bias)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y, z, weight, bias = ctx.saved_tensors
        g_out = grads[0].to(y.dtype).contiguous()
        gy, gz = torch.empty(y.shape, dtype=y.dtype), None if z is None else torch.empty(z.shape, dtype=z.dtype)
        g = torch.zeros(min(GRADIENT_BANDS, y.shape[0]), 2, y.shape[1])
        cpu._cpu.norm_gate_backward(
            *(y, y.stride(0), z, ctx.z_row, weight, bias, ctx.eps, g_out, gy, gz, g, torch.get_num_threads())
        )
        g = g.sum(0)
        return gy, gz, g[0], g[1], None


def depthwise(
    x: Tensor, weight: Tensor, bias: Tensor, *, dilation: int = 1, silu: bool = False, gelu: bool = False
) -> Tensor:
    """3x3 depthwise convolution + bias, or SiLU or GELU of that; zeros outside the map.

    x (B, H, W, C), possibly a slice of wider rows; weight (C, 1, 3, 3); bias (C). Differentiable.
    """
    if gpu_around.takes(x):
        return gpu_around.depthwise(x, weight, bias, dilation, 1 if silu else 3 if gelu else 0, None, True)
    if inference(x, weight, bias) and dilation <= 2:
        y = _filter(x, weight, bias, dilation=dilation, activation="silu" if silu else "gelu" if gelu else "none")
        if y is not None:
            return y
    if gelu:
        return F.gelu(depthwise(x, weight, bias, dilation=dilation))
    if _native(x) and x.stride(1) == x.shape[2] * x.stride(2) and x.stride(0) == x.shape[1] * x.stride(1):
        return _Depthwise.apply(x, weight, bias, dilation, silu)
    nchw = x.permute(0, 3, 1, 2)
    y = F.conv2d(
        nchw, weight.to(x.dtype), bias.to(x.dtype), padding=dilation, dilation=dilation, groups=weight.shape[0]
    )
    return (F.silu(y) if silu else y).permute(0, 2, 3, 1)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, half: bool = False) -> Tensor:
    """LayerNorm over the last dimension of x (..., C). Differentiable. `half`: what comes next is in half precision
    where there is any, so its cast may be spared."""
    if _native(x) and (rows := _rows(x)) is not None:
        return _NormGate.apply(rows, None, weight, bias, eps).view(x.shape)
    if gpu_around.takes(x) and x.shape[-1] <= gpu_around.MOST_CHANNELS:
        return gpu_around.norm_gate(x, None, weight, bias, eps, gpu_around.kind(x) if half else None)
    return F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), eps)


def norm_gate(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """LayerNorm(y) * SiLU(z) over the last dimension. Differentiable.

    y, z (..., C), z possibly a slice of wider rows.
    """
    rows = z.flatten(0, -2)
    if _native(y) and y.is_contiguous() and z.dtype == y.dtype and rows.stride(-1) == 1:
        return _NormGate.apply(y.view(-1, y.shape[-1]), rows, weight, bias, eps).view(y.shape)
    if gpu_around.takes(y, z) and y.shape[-1] <= gpu_around.MOST_CHANNELS:
        return gpu_around.norm_gate(y, z, weight, bias, eps)
    return F.layer_norm(y, y.shape[-1:], weight.to(y.dtype), bias.to(y.dtype), eps) * F.silu(z)


def attend(
    x: Tensor,
    shrink: tuple[Tensor, Tensor | None],
    grow: tuple[Tensor, Tensor | None],
    residual: Tensor,
    scale: Tensor,
) -> Tensor | None:
    """scale * residual + x * sigmoid(grow(relu(shrink(mean of x)))), natively at inference; None elsewhere.

    x, residual (B, H, W, C); shrink (S, C) and its bias, grow (C, S) and its bias; scale (C).
    """
    if not inference(x, *shrink, *grow, residual, scale):
        return None
    y = torch.empty(x.shape)
    maps = [t.contiguous().flatten(1, 2) for t in (x, residual)]
    cpu._cpu.attend(maps[0], *shrink, *grow, maps[1], scale, y, torch.get_num_threads())
    return y


ACTIVATIONS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {  # number in cpu_kernel.hpp, the plain one
    "none": (0, lambda t: t),
    "silu": (1, F.silu),
    "sigmoid": (2, torch.sigmoid),
    "gelu": (3, F.gelu),
}


def _filter(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    partner: Tensor | None = None,
    *,
    dilation: int = 1,
    activation: str,
    product: bool = True,
) -> Tensor | None:
    """The native depthwise convolution, at inference; None where x or the partner do not lie as it takes them."""
    rows, others = _rows(x), None if partner is None else _rows(partner)
    if rows is None or (partner is not None and others is None):
        return None
    side, y = weight.shape[-1], torch.empty(x.shape)
    taps = kept(weight, "taps", lambda w: w.view(-1, side * side).t().contiguous())
    cpu._cpu.filter(
        *(rows, rows.stride(0), side, dilation, taps, bias, ACTIVATIONS[activation][0]),
        *(others, 0 if others is None else others.stride(0), product, y, torch.get_num_threads()),
    )
    return y


def convolve_gated(
    x: Tensor, weight: Tensor, bias: Tensor, partner: Tensor, *, activation: str = "none", product: bool = True
) -> Tensor:
    """activation(k x k depthwise convolution + bias), times or plus a partner; zeros outside the map.

    x, partner (B, H, W, C), possibly slices of wider rows; weight (C, 1, k, k), k odd; bias (C). Differentiable.
    """
    number, plain = ACTIVATIONS[activation]
    side = weight.shape[-1]
    if inference(x, partner, weight) and side in (3, 5, 7):
        y = _filter(x, weight, bias, partner, activation=activation, product=product)
        if y is not None:
            return y
    if gpu_around.takes(x, partner):
        return gpu_around.depthwise(x, weight, bias, 1, number, partner, product)
    channels = weight.shape[0]
    y = F.conv2d(x.permute(0, 3, 1, 2), weight.to(x.dtype), bias.to(x.dtype), padding=side // 2, groups=channels)
    y = plain(y.permute(0, 2, 3, 1))
    return partner * y if product else partner + y
