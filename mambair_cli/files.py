"""Which files go in, where results go, and writing them so that a file that exists is a file that is complete."""

from __future__ import annotations

import glob
import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from mambair_cli.errors import UsageError
from mambair_cli.images.formats import FORMATS, RAW_SUFFIXES, VIDEO_SUFFIXES, Format, of_suffix, readable_suffixes
from mambair_cli.places import Place
from mambair_cli.streams import read_stdin

STREAM = "-"  # stdin or stdout
TEMPLATE_FIELDS = ("stem", "name", "tag", "ext")

_BESIDE = "{stem}_{tag}{ext}"  # next to the input
_ENLARGED = re.compile(r"x?\d")  # how tags of upscaling begin: x4, 3840px
IN_FOLDER = "{stem}{ext}"  # in a folder of its own


@dataclass(frozen=True)
class Job:
    """One input and its output."""

    source: Path | Place | None  # None: stdin
    target: Path | Place | None  # None: stdout
    format: Format
    comparison: Path | None = None  # a page that shows both
    error: str | None = None  # why there is nothing to read; then nothing is written either
    name: str = ""  # below the folder that was named, whatever that is called here: by which work is divided

    @property
    def input(self) -> str:
        return STREAM if self.source is None else str(self.source)

    @property
    def output(self) -> str | None:
        if self.error:
            return None
        return STREAM if self.target is None else str(self.target)

    @property
    def targets(self) -> list[Path]:
        """All that is written on this machine."""
        return [path for path in (self.target, self.comparison) if isinstance(path, Path)]


@dataclass(frozen=True)
class Naming:
    """How outputs are called. `output` as given with -o; `template` as given with --name; `compare`: a page each."""

    tag: str  # "x4", "denoised", ...
    output: str | None = None
    format: Format | None = None
    template: str | None = None
    compare: bool = False


@dataclass(frozen=True)
class Source:
    """An input file and its place below the folder that was walked to find it (for mirroring the tree)."""

    path: Path | None
    relative: Path
    root: Path | None = None  # where the walk or the glob began that found it; None: the user named it
    error: str | None = None  # a folder that cannot be listed, and why


# --- what goes in ---------------------------------------------------------------------------------------------


def read_list(listing: str) -> list[str]:
    """The names in a file (or "-", stdin), separated by NUL if there is one, by newlines otherwise."""
    try:
        data = read_stdin() if listing == STREAM else Path(listing).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the list {listing}: {error.strerror}") from error
    names = data.split(b"\0") if b"\0" in data else data.splitlines()
    return [os.fsdecode(name) for name in names if name]


class Sources(list[Source]):
    """What was found, and beside it what was left alone: other files in the folders, counted by kind."""

    def __init__(self, found: Iterable[Source] = (), others: Mapping[str, int] = MappingProxyType({})) -> None:
        super().__init__(found)
        self.others = Counter(others)  # ".mp4" -> 3


def left_alone(others: Mapping[str, int]) -> str:
    """What to say of other files: "3 others left alone: .mp4, .pdf", and what helps with camera raw and videos."""
    kinds, count = sorted(others), sum(others.values())
    line = f"{count} {'other' if count == 1 else 'others'} left alone: {', '.join(kinds)}"
    if RAW_SUFFIXES & set(kinds):
        line += " (camera raw needs the extra: pip install 'mambair[raw]')"
    if VIDEO_SUFFIXES & set(kinds):
        line += " (videos: docs/video.md)"
    return line


def find(
    inputs: Sequence[str], recursive: bool = False, listed: Sequence[str] = (), base: str | None = None
) -> Sources:
    """The files behind files, folders, globs and "-"; names from a list (`listed`) are no globs. Each once, folders
    in order of name.

    `base`: the folder below which results keep their places; None: for the names of a list the folder that all of
    them share, for others the folder that was named. In folders only regular files (and links to them) are taken.
    What does not exist, a glob without a match included, is kept: reading it fails later, and is reported, like any
    bad file. Raises UsageError for an empty name, and for one that is not below `base`.
    """
    if "" in (*inputs, *listed):
        raise UsageError("one of the names is empty", "The current folder is a dot. Is a shell variable unset?")
    others: Counter[str] = Counter()
    found: dict[str | None, Source] = {}
    searches = [(_Search(recursive, True, base, others), name) for name in inputs]
    searches += [(_Search(recursive, False, base or _shared_folder(listed), others), name) for name in listed]
    for search, name in searches:
        for source in search.expand(name):
            key = None if source.path is None else os.path.abspath(source.path)
            first = found.setdefault(key, source)
            if source.root is None:
                found[key] = replace(first, root=None)
    return Sources(found.values(), others)


@dataclass(frozen=True)
class _Search:
    """How names become files, and the counts of those that are no pictures."""

    recursive: bool
    globs: bool
    base: str | None
    others: Counter[str]

    def expand(self, name: str) -> Iterator[Source]:
        path = Path(name)
        if name == STREAM:
            yield Source(None, Path("stdin"))
        elif os.path.isdir(path):  # unlike Path.is_dir, False where the folder above is locked or the name too long
            yield from self._walk(path, path)
        elif self.globs and not os.path.lexists(path) and (matches := sorted(glob.glob(name, recursive=True))):
            root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
            for match in map(Path, matches):
                if os.path.isdir(match):
                    yield from self._walk(match, root)
                elif not self._is_special(match):
                    yield Source(match, self._place(match, Path(match.name)), root)
        else:
            yield Source(path, self._place(path, Path(path.name)))

    def _walk(self, folder: Path, root: Path) -> Iterator[Source]:
        errors: list[OSError] = []
        readable = readable_suffixes()
        for place, folders, names in os.walk(folder, onerror=errors.append):
            folders[:] = sorted(name for name in folders if not name.startswith(".")) if self.recursive else []
            for path in (Path(place, name) for name in sorted(names) if not name.startswith(".")):
                if path.suffix.lower() not in readable:
                    self.others[path.suffix.lower() or "without a suffix"] += 1
                elif not self._is_special(path):
                    yield Source(path, self._place(path, path.relative_to(folder)), root)
        for error in errors:
            path = Path(error.filename)
            yield Source(path, path.relative_to(folder), root, f"cannot be searched: {error.strerror}")

    def _is_special(self, path: Path) -> bool:
        """Whether it is a pipe, a socket or a device: reading it may never end. A loose link is not."""
        if os.path.isfile(path) or not os.path.exists(path):
            return False
        self.others["pipes and devices"] += 1
        return True

    def _place(self, path: Path, otherwise: Path) -> Path:
        """Where a file lies below the base, if there is one."""
        if self.base is None:
            return otherwise
        place = _below(path, self.base)
        if place is None:
            raise UsageError(f"{path} is not below {self.base}", "Name a folder with --base that holds all of them.")
        return place


def _below(path: Path, base: str) -> Path | None:
    with suppress(ValueError):  # another drive
        place = os.path.relpath(path, base)
        if place.split(os.sep)[0] != os.pardir:
            return Path(place)
    return None


def _shared_folder(names: Sequence[str]) -> str | None:
    """The deepest folder that holds all these files and folders."""
    paths = [os.path.abspath(name) for name in names if name != STREAM]
    try:
        return os.path.commonpath([path if os.path.isdir(path) else os.path.dirname(path) for path in paths])
    except ValueError:  # none, or on different drives
        return None


def result_of(name: str, naming: Naming) -> tuple[str, Format]:
    """What the result of a file of this name is called next to it, and its format. Looks at no file."""
    target, form = named(Source(Path(name), Path(name)), Path(), checked(naming.template or _BESIDE), naming)
    return target.name, form


# --- where it goes --------------------------------------------------------------------------------------------


def plan(sources: Sequence[Source], naming: Naming, force: bool = False, strict: bool = True) -> list[Job]:
    """A job for each source, all conflicts found before any work.

    Results of an earlier run are left out, as many as jobs are missing: a shell's *.png holds them the second time.
    With `force`, by which they would be overwritten, what is named is never taken for one.
    Raises UsageError where two inputs share an output or where an output is an input (unless `strict` is False: then
    that is an error of the job), and where the template or the output makes no sense.
    """
    place = _placement(sources, naming)
    jobs = [_job(source, place) for source in sources]
    earlier, again = _earlier_results(jobs, naming, force), _again(sources, naming.tag)
    jobs = [job for source, job in zip(sources, jobs, strict=True) if not (earlier(source) or again(source))]
    if naming.compare:
        jobs = [job if job.error else replace(job, comparison=_comparison(job)) for job in jobs]
    conflicts = dict(_conflicts(jobs))
    if strict and conflicts:
        raise next(iter(conflicts.values()))
    return [replace(job, error=str(conflicts[i])) if i in conflicts else job for i, job in enumerate(jobs)]


Target = Callable[[Source], tuple[Path | None, Format]]


def _job(source: Source, place: Target) -> Job:
    name = source.relative.as_posix()
    if source.error:
        return Job(source.path, None, FORMATS["PNG"], error=source.error, name=name)
    return Job(source.path, *place(source), name=name)


def _earlier_results(jobs: Sequence[Job], naming: Naming, force: bool) -> Callable[[Source], bool]:
    """Whether a source is a result: found below the folder of the results, or called like one."""
    folder = folder_of(naming.output)
    if folder is not None:
        return lambda source: (
            source.root is not None and _is_below(source.path, folder) and not _is_below(source.root, folder)
        )
    if naming.output is None and "{tag}" in (naming.template or _BESIDE):
        results = {_key(target) for job in jobs for target in job.targets}
        return lambda source: (
            (source.root is not None or not force) and source.path is not None and _key(source.path) in results
        )
    return lambda source: False


def _again(sources: Sequence[Source], tag: str) -> Callable[[Source], bool]:
    """Whether a source was found beside its original, and says of itself that such a run has made it."""
    stems = {(source.path.parent, source.path.stem) for source in sources if source.path}

    def made(source: Source) -> bool:
        if source.path is None or source.root is None:
            return False  # the user named it
        folder, own = source.path.parent, source.path.stem
        if not any({(folder, own[:cut]), (folder, own[cut:])} & stems for cut in range(1, len(own))):
            return False  # no name of another begins or ends it
        from mambair_cli.images.software import made_by

        how = getattr(made_by(source.path), "how", None)
        return how is not None and (how == tag or bool(_ENLARGED.match(how) and _ENLARGED.match(tag)))

    return made


def _is_below(path: Path | None, folder: Path) -> bool:
    return path is not None and Path(_key(path)).is_relative_to(_key(folder))


def folder_of(output: str | None) -> Path | None:
    """The folder that `-o` names, None where it names a file, a stream, or nothing. Raises UsageError."""
    if output in (None, STREAM):
        return None
    path = Path(str(output))
    if os.path.isdir(path):
        return path
    if str(output).endswith(("/", os.sep)) or not path.suffix:
        if os.path.exists(path):
            raise UsageError(f"{path} is a file, not a folder", "Choose another folder with -o, or a picture's name.")
        return path
    return None


def _placement(sources: Sequence[Source], naming: Naming) -> Target:
    """Where a source's result goes, as `-o` wants it: stdout, one file, a folder, or next to the input."""
    output, folder = naming.output, folder_of(naming.output)
    if output == STREAM or (output is None and [source.path for source in sources] == [None]):
        if len(sources) > 1:
            raise UsageError(f"{len(sources)} pictures do not fit into one stream", "Use -o FOLDER/.")
        return lambda source: (None, naming.format or FORMATS["PNG"])
    if output is None:
        template = checked(naming.template or _BESIDE)
        return lambda source: named(source, (source.path or source.relative).parent, template, naming)
    if folder is not None:
        template = checked(naming.template or IN_FOLDER)
        return lambda source: named(source, folder / source.relative.parent, template, naming)
    if len(sources) > 1:
        raise UsageError(f"{len(sources)} pictures cannot all become {output}", f"If a folder is meant: -o {output}/")
    path = Path(output)
    form = format_of(path, naming)
    return lambda source: (path, form)


def checked(template: str) -> str:
    """The template, if it can be filled. Raises UsageError."""
    fields = ", ".join(f"{{{field}}}" for field in TEMPLATE_FIELDS)
    try:
        one, other = (template.format(**dict.fromkeys(TEMPLATE_FIELDS, text)) for text in "ab")
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        raise UsageError(f"--name {template!r} cannot be filled: {error}", f"Fields: {fields}.") from error
    if not {"{stem", "{name"} & set(re.findall(r"\{\w+", template)) or one == other:
        raise UsageError(f"--name {template!r} gives every picture the same name", "It needs {stem} or {name}.")
    return template


def named(source: Source, folder: Path, template: str, naming: Naming) -> tuple[Path, Format]:
    """The output below `folder`. Its format follows the input where it can be written; PNG takes the rest."""
    name, own = source.relative, of_suffix(source.relative)
    form = naming.format or own or FORMATS["PNG"]
    suffix = name.suffix if form == own else form.suffixes[0]
    target = folder / template.format(stem=name.stem, name=name.name, tag=naming.tag, ext=suffix)
    if of_suffix(target) is None:
        target = target.with_name(target.name + suffix)
    return target, format_of(target, naming)


def format_of(target: Path | Place, naming: Naming) -> Format:
    form = of_suffix(target)
    if form is None:
        raise UsageError(f"cannot write {target.suffix} files", "Try .png, .jpg, .webp, .tiff or .avif.")
    if naming.format not in (None, form):
        raise UsageError(f"--format {naming.format.name.lower()} and {target} disagree", "Leave one of them out.")
    return form


def _comparison(job: Job) -> Path:
    if job.source is None or not isinstance(job.target, Path):
        raise UsageError("--compare needs a file before and a file after, not a stream", "Name both files.")
    return job.target.with_name(f"{job.target.stem}_compare.html")


def _conflicts(jobs: Sequence[Job]) -> Iterator[tuple[int, UsageError]]:
    """The places of jobs that would write what another one writes, or what another (or it) reads."""
    inputs = {_key(job.source): job for job in jobs if isinstance(job.source, Path)}
    outputs: dict[str, Job] = {}
    for place, job, target in [(i, one, target) for i, one in enumerate(jobs) for target in one.targets]:
        key = _key(target)
        if key in inputs:
            message = f"{target} is an input: it would be overwritten by the result of {job.input}"
            hint = (
                "Choose another folder with -o, or other names with --name. Results of an earlier run are left out "
            )
            yield place, UsageError(message, hint + "where their folder is named instead of each file.")
        elif key in outputs:
            message = f"{outputs[key].input} and {job.input} would both become {target}"
            hint = 'Keep them apart with --name "{name}_{tag}{ext}", or use -o with -r to keep the folders.'
            yield place, UsageError(message, hint)
        else:
            outputs[key] = job


def _key(path: Path) -> str:
    """Equal for two names of one file, whether or not it exists yet."""
    real = os.path.realpath(path)
    if _ignores_case(os.path.dirname(real)):
        return unicodedata.normalize("NFC", real).casefold()
    return real


@lru_cache(maxsize=4096)
def _ignores_case(folder: str) -> bool:
    """Whether the file system there takes a.png and A.png for the same file."""
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    head, name = os.path.split(folder)
    swapped = os.path.join(head, name.swapcase())
    return name != name.swapcase() and os.path.exists(swapped) and os.path.samefile(folder, swapped)
