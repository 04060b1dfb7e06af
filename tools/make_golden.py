"""Make or check golden files with the authors' own network code, on a CPU.

    python tools/make_golden.py CHECKOUT tests/golden/mambair_*.safetensors          compare with what is stored
    python tools/make_golden.py CHECKOUT new.json -o tests/golden                    make new.safetensors

CHECKOUT is the authors' repository. A golden file describes itself (metadata entry `fixture`); a new one is described
by JSON: {"arch": ours, "official_class": theirs, "kwargs": {...}, "seed": 1, "sizes": [[12, 16], [9, 21]]}.

The file of CHECKOUT that defines the class is imported, with those beside it that it needs. What is not installed or
does not run here is replaced by stand-ins: the CUDA scan by the plain recurrence, the registry and timm's helpers by
what they come to, the rest by nothing. Routing by Gumbel noise becomes argmax, or takes the noise in the golden file;
sorting is stable. Needs torch, safetensors and, for most repositories, `pip install einops`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from helpers.recipe import recipe  # noqa: E402

TIMES = 20  # the tolerance, in distances between the authors' code in float32 and in float64


# ---------------------------------------------------------------------------------------- what is not installed


def plain_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Any:
    """h_t = exp(dt A) h_{t-1} + dt B_t u_t, y_t = C_t . h_t + D u_t, step by step. u, delta (b, D, L); A (D, N)."""
    dt = delta if delta_bias is None else delta + delta_bias[:, None]
    dt = F.softplus(dt) if delta_softplus else dt
    B, C = (t if t.dim() == 4 else t[:, None] for t in (B, C))  # (b, groups, N, L)
    B, C = (t.repeat_interleave(u.shape[1] // t.shape[1], dim=1) for t in (B, C))
    h, ys = u.new_zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[-1]):
        step = dt[:, :, t, None]
        h = torch.exp(step * A) * h + step * B[..., t] * u[:, :, t, None]
        ys.append((h * C[..., t]).sum(-1))
    y = torch.stack(ys, dim=-1)
    y = y if D is None else y + D[:, None] * u
    y = y if z is None else y * F.silu(z)
    return (y, h) if return_last_state else y


def plain_kernel(*args: Any) -> tuple[Tensor, Tensor]:
    """selective_scan_cuda.fwd, of mamba_ssm (with z ahead of the bias) or of VMamba (without)."""
    *scan, last = args[:8]
    scan = [*scan[:6], None, scan[6], last] if isinstance(last, bool) else [*scan, last, args[8]]
    y, h = plain_scan(*scan, return_last_state=True)
    return y, torch.stack([torch.zeros_like(h), h], dim=-1).flatten(-2)[:, :, None]  # as (b, D, chunks, 2N)


class Registry:
    """basicsr's, of which only the decorator matters."""

    def __init__(self, *args: object) -> None: ...

    def register(self, found: Any = None) -> Any:
        return found if found is not None else lambda found: found


STAND_INS: dict[str, Any] = {
    "fwd": plain_kernel,
    "selective_scan_cuda_core": SimpleNamespace(fwd=plain_kernel),
    "selective_scan_fn": plain_scan,
    "selective_scan_ref": plain_scan,
    "causal_conv1d_fn": None,  # the Mamba block then takes its own convolution
    "causal_conv1d_update": None,
    "mamba_inner_fn": None,
    "DropPath": lambda *args, **kwargs: nn.Identity(),
    "to_2tuple": lambda x: x if isinstance(x, tuple) else (x, x),
    "trunc_normal_": nn.init.trunc_normal_,
    "ARCH_REGISTRY": Registry(),
    "Registry": Registry,
}


class Nothing:
    """Answers to everything with itself; as a base class or a decorator it leaves things as they are."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __mro_entries__(self, bases: tuple) -> tuple:
        return ()


class StandIns(MetaPathFinder, Loader):
    """The last finder that is asked: modules of the checkout that run, and every other, with stand-ins inside."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec:
        return ModuleSpec(name, self, is_package=not self.files(name))

    def files(self, name: str) -> list[Path]:
        """Of the checkout; a registry would refuse a class that is read again."""
        place = name.replace(".", "/")
        package = (self.checkout / place).is_dir()
        return [] if package or "registry" in name else sorted(self.checkout.rglob(place + ".py"))

    def exec_module(self, module: ModuleType) -> None:
        for file in self.files(module.__name__):
            try:
                exec(compile(file.read_text("utf-8"), file, "exec"), module.__dict__)
                return
            except Exception as error:  # foreign code on foreign versions
                print(f"{file} does not run here: {error}", file=sys.stderr)
        module.__getattr__ = lambda name: STAND_INS.get(name, Nothing())  # type: ignore[method-assign]


# ---------------------------------------------------------------------------------------------- the authors' code


def classes(checkout: Path, name: str) -> Iterator[Callable[..., nn.Module]]:
    """Every class of that name in the checkout, each from its own file."""
    files = sorted(checkout.rglob("*.py"), key=lambda file: ("arch" not in file.name, str(file)))
    for file in files:
        if re.search(rf"^class {name}\(", file.read_text("utf-8", errors="ignore"), re.MULTILINE):
            name_there = ".".join(file.relative_to(checkout).with_suffix("").parts)  # so that relative imports work
            spec = importlib.util.spec_from_file_location(name_there, file)
            assert spec is not None and spec.loader is not None  # noqa: PT018
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
            yield getattr(module, name)


def network(checkout: Path, about: dict[str, Any], stored: dict[str, Tensor]) -> nn.Module:
    """The authors' network with the weights of the golden file. Ends the program where no class takes them."""
    objections = []
    for make in classes(checkout, about["official_class"]):
        try:
            net = make(**about["kwargs"])
            state = net.state_dict()
            shapes = {key: value.shape for key, value in state.items() if value.is_floating_point()}
            weights = recipe(shapes, about["seed"]) if about["weights"] == "recipe" else stored
            rest = {key: value for key, value in state.items() if key not in shapes}
            net.load_state_dict({**rest, **weights}, strict=True, assign=True)  # theirs may share memory
        except (RuntimeError, TypeError) as error:
            objections.append(" ".join(str(error).split())[:200])
            continue
        return net.eval()
    raise SystemExit(f"{checkout} has no fitting class {about['official_class']}. {'; '.join(objections)}")


@contextmanager
def made_certain(noise: Iterator[Tensor] | None) -> Iterator[None]:
    """Routes by argmax of logits plus `noise`, ties in raster order."""
    sort = torch.sort

    def choose(logits: Tensor, *args: Any, dim: int = -1, **kwargs: Any) -> Tensor:
        if noise is not None:
            logits = logits + next(noise).to(logits).view_as(logits)
        return F.one_hot(logits.argmax(dim), logits.shape[dim]).to(logits)

    def stably(x: Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Any:
        return sort(x, dim=dim, descending=descending, stable=True)

    with patch.object(F, "gumbel_softmax", choose), patch.object(torch, "sort", stably), torch.no_grad():
        yield


def run(net: nn.Module, x: Tensor, noise: list[Tensor]) -> Tensor:
    with made_certain(iter(noise) if noise else None):
        return net(x)


def run_double(net: nn.Module, x: Tensor, noise: list[Tensor]) -> Tensor:
    """In float64, where the code itself asks for float32 as well."""
    names = {"float": torch.float64, "float32": torch.float64}
    with patch.object(Tensor, "float", Tensor.double), patch.multiple(torch, **names):
        result = run(net.double(), x.double(), noise)
    net.float()
    return result


# ------------------------------------------------------------------------------------------------- golden files


def read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(file, "pt") as content:
        tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118
        return json.loads(content.metadata()["fixture"]), tensors


def weights_in(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    stored = {key.removeprefix("weights/"): value for key, value in tensors.items() if key.startswith("weights/")}
    return {key: value.float() if value.dtype == torch.float8_e4m3fn else value for key, value in stored.items()}


def check(checkout: Path, file: Path) -> bool:
    """Whether the authors' code gives what the golden file holds; prints by how much it differs."""
    about, tensors = read(file)
    net = network(checkout, about, weights_in(tensors))
    tolerance, worst = about["tolerance"], 0.0
    for number in range(2):
        if f"input{number}" in tensors:
            noise = [tensors[key] for key in sorted(tensors) if key.startswith(f"gumbel{number}/")]
            output, expected = run(net, tensors[f"input{number}"], noise), tensors[f"output{number}"]
            worst = max(
                worst,
                ((output - expected).abs() / (tolerance["atol"] + tolerance["rtol"] * expected.abs())).max().item(),
            )
    print(f"{'ok   ' if worst <= 1 else 'WRONG'} {file.stem}: {worst:.3f} of the tolerance", flush=True)
    return worst <= 1


def make(checkout: Path, description: Path, folder: Path) -> None:
    """Write NAME.safetensors from NAME.json, with weights by recipe."""
    about = {"format": "mambair-golden-1", "weights": "recipe", "notes": "", **json.loads(description.read_text())}
    sizes, channels = about.pop("sizes"), about.pop("channels", 3)
    net = network(checkout, about, {})
    generator = torch.Generator().manual_seed(about["seed"])
    tensors, far = {}, 0.0
    for number, (height, width) in enumerate(sizes):
        x = torch.rand(1, channels, height, width, generator=generator)
        y = run(net, x, [])
        far = max(far, (run_double(net, x, []) - y).abs().max().item())
        tensors |= {f"input{number}": x, f"output{number}": y.contiguous()}
    lines = sorted(
        f"{key} {list(value.shape)}" for key, value in net.state_dict().items() if value.is_floating_point()
    )
    about |= {
        "recipe": {"name": "wgen-1", "seed": about["seed"]},
        "state_dict_crc32": zlib.crc32("\n".join(lines).encode()),
        "fp32_vs_fp64_max_abs": far,
        "tolerance": {"atol": float(f"{TIMES * far:.0e}") or 1e-6, "rtol": 1e-4},
        "output_absmax": max(value.abs().max().item() for value in tensors.values()),
    }
    if not math.isfinite(far):
        raise SystemExit(f"{description.stem}: the outputs are not finite; choose another seed")
    save_file(tensors, folder / f"{description.stem}.safetensors", {"fixture": json.dumps(about)})
    print(f"made  {description.stem}: float32 is {far:.1e} from float64", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="the authors' repository")
    parser.add_argument(
        "files", type=Path, nargs="+", help="golden files to compare, or descriptions (.json) of new ones"
    )
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "tests" / "golden", help="folder for new ones")
    options = parser.parse_args()
    sys.meta_path.append(StandIns(options.checkout))
    wrong = 0
    for file in options.files:
        if file.suffix == ".json":
            make(options.checkout, file, options.out)
        else:
            wrong += not check(options.checkout, file)
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
