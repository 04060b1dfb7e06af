"""Which network a state dict belongs to, and its hyper-parameters, from keys and shapes alone."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mambair_cli.archs.mambairv2 import MambaIRv2
from mambair_cli.archs.registry import build
from mambair_cli.errors import BadCheckpoint, MambairError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Family:
    """An architecture, the keys that tell it from the others, and how its hyper-parameters show."""

    arch: str
    present: tuple[str, ...]
    read: Callable[[Shapes], dict[str, object]]
    absent: tuple[str, ...] = ()


def infer(state: Mapping[str, Tensor]) -> tuple[str, dict[str, object]]:
    """The architecture and the arguments with which `build` makes a network of exactly these keys and shapes.

    Raises BadCheckpoint, which lists what was tried, if there is none.
    """
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    tried = []
    for family in FAMILIES:
        objection = _missing_mark(family, shapes)
        if objection is None:
            try:
                kwargs = family.read(shapes)
                # Not on the meta device: arithmetic there imports torch's compiler, which takes seconds.
                objection = _difference(build(family.arch, **kwargs), shapes)
            except KeyError as error:
                objection = f"no {error.args[0]}"
            except (MambairError, ValueError, ArithmeticError) as error:
                objection = str(error)
            if objection is None:
                return family.arch, kwargs
        tried.append(f"{family.arch}: {objection}")
    hint = f"Tried {'; '.join(tried)}."
    if _V1_BLOCK + "conv_blk.cab.3.attention.1.weight" in shapes and "conv_last.weight" not in shapes:
        hint += " These may be MambaIR-light weights from before November 2024, since replaced by their authors."
    raise BadCheckpoint("The weights fit no known network.", hint)


def _missing_mark(family: Family, shapes: Shapes) -> str | None:
    for key in family.present:
        if key not in shapes:
            return f"no {key}"
    for key in family.absent:
        if key in shapes:
            return f"has {key}"
    return None


def _difference(network: torch.nn.Module, shapes: Shapes) -> str | None:
    """The first key that the state dict lacks, has too much, or has in another shape."""
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    if MambaIRv2.BUFFER not in shapes:
        expected.pop(MambaIRv2.BUFFER, None)
    for key, shape in expected.items():
        if key not in shapes:
            return f"no {key}"
        if shapes[key] != shape:
            return f"{key} is {list(shapes[key])}, not {list(shape)}"
    return next((f"has {key}" for key in shapes if key not in expected), None)


def _count(shapes: Shapes, pattern: str) -> int:
    """How many different numbers `pattern`'s group matches at the start of a key."""
    matches = (re.match(pattern, key) for key in shapes)
    return len({match[1] for match in matches if match})


def _depths(shapes: Shapes, blocks: str, layers: str = "layers") -> list[int]:
    groups = _count(shapes, rf"{layers}\.(\d+)\.")
    return [_count(shapes, rf"{layers}\.{g}\.residual_group\.{blocks}\.(\d+)\.") for g in range(groups)]


def _ratio(pairs: Iterable[tuple[int, ...]]) -> float:
    """The shortest decimal r with int(r * width) == inner for every (width, inner)."""
    pairs = list(pairs)
    for scale in (10**digits for digits in range(7)):
        ratio = max(-(-inner * scale // width) for width, inner in pairs) / scale
        if all(int(ratio * width) == inner for width, inner in pairs):
            return ratio
    width, inner = pairs[0]
    return (inner + 0.5) / width


def _head(shapes: Shapes) -> dict[str, object]:
    """Arguments of `layers.Skeleton` except the depths."""
    embed_dim, in_chans = shapes["conv_first.weight"][:2]
    if "conv_before_upsample.0.weight" in shapes:
        steps = sum(bool(re.fullmatch(r"upsample\.\d+\.weight", key)) for key in shapes)
        upsampler, upscale = "pixelshuffle", 2**steps
        if steps == 1:
            outputs, inputs = shapes["upsample.0.weight"][:2]
            upscale = math.isqrt(outputs // inputs)
    elif "enlarge.before.weight" in shapes:
        upsampler, upscale = "nearest+conv-light", 2 * _count(shapes, r"enlarge\.up\.(\d+)\.")
    elif "upsample.0.weight" in shapes:
        upsampler, upscale = "pixelshuffledirect", math.isqrt(shapes["upsample.0.weight"][0] // in_chans)
    else:
        upsampler, upscale = "", 1
    return {"in_chans": in_chans, "embed_dim": embed_dim, "upscale": upscale, "upsampler": upsampler}


_V1_BLOCK = "layers.0.residual_group.blocks.0."
_V2_LAYER = "layers.0.residual_group.layers.0."
_UNET_BLOCK = "encoder_level1.0."


def _mambair(shapes: Shapes) -> dict[str, object]:
    rows, d_state = shapes[_V1_BLOCK + "self_attention.A_logs"]
    ratio = _ratio([(shapes["conv_first.weight"][0], rows // 4)])
    return {**_head(shapes), "depths": _depths(shapes, "blocks"), "d_state": d_state, "mlp_ratio": ratio}


def _mambairv2(shapes: Shapes, kernel: str) -> dict[str, object]:
    embed_dim = shapes["conv_first.weight"][0]
    depths = _depths(shapes, "layers")
    table = "residual_group.layers.0.win_mhsa.relative_position_bias_table"
    num_tokens, inner_rank = shapes[_V2_LAYER + "assm.embeddingB.weight"]
    return {
        **_head(shapes),
        "depths": depths,
        "num_heads": [shapes[f"layers.{group}.{table}"][1] for group in range(len(depths))],
        "window_size": (math.isqrt(shapes[f"layers.0.{table}"][0]) + 1) // 2,
        "d_state": shapes[_V2_LAYER + "assm.selectiveScan.A_logs"][1],
        "inner_rank": inner_rank,
        "num_tokens": num_tokens,
        "convffn_kernel_size": shapes[_V2_LAYER + kernel][-1],
        "mlp_ratio": _ratio([(embed_dim, shapes[_V2_LAYER + "convffn1.fc1.weight"][0])]),
    }


def _mambacsr(shapes: Shapes) -> dict[str, object]:
    head = _head(shapes)
    cross_scale = any(key.startswith("layers3.") for key in shapes)
    hidden, embed_dim = shapes[_V1_BLOCK + "mlp.fc1.weight"]
    return {
        **head,
        "depths": _depths(shapes, "blocks"),
        "d_state": shapes[_V1_BLOCK + "self_attention.A_logs"][1],
        "mlp_ratio": hidden // embed_dim,
        "cross_scale_scan": cross_scale,
        **({"depths2": _depths(shapes, "blocks", "layers2")} if cross_scale else {}),
    }


def _unet(shapes: Shapes, last: str) -> dict[str, object]:
    """Arguments of `mambair_unet.UNet`; `last` is the key of the last convolution."""
    dim, inp_channels = shapes["patch_embed.proj.weight"][:2]
    stages = [f"encoder_level{level}" for level in (1, 2, 3)] + ["latent"]
    return {
        "inp_channels": inp_channels,
        "out_channels": shapes[last][0],
        "dim": dim,
        "num_blocks": [_count(shapes, rf"{stage}\.(\d+)\.") for stage in stages],
        "num_refinement_blocks": _count(shapes, r"refinement\.(\d+)\."),
    }


def _mambair_unet(shapes: Shapes) -> dict[str, object]:
    kwargs = _unet(shapes, "output.weight")
    inner = [shapes[f"{stage}.0.self_attention.out_proj.weight"] for stage in ("encoder_level1", "latent")]
    return {**kwargs, "mlp_ratio": _ratio(inner), "d_state": shapes[_UNET_BLOCK + "self_attention.A_logs"][1]}


def _vmambair(shapes: Shapes, last: str) -> dict[str, object]:
    stages = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
    inner = [shapes[f"{stage}.0.ffn.project_out.weight"][:2] for stage in stages]
    return {**_unet(shapes, last), "ffn_expansion_factor": _ratio((width, hidden) for width, hidden in inner)}


_LIFT = _UNET_BLOCK + "attn.conv_cin.weight"
_CHANNELS = _UNET_BLOCK + "attn.xc_proj_weight"
_V2_KERNEL = "convffn1.dwconv.depthwise_conv.0.weight"
_V2_LIGHT_KERNEL = "convffn1.sg.conv.weight"

FAMILIES = (
    Family("mambair", (_V1_BLOCK + "conv_blk.cab.0.weight",), _mambair),
    Family("mambairv2", (_V2_LAYER + _V2_KERNEL,), lambda s: _mambairv2(s, _V2_KERNEL)),
    Family("mambairv2_light", (_V2_LAYER + _V2_LIGHT_KERNEL,), lambda s: _mambairv2(s, _V2_LIGHT_KERNEL)),
    Family("mambacsr", (_V1_BLOCK + "conv_block.cab.0.weight",), _mambacsr),
    Family("mambair_unet", (_UNET_BLOCK + "conv_blk.cab.0.weight",), _mambair_unet),
    Family("vmambair_derain", (_CHANNELS, "output.weight"), lambda s: _vmambair(s, "output.weight")),
    Family("vmambair_sisr", (_LIFT, "tail.1.weight"), lambda s: _vmambair(s, "tail.1.weight")),
    Family("vmambair_realsr", (_CHANNELS, "tail.1.weight"), lambda s: _vmambair(s, "tail.1.weight"), (_LIFT,)),
)
