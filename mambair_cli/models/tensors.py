"""The tensors in a file of weights: read without running anything, refused where they are not what they claim.

What a file claims is compared with what it holds before memory is taken for it.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambair_cli.errors import BadCheckpoint, Unavailable

if TYPE_CHECKING:
    from torch import Tensor

CONTAINERS = ("params_ema", "params", "state_dict", "model.sd_e")  # a dot leads into a container in a container
MOST_TENSORS = 20_000  # published networks have up to 3,000
MOST_RECORDS = 100_000  # in a PyTorch file, which may hold the state of an optimizer as well


def read_tensors(file: Path, key: str | None = None) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, as stored; safetensors or a pickle, of which only tensors are accepted.

    `key` is the container inside the file to prefer; others are found by themselves, and a leading `module.` goes.
    Raises Unavailable where there is no file, BadCheckpoint where it holds no weights or anything beside, or claims
    more than its bytes can hold.
    """
    try:
        content = _read_safetensors(file) if is_safetensors(file) else _read_pickle(file)
    except OSError as error:
        raise Unavailable(f"Cannot read {file}: {error.strerror or error}.") from error
    containers = (_inside(content, name) for name in (key or CONTAINERS[0], *CONTAINERS))
    state = _tensors(next((found for found in containers if found is not None), content))
    if not state:
        raise BadCheckpoint(f"{file} holds no weights.", "A checkpoint is a dictionary of named tensors.")
    _check_claims(state, file)
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def is_safetensors(file: Path) -> bool:
    """Eight bytes of header length, then a JSON object."""
    with file.open("rb") as stream:
        start = stream.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < file.stat().st_size


def check_sums(file: Path, shown: object) -> None:
    """Raise BadCheckpoint where a zip, as PyTorch writes, fails its own checksums, which PyTorch does not look at."""
    if not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as content:
            damaged = content.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
        raise BadCheckpoint(f"{shown} is damaged: {error}.", "Fetch it again.") from error
    if damaged:
        raise BadCheckpoint(f"{shown} is damaged: {damaged} in it fails its checksum.", "Fetch it again.")


def note(file: Path, name: str) -> Mapping[str, object]:
    """The JSON object that stands under `name` in the header of a safetensors file; empty where there is none."""
    from safetensors import safe_open

    if not is_safetensors(file):
        return {}
    with safe_open(file, "pt") as content:
        text = (content.metadata() or {}).get(name, "{}")
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(file, "pt") as content:
            _check_number(len(content.keys()), MOST_TENSORS, file)
        return load_file(file)
    except SafetensorError as error:
        raise BadCheckpoint(f"{file} is damaged: {error}.") from error


def _read_pickle(file: Path) -> Any:
    import torch

    _check_archive(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler on foreign bytes raises anything
        if wanted := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise BadCheckpoint(
                f"{file} holds more than tensors ({wanted[1]}); opening it could run any code, so it is refused.",
                "If you trust it, load it where it was made and save its state_dict() alone.",
            ) from error
        raise BadCheckpoint(
            f"{file} is no checkpoint, or damaged.", "It should be a PyTorch file or safetensors; fetch it again."
        ) from error


def _check_archive(file: Path) -> None:
    """PyTorch's archives are not compressed: one that unpacks to more than its own size was made to do harm."""
    with file.open("rb") as stream:
        if stream.read(4) != b"PK\x03\x04":
            return
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, RecursionError):
        return  # PyTorch will say so
    _check_number(len(records), MOST_RECORDS, file)
    if sum(record.file_size for record in records) > file.stat().st_size:
        raise _too_much(file)


def _inside(content: object, container: str) -> Mapping[Any, Any] | None:
    """The dictionary of that name in a checkpoint."""
    for name in container.split("."):
        content = content.get(name) if isinstance(content, Mapping) else None
    return content if isinstance(content, Mapping) else None


def _tensors(content: object) -> dict[str, Tensor]:
    import torch

    if not isinstance(content, Mapping):
        return {}
    return {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}


def _check_claims(state: Mapping[str, Tensor], file: Path) -> None:
    """A tensor that repeats its numbers, or shares its memory with others, can claim any shape for nothing."""
    import torch

    _check_number(len(state), MOST_TENSORS, file)
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise BadCheckpoint(f"{file}: {name} is no plain tensor.", "Save the network's state_dict() as it is.")
    memory = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state.values()}
    if sum(tensor.numel() * tensor.element_size() for tensor in state.values()) > sum(memory.values()):
        raise _too_much(file)


def _check_number(number: int, most: int, file: Path) -> None:
    if number > most:
        raise BadCheckpoint(f"{file} has {number:,} entries: no network has so many.")


def _too_much(file: Path) -> BadCheckpoint:
    return BadCheckpoint(
        f"{file} claims to hold more values than its bytes can.",
        "Tensors were expanded or packed; save the network's state_dict() as it is.",
    )
