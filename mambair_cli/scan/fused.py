"""What stands around the scan in every block, in one pass over memory each where the native kernel is there.

Inference on CPU only: with gradients enabled, or elsewhere, plain PyTorch runs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mambair_cli.scan import cpu


def _native(x: Tensor) -> bool:
    return (
        not cpu.missing
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.stride(-1) == 1
        and not torch.is_grad_enabled()
        and x.numel() > 0
    )


def depthwise_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """SiLU(3x3 depthwise convolution + bias). x (B, H, W, C), possibly a slice of wider rows; weight (C, 1, 3, 3)."""
    if _native(x) and x.stride(1) == x.shape[2] * x.stride(2) and x.stride(0) == x.shape[1] * x.stride(1):
        y = torch.empty(x.shape, dtype=x.dtype)
        taps = weight.detach().float().reshape(-1, 9).t().contiguous()
        cpu._cpu.depthwise(
            x.detach(), x.stride(2), taps, bias.detach().float().contiguous(), y, torch.get_num_threads()
        )
        return y
    nchw = x.permute(0, 3, 1, 2)
    y = F.conv2d(nchw, weight.to(x.dtype), bias.to(x.dtype), padding=1, groups=weight.shape[0])
    return F.silu(y).permute(0, 2, 3, 1)


def norm_gate(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """LayerNorm(y) * SiLU(z) over the last dimension. y, z (..., C); z may be a slice of wider rows."""
    rows = z.reshape(-1, z.shape[-1]) if z.is_contiguous() else z.flatten(0, -2)
    if _native(y) and y.is_contiguous() and z.dtype == y.dtype and rows.stride(-1) == 1:
        out = torch.empty_like(y)
        flat = y.detach().reshape(-1, y.shape[-1])
        cpu._cpu.norm_gate(
            *(flat, rows.detach(), rows.stride(0), weight.detach().float(), bias.detach().float()),
            *(eps, out.view(flat.shape), torch.get_num_threads()),
        )
        return out
    return F.layer_norm(y, y.shape[-1:], weight.to(y.dtype), bias.to(y.dtype), eps) * F.silu(z)
