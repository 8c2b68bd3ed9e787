"""Markdown tables, and what is measured beside what it should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A number that has a bound, at most or `at_least`; `measured` is None where it could not be measured."""

    name: str
    bound: float
    measured: float | None
    at_least: bool = False
    unit: str = ""

    @property
    def held(self) -> str:
        """Say whether the bound is kept."""
        if self.measured is None:
            return "n/a"
        return "yes" if (self.measured >= self.bound if self.at_least else self.measured <= self.bound) else "no"

    @property
    def row(self) -> list[str]:
        """Return the cells of a table."""
        kind = "at least" if self.at_least else "at most"
        measured = "n/a" if self.measured is None else f"{self.measured:.2f}{self.unit}"
        return [self.name, f"{kind} {self.bound:g}{self.unit}", measured, self.held]


@dataclass(frozen=True)
class Report:
    """A benchmark's text, and the targets that it measured."""

    text: str
    targets: tuple[Target, ...] = ()


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, columns aligned."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)
