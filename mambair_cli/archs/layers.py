"""What several networks share: the gated scan block, channel attention, and the layers between them.

Features are channel last, (B, H, W, C), throughout; a convolution sees a channels_last view of them, so nothing is
copied between scans, norms, linears and convolutions. Module names are those of the published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambair_cli.scan import NormGate, fused, gpu_around, ordered_scan
from mambair_cli.scan import orders as paths
from mambair_cli.scan.backend import without_autocast
from mambair_cli.scan.kept import kept
from mambair_cli.scan.products import linear, project

DT_RANGE = (1e-3, 1e-1)  # initial step sizes (Mamba, Gu & Dao 2023, 3.6)


def to_map(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W), a view."""
    return x.permute(0, 3, 1, 2)


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), contiguous; a view of what a convolution made from a `to_map` view."""
    return x.permute(0, 2, 3, 1).contiguous()


def conv(x: Tensor, module: nn.Module) -> Tensor:
    """A convolution (or a chain of map modules) on channel-last features."""
    if gpu_around.in_half(x) and gpu_around.takes(x):
        return to_tokens(cast_once(to_map(x), module))
    return to_tokens(module(to_map(x)))


def cast_once(x: Tensor, module: nn.Module) -> Tensor:
    """`module(x)` under autocast, the weights of convolutions cast once and not in every call."""
    if isinstance(module, nn.Sequential):
        for part in module:
            x = cast_once(x, part)
        return x
    if isinstance(module, nn.Conv2d):
        half = gpu_around.kind(x)
        weight, bias = (
            None if t is None else kept(t, half, lambda w: w.to(half)) for t in (module.weight, module.bias)
        )
        return module._conv_forward(x.to(half), cast(Tensor, weight), bias)
    result: Tensor = module(x)
    return result


def dwconv(x: Tensor, module: nn.Conv2d, silu: bool = False, gelu: bool = False) -> Tensor:
    """A 3x3 depthwise convolution, or SiLU or GELU of it."""
    assert module.bias is not None
    return fused.depthwise(x, module.weight, module.bias, dilation=int(module.dilation[0]), silu=silu, gelu=gelu)


def convolve_gated(
    x: Tensor, module: nn.Module, partner: Tensor, *, activation: str = "none", product: bool = True
) -> Tensor:
    """activation(module(x)), a depthwise convolution, times or plus the partner."""
    weight, bias = cast(Tensor, module.weight), cast(Tensor, module.bias)
    return fused.convolve_gated(x, weight, bias, partner, activation=activation, product=product)


def pointwise(x: Tensor, module: nn.Module, norm: nn.LayerNorm | None = None) -> Tensor:
    """A 1x1 convolution, perhaps of a norm."""
    if norm is not None and not gpu_around.in_half(x) and not fused.inference(x, cast(Tensor, module.weight)):
        x, norm = norm(x), None
    return linear(x, *matrix(module), norm=norm)


def matrix(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The weight (out, in) and bias of a 1x1 convolution."""
    weight = cast(Tensor, module.weight)
    return kept(weight, "matrix", lambda w: w[:, :, 0, 0]), cast("Tensor | None", module.bias)


class LayerNorm(nn.LayerNorm):
    """Over the last dimension, native on the CPU; keys as nn.LayerNorm's."""

    def forward(self, x: Tensor, *, half: bool = False) -> Tensor:
        return fused.layer_norm(x, self.weight, self.bias, self.eps, half=half)


def norm_gate(y: Tensor, z: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Normalise y over channels and gate it by SiLU(z)."""
    return fused.norm_gate(y, z, norm.weight, norm.bias, norm.eps)


def scale_add(x: Tensor, scale: Tensor, y: Tensor) -> Tensor:
    """scale * x + y, the residual connection with a learned scale per channel."""
    return torch.addcmul(y, x, scale.to(x.dtype))


class Linear(nn.Linear):
    """`fused` as of `scan.products.linear`: a norm before, GELU and sums after."""

    def forward(self, input: Tensor, **fused: Any) -> Tensor:
        return linear(input, self.weight, self.bias, **fused)


def linear_halves(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, norm: nn.LayerNorm | None = None
) -> tuple[Tensor, Tensor]:
    """The two halves of a linear layer's outputs, perhaps of a norm: each contiguous (a chunk of the joint product
    would not be), but for half precision on a GPU, which is the better off the less it has to launch, and with a norm
    where the native product takes it in, and native operations that take slices follow."""
    native = norm is not None and fused.inference(x, weight, bias)
    if native or (gpu_around.in_half(x) and gpu_around.takes(x)):
        a, b = linear(x, weight, bias, norm=norm).chunk(2, dim=-1)
        return a, b
    if norm is not None:
        x = norm(x)
    first, second = weight.chunk(2)
    b1, b2 = (None, None) if bias is None else bias.chunk(2)
    return linear(x, first, b1), linear(x, second, b2)


def depthwise(channels: int, kernel: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=bias)


def scan_parameters(directions: int, channels: int, d_state: int, dt_rank: int) -> tuple[nn.Parameter, ...]:
    """Mamba's initial x_proj (K, R+2N, D), dt_weight (K, D, R), dt_bias (K, D), A_logs (K*D, N) and Ds (K*D)."""

    def uniform(*shape: int) -> Tensor:
        bound = shape[-1] ** -0.5
        return torch.empty(shape).uniform_(-bound, bound)

    x_proj = uniform(directions, dt_rank + 2 * d_state, channels)
    dt_weight = uniform(directions, channels, dt_rank)
    low, high = (math.log(limit) for limit in DT_RANGE)
    dt = torch.empty(directions, channels).uniform_(low, high).exp()
    dt_bias = dt + torch.log(-torch.expm1(-dt))  # softplus of this is dt
    A_logs = torch.arange(1, d_state + 1).log().repeat(directions * channels, 1)
    return tuple(map(nn.Parameter, (x_proj, dt_weight, dt_bias, A_logs, torch.ones(directions * channels))))


def run_scan(
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    orders: Tensor,
    reduce: bool = True,
    norm: NormGate | None = None,
) -> Tensor:
    """`scan.ordered_scan` on parameters as checkpoints hold them; the recurrence's own are always float32."""
    directions, channels, _ = dt_weight.shape
    A = kept(A_logs, "rates", lambda t: -torch.exp(t.float())).view(directions, channels, -1)
    D = Ds.float().view(directions, channels)
    return ordered_scan(x, proj, dt_weight.float(), dt_bias.float(), A, D, orders, reduce, norm=norm)


class SelectiveScan(nn.Module):
    """The parameters of K scans over D channels with N states, and the scan itself."""

    def __init__(self, directions: int, channels: int, d_state: int, dt_rank: int) -> None:
        super().__init__()
        parameters = scan_parameters(directions, channels, d_state, dt_rank)
        self.x_proj_weight, self.dt_projs_weight, self.dt_projs_bias, self.A_logs, self.Ds = parameters

    def project(self, x: Tensor) -> Tensor:
        """Every direction's [dt low-rank | B | C] in one product: (B, L, D) -> (B, L, K, R+2N)."""
        return project(x, self.x_proj_weight)

    def scan(
        self, x: Tensor, proj: Tensor, orders: Tensor, reduce: bool = True, norm: NormGate | None = None
    ) -> Tensor:
        """x (B, L, D), proj (B, L, K, R+2N) -> (B, L, D), or (B, K, L, D) without `reduce`."""
        weights = (self.dt_projs_weight, self.dt_projs_bias, self.A_logs, self.Ds)
        return run_scan(x, proj, *weights, orders, reduce, norm)


class SS2D(SelectiveScan):
    """The gated scan block: project, convolve, scan the map in all directions, normalise, gate, project back.

    (B, H, W, width) -> the same. `inner` is the width of the scan. Subclasses take other paths in `mix`.
    """

    def __init__(self, width: int, inner: int, d_state: int, directions: int = 4) -> None:
        super().__init__(directions, inner, d_state, dt_rank=math.ceil(width / 16))
        self.in_proj = Linear(width, 2 * inner, bias=False)
        self.conv2d = depthwise(inner, 3)
        self.out_norm = LayerNorm(inner)
        self.out_proj = Linear(inner, width, bias=False)

    def forward(
        self, x: Tensor, norm: nn.LayerNorm | None = None, scaled: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """`norm` of x first; `scaled` as of `scan.products.linear`."""
        x, z = linear_halves(x, self.in_proj.weight, norm=norm)
        return self.out_proj(self.mix(dwconv(x, self.conv2d, silu=True), z), scaled=scaled)

    def mix(self, x: Tensor, z: Tensor) -> Tensor:
        """Let the pixels of (B, H, W, inner) see each other; normalised, and gated by z."""
        return cross_scan(x, self, z, self.out_norm)


def cross_scan(x: Tensor, weights: SelectiveScan, z: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Rows, columns and both reversed, added up, normalised and gated by SiLU(z): (B, H, W, D) -> the same."""
    orders = paths.cross(x.shape[1], x.shape[2], x.device)
    tokens, gate = x.flatten(1, 2), NormGate(norm.weight, norm.bias, norm.eps, z.flatten(1, 2))
    return weights.scan(tokens, weights.project(tokens), orders, norm=gate).view_as(x)


class ChannelAttention(nn.Module):
    """Scale each channel by what its global mean says (squeeze-and-excitation); on maps."""

    def __init__(self, width: int, squeeze: int) -> None:
        super().__init__()
        if width < squeeze:
            raise ValueError(
                f"channel attention with squeeze {squeeze} needs at least {squeeze} channels, not {width}"
            )
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, width // squeeze, 1),
            nn.ReLU(),
            nn.Conv2d(width // squeeze, width, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        if gpu_around.in_half(x) and gpu_around.takes(x):
            return x * self._factors(x)[..., None, None]
        return x * self.attention(x)

    def residual(self, x: Tensor, residual: Tensor, scale: Tensor) -> Tensor:
        """scale * residual + attention(x), all channel last."""
        y = fused.attend(x, matrix(self.attention[1]), matrix(self.attention[3]), residual, scale)
        return scale_add(residual, scale, conv(x, self)) if y is None else y

    def _factors(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C), in fewer launches."""
        mean, (shrink, grow) = x.mean((2, 3)), (self.attention[i] for i in (1, 3))
        y = gpu_around.linear(mean, *matrix(shrink), activation=gpu_around.RELU)
        return gpu_around.linear(y, *matrix(grow), activation=gpu_around.SIGMOID)


class CAB(nn.Module):
    """Convolutional channel-attention block, channel last."""

    def __init__(self, width: int, compress: int = 3, squeeze: int = 30) -> None:
        super().__init__()
        self.cab = nn.Sequential(
            nn.Conv2d(width, width // compress, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width // compress, width, 3, padding=1),
            ChannelAttention(width, squeeze),
        )

    def forward(self, x: Tensor) -> Tensor:
        return conv(x, self.cab)

    def residual(self, x: Tensor, norm: nn.LayerNorm, scale: Tensor) -> Tensor:
        """scale * x + CAB(norm(x))"""
        attention = cast(ChannelAttention, self.cab[-1])
        return attention.residual(conv(norm(x, half=True), self.cab[:-1]), x, scale)


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def full_precision(module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What makes pixels stays float32 under autocast: half precision hardly has more steps than 8-bit pixels."""
    with without_autocast(x.device):
        return module(x.float())


def init_linear(module: nn.Module) -> None:
    """Initialise linear layers as vision transformers do; for `nn.Module.apply`. The customary truncation at +-2 is a
    hundred deviations away, so a plain normal does, in a fraction of the time."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
