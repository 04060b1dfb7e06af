"""Two plots as inline SVG, coloured by the page they stand on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mambair_cli.bench.records import Measured, Result

WIDTH, HEIGHT = 900, 320
LEFT, RIGHT, TOP, BOTTOM = 55, 25, 20, 45


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
    y = Axis.around([value for row in rows for value in row[1:]], HEIGHT - BOTTOM, TOP)
    parts = _rules(y, "dB")
    for n, (name, before, after) in enumerate(rows):
        x = LEFT + (n + 0.5) * (WIDTH - LEFT - RIGHT) / len(rows)
        parts.append(
            f"<g><title>{escape(name)}: {before:.2f} → {after:.2f} dB</title>"
            f'<line class="stem" x1="{x:.1f}" x2="{x:.1f}" y1="{y(before):.1f}" y2="{y(after):.1f}"/>'
            f'<circle class="before" cx="{x:.1f}" cy="{y(before):.1f}" r="4"/>'
            f'<circle class="after" cx="{x:.1f}" cy="{y(after):.1f}" r="4"/></g>'
        )
        if len(rows) <= 12:
            parts.append(_text(x, HEIGHT - BOTTOM + 18, name, "middle"))
    legend = '<circle class="before" cx="70" cy="{0}" r="4"/>{1}<circle class="after" cx="170" cy="{0}" r="4"/>{2}'
    at = HEIGHT - 12
    parts.append(legend.format(at - 4, _text(80, at, "do nothing"), _text(180, at, "restored")))
    return _svg(parts, "PSNR of every picture before and after")


def speed_and_quality(results: Sequence[Result]) -> str:
    """Models on one set: mean PSNR over seconds a picture, which are logarithmic."""
    rows = [(r.model, r.seconds, r.mean.psnr) for r in results if r.mean and r.seconds]
    if len(rows) < 2:
        return ""
    x = Axis.around([row[1] for row in rows], LEFT, WIDTH - RIGHT, log=True)
    y = Axis.around([row[2] for row in rows], HEIGHT - BOTTOM, TOP)
    parts = _rules(y, "dB")
    parts += [_text(x(tick), HEIGHT - BOTTOM + 18, f"{tick:g}", "middle") for tick in x.ticks()]
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 8, "seconds a picture", "end"))
    for model, seconds, psnr in rows:
        right = x(seconds) > 0.7 * WIDTH
        parts.append(f'<circle class="after" cx="{x(seconds):.1f}" cy="{y(psnr):.1f}" r="5"/>')
        place = x(seconds) - 9 if right else x(seconds) + 9
        parts.append(_text(place, y(psnr) + 4, model, "end" if right else "start", "label"))
    return _svg(parts, "Mean PSNR and time of every model")


def _rules(y: Axis, unit: str) -> list[str]:
    parts = [_text(8, TOP + 4, unit)]
    for tick in y.ticks():
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(_text(LEFT - 8, y(tick) + 4, f"{tick:g}", "end"))
    return parts


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'


def _svg(parts: Sequence[str], label: str) -> str:
    box = f"0 0 {WIDTH} {HEIGHT}"
    return f'<svg class="plot" viewBox="{box}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>\n'
