"""The manifest describes every published model, and requests find the one they mean."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambair_cli.errors import MambairError, Unavailable, UsageError
from mambair_cli.models import zoo

GOLDEN = Path(__file__).parent / "golden"
SHAPES: dict[str, dict[str, list[int]]] = {}
for table in sorted(GOLDEN.glob("state_dict_shapes*.json.gz")):
    SHAPES |= json.loads(gzip.decompress(table.read_bytes()))
# The published configurations by the names of the golden files, each with all models that share it.
PUBLISHED = {
    **{f"mambair_{kind}_x{s}": [f"mambair-{kind}-x{s}"] for kind in ("classic", "light") for s in (2, 3, 4)},
    **{
        f"mambairv2_{kind}_x{s}": [f"mambairv2-{kind}-x{s}"] for kind in ("small", "base", "large") for s in (2, 3, 4)
    },
    **{f"mambairv2_light_x{s}": [f"mambairv2-light-x{s}"] for s in (2, 3)},
    "mambairv2_light_x4": ["mambairv2-light-x4", "mambairv2-light-x4-ntire"],
    "mambair_realsr_x4": ["mambair-real-x4"],
    "mambair_colordn": [f"mambair-denoise-{sigma}" for sigma in (15, 25, 50)],
    "mambair_car": [f"mambair-jpeg-q{quality}" for quality in (10, 30, 40)],
    "mambair_realdn": ["mambair-realdn"],
    "mambairv2_colordn": ["mambairv2-denoise-15"],
    "mambairv2_car": [f"mambairv2-jpeg-q{quality}" for quality in (10, 30, 40)],
    "vmambair_derain": ["vmambair-derain"],
    "vmambair_sisr": ["vmambair-sisr-x4"],
    "vmambair_realsr": ["vmambair-realsr-x4"],
    "mambacsr_final": ["mambacsr-x4"],
    "mambacsr_wo": ["mambacsr-wo-x4"],
    "dvmsr_x4": ["dvmsr-x4", "dvmsr-x4-ntire"],
    "pfvm_x4": ["pfvm-x4"],
    **{f"mair_light_s_x{s}": [f"mair-light-x{s}"] for s in (2, 3, 4)},
    **{f"mair_light_t_x{s}": [f"mair-tiny-x{s}"] for s in (2, 3, 4)},
    **{f"mair_classic_x{s}": [f"mair-classic-x{s}"] for s in (2, 3, 4)},
    "mair_colordn": [f"mair-denoise-{sigma}" for sigma in (15, 25, 50)],
    "mair_realdn": ["mair-realdn", "mair-deblur"],
    "mair_dehaze": [f"mair-dehaze-{kind}" for kind in ("mix", "indoor", "outdoor")],
    "evssm_deblur": ["evssm-deblur", "evssm-deblur-real"],
    "eamamba": [
        *("eamamba-denoise", "eamamba-realdn", "eamamba-deblur", "eamamba-defocus", "eamamba-derain"),
        *("eamamba-dehaze-indoor", "eamamba-dehaze-outdoor"),
    ],
    **{f"eamamba_sr_light_x{s}": [f"eamamba-light-x{s}"] for s in (2, 3, 4)},
    "eamamba_dualpixel": [],  # the class supports it; nothing is published
}
NAMES = [name for names in PUBLISHED.values() for name in names]

MANIFEST = """
[protocols.p]
channel = "rgb"
crop = "scale"
[defaults.net]
family = "f"
arch = "mambair"
protocol = "p"
params = 1
kwargs = { in_chans = 3, depths = [1] }
source.bundled = true
"""


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a manifest of our own and use it."""

    def use(text: str) -> None:
        file = tmp_path / f"{abs(hash(text))}.toml"
        file.write_text(MANIFEST + text)
        monkeypatch.setenv("MAMBAIR_ZOO", str(file))

    return use


def bundled(name: str, task: str, **more: object) -> str:
    lines = [f"[models.{name}]", 'like = "net"', f'task = "{task}"', f'source.filename = "{name}.safetensors"']
    return "\n".join(lines + [f"{key} = {json.dumps(value)}" for key, value in more.items()]) + "\n"


def test_every_published_model_is_there() -> None:
    assert set(SHAPES) == set(PUBLISHED)
    assert {name for name, spec in zoo.zoo().items() if not spec.source.bundled} == set(NAMES)


@pytest.mark.parametrize("golden", [name for name, models in PUBLISHED.items() if models])
def test_networks_are_as_published(golden: str) -> None:
    import torch

    from mambair_cli import archs

    specs = [zoo.find(name) for name in PUBLISHED[golden]]
    with torch.device("meta"):
        network = archs.build(specs[0].arch, **specs[0].kwargs)
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == SHAPES[golden]
    for spec in specs:
        assert (spec.arch, spec.kwargs) == (specs[0].arch, specs[0].kwargs)
        assert sum(p.numel() for p in network.parameters()) == spec.params
        architecture = archs.find(spec.arch)
        assert architecture.scale_of(spec.kwargs) == spec.scale
        assert architecture.channels_of(spec.kwargs) == spec.channels


def test_records_are_complete() -> None:
    specs = [spec for spec in zoo.zoo().values() if not spec.source.bundled]
    files = [spec.source.filename for spec in specs]
    assert len(set(files)) == len(files), "the cache keeps files by these names"
    for spec in specs:
        assert spec.source.urls or spec.source.folder, spec.name
        assert spec.source.key in ("params", "params_ema", "model.sd_e") or spec.name == "dvmsr-x4-ntire", spec.name
        assert all((spec.licence, spec.training, spec.good_for, spec.not_for)), spec.name
        assert "{" not in "".join(spec.source.urls), spec.name
        assert zoo.bibtex(spec).strip().startswith("@"), spec.name
        assert spec.protocol.crop == (spec.scale if spec.task == "upscale" else 0), spec.name
        assert all(10 < psnr < 50 and (ssim is None or 0 < ssim < 1) for psnr, ssim in spec.published.values())


@pytest.mark.parametrize(
    ("name", "dataset", "score"),
    [
        ("mambair-classic-x3", "Urban100", (29.93, 0.8841)),
        ("mambair-light-x2", "Manga109", (39.20, 0.9782)),
        ("mambairv2-light-x4", "Set5", (32.51, 0.8992)),
        ("mambairv2-large-x4", "Urban100", (28.07, 0.8383)),
        ("mambair-denoise-50", "McMaster", (30.35, None)),
        ("mambairv2-jpeg-q30", "LIVE1", (33.73, 0.9179)),
        ("mambair-realdn", "SIDD", (39.89, 0.960)),
        ("vmambair-derain", "Rain100L", (39.09, 0.979)),
    ],
)
def test_scores_are_as_published(name: str, dataset: str, score: tuple[float, float | None]) -> None:
    assert zoo.find(name).published[dataset] == score


def test_drive_comes_before_the_mirror() -> None:
    first, second = zoo.find("mambair-denoise-25").source.urls
    assert first == "https://drive.google.com/uc?export=download&id=1qSPy6B7Jvi7PDHM1fl8Q88kn7ckwtusK"
    assert second.endswith("/MambaIRv1_ckpt/ColorDN_MambaIR_level25.pth")


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        ({"task": "upscale", "scale": 4, "model": "light"}, "mambairv2-light-x4-ntire"),
        ({"task": "upscale", "scale": 2, "model": "light"}, "mambairv2-light-x2"),
        ({"task": "upscale", "model": "light"}, "mambairv2-light-x4-ntire"),
        ({"task": "upscale", "scale": 3, "model": "large"}, "mambairv2-large-x3"),
        ({"task": "upscale", "model": "mini"}, "pfvm-x4"),
        ({"task": "upscale", "scale": 4, "model": "small"}, "mambairv2-small-x4"),
        ({"task": "upscale", "scale": 2, "model": "mair"}, "mair-light-x2"),
        ({"task": "upscale", "model": "real"}, "mambair-real-x4"),
        ({"task": "upscale", "model": "compressed"}, "mambacsr-x4"),
        ({"task": "upscale", "model": "compressed", "compressed": True}, "mambacsr-x4"),
        ({"task": "upscale", "model": "mambacsr-wo-x4", "compressed": True}, "mambacsr-wo-x4"),
        ({"task": "denoise", "model": "real", "sigma": "real"}, "mambair-realdn"),
        ({"task": "denoise", "model": "mambair", "sigma": 15}, "mambair-denoise-15"),
        ({"task": "denoise", "model": "mambair", "sigma": 16}, "mambair-denoise-25"),
        ({"task": "denoise", "model": "mambair", "sigma": 80}, "mambair-denoise-50"),
        ({"task": "denoise", "model": "mambair-denoise-15", "sigma": 40}, "mambair-denoise-15"),
        ({"task": "decompress", "model": "mambairv2", "quality": 35}, "mambairv2-jpeg-q30"),
        ({"task": "decompress", "model": "mambair", "quality": 20}, "mambair-jpeg-q10"),
        ({"task": "decompress", "model": "mambair", "quality": 95}, "mambair-jpeg-q40"),
        ({"task": "derain", "model": "vmambair"}, "vmambair-derain"),
        ({"task": "deblur", "model": "evssm"}, "evssm-deblur"),
        ({"task": "deblur", "model": "defocus"}, "eamamba-defocus"),
        ({"task": "dehaze", "model": "mair"}, "mair-dehaze-mix"),
        ({"task": "denoise", "model": "mair", "sigma": 20}, "mair-denoise-25"),
        ({"task": "denoise", "model": "mair", "sigma": "real"}, "mair-realdn"),
    ],
)
def test_resolve_with_a_model(request_: dict, name: str) -> None:
    assert zoo.resolve(**request_).name == name


def test_resolve_takes_the_bundled_model(manifest) -> None:
    manifest(
        bundled("tiny-x2", "upscale", scale=2)
        + bundled("tiny-x4", "upscale", scale=4)
        + bundled("blind", "denoise", sigma=[0, 50])
        + bundled("grainy", "denoise", sigma="real")
        + bundled("q10", "decompress", quality=10)
        + bundled("q40", "decompress", quality=40)
    )
    assert zoo.resolve("upscale").name == "tiny-x4"
    assert zoo.resolve("upscale", scale=2).name == "tiny-x2"
    assert zoo.find("tiny-x2").protocol.crop == 2
    assert zoo.resolve("denoise", sigma=30).name == zoo.resolve("denoise", sigma=70).name == "blind"
    assert zoo.resolve("denoise", sigma="real").name == "grainy"
    assert zoo.resolve("decompress", quality=37).name == "q40"
    with pytest.raises(UsageError, match="Which of q10, q40"):
        zoo.resolve("decompress")


@given(sigma=st.integers(0, 255), levels=st.sets(st.integers(1, 255), min_size=1))
def test_noise_gets_the_nearest_level_at_or_above(sigma: int, levels: set[int]) -> None:
    specs = [replace(zoo.find("mambair-denoise-15"), sigma=level) for level in levels]
    got = zoo._nearest(specs, "denoise", sigma).sigma
    assert got == min((level for level in levels if level >= sigma), default=max(levels))


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        ({"task": "denoise", "sigma": 60}, "mambair-denoise-50"),
        ({"task": "denoise", "sigma": "real"}, "mambair-realdn"),
        ({"task": "upscale", "scale": 3}, "mambairv2-light-x3"),
    ],
)
def test_a_task_without_bundled_model_names_what_would_do(
    request_: dict, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = {name: spec for name, spec in zoo.zoo().items() if not spec.source.bundled}
    monkeypatch.setattr(zoo, "zoo", lambda: published)
    with pytest.raises(Unavailable) as error:
        zoo.resolve(**request_)
    assert f"mambair models download {name}" in error.value.hint
    assert f"-m {name}" in error.value.hint


@pytest.mark.parametrize(
    ("request_", "name", "job"),
    [
        ({"task": "derain"}, "vmambair-derain", "derain"),
        ({"task": "deblur"}, "evssm-deblur", "deblur"),
        ({"task": "upscale", "compressed": True}, "mambacsr-x4", "upscale --compressed x4"),
    ],
)
def test_a_model_without_url_is_fetched_by_hand(
    request_: dict, name: str, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = {name: spec for name, spec in zoo.zoo().items() if not spec.source.bundled}
    monkeypatch.setattr(zoo, "zoo", lambda: published)
    with pytest.raises(Unavailable) as error:
        zoo.resolve(**request_)
    assert error.value.message == f"No bundled model does {job}."
    assert f"mambair models download {name}" not in error.value.hint
    for said in (f"-m {name}", str(published[name].source.folder), f"mambair models import FILE --as {name}"):
        assert said in error.value.hint


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"task": "upscale", "model": "lihgt"}, "Did you mean light?"),
        ({"task": "upscale", "model": "mambairv2-bse-x4"}, "mambairv2-base-x4"),
        ({"task": "denoise", "model": "mambairv2-base-x4"}, "does upscale x4, not task denoise"),
        ({"task": "upscale", "model": "mambairv2-base-x4", "scale": 2}, "mambairv2-base-x2"),
        ({"task": "upscale", "model": "real", "scale": 2}, "No 'real' model does upscale x2"),
        ({"task": "upscale", "scale": 7}, "No model does upscale x7"),
        ({"task": "denoise", "model": "mambair"}, "give --sigma"),
        (
            {"task": "upscale", "model": "mambairv2-base-x4", "compressed": True},
            "take one of tiny-x4-photo",
        ),
        ({"task": "upscale", "model": "light", "compressed": True}, "not made for compressed"),
    ],
)
def test_requests_that_make_no_sense(request_: dict, said: str) -> None:
    with pytest.raises(UsageError) as error:
        zoo.resolve(**request_)
    assert said in str(error.value)


def test_find_without_a_task() -> None:
    assert zoo.find("base").name == "mambairv2-base-x4"
    assert zoo.find("mambairv2-light-x3").scale == 3
    with pytest.raises(UsageError, match="several models"):
        zoo.find("real")


@pytest.mark.parametrize("filename", ["../x.pth", "a/b.pth", "/etc/x", "..", "C:x", "a\\b", ""])
def test_a_name_cannot_leave_the_cache(manifest, filename: str) -> None:
    manifest(f"[models.bad]\nlike = 'net'\ntask = 'upscale'\nsource.filename = {json.dumps(filename)}\n")
    with pytest.raises(MambairError, match=r"'bad' is not well described.*plain file name"):
        zoo.zoo()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[models", "not a list of models"),
        (bundled("a", "dream"), "task 'dream'"),
        (bundled("a", "upscale", colour="red"), "colour"),
        ("[models.a]\nlike = 'nothing'", "nothing"),
    ],
)
def test_a_broken_manifest_is_told(manifest, text: str, said: str) -> None:
    manifest(text)
    with pytest.raises(MambairError, match=said):
        zoo.zoo()


WELL = bundled("a", "upscale")


@pytest.mark.parametrize(
    ("whole", "said"),
    [
        ("models = 3", "models is not made of tables"),
        ("models = [3]", "models is not made of tables"),
        ("models.a = 3", "models is not made of tables"),
        ("protocols = 3", "protocols is not made of tables"),
        ("citations.a = 3", "citations is not made of tables"),
        ("a = " + "[" * 5000, "not a list of models"),
        ("[defaults.a]\nlike = 'a'\n[models.b]\nlike = 'a'", "like = 'a' leads nowhere"),
        ("[defaults.a]\nlike = 'b'\n[defaults.b]\nlike = 'a'\n[models.c]\nlike = 'a'", "leads nowhere"),
        ("[models.b]\nlike = ['a']", "leads nowhere"),
        ("[models.b]\ntask = 'upscale'", "'kwargs' is missing"),
    ],
)
def test_a_manifest_of_another_shape_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: str, said: str
) -> None:
    (tmp_path / "zoo.toml").write_text(whole)
    monkeypatch.setenv("MAMBAIR_ZOO", str(tmp_path / "zoo.toml"))
    with pytest.raises(MambairError, match=said):
        zoo.zoo()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('source.urls = ["{}"]', "not an address"),
        ('source.urls = ["{filename.__class__}"]', "not an address"),
        ('source.urls = ["http://[::1"]', "Invalid IPv6"),
        ('source.urls = ["file:///etc/passwd"]', "not an address"),
        ('source.urls = "http://example.org"', "a list of them"),
        ("source.urls = 3", "a list of them"),
        ('source.bytes = "many"', "bytes is 'many'"),
        ("source.bytes = -1", "at least 1"),
        ('source.sha256 = "abc"', "no sha256"),
        ("source.drive_id = 3", "drive_id is 3"),
        ('params = "many"', "params is 'many'"),
        ("params = true", "params is True"),
        (f"params = 1{'0' * 400}", "params is 1"),
        ('scale = "two"', "crop is 'two'"),
        ("scale = 0", "at least 1"),
        ("sigma = [1, 2, 3]", "sigma is"),
        ("sigma = [30, 20]", "low, then high"),
        ("published = 3", "published is 3"),
        ("published = { Set5 = 3 }", "published is"),
        ('published = { Set5 = ["x"] }', "published is"),
        ("published = { Set5 = [nan] }", "published is"),
        ("aliases = 3", "not iterable"),
        ("licence = 3", "licence is 3"),
        ('licence = "\\u001b[2J"', "licence is"),
        ("kwargs = 3", "kwargs"),
    ],
)
def test_values_of_another_kind_are_told(manifest, line: str, said: str) -> None:
    key = line.partition(" = ")[0]
    manifest("\n".join(row for row in WELL.splitlines() if not row.startswith(key + " ")) + f"\n{line}\n")
    with pytest.raises(MambairError, match=r"'a' is not well described.*" + re.escape(said)):
        zoo.zoo()


@pytest.mark.parametrize("name", ["../a", "a/b", ".hidden", "a b", "", "\x1b[2J"])
def test_a_model_cannot_name_another_folder(manifest, name: str) -> None:
    manifest(bundled("a", "upscale").replace("[models.a]", f"[models.{json.dumps(name)}]"))
    with pytest.raises(MambairError, match=r"its name is made of letters|not made of tables"):
        zoo.zoo()


def test_a_missing_manifest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAMBAIR_ZOO", "/nowhere.toml")
    with pytest.raises(MambairError, match=r"Cannot read the list of models /nowhere\.toml"):
        zoo.zoo()


def test_completion() -> None:
    names = dict(zoo.complete("mambairv2-l"))
    assert "mambairv2-light-x2" in names
    assert "mambairv2-base-x2" not in names
    assert "mambairv2-light-x4-ntire" in dict(zoo.complete("light"))["light"]
