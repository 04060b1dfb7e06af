"""Which files go in, where results go, and that a file that exists is complete."""

from __future__ import annotations

import os
import stat
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambair_cli import files
from mambair_cli.errors import MambairError, UsageError
from mambair_cli.files import Naming, Source, atomic, find, plan, sweep
from mambair_cli.formats import FORMATS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.JPG", "c.ppm", "notes.txt", ".hidden.png", "sub/a.png", "sub/deep/d.webp", ".git/e.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    return tmp_path


def targets(*inputs: str, recursive: bool = False, **naming: object) -> list[str]:
    jobs = plan(find(inputs, recursive), Naming("x4", **naming))
    return [os.path.relpath(job.output) for job in jobs]


@pytest.mark.usefixtures("folder")
def test_folders_give_their_pictures_and_deeper_ones_when_asked() -> None:
    assert [str(s.path) for s in find(["."])] == ["a.png", "b.JPG", "c.ppm"]
    assert [str(s.path) for s in find(["."], recursive=True)][3:] == ["sub/a.png", "sub/deep/d.webp"]
    assert [str(s.path) for s in find(["*.png", "a.png", "none.png"])] == ["a.png", "none.png"]
    assert [str(s.path) for s in find(["**/*.webp"])] == ["sub/deep/d.webp"]


@pytest.mark.usefixtures("folder")
def test_outputs_lie_beside_the_input_in_its_format_or_as_png() -> None:
    assert targets(".") == ["a_x4.png", "b_x4.JPG", "c_x4.png"]
    assert targets("b.JPG", format=FORMATS["TIFF"]) == ["b_x4.tiff"]


@pytest.mark.usefixtures("folder")
def test_a_folder_as_output_mirrors_the_tree() -> None:
    assert targets(".", recursive=True, output="out/") == [
        "out/a.png",
        "out/b.JPG",
        "out/c.png",
        "out/sub/a.png",
        "out/sub/deep/d.webp",
    ]
    assert targets("a.png", output="new") == ["new/a.png"]
    assert targets("a.png", output="sub") == ["sub/a.png"]
    assert targets("a.png", output="sub/z.webp") == ["sub/z.webp"]


@pytest.mark.usefixtures("folder")
def test_names_come_from_a_template() -> None:
    assert targets("a.png", template="{tag}-{name}") == ["x4-a.png"]
    assert targets("a.png", template="{stem}.webp") == ["a.webp"]
    assert targets("a.png", template="{stem}_{tag}", output="o/") == ["o/a_x4.png"]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("inputs", "naming", "reason"),
    [
        ([], {}, "no pictures found"),
        (["a.png", "b.JPG"], {"output": "x.png"}, "cannot all become"),
        (["a.png", "b.JPG"], {"output": "-"}, "one stream"),
        (["a.png"], {"output": "x.xyz"}, "cannot write .xyz"),
        (["a.png"], {"output": "x.png", "format": FORMATS["WEBP"]}, "disagree"),
        (["a.png"], {"template": "{nonsense}"}, "cannot be filled"),
        (["a.png"], {"template": "{stem"}, "cannot be filled"),
        (["a.png"], {"template": "fixed{ext}"}, "same name"),
        (["a.png"], {"output": "."}, "is an input"),
        (["a.png"], {"template": "{stem}{ext}"}, "is an input"),
        (["a.png", "sub/a.png"], {"output": "out/"}, "would both become"),
        (["a.png", "a.webp"], {"format": FORMATS["TIFF"]}, "would both become"),
        (["b.JPG", "b.png"], {"format": FORMATS["PNG"], "output": "."}, "is an input"),
    ],
)
def test_conflicts_are_found_before_any_work(inputs: list[str], naming: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        targets(*inputs, **naming)


@pytest.mark.usefixtures("folder")
def test_names_that_differ_in_case_collide_where_the_file_system_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert targets("x.png", "X.png") == ["x_x4.png", "X_x4.png"]
    monkeypatch.setattr(files, "_ignores_case", lambda folder: True)
    with pytest.raises(UsageError, match="would both become"):
        targets("x.png", "X.png")
    with pytest.raises(UsageError, match="is an input"):
        targets("x.png", template="{stem}.PNG")


@pytest.mark.usefixtures("folder")
def test_results_of_an_earlier_run_are_not_restored_again() -> None:
    for name in targets("."):
        Path(name).touch()
    assert targets(".") == ["a_x4.png", "b_x4.JPG", "c_x4.png"]
    assert targets("a*.png") == ["a_x4.png"]


@pytest.mark.parametrize("listing", [b"a.png\nb c.png\n", b"a.png\0b c.png\0", b"a.png\r\nb c.png"])
def test_lists_are_separated_by_newlines_or_nuls(listing: bytes, tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(listing)
    assert files.read_list(str(tmp_path / "list")) == ["a.png", "b c.png"]


NAMES = st.lists(
    st.text(string.ascii_letters + "._ -", min_size=1, max_size=8).map(lambda s: Path(s.strip(".") + "x.png")),
    min_size=1,
)


@given(names=NAMES, template=st.sampled_from([None, "{stem}-{tag}{ext}", "{name}"]))
def test_no_two_jobs_share_a_file(names: list[Path], template: str | None) -> None:
    sources = list({name: Source(Path("in") / name, name) for name in names}.values())
    jobs = plan(sources, Naming("x4", "out/", template=template))
    assert len({job.target for job in jobs}) == len(jobs) == len(sources)


def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic(tmp_path / "new" / "a.png") as file:
            file.write(b"whole")
    finally:
        os.umask(before)
    target = tmp_path / "new" / "a.png"
    assert target.read_bytes() == b"whole"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"old")
    with pytest.raises(TypeError), atomic(tmp_path / "a.png") as file:
        file.writelines([b"half", None])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_open_new", lambda temporary: Path("/dev/full").open("wb"))  # noqa: SIM115
    with pytest.raises(files.DiskFullError, match=r"a\.png: No space left"), atomic(tmp_path / "a.png") as file:
        file.write(b"x" * 100_000)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MambairError, match="cannot write"), atomic(tmp_path / "file" / "a.png"):
        pass


def test_only_what_killed_runs_left_is_swept_away(tmp_path: Path) -> None:
    dead = 2**22 + 1  # above the largest number of a process
    own, day = files._host, 25 * 3600
    kept = [
        "a.png",
        ".part",
        f".mambair-{own}-{os.getppid()}-0.part",
        f".mambair-00000000-{dead}-0.part",
        f".mambair-{own}-{dead}-0.partial",
    ]
    swept = [f".mambair-{own}-{dead}-0.part", f".mambair-{own}-{os.getpid()}-7.part", ".mambair-00000000-1-0.part"]
    for name in kept + swept:
        (tmp_path / name).touch()
    os.utime(tmp_path / swept[2], (day, day))
    sweep([tmp_path, tmp_path / "missing"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
