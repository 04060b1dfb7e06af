"""The Restorer: any size, any kind of picture, and the same pixels whatever the order, the tiles and the memory."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.networks import Nearest, blur, picture, spec
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from mambair_cli import archs, load_model
from mambair_cli.archs import Padding
from mambair_cli.errors import MambairError, UsageError
from mambair_cli.models.zoo import zoo
from mambair_cli.restoring import restorer, tiling
from mambair_cli.restoring.restorer import Restorer, bytes_per_pixel, pick_device, pick_precision
from mambair_cli.restoring.running import Running

SMALL_V2 = {
    "embed_dim": 12,
    "d_state": 2,
    "depths": [2],
    "num_heads": [2],
    "window_size": 8,
    "inner_rank": 4,
    "num_tokens": 8,
    "mlp_ratio": 1.0,
    "upsampler": "pixelshuffledirect",
    "upscale": 2,
}


class Limited(Nearest):
    """Runs out of memory above a number of pixels."""

    def __init__(self, pixels: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.pixels, self.error = pixels, error

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] * x.shape[3] > self.pixels:
            raise self.error("DefaultCPUAllocator: can't allocate memory")
        return super().forward(x)


def small_v2() -> nn.Module:
    torch.manual_seed(0)
    net = archs.build("mambairv2_light", **SMALL_V2)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith(("scale1", "scale2")):
                parameter.fill_(0.5)  # at their initial 1e-4 the routes would hardly show
    return net


# --- sizes, padding, tiles ---


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.sampled_from(["auto", "off", "paper", 16, 33, 64]),
    st.sampled_from([None, 0, 5]),
    st.integers(1, 4),
    st.sampled_from([Padding(), Padding(8), Padding(16, mode="symmetric", extra=True, minimum=20)]),
)
def test_identity_network_gives_any_picture_back(
    size: tuple[int, int], tile: str | int, overlap: int | None, scale: int, padding: Padding
) -> None:
    lq = picture(*size)
    with patch.dict(archs.ARCHITECTURES, mambair=replace(archs.find("mambair"), padding=padding)):
        restorer = Restorer(spec(scale), Nearest(scale, padding.multiple), tile=tile, overlap=overlap)
        hq = restorer.restore(lq)
    expected = lq.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    torch.testing.assert_close(hq, expected, rtol=0, atol=1e-6)


def test_bands_are_the_whole_from_top_to_bottom() -> None:
    restorer = Restorer(spec(), blur(), tile=32)
    lq, told = picture(100, 70), []
    bands = list(restorer.restore_bands(lq, lambda done, total: told.append((done, total))))
    assert len(bands) > 2
    assert max(band.shape[1] for _, band in Restorer(spec(4), Nearest(4)).restore_bands(lq)) <= 256
    assert torch.equal(torch.cat([band for _, band in bands], 1), restorer.restore(lq))
    assert [y for y, _ in bands] == [0, *np.cumsum([band.shape[1] for _, band in bands])[:-1]]
    assert told == [(i + 1, len(told)) for i in range(len(told))]
    assert restorer.tile_used == 32


def test_result_is_clamped_after_blending() -> None:
    assert Restorer(spec(), nn.ReLU(), tile="off").restore(picture(4, 4) * 3).max() == 1
    assert Restorer(spec(), nn.Identity(), tile="off").restore(-picture(4, 4)).min() == 0


def test_auto_does_not_tile_what_fits() -> None:
    restorer = Restorer(spec(2), Nearest(2))
    restorer.restore(picture(200, 150))
    assert restorer.tile_used == "off"


def test_auto_tiles_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "free_memory", lambda device: 100 * 100 * 2 * bytes_per_pixel(spec(), "cpu"))
    monkeypatch.setattr("mambair_cli.scan.chosen_backend", lambda device: "cpu")
    restorer = Restorer(spec(), network := Nearest())
    restorer.restore(picture(200, 150))
    assert restorer.tile_used == 64
    assert max(max(shape) for shape in network.seen) <= 64


def test_paper_tiles_are_cut_and_pasted_as_published() -> None:
    """Against the published procedure written out: pad, cut with margins, run, paste the cores, crop."""
    lq, net = picture(410, 203), blur()
    padded = F.pad(lq[None], (0, 1, 0, 1), "reflect")
    height, width = 411 // 3, 204 // 2
    expected = torch.empty_like(padded)
    for i in range(3):
        for j in range(2):
            top, left = max(i * height - height // 10, 0), max(j * width - width // 10, 0)
            bottom, right = (i + 1) * height + height // 10, (j + 1) * width + width // 10
            with torch.no_grad():
                part = net(padded[:, :, top:bottom, left:right])
            core = part[:, :, i * height - top :, j * width - left :][:, :, :height, :width]
            expected[:, :, i * height : (i + 1) * height, j * width : (j + 1) * width] = core
    restorer = Restorer(spec(), net, tile="paper")
    torch.testing.assert_close(restorer.restore(lq), expected[0, :, :410, :203].clamp(0, 1))
    assert restorer.tile_used == "paper"


def test_paper_does_not_tile_where_the_paper_did_not() -> None:
    restorer = Restorer(spec(arch="vmambair_derain"), network := Nearest(), tile="paper")
    restorer.restore(picture(300, 300))
    assert (restorer.tile_used, network.seen) == ("off", [(1, 3, 304, 304)])  # padded to multiples of 8


@pytest.mark.parametrize(("tile", "overlap"), [(8, None), ("large", None), (64, 33), (64, -1), ("auto", -1), (-5, 0)])
def test_senseless_tiles_are_refused(tile: str | int, overlap: int | None) -> None:
    with pytest.raises(UsageError):
        Restorer(spec(), Nearest(), tile=tile, overlap=overlap)


def test_every_architecture_has_a_memory_estimate() -> None:
    for model in zoo().values():
        assert 1000 < bytes_per_pixel(model, "cpu") < bytes_per_pixel(model, "torch")


# --- seams ---


def at_ends(spans: list[tiling.Span], scale: int) -> Tensor:
    """The output columns within 2 input pixels of the ends of tiles inside the picture."""
    mask = torch.zeros(spans[-1].stop * scale, dtype=torch.bool)
    for x in {x for span in spans for x in (span.start, span.stop)} - {0, spans[-1].stop}:
        mask[(x - 2) * scale : (x + 2) * scale] = True
    return mask


def test_blended_tiles_hide_the_darkened_borders_of_a_padding_network() -> None:
    lq, net = picture(64, 192), blur(size=9)
    whole = Restorer(spec(), net, tile="off").restore(lq)
    worst = {}
    for overlap in (0, 16):
        tiled = Restorer(spec(), net, tile=64, overlap=overlap).restore(lq)
        worst[overlap] = (tiled - whole)[..., at_ends(tiling.smooth(192, 64, overlap), 1)].abs().max()
    assert worst[16] < 0.1 * worst[0]


def seam(restorer: Restorer, photos: list[Tensor], tile: int, overlap: int) -> float:
    """How much more tiling changes at the ends of tiles than elsewhere.

    Changes are counted in what another draw of the network's random routes changes there: edges of the motif are
    sensitive to anything, wherever a tile ends.
    """
    changes = []
    for lq in photos:
        restorer.running = Running(tile="off")
        whole = restorer.restore(lq)
        restorer.running = Running(tile="off", seed=1)
        other_draw = restorer.restore(lq) - whole
        restorer.running = Running(tile=tile, overlap=overlap)
        tiled = restorer.restore(lq) - whole
        ends = at_ends(tiling.smooth(lq.shape[2], tile, overlap), 4)
        changes.append([d[..., where].abs().mean() for d in (tiled, other_draw) for where in (ends, ~ends)])
    at_end, elsewhere, draw_at_end, draw_elsewhere = torch.tensor(changes).mean(0)
    return float((at_end / draw_at_end) / (elsewhere / draw_elsewhere))


def test_a_trained_network_shows_no_seam(shared: Path) -> None:
    restorer = load_model("mambairv2-light-x4", weights=shared / "weights/mambairv2_light_x4.pth", device="cpu")
    photos = []
    for name in ("zebra", "barbara", "monarch"):
        pixels = np.asarray(Image.open(shared / f"data/Set14/LRx4/{name}x4.png").convert("RGB"))[40:88, :144]
        photos.append(torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1))
    assert seam(restorer, photos, tile=96, overlap=32) <= 1
    assert seam(restorer, photos[:1], tile=48, overlap=0) > 2, "without overlap there would be one"


# --- memory, precision, interruption ---


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
@pytest.mark.parametrize("tile", ["off", "auto", 96])
def test_running_out_of_memory_halves_the_tile_and_says_so_once(
    error: type[Exception], tile: str | int, caplog: pytest.LogCaptureFixture
) -> None:
    restorer = Restorer(spec(), Limited(40 * 40, error), tile=tile)
    for seed in (1, 2):
        lq = picture(100, 90, seed=seed)
        torch.testing.assert_close(restorer.restore(lq), lq, rtol=0, atol=1e-6)
        assert isinstance(restorer.tile_used, int)
        assert restorer.tile_used <= 48
    assert [record.getMessage() for record in caplog.records] == [
        "Out of memory on cpu: going on with smaller tiles."
    ]


def test_no_memory_at_all_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(MambairError, match="Out of memory") as caught:
        Restorer(spec(), Limited(0)).restore(picture(100, 100))
    assert caught.value.hint


def test_other_errors_of_the_network_are_not_taken_for_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="channels"):
        Restorer(spec(), blur(channels=1)).restore(picture(8, 8))


class Overflows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 0 if torch.is_autocast_enabled("cpu") else x


def test_overflow_falls_back_to_fp32_for_this_picture(caplog: pytest.LogCaptureFixture) -> None:
    restorer = Restorer(spec(), Overflows(), precision="bf16", tile=32)
    lq = picture(50, 50)
    for _ in range(2):
        torch.testing.assert_close(restorer.restore(lq), lq)
        assert restorer.precision_used == "fp32"
    assert restorer.precision == "bf16"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_values_that_are_no_numbers_never_become_pixels() -> None:
    with pytest.raises(MambairError, match="not numbers"):
        Restorer(spec(), Nearest()).restore(torch.full((3, 4, 4), torch.nan))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_close(precision: str) -> None:
    lq = picture(24, 24)
    exact = Restorer(spec(), blur()).restore(lq)
    half = Restorer(spec(), blur(), precision=precision).restore(lq)
    assert 0 < (half - exact).abs().max() < 0.01


def test_interrupt_reaches_the_caller_between_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tile at a time, as with one thread; tests/test_abreast.py has several."""
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    restorer = Restorer(spec(), network := Nearest(), tile=32)
    with pytest.raises(KeyboardInterrupt):
        restorer.restore(picture(100, 100), stop)
    assert len(network.seen) == 2


# --- self-ensemble and random routes ---


def test_ensemble_is_the_mean_over_eight_views() -> None:
    net = nn.Conv2d(3, 3, 3, padding=1, bias=False)
    lq = picture(9, 14)
    views = []
    with torch.no_grad():
        for turns in range(4):
            for flip in (False, True):
                view = lq.rot90(turns, (1, 2))
                view = net((view.flip(2) if flip else view)[None])[0]
                views.append((view.flip(2) if flip else view).rot90(-turns, (1, 2)))
    expected = torch.stack(views).mean(0).clamp(0, 1)
    torch.testing.assert_close(Restorer(spec(), net, ensemble=True).restore(lq), expected)


def test_random_routes_depend_on_the_picture_and_the_seed_alone() -> None:
    def restorer(seed: int = 0, tile: str | int = 16) -> Restorer:
        return Restorer(spec(2, "mambairv2_light"), small_v2(), seed=seed, tile=tile)

    one, other = picture(24, 24, seed=1), picture(24, 24, seed=2)
    first = restorer()
    in_order = [first.restore(one), first.restore(other)]
    again = restorer()
    in_other_order = [again.restore(other), again.restore(one)]
    torch.rand(100)  # the global generator plays no part
    assert torch.equal(in_order[0], in_other_order[1])
    assert torch.equal(in_order[1], in_other_order[0])
    assert torch.equal(restorer(seed=1).restore(one), restorer(seed=1).restore(one))
    assert not torch.equal(restorer(seed=1).restore(one), in_order[0])


def test_threads_do_not_draw_each_others_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    restorer = Restorer(spec(2, "mambairv2_light"), small_v2())
    pictures = [picture(20, 24), picture(24, 20).flip(1)]
    alone = [restorer.restore(lq) for lq in pictures]
    network = restorer.run_network

    def slowly(*args: Any) -> torch.Tensor:
        time.sleep(0.3)  # between seeding and drawing: time for the other thread to seed
        return network(*args)

    monkeypatch.setattr(restorer, "run_network", slowly)
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(restorer.restore, pictures))
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))


def test_tiles_draw_different_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    restorer = Restorer(spec(2, "mambairv2_light"), network := small_v2(), tile=16, ensemble=True)
    routers, router = [], network.router

    def watched():
        routers.append(router())
        return routers[-1]

    monkeypatch.setattr(network, "router", watched)
    restorer.restore(torch.full((3, 20, 20), 0.5))
    assert len(routers) == len({r.key for r in routers}) == 4 * 8, "4 tiles, 8 views"
    assert all(r.layer == 2 for r in routers), "each layer draws its own"


# --- devices, precision, loading ---


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("MAMBAIR_DEVICE", "cpu")
    assert pick_device("auto") == torch.device("cpu")
    for name in ("cuda:97", "gpu", "meta", ""):
        with pytest.raises(UsageError, match="no device"):
            pick_device(name)
    monkeypatch.setenv("MAMBAIR_DEVICE", "cuda:97")
    with pytest.raises(UsageError, match="cuda:97"):
        pick_device("auto")


def test_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(restorer, "cpu_multiplies_bf16", lambda: True)
    assert pick_precision("auto", cpu, 20_000_000) == "bf16"
    assert pick_precision("auto", cpu, 900_000) == "fp32"  # gains nothing
    monkeypatch.setattr(restorer, "cpu_multiplies_bf16", lambda: False)
    assert pick_precision("auto", cpu, 20_000_000) == "fp32"
    assert pick_precision("fp16", cpu, 1) == "fp16"
    with pytest.raises(UsageError):
        Running(precision="fp8")


def test_load_model_from_a_file_alone(tmp_path: Path) -> None:
    network = small_v2()
    save_file(network.state_dict(), tmp_path / "mine.safetensors")
    restorer = load_model(weights=tmp_path / "mine.safetensors", device="cpu")
    assert restorer.spec.scale == 2
    assert restorer.sha256
    lq = picture(20, 12)
    expected = Restorer(restorer.spec, network, device="cpu").restore(lq)
    assert torch.equal(restorer.restore(lq), expected)


def test_load_model_needs_a_name_or_a_file() -> None:
    with pytest.raises(UsageError):
        load_model()
    with pytest.raises(UsageError, match="nosuchmodel"):
        load_model("nosuchmodel")
