"""`mambair doctor`: true, complete, and not put off by the very settings it is asked about."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from mambair_cli import __version__, scan
from mambair_cli.cli import bundle
from mambair_cli.cli.doctor import SECRETS, VARIABLES, doctor
from mambair_cli.errors import UsageError
from mambair_cli.models import checkpoints, zoo
from mambair_cli.scan import causal, cpu

app = typer.Typer()
app.command()(doctor)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*VARIABLES, *SECRETS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MAMBAIR_CACHE", str(tmp_path / "cache"))


def report() -> dict[str, Any]:
    result = CliRunner().invoke(app, ["--json"])
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return json.loads(result.stdout)


def text() -> str:
    result = CliRunner().invoke(app)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_versions_and_devices() -> None:
    told = report()
    assert told["schema"] == 1
    assert told["versions"]["mambair"] == __version__
    assert told["versions"]["torch"] == torch.__version__
    assert told["system"]["threads"] == torch.get_num_threads()
    assert [device["name"] for device in told["devices"]][-1] == "cpu"
    assert told["default_device"] == told["devices"][0]["name"]
    for word in (__version__, torch.__version__, told["system"]["cpu"], told["system"]["instruction_set"]):
        assert word in text()


def test_the_kernel_of_the_causal_convolution() -> None:
    (told,) = report()["scan"]["convolutions"]
    assert (told["name"], told["available"]) == ("causal_conv1d", not causal.missing())
    assert any(line.startswith("  causal_conv1d ") and told["reason"] in line for line in text().splitlines())


def test_every_scan_backend_with_its_reason() -> None:
    told = report()["scan"]
    assert told["backends"] == [vars(backend) for backend in scan.backends()]
    assert told["chosen"]["cpu"] == scan.chosen_backend("cpu")
    lines = text().splitlines()
    for backend in scan.backends():
        line = next(line for line in lines if line.startswith(f"  {backend.name} ") and backend.reason in line)
        assert ("available" if backend.available else "missing") in line


def test_an_install_without_the_native_kernel_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "missing", "not built (no compiler)")
    told = report()["scan"]
    assert next(b for b in told["backends"] if b["name"] == "cpu")["reason"] == "not built (no compiler)"
    assert told["chosen"]["cpu"] == "torch"
    assert cpu.INSTALL_HINT in text()


def test_cache_contents_with_sizes(tmp_path: Path) -> None:
    assert report()["cache"] == {"path": str(tmp_path / "cache"), "files": [], "bytes": 0}
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/a.pth").write_bytes(bytes(1_500_000))
    (tmp_path / "cache/b.pth").write_bytes(bytes(7))
    assert report()["cache"]["files"] == [{"name": "a.pth", "bytes": 1_500_000}, {"name": "b.pth", "bytes": 7}]
    assert report()["cache"]["bytes"] == 1_500_007
    told = text()
    assert str(tmp_path / "cache") in told, "never wrapped"
    assert "1.5 MB" in told
    assert "7 B" in told


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers, for a uid without an entry in passwd."""

    def homeless(*_: object, **__: object) -> Path:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.delenv("MAMBAIR_CACHE")
    monkeypatch.setattr("platformdirs.user_cache_path", homeless)
    assert "MAMBAIR_CACHE" in report()["cache"]["error"]
    assert "no home folder" in text()
    assert all(checkpoints.path(spec) is None for spec in zoo.zoo().values() if not spec.source.bundled)
    with pytest.raises(UsageError, match="no home folder"):
        checkpoints.cache_dir()


def test_settings_that_make_no_sense_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAMBAIR_SCAN", "abacus")
    monkeypatch.setenv("MAMBAIR_DEVICE", "cuda:97")
    told = report()
    assert "abacus" in told["scan"]["chosen"]["cpu"]
    assert "cuda:97" in told["default_device"]
    assert told["environment"]["MAMBAIR_SCAN"] == "abacus"
    assert "abacus" in text()


def test_passwords_in_proxies_stay_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:hunter2@proxy")
    assert report()["environment"]["HTTPS_PROXY"] == "(set)"
    assert "hunter2" not in text()


class TestBundle:
    """A file for reports of bugs: complete, and nothing private in it."""

    @pytest.mark.filterwarnings("ignore:no scan kernel runs")
    def test_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cache = tmp_path / "bob/cache"
        cache.mkdir(parents=True)
        (cache / "wedding-of-ann.pth").write_bytes(bytes(1_500_000))
        (cache / "mambairv2_lightSR_x2.pth").write_bytes(bytes(7))
        monkeypatch.setenv("MAMBAIR_CACHE", str(cache))
        monkeypatch.setenv("MAMBAIR_MODEL", "/home/bob/ann.pth")
        monkeypatch.setenv("HTTPS_PROXY", "http://user:hunter2@proxy")
        monkeypatch.setattr(
            cpu, "missing", "does not load (/home/bob/x y/mambair_cli/scan/_cpu.so: undefined symbol)"
        )
        monkeypatch.setattr("getpass.getuser", lambda: "bob")
        monkeypatch.setattr("platform.node", lambda: "bobs-laptop.example.org")
        monkeypatch.chdir(tmp_path)
        assert CliRunner().invoke(app, ["--bundle"]).stdout == "mambair-report.txt\n"
        told = (tmp_path / "mambair-report.txt").read_text()
        for private in ("bob", "ann", "hunter2", str(tmp_path), "laptop", "/home"):
            assert private not in told, private
        assert "MAMBAIR_MODEL  (set)" in told
        assert "_cpu.so: undefined symbol" in told, "the reason stays"
        assert "mambairv2_lightSR_x2.pth  7 B" in told
        assert "(others: 1)" in told
        assert f"torch {version('torch')}" in told
        assert "cpu: differs by 0.0e+00" in told, "plain PyTorch against itself"

    def test_nothing_is_replaced_unasked(self, tmp_path: Path) -> None:
        output = tmp_path / "report.txt"
        output.write_text("mine")
        refused = CliRunner().invoke(app, ["--bundle", "-o", str(output)])
        assert isinstance(refused.exception, UsageError)
        assert output.read_text() == "mine"
        assert CliRunner().invoke(app, ["--bundle", "-o", str(output), "--force"]).exit_code == 0
        assert "cpu: differs by" in output.read_text()
        assert isinstance(CliRunner().invoke(app, ["--bundle", "--json"]).exception, UsageError)

    def test_a_kernel_that_fails_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object, backend: str = "") -> torch.Tensor:
            if backend == "torch":
                return torch.ones(1)
            raise RuntimeError("no kernel image is available")

        monkeypatch.setattr("mambair_cli.scan.ordered_scan", broken)
        told = bundle.text(report(), "")
        assert "cpu: RuntimeError: no kernel image is available" in told

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("/usr/lib/x.so", "…/x.so"),
            ("(/usr/x.so)", "(…/x.so)"),
            (r"C:\Users\ann\x.dll failed", "…/x.dll failed"),
            (r"\\server\share\x.dll", "…/x.dll"),
            ("cannot read '/srv/pictures/a.png'", "cannot read '…/a.png'"),
            ("https://user:word@example.org/x", "(address)"),
            ("1/2 of 3/4, and/or", "1/2 of 3/4, and/or"),
        ],
    )
    @pytest.mark.parametrize("base", ["/usr", "/opt/my python"])
    def test_paths(self, text: str, shown: str, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.base_prefix", base)
        assert bundle.without_private(text) == shown


def test_help_begins_with_examples() -> None:
    told = CliRunner().invoke(app, ["--help"]).stdout
    assert "Examples" in told
    assert "mambair doctor --json" in told
