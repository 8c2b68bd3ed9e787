"""The figure of savings over budgets: FLOPs saved at L* against tokens per parameter, a line for each method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlrun.report import figure, legend
from mlrun.report.budgets import ALONE, Budgets
from mlrun.report.compare import Row
from mlrun.report.stats import Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOT_REACHED, AT_LEAST = "L* not reached", "at least"
WIDTH, HEIGHT = 6.4, 4.0  # inches: a column and a half of a paper
Mark = tuple[Spread, bool]  # a saving, and whether it is a lower bound


def draw(one: Budgets, folder: Path, stem: str) -> list[Path]:
    """Write the figure as PNG and PDF and return the paths.

    A method that reached L* nowhere at a budget has a cross at the bottom there, a lower bound an open triangle.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(figure.STYLE):
        names = [*list(one.methods)[: len(figure.COLOURS)], NOT_REACHED, AT_LEAST, ALONE]
        columns = legend.columns(names, WIDTH)
        picture = Figure(figsize=(WIDTH, HEIGHT + legend.taller(len(names), columns)), layout="constrained")
        panel = picture.subplots()
        for (name, rows), colour in zip(one.methods.items(), figure.COLOURS, strict=False):
            _line(panel, name, colour, one.tokens, [None if row is None else _claim(row) for row in rows])
            _crosses(panel, colour, one.tokens, rows)
        _marks(panel, [rows for rows, _ in zip(one.methods.values(), figure.COLOURS, strict=False)])
        smaller = [group.smaller_on_all for group in one.groups]
        if any(found is not None for found in smaller):
            marks = [None if found is None else (found.saved, found.bound) for found in smaller]
            _line(panel, ALONE, figure.GREY, one.tokens, marks)
        _axes(panel, one.tokens)
        picture.legend(loc="outside upper center", ncols=columns, frameon=False)
        return figure.written(picture, folder, stem)


def _claim(row: Row) -> Mark:
    return row.claim, row.annealed and row.headline.bound


def _crosses(panel: Axes, colour: str, tokens: Sequence[float], rows: Sequence[Row | None]) -> None:
    for x, row in zip(tokens, rows, strict=True):
        if row is not None and row.claim.mean is None:
            panel.plot([x], [0.02], "x", color=colour, ms=6, mew=1.4, transform=panel.get_xaxis_transform())


def _marks(panel: Axes, methods: Sequence[Sequence[Row | None]]) -> None:
    """Name the marks that are drawn beside dots."""
    rows = [row for each in methods for row in each if row is not None]
    if any(row.claim.mean is None for row in rows):
        panel.plot([], [], "x", color=figure.GREY, ms=6, mew=1.4, label=NOT_REACHED)
    if any(row.claim.mean is not None and _claim(row)[1] for row in rows):
        panel.plot([], [], "^", color=figure.GREY, ms=8, mfc="white", label=AT_LEAST)


def _line(panel: Axes, name: str, colour: str, tokens: Sequence[float], marks: Sequence[Mark | None]) -> None:
    """Draw what is known; two budgets are joined only where both have a number."""
    means = [None if mark is None else mark[0].mean for mark in marks]
    values = [float("nan") if mean is None else 100 * mean for mean in means]
    style = ":" if name == ALONE else "-"
    panel.plot(tokens, values, style, color=colour, marker="o", ms=4.6, lw=1.4, label=figure.as_written(name))
    for x, y, mark in zip(tokens, values, marks, strict=True):
        if mark is not None and mark[0].low is not None and mark[0].high is not None:
            panel.plot([x, x], [100 * mark[0].low, 100 * mark[0].high], color=colour, lw=0.9, alpha=0.6)
        if mark is not None and mark[1]:
            panel.plot([x], [y], "^", color=colour, ms=8, mfc="white", zorder=6)


def _axes(panel: Axes, tokens: Sequence[float]) -> None:
    panel.set_xscale("log")
    panel.set_xticks(tokens, [f"{number:.3g}" for number in tokens])
    panel.minorticks_off()
    panel.axhline(0.0, color=figure.GREY, lw=0.8, zorder=1)
    panel.set_xlabel("tokens per parameter (budget)")
    panel.set_ylabel("FLOPs saved at the baseline's loss (%)")
