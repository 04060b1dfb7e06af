"""How noisy a picture is, and of what kind its noise is."""

from __future__ import annotations

import numpy as np

from mambair_cli.images.color import Array, as_float

_NORMAL_MAD = 0.6744897501960817  # median of |x| for x ~ N(0, 1)
_SMOOTHEST = 2  # per cent of the blocks
_FEWEST = 200  # blocks to judge by
_SMOOTHEST_OF_WHITE = 0.65  # root mean square in them, of 16 values of white noise of deviation 1
_BLOCK = 8  # pixels
_SIDE = 2048  # of the part that is looked at
_CLIPPED = 0.035  # mean of a block from black or white within which noise is cut off
_CORRELATED = 0.85  # chroma noise of white keeps 0.5 of its deviation at half the size, a camera's 1 to 2


def noise_level(pixels: Array) -> float:
    """Standard deviation, on the scale of 255, of white Gaussian noise in (H, W, C) pixels of any depth.

    Median absolute deviation of the finest diagonal Haar band (Donoho & Johnstone 1994), averaged over the
    channels. Fine texture counts as noise, so clean but busy pictures give 1 to 5.
    """
    x = as_float(pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2])
    diagonal = _diagonal(x)
    if not diagonal.size:
        return 0.0
    return float(np.median(np.abs(diagonal), axis=(0, 1)).mean() / _NORMAL_MAD * 255)


def smooth_noise(pixels: Array) -> float:
    """Standard deviation, on the scale of 255, of the noise of (H, W, C) pixels where they are smoothest.

    That of the finest diagonal Haar band of the luma in the 2 % of the 8x8 blocks that have the least, blocks near
    black and white apart. Unlike in `noise_level` texture does not count, unless it is everywhere. 0 for pictures of
    fewer than 200 such blocks, which tell too little.
    """
    cut = blocks(luma(centre(pixels)))
    few = len(cut) < _FEWEST
    cut = cut[np.abs(cut.mean(axis=(1, 2)) - 0.5) < 0.5 - _CLIPPED]
    if few or len(cut) < _FEWEST / 4:
        return 0.0
    return float(np.percentile(strength(cut), _SMOOTHEST) / _SMOOTHEST_OF_WHITE * 255)


def is_correlated(pixels: Array) -> bool:
    """Whether the noise of (H, W, C) pixels is coarse, as demosaicing, denoising and JPEG make a camera's.

    Told by the chroma, which has little texture: by how much less noise there is at half the size. False for grey.
    """
    if pixels.shape[2] == 1:
        return False
    x = as_float(centre(pixels))
    chroma = x[..., 2] - luma(x)
    height, width = (side // 2 * 2 for side in chroma.shape)
    half = chroma[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
    fine, coarse = (strength(blocks(plane)) for plane in (chroma, half))
    if not len(fine) or not len(coarse):
        return False
    return bool(np.percentile(coarse, 25) > _CORRELATED * np.percentile(fine, 25))


def centre(pixels: Array) -> Array:
    """Of a large picture 2048 pixels a side, enough to judge by: from a corner of a JPEG's block, if it is one."""
    top, left = (max(0, (side - _SIDE) // 2 // _BLOCK * _BLOCK) for side in pixels.shape[:2])
    return pixels[top : top + _SIDE, left : left + _SIDE]


def luma(pixels: Array) -> Array:
    """(H, W, C) of any depth -> (H, W) in [0, 1]: the Y of JPEG."""
    x = as_float(pixels)
    return x[..., 0] if x.shape[2] == 1 else x[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32)


def blocks(plane: Array) -> Array:
    """(H, W) -> (N, 8, 8)."""
    height, width = (side // _BLOCK for side in plane.shape)
    cut = plane[: height * _BLOCK, : width * _BLOCK].reshape(height, _BLOCK, width, _BLOCK)
    return cut.transpose(0, 2, 1, 3).reshape(-1, _BLOCK, _BLOCK)


def strength(cut: Array) -> Array:
    """(N, 8, 8) -> (N,): root mean square of the finest diagonal Haar band."""
    diagonal = _diagonal(cut.transpose(1, 2, 0))
    return np.sqrt((diagonal**2).mean(axis=(0, 1)))


def _diagonal(x: Array) -> Array:
    """(H, W, C), sides even -> (H/2, W/2, C): orthonormal, so that white noise keeps its deviation."""
    return (x[::2, ::2] - x[1::2, ::2] - x[::2, 1::2] + x[1::2, 1::2]) / 2
