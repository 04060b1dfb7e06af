"""The networks: equal to the published code, key for key, parameter for parameter."""

from __future__ import annotations

import gzip
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.recipe import recipe
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from mambair_cli import archs
from mambair_cli.archs import Padding, mambairv2
from mambair_cli.archs.recognise import Outline
from mambair_cli.errors import BadCheckpoint, UsageError
from mambair_cli.models import tensors
from mambair_cli.models.download import sha256_of

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(os.environ.get("MAMBAIR_SHARED", Path(__file__).parent.parent.parent / "shared"))
SHAPES: dict[str, dict[str, list[int]]] = {}
for table in sorted(GOLDEN.glob("state_dict_shapes*.json.gz")):
    SHAPES |= json.loads(gzip.decompress(table.read_bytes()))
FILES = sorted(p.stem for p in GOLDEN.glob("*.safetensors") if p.stem not in ("selective_scan", "orders_2"))
ONE_OF_EACH = [
    *("mambair_classic_x3", "mambair_light_x2", "mambair_realdn_unet", "mambairv2_classic_x2", "mambairv2_light_x4"),
    *("vmambair_derain", "vmambair_realsr", "vmambair_sisr", "mambacsr_final", "mambacsr_wo"),
    *("dvmsr_x4", "pfvm_x4", "mair_light_s_x2", "mair_realdn", "evssm_small", "eamamba_unet", "eamamba_sr_light_x4"),
]
PARAMETERS = {
    "mambair_classic_x2": 20_421_863,
    "mambair_classic_x3": 20_606_503,
    "mambair_classic_x4": 20_569_575,
    "mambair_light_x2": 905_016,
    "mambair_light_x3": 913_131,
    "mambair_light_x4": 924_492,
    "mambair_realsr_x4": 20_569_575,
    "mambair_colordn": 15_777_507,
    "mambair_car": 15_771_025,
    "mambair_realdn": 26_779_480,
    "mambairv2_light_x2": 774_092,
    "mambairv2_light_x3": 780_587,
    "mambairv2_light_x4": 789_680,
    "mambairv2_small_x2": 9_621_935,
    "mambairv2_small_x3": 9_806_575,
    "mambairv2_small_x4": 9_769_647,
    "mambairv2_base_x2": 22_903_001,
    "mambairv2_base_x3": 23_087_641,
    "mambairv2_base_x4": 23_050_713,
    "mambairv2_large_x2": 34_090_523,
    "mambairv2_large_x3": 34_275_163,
    "mambairv2_large_x4": 34_238_235,
    "mambairv2_colordn": 22_657_971,
    "mambairv2_car": 22_651_705,
    "vmambair_derain": 28_709_875,
    "vmambair_sisr": 12_028_273,
    "vmambair_realsr": 10_497_813,
    "mambacsr_final": 22_051_842,
    "mambacsr_wo": 18_372_603,
    "dvmsr_x4": 424_428,
    "pfvm_x4": 427_848,
    "mair_light_s_x2": 1_354_680,
    "mair_light_s_x3": 1_362_795,
    "mair_light_s_x4": 1_374_156,
    "mair_light_t_x2": 877_752,
    "mair_light_t_x3": 885_867,
    "mair_light_t_x4": 897_228,
    "mair_classic_x2": 19_444_247,
    "mair_classic_x3": 19_628_887,
    "mair_classic_x4": 19_591_959,
    "mair_colordn": 14_089_035,
    "mair_realdn": 26_293_296,
    "mair_dehaze": 3_404_376,
    "evssm_deblur": 17_129_472,
    "eamamba": 25_320_512,
    "eamamba_dualpixel": 25_330_432,
    "eamamba_sr_light_x2": 725_056,
    "eamamba_sr_light_x3": 909_696,
    "eamamba_sr_light_x4": 872_768,
}


@dataclass(frozen=True)
class Golden:
    about: dict
    tensors: dict[str, Tensor]

    @classmethod
    def open(cls, name: str) -> Golden:
        with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return cls(json.loads(file.metadata()["fixture"]), tensors)

    def network(self) -> nn.Module:
        network = archs.build(self.about["arch"], **self.about["kwargs"])
        network.load_state_dict(self.weights(network), strict=True)
        if "routing" in self.about:
            network.routing = "argmax"
        return network.eval()

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        if self.about["weights"] == "file":
            origin = self.about["weights_file"]
            file = SHARED / "weights" / origin["name"]
            if not file.is_file():
                pytest.skip(f"{file} is not there")
            assert sha256_of(file) == origin["sha256"]
            return tensors.read_tensors(file, origin["key"])
        if self.about["weights"] == "recipe":
            state = network.state_dict().items()
            return recipe({k: v.shape for k, v in state if v.is_floating_point()}, self.about["seed"])
        stored = {k.removeprefix("weights/"): v for k, v in self.tensors.items() if k.startswith("weights/")}
        return {k: v.float() if v.dtype == torch.float8_e4m3fn else v for k, v in stored.items()}

    def noise(self, number: int) -> list[Tensor]:
        """Gumbel noise of each layer, in module order, where the file has any."""
        return [self.tensors[k] for k in sorted(self.tensors) if k.startswith(f"gumbel{number}/")]


def meta_state(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def shapes_of(network: nn.Module) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in network.state_dict().items()}


@pytest.mark.parametrize("name", FILES)
def test_equals_the_published_code(name: str) -> None:
    golden = Golden.open(name)
    network = golden.network()
    tolerance = golden.about["tolerance"]
    for number in range(2):
        if f"input{number}" not in golden.tensors:
            continue
        if noise := golden.noise(number):
            network.routing = lambda logits, each=iter(noise): logits + next(each).view_as(logits)
        with torch.no_grad():
            output = network(golden.tensors[f"input{number}"])
        expected = golden.tensors[f"output{number}"]
        torch.testing.assert_close(output, expected, **tolerance)
        assert (output - expected).abs().max() <= max(1e-4, tolerance["atol"])


@pytest.mark.parametrize("name", FILES)
def test_infer_recovers_what_built_the_network(name: str) -> None:
    about = Golden.open(name).about
    with torch.device("meta"):
        network = archs.build(about["arch"], **about["kwargs"])
    arch, kwargs = archs.infer(network.state_dict())
    published = {key: about["kwargs"].get(key, kwargs[key]) for key in kwargs}
    if not name.startswith("full_"):
        kwargs.pop("scan_len", None)  # leaves no trace in the weights: it is told by what was published
        published.pop("scan_len", None)
    assert (arch, kwargs) == (about["arch"], published)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_published_state_dicts_key_for_key(name: str) -> None:
    arch, kwargs = archs.infer(meta_state(SHAPES[name]))
    with torch.device("meta"):
        network = archs.build(arch, **kwargs)
    assert shapes_of(network) == SHAPES[name]
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]


def test_infer_says_what_it_tried() -> None:
    with pytest.raises(BadCheckpoint) as error:
        archs.infer({"features.0.weight": torch.zeros(1)})
    assert all(arch in error.value.hint for arch in archs.ARCHITECTURES)
    with pytest.raises(BadCheckpoint) as error:
        archs.infer({mambairv2.KERNEL: torch.zeros(1)})
    assert error.value.hint == f"Not mambairv2: no {mambairv2.FIRST_LAYER}win_mhsa.relative_position_bias_table."


def test_infer_recognises_light_weights_of_an_older_kind() -> None:
    shapes = {key.replace("cab.5", "cab.3"): shape for key, shape in SHAPES["mambair_light_x2"].items()}
    with pytest.raises(BadCheckpoint, match="November 2024"):
        archs.infer(meta_state(shapes))


def test_infer_refuses_a_network_with_one_key_more_less_or_other() -> None:
    shapes = SHAPES["vmambair_sisr"]
    for damaged in (
        {**shapes, "extra.weight": [1]},
        {key: shape for key, shape in shapes.items() if key != "latent.0.attn.Ds"},
        {**shapes, "latent.0.attn.Ds": [7]},
    ):
        with pytest.raises(BadCheckpoint, match=r"vmambair_sisr: (has extra|no latent|latent.0.attn.Ds is \[7\])"):
            archs.infer(meta_state(damaged))


def test_infer_takes_no_memory_for_what_shapes_claim() -> None:
    shapes = SHAPES["mambairv2_light_x4"]
    claims = {
        "embed_dim is 100000000": {"conv_first.weight": [100_000_000, 3, 3, 3]},
        "d_state is 100000000": {mambairv2.FIRST_LAYER + "assm.selectiveScan.A_logs": [1, 100_000_000]},
        "conv_first.bias is .* not": {"conv_first.weight": [16_000, 3, 3, 3]},
        "windows of 5000x5000": {
            f"{mambairv2.FIRST_LAYER}win_mhsa.relative_position_bias_table": [9999**2, 4],
        },
        "index out of range": {mambairv2.FIRST_LAYER + "assm.selectiveScan.A_logs": []},
    }
    for said, claim in claims.items():
        with pytest.raises(BadCheckpoint) as error:
            archs.infer(meta_state(shapes | claim))
        assert re.search(said, error.value.hint), error.value.hint


def test_an_outline_has_the_shapes_of_the_network() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.full((2, 3), 0.5).repeat(2, 1, 4))
            self.b = nn.Parameter(torch.empty(size=(5, 7)))
            self.register_buffer("c", torch.ones(4, 4, dtype=torch.int64))
            self.linear = nn.Linear(3, 2)
            nn.init.trunc_normal_(self.linear.weight)
            nn.init.orthogonal_(self.linear.weight)
            with torch.no_grad():
                self.a[0] = 1

    with Outline():
        outline = Odd()
    assert shapes_of(outline) == shapes_of(Odd())
    assert {k: v.dtype for k, v in outline.state_dict().items()} == {
        k: v.dtype for k, v in Odd().state_dict().items()
    }
    assert all(p.untyped_storage().nbytes() <= 8 for p in outline.parameters())


def test_padding_follows_its_rule() -> None:
    assert [Padding(8).length(n) for n in (1, 8, 9)] == [8, 8, 16]
    assert [Padding(minimum=8).length(n) for n in (1, 8, 9)] == [8, 8, 9]
    csr = Padding(64, minimum=32, mode="symmetric", extra=True)
    assert [csr.length(n) for n in (1, 63, 64, 65)] == [64, 64, 128, 128]
    assert [Padding(8, minimum=16).takes(n) for n in (8, 16, 20, 24)] == [False, True, False, True]


@pytest.mark.parametrize("name", FILES)
def test_records_know_pictures_and_scale(name: str) -> None:
    golden = Golden.open(name)
    architecture, kwargs = archs.find(golden.about["arch"]), golden.about["kwargs"]
    before, after = golden.tensors["input0"].shape, golden.tensors["output0"].shape
    assert architecture.channels_of(kwargs) == before[1]
    assert architecture.scale_of(kwargs) * before[2] == after[2]
    assert architecture.bytes_per_pixel(kwargs) > 100


def test_loading_is_strict() -> None:
    network = Golden.open("mambair_light_x2").network()
    state = network.state_dict()
    for damaged in ({**state, "extra": torch.zeros(1)}, {k: v for k, v in state.items() if k != "norm.weight"}):
        with pytest.raises(RuntimeError, match=r"extra|norm\.weight"):
            network.load_state_dict(damaged)


def test_v2_loads_with_and_without_the_position_index() -> None:
    network = Golden.open("mambairv2_light_x4").network()
    state = network.state_dict()
    assert state[network.BUFFER].shape == (256, 256)
    network.load_state_dict(state)
    network.load_state_dict({k: v for k, v in state.items() if k != network.BUFFER})
    with pytest.raises(RuntimeError, match=network.BUFFER):
        network.load_state_dict({**state, network.BUFFER: torch.zeros(4, 4)})


def test_build_explains_what_it_cannot_build() -> None:
    with pytest.raises(UsageError, match="mambair_unet"):
        archs.build("swinir")
    with pytest.raises(UsageError, match="embed_dim"):
        archs.build("mambair", embeddim=60)
    with pytest.raises(UsageError, match="resi_connection"):
        archs.build("mambair", resi_connection="3conv")
    with pytest.raises(ValueError, match="squeeze"):
        archs.build("mambair", embed_dim=16)
    with pytest.raises(ValueError, match="upsampler"):
        archs.build("mambair", embed_dim=32, upsampler="nearest+conv", upscale=4)


@pytest.mark.parametrize(("name", "size"), [("vmambair_sisr", (8, 12)), ("mambacsr_final", (16, 24))])
def test_illegal_sizes_are_refused(name: str, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of"):
        Golden.open(name).network()(torch.zeros(1, 3, *size))


ANY_SIZE = ("mambair_classic_x3", "mambairv2_light_x4", "mambacsr_wo")
ANY_SIZE += ("dvmsr_x4", "pfvm_x4", "mair_light_s_x2", "eamamba_sr_light_x4")


@pytest.mark.parametrize("name", ANY_SIZE)
@pytest.mark.parametrize("size", [(1, 1), (3, 18)])
def test_any_other_size_works(name: str, size: tuple[int, int]) -> None:
    golden = Golden.open(name)
    scale = golden.about["kwargs"]["upscale"]
    with torch.no_grad():
        y = golden.network()(torch.rand(1, 3, *size))
    assert y.shape == (1, 3, size[0] * scale, size[1] * scale)
    assert y.isfinite().all()


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_pictures_of_a_batch_do_not_mix(name: str) -> None:
    golden = Golden.open(name)
    network, x = golden.network(), golden.tensors["input1"]
    pair = torch.cat([x, x.flip(-1)])
    with torch.no_grad():
        torch.testing.assert_close(network(pair), torch.cat([network(x), network(x.flip(-1))]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_plain_scan_gives_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAMBAIR_SCAN", "torch")
    golden = Golden.open(name)
    with torch.no_grad():
        output = golden.network()(golden.tensors["input1"])
    torch.testing.assert_close(output, golden.tensors["output1"], **golden.about["tolerance"])


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_parameter_of_a_fresh_network_learns(name: str) -> None:
    golden = Golden.open(name)
    torch.manual_seed(0)
    network = archs.build(golden.about["arch"], **golden.about["kwargs"])
    y = network(golden.tensors["input1"])
    assert y.isfinite().all()
    y.square().mean().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        # conv_cout.bias: a norm follows it. attention: its single hidden unit may be dead at this size.
        if not key.endswith("conv_cout.bias") and ".attention." not in key:
            assert parameter.grad.any(), key


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_half_precision_stays_close(name: str) -> None:
    golden = Golden.open(name)
    network, x = golden.network(), golden.tensors["input1"]
    # Rounding may send a pixel down another route, which changes much: decide the routes here.
    network.routing = lambda logits: logits + 1e4 * torch.rand(logits.shape, generator=torch.manual_seed(0))
    with torch.no_grad():
        expected = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            y = network(x).float()
    assert (y - expected).abs().mean() < 0.05 * expected.std()


def test_v2_noise_comes_from_the_seed() -> None:
    golden = Golden.open("mambairv2_light_x4")
    network, x = golden.network(), golden.tensors["input1"]
    network.routing = "gumbel"

    def run(seed: int) -> Tensor:
        network.generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            return network(x)

    first = run(1)
    assert torch.equal(run(1), first)
    assert not torch.equal(run(2), first)
    network.routing = "best"
    with pytest.raises(ValueError, match="argmax"):
        run(1)


@given(st.integers(1, 40), st.sampled_from([8, 16]))
def test_v2_pads_by_mirroring_with_the_edge(length: int, window: int) -> None:
    expected = np.pad(np.arange(length), (0, -length % window), mode="symmetric")
    assert mambairv2.mirrored(length, window, torch.device("cpu")).tolist() == expected.tolist()


def test_v2_router_learns_through_the_hard_choice() -> None:
    logits = torch.randn(2, 5, 3, requires_grad=True)
    weights = torch.randn(2, 5, 3)
    choice = mambairv2.straight_through(logits, logits.argmax(-1))
    assert torch.equal(choice.detach().round(), torch.nn.functional.one_hot(logits.argmax(-1), 3).float())
    (gradient,) = torch.autograd.grad((choice * weights).sum(), logits)
    (soft,) = torch.autograd.grad((logits.softmax(-1) * weights).sum(), logits)
    torch.testing.assert_close(gradient, soft)


def test_the_published_checkpoint_loads(shared: Path) -> None:
    file = shared / "weights" / "mambairv2_light_x4.pth"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    state = torch.load(file, weights_only=True)["params"]
    arch, kwargs = archs.infer(state)
    assert (arch, kwargs["upscale"], kwargs["embed_dim"]) == ("mambairv2_light", 4, 48)
    archs.build(arch, **kwargs).load_state_dict(state)
