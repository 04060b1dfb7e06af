"""The published networks: pure `nn.Module`s with the published constructor arguments and state-dict keys."""

from mambair_cli.archs.recognise import infer
from mambair_cli.archs.registry import ARCHS, build

__all__ = ["ARCHS", "build", "infer"]
