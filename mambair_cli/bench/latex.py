"""Results as a table for a paper: LaTeX with booktabs, the best of each column bold, the protocol in the caption."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mambair_cli.bench.page import cells, extra_cells
from mambair_cli.bench.records import Result, Score
from mambair_cli.errors import printable

HEADS = {"lpips": "LPIPS", "dists": "DISTS", "niqe": "NIQE", "gradient": "gradient"}
_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
}  # fmt: skip


def latex(results: Sequence[Result]) -> str:
    """One table for each degradation: a row a model, columns for each set; doing nothing stands first."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(str(result.damage), []).append(result)
    head = "% mambair bench\n% \\usepackage{booktabs}; with pdflatex \\usepackage[T1]{fontenc} too\n"
    return head + "\n".join(_table(damage, group) for damage, group in groups.items())


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return re.sub(r'[\\~^<>|"&%$#_{}]', lambda sign: _SPECIAL[sign[0]], printable(text))


def _table(damage: str, results: Sequence[Result]) -> str:
    sets = list(dict.fromkeys(result.dataset.name for result in results))
    kinds = ["PSNR", "SSIM", *(HEADS[name] for name in results[0].extra)]
    width = len(kinds)
    by_model: dict[str, dict[str, Result]] = {}
    for result in results:
        by_model.setdefault(result.model, {})[result.dataset.name] = result
    best = {name: _best([row[name] for row in by_model.values() if name in row]) for name in sets}

    lines = [r"\begin{table}", r"  \centering", f"  \\caption{{{_caption(damage, results)}}}"]
    lines.append(f"  \\begin{{tabular}}{{l{'c' * width * len(sets)}}}")
    lines.append(r"    \toprule")
    spans = "".join(f" & \\multicolumn{{{width}}}{{c}}{{{escaped(name)}}}" for name in sets)
    rules = " ".join(f"\\cmidrule(lr){{{2 + n * width}-{1 + (n + 1) * width}}}" for n in range(len(sets)))
    lines += [f"    {spans} \\\\", f"    {rules}"]
    lines += [f"    Method & {' & '.join(kinds * len(sets))} \\\\", r"    \midrule"]
    first = {name: next(r for r in results if r.dataset.name == name) for name in sets}
    before = [_cells(first[name], first[name].baseline) for name in sets]
    lines += [_row(results[0].damage.about.baseline, before), r"    \midrule"]
    for model, row in by_model.items():
        shown = [_marked(row[name], best[name]) if name in row else ["--"] * width for name in sets]
        lines.append(_row(escaped(model), shown))
    lines += [r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _row(name: str, groups: Sequence[Sequence[str]]) -> str:
    row = " & ".join(cell.replace("inf", r"$\infty$") for group in groups for cell in group)
    return f"    {name} & {row} \\\\"


def _cells(result: Result, score: Score | None) -> list[str]:
    return [cell or "--" for cell in (*(cells(score) if score else ("", "")), *extra_cells(result, score))]


def _marked(result: Result, best: Mapping[int, str]) -> list[str]:
    """The cells of a row: bold where they are the best as printed, with a dagger where pictures are missing."""
    row = _cells(result, result.mean)
    row = [f"\\textbf{{{cell}}}" if best.get(n) == cell else cell for n, cell in enumerate(row)]
    return row if result.complete else [row[0] + r"$^\dagger$", *row[1:]]


def _best(results: Sequence[Result]) -> dict[int, str]:
    """By column the best value as printed, of several models; of a gradient that is the one nearest to 1."""
    rows = [_cells(result, result.mean) for result in results]
    if len(rows) < 2:
        return {}
    best = {}
    for n, (kind, column) in enumerate(
        zip(("psnr", "ssim", *results[0].extra), zip(*rows, strict=True), strict=True)
    ):
        if there := [(_merit(float(cell), kind), cell) for cell in column if cell != "--"]:
            best[n] = max(there)[1]
    return best


def _merit(value: float, kind: str) -> float:
    """The more the better: of PSNR and SSIM; of a gradient 1 is best, of distances the least."""
    return value if kind in ("psnr", "ssim") else -abs(value - 1) if kind == "gradient" else -value


def _caption(damage: str, results: Sequence[Result]) -> str:
    measured = dict.fromkeys(sentence for result in results for sentence in result.sentences)
    partial = [r for r in results if not r.complete]
    text = f"{damage}: PSNR in dB and SSIM. " + " ".join(measured)
    shares = ", ".join(
        f"{r.model} on {r.dataset.name} over {len(r.measured)} of {r.dataset.size} pictures" for r in partial
    )
    return escaped(text) + (rf" $^\dagger${escaped(shares)}." if shares else "")
