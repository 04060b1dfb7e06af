"""Which network a state dict belongs to, and its hyper-parameters, from keys and shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mambair_cli.archs.family import Architecture, Shapes
from mambair_cli.archs.registry import ARCHITECTURES
from mambair_cli.errors import BadCheckpoint, MambairError

LARGEST = 1 << 14  # hyper-parameter: published networks stay below 1000


def infer(state: Mapping[str, Tensor]) -> tuple[str, dict[str, object]]:
    """The architecture and the arguments with which `build` makes a network of exactly these keys and shapes.

    Takes no memory for what the shapes claim. Raises BadCheckpoint, which says how near which architectures come.
    """
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    objections = []
    for architecture in ARCHITECTURES.values():
        if not _is_marked(architecture, shapes):
            continue
        try:
            kwargs = architecture.hyperparameters(shapes)
            objection = _absurd(kwargs) or _difference(architecture, kwargs, shapes)
        except KeyError as error:
            objection = f"no {error.args[0]}"
        except (MambairError, ValueError, TypeError, IndexError, ArithmeticError) as error:
            objection = str(error)
        if not objection:
            return architecture.name, kwargs
        objections.append(f"Not {architecture.name}: {objection}.")
    objections += filter(None, (architecture.hint(shapes) for architecture in ARCHITECTURES.values()))
    hint = " ".join(objections) or f"They have the keys of none of {', '.join(ARCHITECTURES)}."
    raise BadCheckpoint("The weights fit no known network.", hint)


def _is_marked(architecture: Architecture, shapes: Shapes) -> bool:
    return all(key in shapes for key in architecture.marks) and not any(
        key in shapes for key in architecture.unmarked
    )


def _absurd(kwargs: Mapping[str, object]) -> str:
    """The first number that no network has."""
    for name, value in kwargs.items():
        numbers = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        if any(isinstance(number, (int, float)) and not 0 <= number <= LARGEST for number in numbers):
            return f"{name} is {value}"
    return ""


def _difference(architecture: Architecture, kwargs: Mapping[str, object], shapes: Shapes) -> str:
    """The first key that the state dict lacks, has too much, or has in another shape."""
    with Outline():
        expected = {key: tuple(value.shape) for key, value in architecture.build(kwargs).state_dict().items()}
    for key, shape in expected.items():
        if key in shapes and shapes[key] != shape:
            return f"{key} is {list(shapes[key])}, not {list(shape)}"
        if key not in shapes and key not in architecture.computed:
            return f"no {key}"
    return next((f"has {key}" for key in shapes if key not in expected), "")


class Outline(TorchFunctionMode):
    """Within it networks come into being without their values: of the right shapes, each upon a single number.

    (On torch's meta device initialisation would import the compiler, which takes seconds.)
    """

    FACTORIES: ClassVar = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)
    KEPT: ClassVar = ("requires_grad_", "squeeze_", "t_", "transpose_", "unsqueeze_")  # of what works in place

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function.__name__
        if function in self.FACTORIES:
            size = kwargs["size"] if "size" in kwargs else args if isinstance(args[0], int) else args[0]
            return torch.zeros((), dtype=kwargs.get("dtype")).expand(size)
        if function is torch.Tensor.repeat:
            return _repeated(*args)
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__") and name not in self.KEPT):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]  # initialisation: there is nothing to fill
        return function(*args, **kwargs)


def _repeated(tensor: Tensor, *times: int) -> Tensor:
    """The shape of `tensor.repeat(*times)`."""
    old = (1,) * (len(times) - tensor.dim()) + tuple(tensor.shape)
    return torch.zeros((), dtype=tensor.dtype).expand([n * m for n, m in zip(old, times, strict=True)])
