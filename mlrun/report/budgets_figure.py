"""The figure of savings over budgets: FLOPs saved at L* against tokens per parameter, a line for each method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlrun.report import figure
from mlrun.report.annealed_figure import ALONE as GREY
from mlrun.report.budgets import ALONE, Budgets, alone
from mlrun.report.compare import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONG = 40  # letters of a name that leave no room for another beside it
WIDTH, HEIGHT = 6.4, 4.0  # inches: a column and a half of a paper


def draw(one: Budgets, folder: Path, stem: str) -> list[Path]:
    """Write the figure as PNG and PDF and return the paths.

    A method that reached L* nowhere at a budget has a cross at the bottom there, a lower bound an open triangle.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(figure.STYLE):
        picture = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        panel = picture.subplots()
        for (name, rows), colour in zip(one.methods.items(), figure.COLOURS, strict=False):
            _method(panel, name, colour, one.tokens, rows)
        smaller = [alone(group) for group in one.groups]
        if any(value is not None for value in smaller):
            _line(panel, ALONE, GREY, one.tokens, smaller)
        _axes(panel, one.tokens)
        ncols = 1 if max(map(len, one.methods)) > LONG else 2
        picture.legend(loc="outside upper center", ncols=ncols, frameon=False)
        return figure.written(picture, folder, stem)


def _method(panel: Axes, name: str, colour: str, tokens: Sequence[float], rows: Sequence[Row | None]) -> None:
    saved = [None if row is None else row.claim.mean for row in rows]
    _line(panel, name, colour, tokens, saved)
    for x, row, value in zip(tokens, rows, saved, strict=True):
        if row is not None and value is None:
            panel.plot([x], [0.02], "x", color=colour, ms=6, mew=1.4, transform=panel.get_xaxis_transform())
        if row is None or value is None:
            continue
        if row.claim.low is not None and row.claim.high is not None:
            ends = [100 * row.claim.low, 100 * row.claim.high]
            panel.plot([x, x], ends, color=colour, lw=0.9, alpha=0.6)
        if row.annealed and row.headline.bound:
            panel.plot([x], [100 * value], "^", color=colour, ms=8, mfc="white", zorder=6)


def _line(panel: Axes, name: str, colour: str, tokens: Sequence[float], saved: Sequence[float | None]) -> None:
    """Draw what is known; two budgets are joined only where both have a number."""
    values = [float("nan") if value is None else 100 * value for value in saved]
    style = ":" if name == ALONE else "-"
    panel.plot(tokens, values, style, color=colour, marker="o", ms=4.6, lw=1.4, label=figure.as_written(name))


def _axes(panel: Axes, tokens: Sequence[float]) -> None:
    panel.set_xscale("log")
    panel.set_xticks(tokens, [f"{number:.3g}" for number in tokens])
    panel.minorticks_off()
    panel.axhline(0.0, color="#777777", lw=0.8, zorder=1)
    panel.set_xlabel("tokens per parameter (budget)")
    panel.set_ylabel("FLOPs saved at the baseline's loss (%)")
