"""The published networks: pure `nn.Module`s with the published constructor arguments and state-dict keys."""

from mambair_cli.archs.family import Architecture, Padding
from mambair_cli.archs.recognise import infer
from mambair_cli.archs.registry import ARCHITECTURES, build, find

__all__ = ["ARCHITECTURES", "Architecture", "Padding", "build", "find", "infer"]
