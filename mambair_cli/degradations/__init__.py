"""Clean pictures made worse, exactly as the field does it for its benchmarks, and at random for training.

Pictures are `uint8` arrays (H, W) or (H, W, 3), RGB. Everything random comes from the generator passed in.
"""

from __future__ import annotations

from mambair_cli.degradations.arrays import Bytes
from mambair_cli.degradations.camera import Camera, camera
from mambair_cli.degradations.classic import (
    bicubic,
    downscale,
    gaussian_noise,
    jpeg,
    modcrop,
    realistic,
)
from mambair_cli.degradations.compressed import Jpegs, jpegs
from mambair_cli.degradations.mixed import Noises, noises
from mambair_cli.degradations.noise import Correlated, correlated
from mambair_cli.degradations.rain import rain, rain_and_lights
from mambair_cli.degradations.web import Order, Photo, photo

__all__ = [
    "Bytes",
    "Camera",
    "Correlated",
    "Jpegs",
    "Noises",
    "Order",
    "Photo",
    "bicubic",
    "camera",
    "correlated",
    "downscale",
    "gaussian_noise",
    "jpeg",
    "jpegs",
    "modcrop",
    "noises",
    "photo",
    "rain",
    "rain_and_lights",
    "realistic",
]
