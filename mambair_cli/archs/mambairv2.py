"""MambaIRv2: Attentive State Space Restoration (Guo et al., CVPR 2025), classic and light.

Each layer is window attention, then a scan that visits pixels of the same learned category one after another.
The category is drawn at random (Gumbel-max) at inference too, as in the published code: training saw nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambair_cli.archs import skeleton
from mambair_cli.archs.family import Architecture, Padding, Shapes, ratio
from mambair_cli.archs.layers import (
    LayerNorm,
    Linear,
    SelectiveScan,
    convolve_gated,
    depthwise,
    full_precision,
    pointwise,
    to_tokens,
)
from mambair_cli.archs.skeleton import Group, Skeleton, group_depths, skeleton_arguments
from mambair_cli.scan import gpu, gpu_around
from mambair_cli.scan.attention import relative_position_index, window_attention
from mambair_cli.scan.kept import kept
from mambair_cli.scan.routing import Key, by_category, draw, noisy

Routing = str | Callable[[Tensor], Tensor]


@dataclass
class Router:
    """The random draws of one forward pass: each layer takes the next numbers of a counter-based generator."""

    routing: Routing
    key: Key
    layer: int = 0

    def noisy(self, logits: Tensor) -> Tensor:
        """The logits (B, L, tokens) whose maximum decides."""
        if self.routing == "argmax":
            return logits
        if callable(self.routing):
            return self.routing(logits)
        self.layer += 1
        return noisy(logits, self.key, self.layer)

    def draw(self, logits: Tensor) -> Tensor:
        """The category of each pixel, (B, L) int32."""
        if self.routing == "gumbel":
            self.layer += 1
            return draw(logits, self.key, self.layer)
        return self.noisy(logits).argmax(-1).int()


class WindowAttention(nn.Module):
    """Multi-head self-attention in windows with a relative position bias."""

    def __init__(self, width: int, window: int, heads: int) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.normal_(self.relative_position_bias_table, std=0.02)
        self.proj = Linear(width, width)

    def forward(self, qkv: Tensor, index: Tensor, shift: int, add: Tensor) -> Tensor:
        """qkv (B, H, W, 3C), sides multiples of the window; index: `relative_position_index`. (B, H, W, C) + add."""
        y = window_attention(qkv, self.relative_position_bias_table, index, self.window, shift)
        return self.proj(y, add=add)


class ASSM(nn.Module):
    """Attentive state space module: scan the pixels category by category, with the category prompting the output.

    (B, H, W, C) -> the same. Categories are rows of a low-rank table (embeddingB @ embeddingA).
    """

    def __init__(self, width: int, d_state: int, num_tokens: int, inner_rank: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.in_proj = nn.Sequential(nn.Conv2d(width, hidden, 1))
        self.CPE = nn.Sequential(depthwise(hidden, 3))
        self.selectiveScan = SelectiveScan(1, hidden, d_state, dt_rank=math.ceil(hidden / 16))
        self.out_norm = LayerNorm(hidden)
        self.out_proj = Linear(hidden, width)
        self.embeddingB = nn.Embedding(num_tokens, inner_rank)
        nn.init.uniform_(self.embeddingB.weight, -1 / num_tokens, 1 / num_tokens)
        self.route = nn.Sequential(Linear(width, width // 3), nn.GELU(), Linear(width // 3, num_tokens))

    def forward(self, x: Tensor, embedding_a: Tensor, router: Router, add: Tensor) -> Tensor:
        kind = gpu_around.kind(x)
        table = kept(self.embeddingB.weight, ("table", kind), lambda w: w @ embedding_a, embedding_a)
        logits = full_precision(self.logits, x.flatten(1, 2))  # a route that flips reorders the whole scan
        if torch.is_grad_enabled() and logits.requires_grad:
            logits = router.noisy(logits)
            category = logits.argmax(-1).int()
            prompt = straight_through(logits, category).to(table.dtype) @ table
        else:
            category, prompt = router.draw(logits), None
        visits, step_of_pixel = by_category(category, table.shape[0])
        # As published, the prompt is not sorted with the pixels: step t is prompted by raster pixel t.
        steps = step_of_pixel.long()
        if prompt is None:
            prompt = F.embedding(category.gather(1, steps), table)
        else:
            prompt = prompt.gather(1, steps.unsqueeze(-1).expand_as(prompt))

        v = pointwise(x, self.in_proj[0])
        v = convolve_gated(v, self.CPE[0], v, activation="sigmoid").flatten(1, 2)
        proj = self.selectiveScan.project(v)  # (B, L, 1, R + 2N)
        proj[..., 0, -prompt.shape[-1] :].add_(prompt)
        orders = visits.unsqueeze(1)
        if gpu_around.takes(v):
            gpu.tell_inverse(orders, step_of_pixel.unsqueeze(1))
        y = self.selectiveScan.scan(v, proj, orders)
        return self.out_proj(y.view_as(v), norm=self.out_norm, add=add.flatten(1, 2)).view_as(add)

    def logits(self, x: Tensor) -> Tensor:
        """How well each category suits each pixel: (..., C) -> (..., tokens)."""
        return self.route[2](self.route[0](x, gelu=True))


def straight_through(logits: Tensor, category: Tensor) -> Tensor:
    """One-hot categories whose gradient is that of the softmax (Jang et al. 2017)."""
    soft = logits.softmax(-1)
    return torch.zeros_like(soft).scatter_(-1, category.long().unsqueeze(-1), 1.0) + (soft - soft.detach())


class ConvFFN(nn.Module):
    """Feed-forward network with a depthwise convolution beside the identity."""

    def __init__(self, width: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.dwconv = nn.ModuleDict({"depthwise_conv": nn.Sequential(depthwise(hidden, kernel), nn.GELU())})
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor, norm: LayerNorm, scaled: tuple[Tensor, Tensor]) -> Tensor:
        """x + FFN(norm(x)) + scale * other."""
        y = self.fc1(x, norm=norm, gelu=True)
        filters = cast(nn.Sequential, self.dwconv["depthwise_conv"])[0]
        return self.fc2(convolve_gated(y, filters, y, activation="gelu", product=False), add=x, scaled=scaled)


class GatedMlp(nn.Module):
    """The light models' feed-forward network: one half gates the other through a depthwise convolution."""

    def __init__(self, width: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        half = hidden // 2
        self.sg = nn.ModuleDict({"norm": LayerNorm(half), "conv": depthwise(half, kernel)})
        self.fc2 = Linear(half, width)

    def forward(self, x: Tensor, norm: LayerNorm, scaled: tuple[Tensor, Tensor]) -> Tensor:
        """x + FFN(norm(x)) + scale * other."""
        a, b = self.fc1(x, norm=norm, gelu=True).chunk(2, dim=-1)
        return self.fc2(convolve_gated(self.sg["norm"](b), self.sg["conv"], a), add=x, scaled=scaled)


class Layer(nn.Module):
    """Window attention (shifted in every second layer) and ASSM, each followed by a feed-forward network."""

    def __init__(
        self,
        width: int,
        window: int,
        heads: int,
        shift: int,
        d_state: int,
        num_tokens: int,
        inner_rank: int,
        mlp_ratio: float,
        ffn: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.shift = shift
        self.scale1 = nn.Parameter(torch.full((width,), 1e-4))
        self.scale2 = nn.Parameter(torch.full((width,), 1e-4))
        self.norm1, self.norm2, self.norm3, self.norm4 = (LayerNorm(width) for _ in range(4))
        self.wqkv = Linear(width, 3 * width)
        self.win_mhsa = WindowAttention(width, window, heads)
        self.assm = ASSM(width, d_state, num_tokens, inner_rank, mlp_ratio)
        self.convffn1, self.convffn2 = ffn(), ffn()
        self.embeddingA = nn.Embedding(inner_rank, d_state)
        nn.init.uniform_(self.embeddingA.weight, -1 / inner_rank, 1 / inner_rank)

    def forward(self, x: Tensor, index: Tensor, router: Router) -> Tensor:
        y = self.win_mhsa(self.wqkv(x, norm=self.norm1), index, self.shift, add=x)
        x = self.convffn1(y, self.norm2, scaled=(self.scale1, x))
        y = self.assm(self.norm3(x), self.embeddingA.weight, router, add=x)
        return self.convffn2(y, self.norm4, scaled=(self.scale2, x))


def mirrored(length: int, multiple: int, device: torch.device) -> Tensor:
    """Indices that extend 0..length-1 to a multiple by mirroring, edge included, as often as it takes."""
    padded = -(-length // multiple) * multiple
    position = torch.arange(padded, device=device) % (2 * length)
    return torch.minimum(position, 2 * length - 1 - position)


class MambaIRv2(Skeleton):
    """Super-resolution, Gaussian denoising and JPEG restoration. Any size from 1x1: padded inside by mirroring.

    `routing`: "gumbel", categories drawn at random; "argmax"; or a function from logits (B, L, tokens) to those whose
    maximum decides. `generator`: the CPU generator (None: torch's own) that gives each forward pass the key of its
    noise; from there on the noise is counted, not drawn in turn, so that a seed means the same on every device.
    `keys`: these keys instead, int64 (B,), one for each picture of the batch. Compiled networks take their key from
    `keys` or from torch's own generator.
    """

    BUFFER = "relative_position_index_SA"  # published files carry it; a file without it loads as well
    FFN: ClassVar[type[ConvFFN] | type[GatedMlp]] = ConvFFN

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dim: int = 48,
        depths: Sequence[int] = (6, 6, 6, 6),
        num_heads: Sequence[int] = (4, 4, 4, 4),
        window_size: int = 16,
        d_state: int = 8,
        inner_rank: int = 32,
        num_tokens: int = 64,
        convffn_kernel_size: int = 5,
        mlp_ratio: float = 2.0,
        upscale: int = 1,
        upsampler: str = "",
    ) -> None:
        if len(depths) != len(num_heads):
            raise ValueError(f"depths {list(depths)} and num_heads {list(num_heads)} differ in length")

        def ffn() -> nn.Module:
            return self.FFN(embed_dim, int(embed_dim * mlp_ratio), convffn_kernel_size)

        scan = (d_state, num_tokens, inner_rank, mlp_ratio)
        groups = []
        for depth, heads in zip(depths, num_heads, strict=True):
            shifts = [0 if i % 2 == 0 else window_size // 2 for i in range(depth)]
            layers = [Layer(embed_dim, window_size, heads, shift, *scan, ffn) for shift in shifts]
            groups.append(Group(embed_dim, layers, key="layers"))
        super().__init__(groups, in_chans, embed_dim, upscale, upsampler)
        self.register_buffer(self.BUFFER, relative_position_index(window_size))
        self.window_size = window_size
        self.routing: Routing = "gumbel"
        self.generator: torch.Generator | None = None
        self.keys: Tensor | None = None

    def load_state_dict(  # type: ignore[override]
        self, state_dict: dict[str, Tensor], strict: bool = True, assign: bool = False
    ) -> object:
        """As `nn.Module`'s; a state dict without the position index, which holds nothing learned, is complete."""
        state_dict = {self.BUFFER: getattr(self, self.BUFFER), **state_dict}
        return super().load_state_dict(state_dict, strict, assign)

    def router(self) -> Router:
        if not callable(self.routing) and self.routing not in ("gumbel", "argmax"):
            raise ValueError(f'routing is "gumbel", "argmax" or a function, not {self.routing!r}')
        key: Key = 0
        if self.routing == "gumbel" and self.keys is not None:
            key = self.keys
        elif self.routing == "gumbel" and torch.compiler.is_compiling():
            key = torch.randint(2**63 - 1, (1,))
        elif self.routing == "gumbel":
            key = int(torch.randint(2**63 - 1, (), generator=self.generator))
        return Router(self.routing, key)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, C, H*upscale, W*upscale)."""
        height, width = x.shape[-2:]
        if height % self.window_size or width % self.window_size:
            rows, columns = (mirrored(side, self.window_size, x.device) for side in (height, width))
            x = x.index_select(2, rows).index_select(3, columns)
        return super().forward(x)[..., : height * self.upscale, : width * self.upscale]

    def body(self, shallow: Tensor) -> Tensor:
        x = self.patch_embed["norm"](to_tokens(shallow))
        index, router = getattr(self, self.BUFFER), self.router()
        for group in self.layers:
            x = group(x, index, router)
        return x


class MambaIRv2Light(MambaIRv2):
    """The light variant: gated feed-forward networks."""

    FFN = GatedMlp


FIRST_LAYER = "layers.0.residual_group.layers.0."
KERNEL = FIRST_LAYER + "convffn1.dwconv.depthwise_conv.0.weight"
LIGHT_KERNEL = FIRST_LAYER + "convffn1.sg.conv.weight"
LARGEST_WINDOW = 64  # the index of positions has its fourth power of entries


def _arguments(kernel: str, shapes: Shapes) -> dict[str, object]:
    table = "residual_group.layers.0.win_mhsa.relative_position_bias_table"
    window = (math.isqrt(shapes[f"layers.0.{table}"][0]) + 1) // 2
    if window > LARGEST_WINDOW:
        raise ValueError(f"attention in windows of {window}x{window} pixels")
    num_tokens, inner_rank = shapes[FIRST_LAYER + "assm.embeddingB.weight"]
    hidden, embed_dim = shapes[FIRST_LAYER + "convffn1.fc1.weight"]
    depths = group_depths(shapes, "layers")
    return {
        **skeleton_arguments(shapes),
        "depths": depths,
        "num_heads": [shapes[f"layers.{group}.{table}"][1] for group in range(len(depths))],
        "window_size": window,
        "d_state": shapes[FIRST_LAYER + "assm.selectiveScan.A_logs"][1],
        "inner_rank": inner_rank,
        "num_tokens": num_tokens,
        "convffn_kernel_size": shapes[kernel][-1],
        "mlp_ratio": ratio([(embed_dim, hidden)]),
    }


MAMBAIRV2 = Architecture(
    name="mambairv2",
    builder=MambaIRv2,
    marks=(KERNEL,),
    hyperparameters=partial(_arguments, KERNEL),
    bytes_per_channel=65,
    exports=True,
    computed=frozenset({MambaIRv2.BUFFER}),
    padding=Padding(minimum=8),
    paper_tiles=(200, 10),
    random=True,
    without_effect=skeleton.WITHOUT_EFFECT,
    only_value={**skeleton.ONLY_VALUE, "qkv_bias": True},
)
LIGHT = replace(
    MAMBAIRV2,
    name="mambairv2_light",
    builder=MambaIRv2Light,
    marks=(LIGHT_KERNEL,),
    hyperparameters=partial(_arguments, LIGHT_KERNEL),
    bytes_per_channel=100,
)
