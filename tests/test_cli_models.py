"""`mambair models` as a user meets it: what it prints where, and the status it leaves with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.server import Server
from typer.testing import CliRunner, Result

from mambair_cli import archs
from mambair_cli.cli import models
from mambair_cli.cli.app import application
from mambair_cli.errors import Unavailable, UsageError
from mambair_cli.models import zoo


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAMBAIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MAMBAIR_OFFLINE", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A server that stands in for GitHub: our manifest, with its addresses changed."""
    with Server() as server:
        text = zoo.manifest().read_text()
        for site in ("https://github.com", "https://raw.githubusercontent.com", "https://huggingface.co"):
            text = text.replace(site, server.url(""))
        (tmp_path / "zoo.toml").write_text(text)
        monkeypatch.setenv("MAMBAIR_ZOO", str(tmp_path / "zoo.toml"))
        yield server


def mambair(*args: object, **more: object) -> Result:
    return CliRunner().invoke(application(), ["models", *map(str, args)], **more)


def done(*args: object) -> str:
    result = mambair(*args)
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.stdout


def weights(name: str, file: Path) -> Path:
    """A checkpoint of this model's shapes; with weights of our own."""
    spec = zoo.find(name)
    torch.manual_seed(0)
    torch.save({spec.source.key: archs.build(spec.arch, **spec.kwargs).state_dict()}, file)
    return file


def test_the_list_is_plain_in_a_pipe() -> None:
    rows = [line.split("\t") for line in done("list").splitlines()]
    assert rows[0] == ["MODEL", "JOB", "SIZE", "SCORE", "LICENCE", "HERE", "S/MP"]
    assert [row[0] for row in rows[1:]] == list(zoo.zoo())
    assert ["mambairv2-light-x4-ntire", "upscale x4", "4.1 MB", "32.54 Set5", "MIT", "", ""] in rows
    assert ["mambair-realdn", "denoise real", "~107 MB", "39.89 SIDD", "Apache-2.0", "", ""] in rows


def test_the_list_by_task() -> None:
    derain = [line.split("\t")[0] for line in done("list", "--task", "derain").splitlines()]
    assert "vmambair-derain" in derain
    assert not any("light" in name for name in derain)
    result = mambair("list", "--task", "dream")
    assert isinstance(result.exception, UsageError)


def test_the_list_as_json() -> None:
    data = json.loads(done("list", "--json"))
    assert data["schema"] == 1
    models = {model["name"]: model for model in data["models"]}
    assert list(models) == list(zoo.zoo())
    assert models["mambair-denoise-25"]["sigma"] == 25
    assert models["mambairv2-large-x2"]["published"]["Set5"] == {"psnr": 38.65, "ssim": 0.9632}
    assert models["vmambair-derain"]["folder"].startswith("https://drive.google.com/drive/folders/")


@pytest.mark.parametrize("name", list(zoo.zoo()))
def test_every_model_has_a_card(name: str) -> None:
    spec = zoo.find(name)
    card = done("info", name)
    for said in (name, spec.task, spec.licence, spec.training, spec.good_for, spec.not_for, f"{spec.params:,}"):
        assert said in card
    assert f"{spec.macs[0] / 1e9:.3g} G for 128x128 in" in card
    for dataset, (psnr, _) in spec.published.items():
        assert f"{dataset} {psnr:.2f} dB" in card
    assert done("info", name, "--bibtex") == zoo.bibtex(spec).strip() + "\n"
    assert json.loads(done("info", name, "--json"))["name"] == name


def test_what_no_program_can_fetch_is_not_said_to_be_downloadable() -> None:
    assert "import FILE --as vmambair-derain" in done("info", "vmambair-derain")
    assert "import FILE --as vmambair-derain" in mambair("path", "vmambair-derain").exception.hint
    assert "download mambairv2-light-x2" in mambair("path", "mambairv2-light-x2").exception.hint


def test_info_shows_all_models_behind_an_alias() -> None:
    """Of one job with the card of the first; --json keeps the fields of that one, and adds the others."""
    for alias in dict.fromkeys(alias for spec in zoo.zoo().values() for alias in spec.aliases):
        behind = zoo.behind(alias)
        told, record = done("info", alias), json.loads(done("info", alias, "--json"))
        assert all(spec.name in told for spec in behind)
        assert [model["name"] for model in record["models"]] == [spec.name for spec in behind]
        several_tasks = len({spec.task for spec in behind}) > 1
        assert ("trained on" in told) != several_tasks
        assert ("name" in record) != several_tasks
    real = done("info", "real").splitlines()
    assert [line.split("\t")[:2] for line in real[1:]] == [
        ["mambair-real-x4", "upscale x4"],
        ["mambair-realdn", "denoise real"],
    ]
    assert "aliases" in json.loads(done("info", "tiny-x4", "--json"))
    assert "alias" not in json.loads(done("info", "tiny-x4", "--json"))
    assert done("info", "real", "--bibtex").count("@") == 1


def test_near_names_are_suggested() -> None:
    result = mambair("info", "mambair-clasic-x4")
    assert isinstance(result.exception, UsageError)
    assert "mambair-classic-x4" in result.exception.hint


def test_download_path_verify_rm(server: Server, cache: Path, shared: Path) -> None:
    content = (shared / "weights" / "mambairv2_light_x4.pth").read_bytes()
    (path,) = zoo.find("light").source.urls
    server.put(path.removeprefix(server.url("")), content)
    file = cache / "team40_mambairv2light.pth"

    missing = mambair("path", "light")
    assert isinstance(missing.exception, Unavailable)
    assert "mambair models download mambairv2-light-x4-ntire" in missing.exception.hint
    assert done("download", "light") == done("path", "light") == f"{file}\n"
    assert file.read_bytes() == content
    assert "ok\tmambairv2-light-x4-ntire\t3e80def7" in done("verify")
    assert "\tcached" in done("list")
    assert json.loads(done("info", "light", "--json"))["path"] == str(file)

    file.write_bytes(content[:-1])
    wrong = mambair("verify", "light")
    assert wrong.stdout.startswith("WRONG\t")
    assert isinstance(wrong.exception, Unavailable)
    assert "mambair models rm mambairv2-light-x4-ntire" in wrong.exception.hint
    done("rm", "light")
    assert not file.exists()
    bundled = [["ok", spec.name] for spec in zoo.zoo().values() if spec.source.bundled]
    assert [line.split("\t")[:2] for line in done("verify").splitlines()] == bundled

    result = mambair("verify", "light", "tiny-x4", "tiny-x4", "base")
    assert [line.split("\t")[:2] for line in result.stdout.splitlines()] == [["ok", "tiny-x4"]]
    assert isinstance(result.exception, Unavailable)
    assert "mambair models download mambairv2-light-x4-ntire mambairv2-base-x4" in result.exception.hint


def test_download_goes_on_after_a_failure(server: Server, cache: Path) -> None:
    weights("mambairv2-light-x2", cache.parent / "x2.pth")
    body = (cache.parent / "x2.pth").read_bytes()
    server.put("/csguoh/MambaIR/releases/download/v1.0/mambairv2_lightSR_x2.pth", body)
    result = mambair("download", "mambairv2-light-x3", "vmambair-derain", "mambairv2-light-x2")
    assert result.stdout == f"{cache / 'mambairv2_lightSR_x2.pth'}\n"
    assert isinstance(result.exception, Unavailable)
    for said in ("mambairv2_lightSR_x3.pth", "HTTP 404", "10Pogbp2hkCadGPcuCrlxaZXHt68JAQ3d"):
        assert said in str(result.exception)
    assert "ok\tmambairv2-light-x2\t" in done("verify"), "against the hash written down at first use"


def test_import_finishes_what_download_cannot(cache: Path) -> None:
    told = mambair("download", "vmambair-sisr-x4")
    assert isinstance(told.exception, Unavailable)
    assert "mambair models import FILE --as vmambair-sisr-x4" in told.exception.hint
    file = weights("vmambair-sisr-x4", cache.parent / "net_g_280000.pth")
    result = mambair("import", file)
    assert result.exit_code == 0
    assert "net_g_280000.pth is vmambair-sisr-x4." in result.stderr
    assert result.stdout == f"{cache / 'vmambair_sisr_x4.pth'}\n"
    assert done("path", "vmambair-sisr-x4") == result.stdout


def test_import_tells_what_it_cannot(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = weights("mambairv2-light-x4", cache.parent / "net_g_latest.pth")
    result = mambair("import", file)
    assert isinstance(result.exception, UsageError)
    assert "may be mambairv2-light-x4-ntire or mambairv2-light-x4." in result.exception.message
    assert "--as mambairv2-light-x4-ntire" in result.exception.hint
    assert not cache.exists()
    assert done("import", file, "--as", "mambairv2-light-x4") == f"{cache / 'mambairv2_lightSR_x4.pth'}\n"
    wrong = mambair("import", file, "--as", "mambairv2-light-x2")
    assert isinstance(wrong.exception, Unavailable)


def test_import_asks_on_a_terminal(cache: Path) -> None:
    pty = pytest.importorskip("pty")
    file = weights("mambairv2-light-x4", cache.parent / "net_g_latest.pth")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "mambair_cli", "models", "import", str(file)]
    process = subprocess.Popen(
        command, stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, text=True, env=os.environ | {"TERM": "dumb"}
    )
    os.write(ours, b"7\n2\n")
    assert process.communicate(timeout=60)[0] == f"{cache / 'mambairv2_lightSR_x4.pth'}\n"
    asked = os.read(ours, 10_000).decode()
    assert "2  mambairv2-light-x4\r\n" in asked
    assert asked.count("Which [1/2]") == 2, "7 is none of them"


def command(*args: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mambair_cli", "models", *map(str, args)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_offline_fails_with_status_3_and_says_what_to_do(cache: Path) -> None:
    for result in (
        command("download", "mambairv2-base-x4", "--offline"),
        command("download", "mambairv2-base-x4", MAMBAIR_OFFLINE="1"),
    ):
        assert result.returncode == 3
        assert result.stdout == ""
        assert "mambairv2_classicSR_Base_x4.pth" in result.stderr
        assert "https://github.com/csguoh/MambaIR/releases/download/v1.0/mambairv2" in result.stderr
        assert str(cache / "mambairv2_classicSR_Base_x4.pth") in result.stderr
        assert "Traceback" not in result.stderr


def test_statuses(cache: Path) -> None:
    assert command("info", "nothing").returncode == 2
    assert command("path", "light").returncode == 3
    cache.mkdir()
    (cache / "team40_mambairv2light.pth").write_text("<html>")
    assert command("verify").returncode == 3


@pytest.mark.parametrize("args", [["list"], ["info", "light"], ["path", "light"], ["verify"], ["rm", "light"]])
def test_torch_is_not_imported(args: list[str]) -> None:
    code = """if True:
        import sys
        from mambair_cli.cli.app import run
        try:
            run(["models", *sys.argv[1:]])
        finally:
            print("torch" in sys.modules, file=sys.stderr)
    """
    result = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
    assert result.stderr.splitlines()[-1] == "False"


def test_completion_knows_the_models() -> None:
    typed = "mambair models info mambairv2-la"
    result = command(_MAMBAIR_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD="3")
    assert result.stdout.split() == [f"mambairv2-large-x{scale}" for scale in (2, 3, 4)]


@pytest.mark.parametrize(
    "name", [[], *([command.name or command.callback.__name__] for command in models.app.registered_commands)]
)
def test_help_begins_with_examples(name: list[str]) -> None:
    lines = [line.strip() for line in done(*name, "--help").splitlines()]
    first = next(line for line in lines[lines.index("Examples") + 1 :] if line)
    assert " ".join(["mambair models", *name]) in first
