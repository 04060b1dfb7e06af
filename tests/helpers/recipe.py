"""The golden files' recipe wgen-1: weights of any size from the state dict's keys, its shapes and a seed."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

OUTER = ("conv_before_upsample", "upsample", "conv_last", "tail", "output")


def recipe(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, Tensor]:
    """Weights for every floating-point entry of a state dict."""
    return {key: torch.from_numpy(_weight(key, tuple(shape), seed)).float() for key, shape in shapes.items()}


def _weight(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    random = np.random.RandomState((zlib.crc32(key.encode()) ^ seed) & 0xFFFFFFFF)
    r = random.standard_normal(shape)
    leaf = key.rsplit(".", 1)[-1]
    if leaf in ("A_logs", "Ac_logs"):
        return np.log(np.arange(1, shape[-1] + 1)) + 0.1 * r
    if leaf in ("Ds", "Dsc", "skip_scale", "skip_scale2"):
        return 1 + 0.1 * r
    if leaf in ("scale1", "scale2"):
        return 0.2 * r
    if leaf.endswith("projs_bias"):
        return -1 + 0.7 * r
    if len(shape) == 1 and leaf == "weight":
        return 1 + 0.1 * r
    if key.endswith("attention.1.bias"):
        return 0.3 + 0.05 * r
    if key.endswith(("attn.out_norm.body.bias", "attn.in_conv.bias")):
        return 0.6 * r
    if len(shape) == 1:
        return 0.05 * r
    if leaf == "relative_position_bias_table":
        return 0.5 * r
    if "embedding" in key:
        return 0.3 * r
    fan = shape[-1] if len(shape) == 3 else math.prod(shape[1:])
    return r * _gain(key, leaf) / math.sqrt(fan)


def _gain(key: str, leaf: str) -> float:
    if key.endswith("route.2.weight"):
        return 6
    if leaf == "x_proj_weight":
        return 3
    if leaf == "xc_proj_weight":
        return 1
    if leaf in ("dt_projs_weight", "dtc_projs_weight"):
        return 1.5
    if "attn.out_conv.weight" in key or "ffn.project_out.weight" in key:
        return 0.4
    if ".attention." in key:
        return 2
    return 1.2 if key.split(".", 1)[0] in OUTER else 0.7
