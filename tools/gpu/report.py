"""docs/gpu.md: what was found, as a page."""

from __future__ import annotations

import time
from typing import Any

from findings import Findings

HEAD = """# On a GPU

Written by `make gpu` (`tools/gpu`), which runs all checks and timings on a CUDA device in under 8 minutes.
"""
DRY = "\n**A dry run on a CPU: it tries the tool. The times mean nothing.**\n"


def page(found: Findings, dry: bool, took: float) -> str:
    text = [HEAD]
    if dry:
        text.append(DRY)
    text.append(f"\nRun on {time.strftime('%Y-%m-%d')}, in {took:.0f} s.\n\n")
    if found.facts:
        text += table([{"": name, "what": value} for name, value in found.facts.items()])
    if found.targets:
        text.append("\n## Targets\n\n")
        text += table(
            [
                {
                    "target": target.name,
                    "measured": f"{target.measured:.3g} {target.unit}",
                    "wanted": f"{'at least' if target.at_least else 'at most'} {target.wanted:g} {target.unit}",
                    "met": "yes" if target.met else "**no**",
                }
                for target in found.targets
            ]
        )
    for name, rows in found.tables.items():
        text.append(f"\n## {name}\n\n")
        text += table(rows)
    if found.checks:
        passed = sum(check.ok for check in found.checks)
        text.append(f"\n## Checks\n\n{passed} of {len(found.checks)} passed.\n\n")
        text += table([{"check": c.name, "": "ok" if c.ok else "**failed**", "by": c.detail} for c in found.checks])
    if found.notes:
        text.append("\n## Not measured, or broken off\n\n" + "".join(f"- {note}\n" for note in found.notes))
    return "".join(text)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown; the columns are those of all rows."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"| {' | '.join(names)} |\n", f"|{' --- |' * len(names)}\n"]
    return lines + [f"| {' | '.join(shown(row.get(name)) for name in names)} |\n" for row in rows]


def shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")
