"""The curve of a run as an SVG: PSNR on the pictures held out, over iterations, beside what doing nothing gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from mambair_cli.atomic import atomic_write

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 400, 64, 16, 40, 44
INK, LINE, QUIET = "#222", "#1764ab", "#999"
Point = tuple[float, float]


def write(path: Path, title: str, points: Sequence[Point], baseline: float) -> None:
    """`points`: (iteration, PSNR in dB), at least one; `baseline`: dB of doing nothing, drawn as a dashed line."""
    highest = max(value for _, value in points)
    low = min(baseline, *(value for _, value in points if value > baseline - 3), highest) - 0.1
    high, last = max(highest, baseline) + 0.1, max(x for x, _ in points)

    def place(point: Point) -> str:
        x = LEFT + point[0] / last * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (max(point[1], low) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return f"{x:.1f},{y:.1f}"

    def text(x: float, y: float, words: str, anchor: str = "middle", colour: str = INK) -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{words}</text>'

    def across(value: float, colour: str, dash: str) -> str:
        ends = f"{place((0, value))} {place((last, value))}"
        return f'<polyline points="{ends}" fill="none" stroke="{colour}" stroke-dasharray="{dash}"/>'

    parts = [text(WIDTH / 2, 22, escape(title))]
    for value in _ticks(low, high):
        parts += [
            across(value, "#ddd", "1"),
            text(LEFT - 8, float(place((0, value)).split(",")[1]) + 4, f"{value:g}", "end"),
        ]
    for value in _ticks(0, last):
        parts.append(text(float(place((value, low)).split(",")[0]), HEIGHT - BOTTOM + 18, f"{value:,.0f}"))
    parts.append(text(WIDTH / 2, HEIGHT - 8, "iterations"))
    parts.append(text(LEFT, TOP - 6, "dB", "end"))
    parts.append(across(baseline, QUIET, "6 4"))
    parts.append(text(WIDTH - RIGHT, float(place((0, baseline)).split(",")[1]) - 6, "doing nothing", "end", QUIET))
    drawn = " ".join(map(place, points))
    parts.append(f'<polyline points="{drawn}" fill="none" stroke="{LINE}" stroke-width="2"/>')
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
    head = f'{svg} font-family="sans-serif" font-size="12">'
    with atomic_write(path) as file:
        file.write("\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>\n"]).encode())


def _ticks(low: float, high: float) -> list[float]:
    """Three to eight multiples of 1, 2 or 5 times a power of ten between `low` and `high`."""
    power = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = max(factor * power for factor in (1, 2, 5) if factor * power <= (high - low) / 3)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
