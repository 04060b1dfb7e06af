"""Two plots as inline SVG, coloured by the page they stand on; each is drawn for wide pages and for phones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from mambair_cli.bench.records import Measured, Result

WIDTHS = {"wide": 900, "narrow": 380}  # about as many pixels as the page gives them, so that text keeps its size
HEIGHT = 320
LEFT, RIGHT, TOP, BOTTOM = 55, 25, 20, 45
LETTER, LINE = 6.6, 14  # about what a letter of 12 pixels takes

Box = tuple[float, float, float, float]  # left, right, top, bottom


@dataclass(frozen=True)
class Axis:
    """Values `low` to `high` on pixels `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    @classmethod
    def around(cls, values: Sequence[float], start: float, stop: float, *, log: bool = False) -> Axis:
        """With some room on both sides of the values."""
        low, high = min(values), max(values)
        if log:
            return cls(low / 1.5, high * 1.5, start, stop, log)
        room = 0.08 * (high - low) or 1.0
        return cls(low - room, high + room, start, stop)

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(n) if self.log else n for n in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """About five round numbers in between; 1, 2 and 5 times powers of ten where logarithmic."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
        else:
            rough = (self.high - self.low) / 5
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(power * n for n in (1, 2, 5, 10) if power * n >= rough)
            values = [step * n for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return [value for value in values if self.low <= value <= self.high]


def psnr_by_image(images: Sequence[Measured]) -> str:
    """A stem for each picture, from PSNR before to after; pictures in the order of the former."""
    rows = [(i.name, i.baseline.psnr, i.score.psnr) for i in images if i.score and i.baseline]
    rows = sorted((row for row in rows if all(map(math.isfinite, row[1:]))), key=lambda row: row[1])
    if not rows:
        return ""
    return _svgs(lambda width: _stems(rows, width), "PSNR of every picture before and after")


def speed_and_quality(results: Sequence[Result]) -> str:
    """Models on one set: mean PSNR over seconds a picture, which are logarithmic."""
    rows = [(r.model, r.seconds, r.mean.psnr) for r in results if r.mean and r.seconds]
    rows = [row for row in rows if math.isfinite(row[2])]
    if len(rows) < 2:
        return ""
    return _svgs(lambda width: _dots(rows, width), "Mean PSNR and time of every model")


def _stems(rows: Sequence[tuple[str, float, float]], width: int) -> list[str]:
    y = Axis.around([value for row in rows for value in row[1:]], HEIGHT - BOTTOM, TOP)
    parts = _rules(y, "dB", width)
    room = (width - LEFT - RIGHT) / len(rows)
    named = max(len(name) for name, _, _ in rows) * LETTER < room
    for n, (name, before, after) in enumerate(rows):
        x = LEFT + (n + 0.5) * room
        parts.append(
            f"<g><title>{escape(name)}: {before:.2f} → {after:.2f} dB</title>"
            f'<line class="stem" x1="{x:.1f}" x2="{x:.1f}" y1="{y(before):.1f}" y2="{y(after):.1f}"/>'
            f'<circle class="before" cx="{x:.1f}" cy="{y(before):.1f}" r="4"/>'
            f'<circle class="after" cx="{x:.1f}" cy="{y(after):.1f}" r="4"/></g>'
        )
        if named:
            parts.append(_text(x, HEIGHT - BOTTOM + 18, name, "middle"))
    legend = '<circle class="before" cx="70" cy="{0}" r="4"/>{1}<circle class="after" cx="170" cy="{0}" r="4"/>{2}'
    at = HEIGHT - 12
    parts.append(legend.format(at - 4, _text(80, at, "do nothing"), _text(180, at, "restored")))
    return parts


def _dots(rows: Sequence[tuple[str, float, float]], width: int) -> list[str]:
    x = Axis.around([row[1] for row in rows], LEFT, width - RIGHT, log=True)
    y = Axis.around([row[2] for row in rows], HEIGHT - BOTTOM, TOP)
    parts, last = _rules(y, "dB", width), 0.0
    for tick in x.ticks():
        if x(tick) - last > 6 * LETTER:
            parts.append(_text(last := x(tick), HEIGHT - BOTTOM + 18, f"{tick:g}", "middle"))
    parts.append(_text(width - RIGHT, HEIGHT - 8, "seconds a picture", "end"))
    dots = [(x(seconds), y(psnr)) for _, seconds, psnr in rows]
    taken = [(at - 6, at + 6, high - 6, high + 6) for at, high in dots]
    for (model, _, _), (at, high) in zip(rows, dots, strict=True):
        box = _free_place(at, high, len(model) * LETTER, taken, width)
        taken.append(box)
        parts.append(f'<circle class="after" cx="{at:.1f}" cy="{high:.1f}" r="5"/>')
        parts.append(_text(box[0], box[3] - 3, model, kind="label"))
    return parts


def _free_place(at: float, high: float, wide: float, taken: Sequence[Box], width: int) -> Box:
    """Room for a label beside a dot, or as little below or above as need be; beside it where there is none."""
    shifts = [sign * n * LINE / 2 for n in range(12) for sign in (1, -1)]
    places = [
        (left, left + wide, high + shift - LINE / 2, high + shift + LINE / 2)
        for shift in shifts
        for left in (at + 9, at - 9 - wide)
        if left > 2 and left + wide < width and high + shift - LINE > 0 and high + shift < HEIGHT - BOTTOM
    ]
    free = (a for a in places if not any(a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3] for b in taken))
    return next(free, (at + 9, at + 9 + wide, high - LINE / 2, high + LINE / 2))


def _rules(y: Axis, unit: str, width: int) -> list[str]:
    parts = [_text(8, TOP - 8, unit)]
    for tick in y.ticks():
        parts.append(f'<line x1="{LEFT}" x2="{width - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(_text(LEFT - 8, y(tick) + 4, f"{tick:g}", "end"))
    return parts


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'


def _svgs(draw: Callable[[int], Sequence[str]], label: str) -> str:
    """One for each width; the page shows that which suits it."""
    return "".join(
        f'<svg class="plot {name}" viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{''.join(draw(width))}</svg>\n"
        for name, width in WIDTHS.items()
    )
