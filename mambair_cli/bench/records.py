"""What a benchmark leaves behind: scores of pictures, of a set, and the journal that survives a stopped run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from mambair_cli.bench.damage import Damage
from mambair_cli.bench.datasets import Dataset
from mambair_cli.errors import MambairError
from mambair_cli.task import Protocol


@dataclass(frozen=True)
class Score:
    """PSNR in dB and SSIM, which some publish without; LPIPS, DISTS and NIQE where they were asked for.

    A picture too small for NIQE is without.
    """

    psnr: float
    ssim: float | None
    lpips: float | None = None
    dists: float | None = None
    niqe: float | None = None
    gradient: float | None = None  # of the truth's, kept

    @classmethod
    def mean(cls, scores: Sequence[Score]) -> Score | None:
        """Over pictures, each score over those that have it; None of none."""
        if not scores:
            return None
        columns = {field.name: [getattr(score, field.name) for score in scores] for field in fields(cls)}
        there = {key: [value for value in column if value is not None] for key, column in columns.items()}
        means: dict[str, Any] = {key: fmean(column) if column else None for key, column in there.items()}
        return cls(**means)


@dataclass(frozen=True)
class Measured:
    """One picture: its scores and those of doing nothing, or the reason why there are none."""

    name: str
    width: int = 0  # of the clean picture
    height: int = 0
    score: Score | None = None
    baseline: Score | None = None
    seconds: float | None = None  # None: timed elsewhere
    error: str = ""
    timed: str = ""  # where the seconds were taken
    stamp: str = ""  # of the files it was measured on
    picture: str = ""  # where the restored one is kept

    @property
    def gain(self) -> float:
        """dB over doing nothing."""
        return self.score.psnr - self.baseline.psnr if self.score and self.baseline else 0.0


@dataclass(frozen=True)
class Result:
    """One model, or another program, on one set."""

    dataset: Dataset
    name: str  # of the model, or of the folder of the pictures
    rules: Protocol
    damage: Damage
    images: tuple[Measured, ...]
    environment: Mapping[str, Any]
    published: Score | None = None

    @property
    def model(self) -> str:
        """As papers write it: a plus for self-ensemble."""
        return self.name + ("+" if self.environment["ensemble"] else "")

    @property
    def measured(self) -> list[Measured]:
        return [image for image in self.images if image.score]

    @property
    def failed(self) -> list[Measured]:
        return [image for image in self.images if not image.score]

    @property
    def complete(self) -> bool:
        """Whether the mean is over the whole set, as a published one is."""
        return len(self.measured) == self.dataset.size

    @property
    def extra(self) -> tuple[str, ...]:
        """The scores that were asked for besides PSNR and SSIM: of gradient 1 is best, of the others the lowest."""
        asked = {"lpips": "perceptual", "dists": "perceptual", "niqe": "niqe", "gradient": "gradient"}
        return tuple(name for name, flag in asked.items() if self.environment[flag])

    def having(self, name: str) -> int:
        """How many pictures have the score of that name."""
        return sum(getattr(image.score, name) is not None for image in self.measured)

    @property
    def mean(self) -> Score | None:
        return Score.mean([image.score for image in self.images if image.score])

    @property
    def baseline(self) -> Score | None:
        """The mean of doing nothing, over the same pictures."""
        return Score.mean([image.baseline for image in self.images if image.baseline])

    @property
    def seconds(self) -> float | None:
        """Per picture, on average over those timed in this environment; None of none."""
        times = [image.seconds for image in self.measured if image.seconds is not None]
        return fmean(times) if times else None

    @property
    def _files(self) -> str | None:
        """A warning where they are not those that others measured."""
        if not (foreign := self.dataset.foreign):
            return None
        first = foreign[0].relative_to(self.dataset.folder).as_posix()
        return f"{len(foreign)} are not those of {self.dataset.name}: {first}{', ...' if len(foreign) > 1 else ''}"

    @property
    def protocol(self) -> dict[str, Any]:
        """Everything a stranger needs to measure the same: printed with every table, stored in every report."""
        own = self.rules
        rounding = {
            "uint8": "restored picture rounded to 8 bits",
            "luma": "restored picture, then its Y, rounded to 8 bits",
            "none": "nothing rounded",
        }
        distances, natural = "lpips" in self.extra, "niqe" in self.extra
        plane = "grey" if own.channel == "gray" else "Y of BT.601 studio swing rounded to 8 bits"
        niqe = f"{plane}, {own.crop} pixels cropped, blocks of 96x96, authors' model, lower is better"
        return {
            "channel": own.channel,
            "crop": own.crop,
            "rounding": rounding[own.rounding],
            "y": "ITU-R BT.601 studio swing" if own.channel == "y" else None,
            "psnr": "peak 255, mean over pictures",
            "ssim": "Gaussian 11x11, sigma 1.5, valid area, mean over channels",
            "perceptual": "LPIPS (VGG) and DISTS on RGB, nothing cropped, lower is better" if distances else None,
            "niqe": niqe if natural else None,
            "gradient": "mean gradient of Y over the truth's, 1 is best" if "gradient" in self.extra else None,
            "input": self.damage.describe(self.dataset.read),
            "files": self._files,
            "tile": self.environment["tile"],
            "ensemble": self.environment["ensemble"],
            "published": own.note if self.published else None,
        }

    @property
    def sentences(self) -> tuple[str, ...]:
        """The protocol in words: how it is measured, on what, and what was published."""
        p = self.protocol
        channel = {"y": "Y of BT.601 studio swing", "rgb": "RGB", "gray": "grey"}[p["channel"]]
        tile = {None: "", "off": "Whole pictures.", "paper": "Tiled as published."}
        how = [f"{channel}, {p['crop']} pixels cropped, {p['rounding']}; SSIM: {p['ssim']}"]
        how += [f"; {text}" for text in (p["perceptual"], p["niqe"] and f"NIQE: {p['niqe']}") if text]
        ran = [tile.get(p["tile"], f"Tiles: {p['tile']}."), "Self-ensemble." if p["ensemble"] else ""]
        more = {"Input": p["input"], "Files:": p["files"], "Published figures:": p["published"]}
        told = ["".join(how) + ".", *ran, *(f"{what} {text}." for what, text in more.items() if text)]
        return tuple(filter(None, told))


def _is_sound(image: Measured) -> bool:
    """Whether all values are of their types: the line may have been edited, or damaged."""
    numbers = [
        image.seconds,
        *(value for score in (image.score, image.baseline) if score for value in astuple(score)),
    ]
    texts = (image.name, image.error, image.timed, image.stamp, image.picture)
    return (
        all(value is None or type(value) in (int, float) for value in numbers)
        and all(score is not None and score.psnr is not None for score in (image.score, image.baseline))
        and all(type(side) is int for side in (image.width, image.height))
        and all(isinstance(text, str) for text in texts)
    )


class Journal:
    """Scores of one run, a line a picture, kept under a hash of everything that could change them."""

    def __init__(self, root: Path, identity: Mapping[str, Any]) -> None:
        self.identity = json.dumps(identity, sort_keys=True)
        digest = hashlib.sha256(self.identity.encode()).hexdigest()[:16]
        self.folder = root / "bench" / f"{identity['model']}-{identity['dataset']}-{digest}"
        self.file = self.folder / "scores.jsonl"

    def read(self) -> dict[str, Measured]:
        """What was measured before, by name. A line cut short by a crash is a picture not yet measured."""
        known = {}
        if self.file.exists():
            for line in self.file.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    entry = json.loads(line)
                    scores = {key: Score(**entry[key]) for key in ("score", "baseline")}
                    image = Measured(**{**entry, **scores})
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue
                if _is_sound(image):
                    known[image.name] = image
        return known

    def append(self, image: Measured) -> None:
        """Add a picture; the line is on the disk's side before this returns. Raises MambairError where it cannot
        be."""
        try:
            if not self.file.exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / "run.json").write_text(self.identity + "\n", encoding="utf-8")
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(asdict(image)) + "\n")
        except OSError as error:
            raise MambairError(f"cannot write {self.file}: {error.strerror or error}") from error

    def clear(self) -> None:
        self.file.unlink(missing_ok=True)
