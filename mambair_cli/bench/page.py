"""The report as one HTML page: tables, plots, and sliders over the pictures, none of it loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambair_cli.bench.datasets import read_8bit
from mambair_cli.bench.plots import psnr_by_image, speed_and_quality
from mambair_cli.bench.records import Measured, Result, Score
from mambair_cli.bench.scoring import prepare
from mambair_cli.compare import page, slider

ERROR_GAIN = 4  # errors are shown this many times brighter


def html(results: Sequence[Result]) -> str:
    """The whole page."""
    sets = dict.fromkeys((result.dataset.name, str(result.damage)) for result in results)
    title = "mambair bench: " + ", ".join(f"{name} {damage}" for name, damage in sets)
    body = [f"<h1>{escape(title)}</h1>", _summary(results)]
    for name, damage in sets:
        group = [r for r in results if (r.dataset.name, str(r.damage)) == (name, damage)]
        if plot := speed_and_quality(group):
            body += [f"<h2>Speed and quality on {escape(name)}, {escape(damage)}</h2>", plot]
    body += [_section(result) for result in results]
    return page(title, "\n".join(body))


def representative(images: Sequence[Measured]) -> list[tuple[str, Measured]]:
    """The pictures with the largest, the median and the smallest gain; fewer of a small set."""
    ranked = sorted(images, key=lambda image: image.gain, reverse=True)
    picked: dict[str, str] = {}
    for label, index in (("Largest gain", 0), ("Smallest gain", len(ranked) - 1), ("Median gain", len(ranked) // 2)):
        if ranked:
            picked.setdefault(ranked[index].name, label)
    return [(picked[image.name], image) for image in ranked if image.name in picked]


def _summary(results: Sequence[Result]) -> str:
    heads = ["Model", "Set", "Input", "PSNR", "SSIM", "Published", "Δ", "Do nothing", "Gain", "s/image", "Images"]
    heads += extra_heads(results[0])
    rows = []
    for r in results:
        mean, baseline, published = r.mean, r.baseline, r.published
        delta = mean.psnr - published.psnr if mean and published and r.complete else None
        gain = mean.psnr - baseline.psnr if mean and baseline else None
        rows.append(
            [
                escape(r.model), escape(r.dataset.name), escape(str(r.damage)), *cells(mean),
                " / ".join(filter(None, cells(published))), _delta(delta, -0.05),
                " / ".join(filter(None, cells(baseline))), _delta(gain, 0.0),
                timing(r.seconds), f"{len(r.measured)}/{r.dataset.size}", *extra_means(r),
            ]
        )  # fmt: skip
    return _table(heads, rows)


def _section(result: Result) -> str:
    name = escape(f"{result.model} on {result.dataset.name}, {result.damage}")
    parts = [f"<section><h2>{name}</h2>", _facts(result.protocol), psnr_by_image(result.images)]
    parts += [_pictures(result, label, image) for label, image in representative(result.measured) if image.picture]
    parts += ["<h3>All pictures</h3>", _images(result)]
    parts += ["<h3>Environment</h3>", _facts(result.environment), "</section>"]
    return "\n".join(parts)


def _images(result: Result) -> str:
    heads = ["Picture", "PSNR", "SSIM", "PSNR before", "SSIM before", "Gain", "Seconds", "Size"]
    heads += extra_heads(result)
    rows = [
        [escape(i.name), *cells(i.score), *cells(i.baseline), signed(i.gain), timing(i.seconds),
         f"{i.width}x{i.height}", *extra_cells(result, i.score)]
        for i in result.measured
    ]  # fmt: skip
    failed = "".join(f'<p class="bad">{escape(i.name)}: {escape(i.error)}</p>' for i in result.failed)
    return failed + _table(heads, rows, sortable=True)


def _pictures(result: Result, label: str, image: Measured) -> str:
    """A slider over the picture and one over its errors."""
    item = next(item for item in result.dataset.items if item.name == image.name)
    pair = prepare(item, result.damage, result.rules)
    after = read_8bit(Path(image.picture), grey=pair.truth.ndim == 2)
    before = np.rint(np.clip(pair.before, 0, 255)).astype(np.uint8)
    before, after, truth = (_colour(picture) for picture in (before, after, pair.truth))
    title = f"{label}: {image.name}, {signed(image.gain)} dB"
    errors = (np.abs(picture.astype(np.int16) - truth).max(axis=2, keepdims=True) for picture in (before, after))
    maps = [_colour(np.clip(ERROR_GAIN * error, 0, 255).astype(np.uint8)) for error in errors]
    names = (result.damage.about.baseline, result.model)
    sliders = slider(before, after, names), slider(maps[0], maps[1], [f"{ERROR_GAIN}x error of {n}" for n in names])
    return f'<h3>{escape(title)}</h3><div class="beside">{"".join(sliders)}</div>'


def _colour(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    picture = np.atleast_3d(picture)
    return np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, sortable: bool = False) -> str:
    head = "".join(f"<th><button>{h}</button></th>" if sortable else f"<th>{h}</th>" for h in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    kind = ' class="sortable"' if sortable else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _facts(record: Mapping[str, Any]) -> str:
    rows = (f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in record.items() if v is not None)
    return f"<dl>{''.join(rows)}</dl>"


def cells(score: Score | None) -> list[str]:
    """PSNR with two digits and SSIM with four, as papers print them."""
    if score is None:
        return ["", ""]
    return [f"{score.psnr:.2f}", "" if score.ssim is None else f"{score.ssim:.4f}"]


def extra_heads(result: Result) -> list[str]:
    """What was measured besides: lower is better, but for the gradient, of which all is to be kept."""
    return ["gradient →1" if name == "gradient" else f"{name.upper()} ↓" for name in result.extra]


def extra_cells(result: Result, score: Score | None) -> list[str]:
    """Four digits for each of `extra_heads`; empty where there is no such score."""
    values = (getattr(score, name, None) for name in result.extra)
    return ["" if value is None else f"{value:.4f}" for value in values]


def extra_means(result: Result) -> list[str]:
    """The means of `extra_heads`; "-" if no picture has the score, and over how many it is, if not over all."""
    counts = [result.having(name) for name in result.extra]
    shares = ["" if count == len(result.measured) else f" ({count} of {len(result.measured)})" for count in counts]
    return [(cell or "-") + share for cell, share in zip(extra_cells(result, result.mean), shares, strict=True)]


def signed(value: float) -> str:
    """Two digits with a sign, none of them a negative zero."""
    return f"{round(value, 2) + 0.0:+.2f}"


def timing(seconds: float | None) -> str:
    """Two digits; empty where the time is not of this environment."""
    return "" if seconds is None else f"{seconds:.2f}"


def _delta(value: float | None, least: float) -> str:
    if value is None:
        return ""
    return f'<span class="{"good" if value >= least else "bad"}">{signed(value)}</span>'
