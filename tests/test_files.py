"""Which files go in, where results go, and that a file that exists is complete."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambair_cli import files
from mambair_cli.errors import UsageError
from mambair_cli.files import Naming, Source, find, plan
from mambair_cli.images.formats import FORMATS


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


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("inputs", [("a.png", "a_x4.png"), (".", "a_x4.png"), ("a_x4.png", "*.png")])
def test_what_is_named_is_never_overwritten(inputs: tuple[str, ...]) -> None:
    Path("a_x4.png").touch()
    assert "a_x4_x4.png" not in targets(*inputs)  # as where a shell made the list from *.png
    with pytest.raises(UsageError, match=r"a_x4\.png is an input"):
        plan(find(inputs), Naming("x4"), force=True)


@pytest.mark.usefixtures("folder")
def test_the_folder_of_the_results_is_left_out_of_what_is_searched() -> None:
    first = targets(".", recursive=True, output="sub/out")
    for name in first:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert targets(".", recursive=True, output="sub/out") == first
    assert targets("**/*.webp", output="sub/out/") == ["sub/out/d.webp"]
    with pytest.raises(UsageError, match="is an input"):
        targets("sub/out", output="sub/out")
    with pytest.raises(UsageError, match="is a file, not a folder"):
        targets(".", output=str(Path("plain").touch() or "plain"))


@pytest.mark.usefixtures("folder")
def test_what_does_not_exist_is_kept_so_that_it_fails() -> None:
    Path("b[1].png").touch()
    for missing in ("none[1].png", "none*.png", "no/**/ne.png", "n" * 300):
        assert [str(s.path) for s in find([missing, "a.png"])] == [missing, "a.png"]
    assert [str(s.path) for s in find(["b[1].png"])] == ["b[1].png"]
    assert [str(s.path) for s in find([], listed=["*.png", "a.png"])] == ["*.png", "a.png"]
    for names in ([], [""]), ([""], []):
        with pytest.raises(UsageError, match="empty"):
            find(names[0], listed=names[1])


@pytest.mark.usefixtures("folder")
def test_a_folder_that_cannot_be_listed_is_an_input_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    lock(monkeypatch, "deep")
    jobs = plan(find(["sub"], recursive=True), Naming("x4", "out.d/", compare=True))
    assert [(job.input, job.output, job.error) for job in jobs] == [
        ("sub/a.png", "out.d/a.png", None),
        ("sub/deep", None, "cannot be searched: Permission denied"),
    ]


def lock(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Nobody may list a folder of that name; chmod would not keep root out."""
    scandir = os.scandir

    def denied(path: str) -> Iterator[os.DirEntry[str]]:
        if os.path.basename(path) == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_folders_give_regular_files_only_and_tell_what_they_leave(folder: Path) -> None:
    os.mkfifo("pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("sub/socket.png")
        os.symlink("/dev/null", "null.png")
        os.symlink("a.png", "link.png")
        os.symlink("gone.png", "loose.png")
        (folder / "film.MP4").touch()
        (folder / "README").touch()
        found = find(["."], recursive=True)
    assert [str(s.path) for s in found][:5] == ["a.png", "b.JPG", "c.ppm", "link.png", "loose.png"]
    assert not {"pipe.png", "null.png", "sub/socket.png"} & {str(s.path) for s in found}
    assert found.others == {".txt": 1, ".mp4": 1, "without a suffix": 1, "pipes and devices": 3}
    assert [str(s.path) for s in find(["pipe.png"])] == ["pipe.png"]  # who names one means it
    assert [str(s.path) for s in find(["*.png"])] == ["a.png", "link.png", "loose.png"]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("inputs", "listed", "base", "results"),
    [
        ([], ["a.png", "sub/a.png"], None, ["a.png", "sub/a.png"]),
        ([], ["sub/a.png", "sub/deep/d.webp"], None, ["a.png", "deep/d.webp"]),
        ([], ["sub/deep/d.webp"], None, ["d.webp"]),
        ([], ["sub", "sub/deep"], None, ["a.png", "deep/d.webp"]),
        ([], ["sub/deep"], None, ["d.webp"]),
        ([], ["sub/deep/d.webp"], ".", ["sub/deep/d.webp"]),
        (["sub", "a.png"], [], ".", ["sub/a.png", "a.png"]),
        (["sub/*.png"], [], ".", ["sub/a.png"]),
        (["sub"], [], None, ["a.png"]),
    ],
)
def test_results_keep_their_places_below_a_base(
    inputs: list[str], listed: list[str], base: str | None, results: list[str]
) -> None:
    jobs = plan(find(inputs, listed=listed, base=base), Naming("x4", "out/"))
    assert [os.path.relpath(str(job.output), "out") for job in jobs] == results


@pytest.mark.usefixtures("folder")
def test_what_is_not_below_the_base_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a\.png is not below sub"):
        find(["sub/a.png", "a.png"], base="sub")


@pytest.mark.parametrize("listing", [b"a.png\nb c.png\n", b"a.png\0b c.png\0", b"a.png\r\nb c.png"])
def test_lists_are_separated_by_newlines_or_nuls(listing: bytes, tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(listing)
    assert files.read_list(str(tmp_path / "list")) == ["a.png", "b c.png"]


NAMES = st.sets(
    st.builds(
        "{}{}{}".format,
        st.sampled_from(["", "d/"]),
        st.sampled_from("aAb"),
        st.sampled_from([".png", ".jpg", ".ppm"]),
    ),
    min_size=1,
)


@given(
    names=NAMES,
    output=st.sampled_from([None, "in/", "in/d", "out/"]),
    template=st.sampled_from([None, "{stem}{ext}", "{name}", "{stem}.png", "{stem}-{tag}{ext}"]),
    compare=st.booleans(),
)
def test_no_two_jobs_share_a_file(names: set[str], output: str | None, template: str | None, compare: bool) -> None:
    naming = Naming("x4", output, template=template, compare=compare)
    sources = [Source(Path("in") / name, Path(name)) for name in sorted(names)]
    place = files._placement(sources, naming)
    results = [place(source)[0] for source in sources]
    pages = [result.with_name(f"{result.stem}_compare.html") for result in results] if compare else []
    written = [os.path.normpath(path) for path in results + pages]
    if len({*written}) < len(written) or {*written} & {str(source.path) for source in sources}:
        with pytest.raises(UsageError, match=r"would both become|is an input"):
            plan(sources, naming)
    else:
        assert [job.target for job in plan(sources, naming)] == results
