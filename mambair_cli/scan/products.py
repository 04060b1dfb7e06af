"""The matrix products between the scans, with what stands before and after them in the same pass on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambair_cli.scan import cpu, fused, gpu_around, library
from mambair_cli.scan.kept import kept

FEW_ROWS = 64  # with fewer the preparation of the weights costs more than the product
# Wide vectors are what the native product is written for; elsewhere the libraries behind torch are better.
WIDE_VECTORS = not cpu.missing and cpu.instruction_sets()[0] != "portable"


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: nn.LayerNorm | None = None,
    gelu: bool = False,
    add: Tensor | None = None,
    scaled: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """f(norm(x) W^T + bias) + add + scale * other. Differentiable.

    x (..., in); weight (out, in); bias (out); norm: a LayerNorm of x; gelu: whether f is GELU; add (..., out);
    scaled: scale (out) and other (..., out). Returns (..., out).
    """
    scale, other = scaled or (None, None)
    if _takes(x, weight, bias, add, other, scale):
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        y = torch.empty(*x.shape[:-1], weight.shape[0])
        before = (norm.weight, norm.bias, norm.eps) if norm else (None, None, 0.0)
        after = (gelu, *(t if t is None else t.contiguous() for t in (add, other, scale)))
        cpu._cpu.linear(
            rows, rows.stride(0), *before, weight.contiguous(), bias, *after, 1, y, torch.get_num_threads()
        )
        return y
    if gpu_around.in_half(x) and gpu_around.takes(x, add, other):
        return gpu_around.linear(x, weight, bias, norm, gpu_around.GELU if gelu else 0, add, scale, other)
    if norm:
        x = norm(x)
    y = _product(x, weight, bias)
    if gelu:
        y = F.gelu(y)
    if add is not None:
        y = add + y
    return y if scale is None or other is None else torch.addcmul(y, other, scale.to(other.dtype))


def project(x: Tensor, weight: Tensor) -> Tensor:
    """Rows of several directions at once: x (B, L, D), weight (K, F, D) -> (B, L, K, F). The native product leaves
    the rows of each direction beside each other in memory, as its scan reads them."""
    directions, size, _ = weight.shape
    rows = kept(weight, "rows", lambda w: w.flatten(0, 1))
    if not _takes(x, rows):
        return linear(x, rows).unflatten(-1, (directions, size))
    y = torch.empty(x.shape[0], directions, x.shape[1], size)
    for image, its in zip(x.contiguous(), y, strict=True):
        none = (None, None, 0.0), (None, False, None, None, None)
        cpu._cpu.linear(image, image.stride(0), *none[0], rows, *none[1], directions, its, torch.get_num_threads())
    return y.transpose(1, 2)


def _takes(x: Tensor, *others: Tensor | None) -> bool:
    """Whether the native product is for these."""
    return WIDE_VECTORS and fused.inference(x, *others) and x.numel() >= FEW_ROWS * x.shape[-1]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """For inference on the CPU as the 1x1 convolution that it is: oneDNN's takes half the time of MKL's product on
    AMD processors. Its backward takes several times as long."""
    plain = x.device.type != "cpu" or torch.is_grad_enabled() or library.tracing()
    if plain or not torch.backends.mkldnn.is_available():
        return F.linear(x, weight, bias)
    rows = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)
    y = F.conv2d(rows, weight[:, :, None, None], bias).permute(0, 2, 3, 1)
    return y.contiguous().view(*x.shape[:-1], -1)
