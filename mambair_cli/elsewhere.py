"""Jobs whose pictures or results are in stores: a stream, as a million names take long to list."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path, PurePosixPath

from mambair_cli import files, places
from mambair_cli.errors import MambairError, UsageError
from mambair_cli.files import IN_FOLDER, STREAM, Job, Naming
from mambair_cli.images.formats import FORMATS, Format, readable_suffixes
from mambair_cli.places import Place

_MAGIC = frozenset("*?[")
_UNSAFE = frozenset("\0\\" if os.name == "posix" else "\0\\:")
Target = Callable[["Found"], tuple[Path | Place | None, Format]]


@dataclass(frozen=True)
class Found:
    """A picture and its name below the folder that was named, or why there is none."""

    source: Path | Place | None  # None: stdin
    relative: PurePosixPath
    error: str | None = None


@dataclass(frozen=True)
class Search:
    """What is searched, how results are called, and how many other files were met so far, by kind."""

    inputs: Sequence[str]
    listed: Sequence[str]
    naming: Naming
    recursive: bool = False
    base: str | None = None
    others: Counter[str] = field(default_factory=Counter)

    @property
    def needed(self) -> bool:
        """Whether any name is in a store; else `files.plan` does it, and finds all conflicts at once."""
        return any(places.is_elsewhere(name) for name in (*self.inputs, *self.listed, self.naming.output or ""))

    def jobs(self) -> Iterator[Job]:
        """A job for each picture, as it is found. What cannot be done is a job with an error.

        Raises UsageError where the options make no sense, before any work.
        """
        if self.naming.compare:
            raise UsageError("--compare writes pages beside results, and not into stores", "Leave it out.")
        found = self._found()
        first = list(islice(found, 2))
        return self._planned(chain(first, found), self._placement(len(first) > 1))

    # --- what goes in ---

    def _found(self) -> Iterator[Found]:
        local = [name for name in self.inputs if not places.is_elsewhere(name)]
        local_listed = [name for name in self.listed if not places.is_elsewhere(name)]
        for source in files.find(local, self.recursive, local_listed, None if self._base else self.base):
            yield Found(source.path, PurePosixPath(source.relative.as_posix()), source.error)
        for name in filter(places.is_elsewhere, self.inputs):
            yield from self._expanded(Place(name).check())
        listed = list(filter(places.is_elsewhere, self.listed))
        base = self._base or _shared(listed)
        for name in listed:
            yield Found(Place(name).check(), _below(name, base))

    @property
    def _base(self) -> str | None:
        return self.base if self.base and places.is_elsewhere(self.base) else None

    def _expanded(self, place: Place) -> Iterator[Found]:
        """A file, a pattern's files, or those of a folder: a name that ends in / or has no suffix of a picture."""
        readable = readable_suffixes()
        if place.protocol not in ("http", "https") and _MAGIC & set(place.url):
            matches = places.matching(place)
            base = self._base or _shared([match.url for match in matches])
            yield from (Found(match, _below(match.url, base)) for match in matches)
            if not matches:
                yield Found(place, PurePosixPath(place.name), "no such file")
        elif place.suffix and not place.url.endswith("/"):
            yield Found(place, _below(place.url, self._base) if self._base else PurePosixPath(place.name))
        else:
            try:
                for name, file in places.listing(place, self.recursive):
                    if file.suffix.lower() in readable or name.endswith("/"):
                        yield _safe(name, file)
                    else:
                        self.others[file.suffix.lower() or "without a suffix"] += 1
            except MambairError as error:
                yield Found(place, PurePosixPath(place.name), error.message)

    # --- where it goes ---

    def _placement(self, several: bool) -> Target:
        output, naming = self.naming.output, self.naming
        if output is None:
            raise UsageError("results of pictures in a store need a place of their own", "For example -o results/.")
        template = files.checked(naming.template or IN_FOLDER)
        if places.is_elsewhere(output):
            place = Place(output).check()
            if place.protocol in ("http", "https"):
                raise UsageError(f"{output}: nothing can be written to a web server", "Name a folder or a bucket.")
            if output.endswith("/") or not place.suffix:
                return lambda found: _named_below(found, place, template, naming)
            one: Path | Place | None = place
        else:
            folder = files.folder_of(output)
            if folder is not None:
                return lambda found: _named(found, folder, template, naming)
            one = None if output == STREAM else Path(output)
        if several:
            raise UsageError(f"several pictures cannot all become {output}", f"If a folder is meant: -o {output}/")
        form = files.format_of(one, naming) if one else naming.format or FORMATS["PNG"]
        return lambda found: (one, form)

    def _planned(self, found: Iterable[Found], target: Target) -> Iterator[Job]:
        taken: set[int] = set()  # hashes of names: what is held of a picture that is done
        results = f"{(self.naming.output or '').rstrip('/')}/"
        for one in found:
            job = Job(one.source, None, FORMATS["PNG"], error=one.error, name=str(one.relative))
            if one.error:
                yield job
                continue
            if isinstance(one.source, Place) and one.source.url.startswith(results):
                self.others["results of an earlier run"] += 1
                continue
            place, form = target(one)
            key = hash(str(place))
            error = f"another picture becomes {place}, too: --name '{{name}}{{ext}}' keeps them apart"
            clash = place is not None and (key in taken or str(place) == str(one.source))
            taken.add(key)
            yield Job(one.source, None if clash else place, form, error=error if clash else None, name=job.name)


def _named(found: Found, folder: Path, template: str, naming: Naming) -> tuple[Path, Format]:
    source = files.Source(None, Path(*found.relative.parts))
    return files.named(source, folder / source.relative.parent, template, naming)


def _named_below(found: Found, place: Place, template: str, naming: Naming) -> tuple[Place, Format]:
    relative, form = _named(found, Path(), template, naming)
    return place.below(PurePosixPath(relative.as_posix())), form


def _safe(name: str, file: Place) -> Found:
    """A listed file, unless its name leads out of a folder: stores allow any text."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or _UNSAFE & set(part) for part in parts):
        return Found(file, PurePosixPath(file.name), "its name cannot be that of a file in a folder")
    return Found(file, PurePosixPath(*parts))


def _below(url: str, base: str | None) -> PurePosixPath:
    """The name of a file below a folder. Raises UsageError where it is not in it."""
    start = f"{base.rstrip('/')}/" if base else ""
    if not url.startswith(start):
        raise UsageError(f"{url} is not below {base}", "Name a folder with --base that holds all of them.")
    found = _safe(url.removeprefix(start), Place(url))
    if found.error:
        raise UsageError(f"{url}: {found.error}")
    return found.relative


def _shared(urls: Sequence[str]) -> str | None:
    """The deepest folder that holds all of them; None where they share no store."""
    if not urls:
        return None
    folders = [url.rsplit("/", 1)[0].split("/") for url in urls]
    shared = []
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "/".join(shared) if len(shared) > 2 else None
