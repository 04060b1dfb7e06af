"""`mambair speed`: what it counts and what it prints; never how long it took."""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mambair_cli import archs, speed
from mambair_cli.cli.app import application
from mambair_cli.errors import UsageError
from mambair_cli.models import timings, zoo
from mambair_cli.scan import cpu
from mambair_cli.speed import measure_network, op
from mambair_cli.speed.machine import Rates
from mambair_cli.speed.ops import measure_ops

KWARGS = dict(embed_dim=32, depths=[1], d_state=8, mlp_ratio=1.0, upscale=2, upsampler="pixelshuffledirect")
needs_kernel = pytest.mark.skipif(bool(cpu.missing), reason=f"native kernel {cpu.missing}")


def test_counts_are_those_of_the_network() -> None:
    network = archs.build("mambair", **KWARGS).eval()
    row = measure_network("tiny", network, 3, (12, 20), Rates(exps=1e9, macs=1e9, peak=1e9))
    pixels = 12 * 20
    assert row.updates == 4 * pixels * 32 * 8  # directions, pixels, channels, states
    # Most weights meet every pixel once; those of the attention meet one vector, those of the scan are not products.
    weights = sum(p.numel() for name, p in network.named_parameters() if p.dim() > 1 and "attention.1" not in name)
    assert 0.8 * weights * pixels < row.macs < 1.1 * weights * pixels
    # Nine multiply-adds for an update; for a step of a channel the rank (2) of the time step and 14.
    assert row.scan_macs == 9 * row.updates + 16 * row.updates // 8
    assert row.total_macs == row.macs + 9 * row.updates + 3 * row.updates // 8  # as papers count: the rank, and D u
    assert row.floor == (row.macs + row.scan_macs) / 1e9
    assert row.ratio == row.best / row.floor
    assert row.best <= row.seconds
    assert row.work_ratio is not None
    assert row.work_ratio > 0
    assert 0 < row.scan_share < 1
    assert row.peak_memory > 1e6


def test_speed_of_a_network_that_hands_weights_around() -> None:
    network = archs.build(
        "mambairv2", embed_dim=16, depths=[1], num_heads=[2], d_state=4, upscale=2, upsampler="pixelshuffledirect"
    ).eval()
    row = measure_network("v2", network, 3, (16, 16), Rates(exps=1e9, macs=1e9, peak=1e9))
    assert row.updates > 0
    assert row.backward is None


def test_speed_with_gradients() -> None:
    arguments = ["speed", "--backward", "-m", "mambair-light-x2", "--size", "16x8"]
    (row,) = json.loads(CliRunner().invoke(application(), [*arguments, "--json"]).stdout)["rows"]
    assert row["backward"] > 0
    assert row["backward_ratio"] > 0
    assert "bwd/fwd" in CliRunner().invoke(application(), arguments).stdout


def test_speed_reports() -> None:
    result = CliRunner().invoke(application(), ["speed", "-m", "mambair-light-x2", "--size", "16x8", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["rows"][0]["size"] == [8, 16]  # height, width
    assert report["machine"]["exps"] > 1e6
    assert report["machine"]["peak"] >= report["machine"]["macs"]
    assert report["rows"][0]["ratio"] > 1
    threads = torch.get_num_threads()
    table = CliRunner().invoke(application(), ["speed", "-m", "mambair-light-x2", "--size", "16x8", "--threads", "1"])
    assert "time/floor" in table.stdout
    assert torch.get_num_threads() == threads


def test_the_list_of_models_shows_what_was_measured_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As other commands run: without --threads; and at a size that says something."""

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(application(), [*arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    def listed() -> dict[str, str]:
        return {line.split("\t")[0]: line.split("\t")[-1] for line in run("models", "list").splitlines()}

    monkeypatch.setenv("MAMBAIR_CACHE", str(tmp_path / "cache"))
    assert listed()["MODEL"] == "S/MP"
    assert set(listed().values()) == {"S/MP", ""}
    reports: list[speed.SpeedReport] = []
    measure = speed.measure_speed
    monkeypatch.setattr(speed, "measure_speed", lambda *args: reports.append(measure(*args)) or reports[-1])
    row = json.loads(run("speed", "-m", "tiny-x2", "--size", "16x16", "--size", "128x128", "--json"))["rows"][-1]
    assert replace(reports[0], rows=reports[0].rows[:1]).seconds_per_megapixel == {}, "16x16 says nothing"
    monkeypatch.setattr(speed, "measure_speed", lambda *args: replace(reports[0], rows=[other]))
    other = replace(reports[0].rows[1], model="dvmsr-x4")  # type: ignore[type-var]
    run("speed", "-m", "dvmsr-x4", "--threads", "1")
    assert listed()["dvmsr-x4"] == ""
    seconds = row["seconds"] / 128**2 * 1e6
    assert listed()["tiny-x2"] == f"{seconds:.3g}"
    assert json.loads(run("models", "info", "tiny-x2", "--json"))["seconds_per_megapixel"] == seconds
    assert f"{seconds:.3g} s for a megapixel here" in run("models", "info", "tiny-x2")
    assert timings.known() == {"tiny-x2": seconds}
    monkeypatch.setattr("platform.node", lambda: "another machine that has the same cache")
    assert timings.known() == {}
    timings.note({"tiny-x3": 2.0})
    assert timings.known() == {"tiny-x3": 2.0}
    monkeypatch.undo()
    monkeypatch.setenv("MAMBAIR_CACHE", str(tmp_path / "cache"))
    assert timings.known() == {"tiny-x2": seconds}
    for damaged in ("", "[]", '{"x": 1', f'{{"{platform.node()}": {{"a": "b", "c": -1, "d": NaN}}}}', "[" * 9999):
        (tmp_path / "cache" / timings.FILE).write_text(damaged)
        assert timings.known() == {}
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MAMBAIR_CACHE", str(tmp_path / "file" / "cache"))
    timings.note({"tiny-x2": 1.0})  # nowhere: only said


def test_small_downloads_come_first() -> None:
    fetched = [spec.name for spec in zoo.zoo().values() if not spec.source.bundled]
    assert fetched[:2] == ["pfvm-x4", "dvmsr-x4"]
    assert [spec.name for spec in zoo.behind("mini")] == fetched[:2]


def test_the_default_model_is_that_of_upscale() -> None:
    result = CliRunner().invoke(application(), ["speed", "--size", "8x8", "--json"])
    assert [row["model"] for row in json.loads(result.stdout)["rows"]] == [zoo.resolve("upscale").name]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["speed", "--size", "0x0"], "--size 0x0"),
        (["speed", "--size", "8"], "--size 8"),
        (["speed", "--size", "16x12", "-m", "vmambair-derain"], "takes no 16x12"),
        (["speed", "--scan", "-m", "light"], "--model"),
        (["bench", "--speed", "-s", "2"], "--scale"),
        (["bench", "--speed", "-d", "Set5"], "--dataset"),
        (["bench", "--speed", "--report", "a.html"], "--report"),
        (["bench", "--scan", "--report", "a.html"], "--report"),
        (["bench", "--scan", "-m", "light"], "--model"),
        (["bench", "--scan", "--speed"], "--speed"),
        (["bench", "--size", "8x8", "-d", "Set5"], "--size"),
    ],
)
def test_options_in_vain_are_refused(arguments: list[str], named: str) -> None:
    result = CliRunner().invoke(application(), arguments)
    assert isinstance(result.exception, UsageError)
    assert named in result.exception.message


def test_bench_speed_still_works_and_says_what_it_is_called_now() -> None:
    result = CliRunner().invoke(
        application(), ["bench", "--speed", "-m", "mambair-light-x2", "--size", "8x8", "--json"]
    )
    assert json.loads(result.stdout)["rows"][0]["size"] == [8, 8]
    assert result.stderr == "bench --speed is now `mambair speed`\n"


def test_the_environment_is_no_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MAMBAIR_DATA", str(tmp_path))
    monkeypatch.setenv("MAMBAIR_OFFLINE", "1")
    assert CliRunner().invoke(application(), ["bench", "--speed", "--size", "8x8"]).exit_code == 0


def test_scan_reports(monkeypatch) -> None:
    monkeypatch.setattr(op, "LAYERS", {"small": (6, 5, 8, 4, 2)})
    result = CliRunner().invoke(application(), ["speed", "--scan", "--threads", "1", "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert {"torch"} <= {row["backend"] for row in rows}
    assert all(row["forward"] > 0 and row["backward"] > 0 for row in rows)


@needs_kernel
def test_ops_are_those_of_the_network() -> None:
    kwargs = KWARGS | {"depths": [2]}
    network = archs.build("mambair", **kwargs).eval()
    rates = Rates(exps=1e9, macs=1e9, peak=1e9)
    whole = measure_network("tiny", network, 3, (48, 64), rates)
    ops = measure_ops("tiny", network, 3, (48, 64), rates, rounds=2)
    calls = dict(ops.groups)
    assert len(calls["scan"]) == 2
    assert calls["scan"][0].tasks in (8, 16, 32), "four directions, blocks of 16, 8 or 4 channels"
    assert sum(c.macs for c in calls["scan"]) == whole.scan_macs
    # The pooled vectors of the channel attention are products of torch; nothing else is left out.
    assert ops.floor(ops.calls) == pytest.approx(whole.floor, rel=0.01)
    assert ops.bound(ops.calls) > 0
    assert 1 <= ops.speedup(2) <= 2
    assert ops.speedup(8) <= ops.speedup(64) <= 64
    assert ops.speedup(64) <= ops.seconds / ops.between if ops.between else True


@needs_kernel
def test_ops_on_the_command_line() -> None:
    arguments = ["speed", "--ops", "-m", "mambairv2-light-x2", "--size", "16x16", "--threads", "1"]
    (row,) = json.loads(CliRunner().invoke(application(), [*arguments, "--json"]).stdout)["rows"]
    assert {"scan", "linear", "window attention", "random routes"} <= {op["op"] for op in row["ops"]}
    assert set(row["speedup_by_cores"]) == {"2", "8", "16", "64"}
    printed = CliRunner().invoke(application(), arguments).stdout
    assert "time / floor" in printed
    assert "window attention" in printed
    refused = CliRunner().invoke(application(), ["speed", "--ops", "--scan"])
    assert isinstance(refused.exception, UsageError)
