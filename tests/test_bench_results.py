"""`bench --results`: pictures of another program, found by their names and scored as a model's; tables for papers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.album import photo
from helpers.benching import bench, cache, pictures  # noqa: F401 -- fixtures
from helpers.commands import Outcome
from helpers.networks import nearest
from helpers.sets import put

from mambair_cli.bench.latex import escaped
from mambair_cli.errors import UsageError
from mambair_cli.pairing import restored_by_name


def test_scores_are_those_of_the_model_that_made_them(
    pictures: Path, tmp_path: Path, bench: Callable[..., Outcome]
) -> None:
    """Saved under the names that programs use, and scored again beside the model."""
    net, made = nearest(tmp_path / "net.pth"), tmp_path / "made"
    own = ("-d", pictures, "-s", 2, "--weights", net, "--json")
    model = json.loads(bench(*own, "--save", made / "a").out)
    (saved,) = (made / "a").glob("*/net")
    for file in saved.iterdir():
        file.rename(saved / f"{file.stem}_x2_other.png")
    put(saved / "part1.png", (41, 40))  # one of the names without the ending of all others
    outcome = bench(*own, "--results", saved, "--report", tmp_path / "a.html")
    theirs, ours = map(json.loads, outcome.out.splitlines())
    assert outcome.status == 0
    assert (theirs["model"], ours["mean"], theirs["environment"]["pictures"]) == ("net", model["mean"], str(saved))
    for record in (theirs, ours):
        assert record["mean"] == model["mean"]
        assert record["baseline"] == model["baseline"]
        assert {key: value for key, value in record["protocol"].items() if key != "tile"} == {
            key: value for key, value in model["protocol"].items() if key != "tile"
        }
    assert theirs["seconds"] is None
    assert (tmp_path / "a.html").read_text().count('class="slider"') >= 2 * 2 * 3


def test_alone_they_need_no_model(tmp_path: Path, bench: Callable[..., Outcome]) -> None:
    """The set's own subfolder is found, the program is called by its folder; what models need means nothing."""
    for n in range(5):
        put(tmp_path / "data" / "set5" / "HR" / f"img_{n}.png", (48, 40))
        put(tmp_path / "swinir" / "Set5" / f"img_{n}x4_SRx4.png", (48, 40))
        put(tmp_path / "edsr" / f"img_{n}.png", (48, 40))
    arguments = ("-d", "Set5", "--data-root", tmp_path / "data", "--results", tmp_path / "swinir")
    outcome = bench(*arguments, "--results", tmp_path / "edsr", "--json", "-q")
    records = [json.loads(line) for line in outcome.out.splitlines()]
    assert [(r["model"], r["degradation"], r["protocol"]["crop"]) for r in records] == [
        ("swinir", "x4", 4),
        ("edsr", "x4", 4),
    ]
    assert [image["name"] for image in records[0]["images"]] == [f"img_{n}" for n in range(5)]
    for option in ("--save", tmp_path / "kept"), ("--fresh",), ("--ensemble",):
        vain = bench(*arguments, *option)
        assert (vain.status, vain.out) == (2, b"")
        assert option[0] in vain.err
    assert (
        b"swinir" in bench("-d", "Set5", "--data-root", tmp_path / "data", "--results", tmp_path / "swinir/Set5").out
    )


def test_missing_and_wrong_pictures_are_named(pictures: Path, tmp_path: Path, bench: Callable[..., Outcome]) -> None:
    made = tmp_path / "made"
    put(made / "part0.png", (40, 40))
    put(made / "part1.png", (41, 40))  # the set's own size, which x2 does not divide
    outcome = bench("-d", pictures, "-s", 2, "--results", made, "--json", "--report", tmp_path / "a.tex")
    assert outcome.status == 1
    record = json.loads(outcome.out)
    errors = [image["error"] for image in record["images"]]
    assert errors[0] is None
    assert "part1.png is 41x40, and should be 40x40" in errors[1]
    assert f"no picture for it in {made}" in errors[2]
    assert (record["measured"], record["of"]) == (1, 3)
    table = (tmp_path / "a.tex").read_text()
    assert r"$^\dagger$made on pictures over 1 of 3 pictures." in table
    assert r"\textbf" not in table, "one row is not the best of several"


def test_folders_without_results_are_refused(pictures: Path, tmp_path: Path, bench: Callable[..., Outcome]) -> None:
    put(tmp_path / "made" / "lena.png", (40, 40))
    (tmp_path / "empty").mkdir()
    for folder, words in (("made", ["lena.png", "part0x2.png"]), ("empty", ["no pictures"]), ("gone", ["--results"])):
        outcome = bench("-d", pictures, "-s", 2, "--results", tmp_path / folder)
        assert (outcome.status, outcome.out) == (2, b"")
        assert all(word in outcome.err for word in words), outcome.err


@pytest.mark.parametrize(
    ("truths", "files", "found"),
    [
        (["baby", "bird"], ["baby", "bird"], ["baby", "bird"]),
        (["baby", "bird"], ["babyx2", "babyx4", "birdx2", "birdx4"], ["babyx4", "birdx4"]),
        (["baby", "bird"], ["baby_x4_Net", "bird_x4_Net", "baby"], ["baby_x4_Net", "bird_x4_Net"]),
        (["1", "10", "100"], ["1x4", "10x4", "100x4"], ["1x4", "10x4", "100x4"]),
        (["babybird", "baby"], ["baby-out"], [None, "baby-out"]),
        (["img_001_SRF_4_HR"], ["img_001_SRF_4_LR_x4"], ["img_001_SRF_4_LR_x4"]),
        (["norain-1", "norain-10"], ["rain-1", "rain-10"], ["rain-1", "rain-10"]),
        (["a/sharp/1", "b/sharp/1"], ["b/1", "a/1"], ["a/1", "b/1"]),
        (["a/sharp/1", "b/sharp/1"], ["a-1_net", "b-1_net"], ["a-1_net", "b-1_net"]),
        (["baby"], ["babylon"], [None]),
    ],
)
def test_names(truths: list[str], files: list[str], found: list[str | None]) -> None:
    clean = [Path("/set/HR") / f"{name}.png" for name in truths]
    made = restored_by_name(clean, [Path("/out") / f"{name}.png" for name in files], Path("/out"), 4)
    assert [made[path] for path in clean] == [name and Path("/out") / f"{name}.png" for name in found]


def test_two_files_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match=r"baby\.jpg and .*baby\.png"):
        restored_by_name([Path("/set/baby.png")], [Path("/out/baby.jpg"), Path("/out/baby.png")], Path("/out"), 4)


def test_a_table_for_a_paper(tmp_path: Path, bench: Callable[..., Outcome]) -> None:
    r"""The best as printed is bold, ties are both; names are text, whatever LaTeX would make of them."""
    folder = tmp_path / "50%_of & {all}"
    for name in ("a", "b"):
        put(folder / f"{name}.png", (48, 40))
        put(tmp_path / "good_a" / f"{name}.png", (48, 40))
        put(tmp_path / "good_b" / f"{name}.png", (48, 40))
        (tmp_path / "bad").mkdir(exist_ok=True)
        photo().resize((12, 10)).resize((48, 40)).save(tmp_path / "bad" / f"{name}.png")
    programs = [argument for name in ("bad", "good_a", "good_b") for argument in ("--results", tmp_path / name)]
    target = tmp_path / "table.tex"
    assert bench("-d", folder, "-s", 2, *programs, "--niqe", "--gradient", "--report", target).status == 0
    table = target.read_text()
    assert table.startswith("% mambair bench\n")
    assert r"\multicolumn{4}{c}{50\%\_of \& \{all\}}" in table
    assert r"\cmidrule(lr){2-5}" in table
    rows = {
        row.split(" & ")[0].strip(): row.rstrip("\\ ").split(" & ")[1:] for row in table.splitlines() if "&" in row
    }
    assert rows["Method"] == ["PSNR", "SSIM", "NIQE", "gradient"]
    assert (
        rows[r"good\_a"] == rows[r"good\_b"] == [r"\textbf{$\infty$}", r"\textbf{1.0000}", "--", r"\textbf{1.0000}"]
    )
    assert not any("textbf" in cell for cell in rows["bad"] + rows["bicubic"])
    (caption,) = re.findall(r"\\caption\{(.*)\}\n", table)
    assert caption.startswith("x2: PSNR in dB and SSIM. Y of BT.601 studio swing, 2 pixels cropped")
    assert caption.count("BT.601") == 2, "said once, and of NIQE"
    assert bench("-d", folder, "-s", 2, *programs, "--report", target).status == 0, "an earlier report is replaced"
    assert table.count("{") == table.count("}")
    assert table.count(r"\begin") == table.count(r"\end")


def test_latex_prints_any_text() -> None:
    assert escaped('a\\b~^<>|"&%$#_{}\x1b') == (
        r"a\textbackslash{}b\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}\textbar{}\textquotedbl{}"
        r"\&\%\$\#\_\{\}\textbackslash{}033"
    )
