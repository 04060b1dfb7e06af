"""What was found: lines of a file, so that nothing is lost whatever becomes of the process that finds it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Target:
    """What was measured against what was wanted, the same or less of it but for `at_least`."""

    name: str
    measured: float
    wanted: float
    unit: str
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.measured >= self.wanted if self.at_least else self.measured <= self.wanted


@dataclass
class Findings:
    file: Path | None = None  # where every finding is appended as it comes
    facts: dict[str, str] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failed: bool = False
    quiet: bool = False

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def fact(self, name: str, value: str) -> None:
        self._keep("fact", name=name, value=value)
        self.facts[name] = value
        self.say(f"{name}: {value}")

    def note(self, text: str) -> None:
        self._keep("note", text=text)
        self.notes.append(text)
        self.say(text)

    def broke(self, part: str, why: str) -> None:
        self._keep("broke", part=part, why=why)
        self.failed = True
        text = f"{part} broke off: {' '.join(why.split())[:300]}"
        self.notes.append(text)
        self.say(text)

    def check(self, name: str, ok: bool, detail: str = "") -> None:
        check = Check(name, bool(ok), detail)
        self._keep("check", **asdict(check))
        self.checks.append(check)
        self.failed |= not ok
        self.say(f"{'ok' if ok else 'FAILED':6} {name} {detail}")

    def target(self, name: str, measured: float, wanted: float, unit: str, at_least: bool = False) -> None:
        target = Target(name, float(measured), wanted, unit, at_least)
        self._keep("target", **asdict(target))
        self.targets.append(target)
        self.say(f"{name}: {measured:.3g} {unit}, wanted {wanted:g}")

    def row(self, table: str, **values: Any) -> None:
        self._keep("row", table=table, **values)
        self.tables.setdefault(table, []).append(values)
        self.say(f"{table}: {values}")

    def _keep(self, kind: str, **values: Any) -> None:
        if self.file:
            with self.file.open("a") as file:
                file.write(json.dumps([kind, values]) + "\n")

    def take(self, other: Findings) -> None:
        """Add what another found."""
        self.facts |= other.facts
        self.checks += other.checks
        self.targets += other.targets
        self.notes += other.notes
        self.failed |= other.failed
        for table, rows in other.tables.items():
            self.tables.setdefault(table, []).extend(rows)

    @classmethod
    def read(cls, file: Path) -> Findings:
        """What a file holds, but for a last line that was not finished."""
        found = cls(quiet=True)  # it has been said
        for line in file.read_text().splitlines(keepends=True) if file.exists() else ():
            if line.endswith("\n"):
                kind, values = json.loads(line)
                getattr(found, kind)(**values)
        found.quiet = False
        return found
