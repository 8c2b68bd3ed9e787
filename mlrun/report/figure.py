"""The figure: held-out loss against FLOPs, training time and tokens, with the first crossing drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlrun import files
from mlrun.report import legend, pairing
from mlrun.report.compare import Group, Row
from mlrun.report.curves import Point, thin
from mlrun.report.endings import Ending
from mlrun.report.read import Run
from mlrun.report.stats import spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

BASELINE, GREY = "#222222", "#777777"
# Okabe and Ito's palette, told apart by the colour-blind; their yellow is too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F5AA8")
STROKES: dict[int, Any] = {1: "-", 2: (0, (4.0, 1.6)), 3: (0, (1.4, 1.2))}  # by level; coarser ones as level 3
# An annealed ending: an open diamond, joined by fine dashes.
ANNEALED: dict[str, Any] = {"ls": (0, (2.2, 1.4)), "lw": 1.0, "marker": "D", "ms": 4.4, "mfc": "white", "mew": 1.1,
                            "zorder": 5}  # fmt: skip
PANELS = ("flops", "seconds", "tokens")
WIDTH, HEIGHT = 10.4, 3.6  # inches: two columns of a paper
ARROWS = 3  # savings drawn in a panel; the table has them all
ARROW = 0.075  # height of one, as a share of the range of losses
TRANSIENT = 0.06  # share of the largest cost whose steep fall, after a stage's start, the y axis leaves out
LEAST = 0.01  # nats that the y axis has at least
STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Curve:
    """One method as drawn: its name, colour, and per seed its evaluations and, with branches, its annealed endings.

    `runs` are those that the evaluations are of, in the same order.
    """

    name: str
    colour: str
    seeds: tuple[list[Point], ...]
    row: Row | None
    endings: tuple[tuple[Ending, ...], ...] = ()
    runs: tuple[Run, ...] = ()

    def annealed(self) -> list[list[Point]]:
        """Return, for each budget that all seeds have an ending at, those endings."""
        every = [{ending.budget: ending.point for ending in seed} for seed in self.endings]
        common = sorted(set.intersection(*(set(seed) for seed in every))) if every else []
        return [[seed[budget] for seed in every] for budget in common]

    def same_grid(self) -> bool:
        """True if all seeds were evaluated at the same steps, so that they have a mean."""
        return len({tuple((p.stage, p.step) for p in seed) for seed in self.seeds}) == 1


def draw(group: Group, folder: Path, stem: str) -> list[Path]:
    """Write the figure of one group as PNG and PDF and return the paths; nothing to draw gives none."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    curves = chosen(group)
    if not any(math.isfinite(p.loss) for curve in curves for seed in curve.seeds for p in seed):
        return []
    with mpl.rc_context(STYLE):
        handles, columns = _handles(curves)
        high = HEIGHT + legend.taller(len(handles), columns)
        figure = Figure(figsize=(WIDTH, high), layout="constrained")
        panels = figure.subplots(1, len(PANELS), sharey=True)
        range_ = limits(curves, len(saving(curves, "flops")))
        for panel, axis in zip(panels, PANELS, strict=True):
            _panel(panel, axis, curves, group, range_)
        panels[0].set_ylabel("validation loss (nats)")
        figure.legend(
            handles=handles, loc="outside upper center", ncols=columns, frameon=False, handlelength=2.0,
            columnspacing=1.4,
        )  # fmt: skip
        return written(figure, folder, stem)


def written(figure: Figure, folder: Path, stem: str) -> list[Path]:
    """Write a figure as PNG and PDF, and return their paths."""
    paths = [folder / f"{stem}.png", folder / f"{stem}.pdf"]
    for path in paths:
        drawn = io.BytesIO()
        figure.savefig(drawn, format=path.suffix.removeprefix("."), dpi=220)
        files.write_bytes(path, drawn.getvalue())
    return paths


def chosen(group: Group) -> list[Curve]:
    """Return what is drawn: the baseline, and each method at its best rate, the lowest final losses first."""
    baselines = list(group.baselines.values()) or [run for run in group.runs if pairing.baseline(run)]
    curves = [_curve("baseline", BASELINE, baselines, None)]
    best = sorted((row for row in group.rows if row.best), key=_order)[: len(COLOURS)]
    for row, colour in zip(best, COLOURS, strict=False):
        runs = [*(pair.run for pair in row.pairs), *row.unpaired, *row.failed, *row.unfinished]
        curves.append(_curve(row.method, colour, runs, row))
    return [curve for curve in curves if any(curve.seeds)]


def _order(row: Row) -> float:
    mean = row.loss.mean
    return math.inf if mean is None else mean


def _curve(name: str, colour: str, runs: Any, row: Row | None) -> Curve:
    runs = list(runs)
    evaluated = tuple(run for run in runs if run.evaluations)
    label = f"{pairing.called(runs)} (baseline)" if row is None and runs else name
    if runs and not any(run.finished for run in runs):
        label += f", {runs[0].status}"
    seeds = tuple(thin(run.evaluations) for run in evaluated)
    return Curve(label, colour, seeds, row, tuple(run.endings for run in runs if run.endings), evaluated)


def as_written(name: str) -> str:
    """Return a name that matplotlib writes as it is: a dollar begins no formula, and `_` hides no line in a legend."""
    return f" {name}".replace("$", r"\$") if name.startswith("_") else name.replace("$", r"\$")


def limits(curves: Sequence[Curve], arrows: int) -> tuple[float, float]:
    """Return the y range: from room for the arrows below the lowest loss, up to where the steep falls are over.

    One is at the start, one after each change of level: what jumps there stands high above all that is compared.
    """
    finite = [p for curve in curves for seed in curve.seeds for p in seed if math.isfinite(p.loss)]
    annealed = [p.loss for curve in curves for seeds in curve.annealed() for p in seeds if math.isfinite(p.loss)]
    low = min([p.loss for p in finite] + annealed)
    apart = TRANSIENT * max(p.flops for p in finite)
    stages = [
        seed[part] for curve in curves for seed in curve.seeds for part in _stages(seed) if seed[part.start].level == 1
    ]
    settled = [p.loss for stage in stages for p in stage if p.flops - stage[0].flops >= apart and math.isfinite(p.loss)]
    high = max([float(np.quantile(settled or [p.loss for p in finite], 0.97)), *annealed])
    size = max(high - low, LEAST)
    return low - (0.05 + ARROW * arrows) * size, low + 1.06 * size


def _panel(panel: Axes, axis: str, curves: Sequence[Curve], group: Group, ylim: tuple[float, float]) -> None:
    largest = max(1e-9, *(getattr(p, axis) for curve in curves for seed in curve.seeds for p in seed))
    scale, label = unit(axis, largest)
    for curve in reversed(curves):  # the baseline is drawn last: on top
        _lines(panel, curve, axis, scale)
        _endings(panel, curve, axis, scale)
    panel.set_ylim(*ylim)
    panel.set_xlim(0, largest / scale * 1.02)
    panel.set_xlabel(label)
    if group.loss.mean is not None:
        _equal_loss(panel, axis, scale, curves, group.loss.mean)


def unit(axis: str, largest: float) -> tuple[float, str]:
    """Return what to divide an axis by and its label."""
    if axis == "seconds":
        for size, name in ((3600.0, "hours"), (60.0, "minutes")):
            if largest >= 3 * size:
                return size, f"training time ({name})"
        return 1.0, "training time (seconds)"
    power = 3 * (math.floor(math.log10(max(largest, 1.0))) // 3)
    if axis == "tokens":
        power = min(power, 9)
        names = {0: "tokens", 3: "tokens (thousands)", 6: "tokens (millions)", 9: "tokens (billions)"}
        return 10.0**power, names[power]
    return 10.0**power, f"training FLOPs ($\\times 10^{{{power}}}$)"


def _lines(panel: Axes, curve: Curve, axis: str, scale: float) -> None:
    """Draw a mean with its band, or every seed thinly where seeds have no common grid."""
    if len(curve.seeds) > 1 and not curve.same_grid():
        for seed in curve.seeds:
            _line(panel, curve, seed, _xs([seed], axis, scale), _ys([seed]), 0.55)
        return
    xs, ys = _xs(curve.seeds, axis, scale), _ys(curve.seeds)
    if len(curve.seeds) > 1:
        spread_y = np.std(_losses(curve.seeds), axis=0, ddof=1)
        for part in _stages(curve.seeds[0]):
            panel.fill_between(
                xs[part], (ys - spread_y)[part], (ys + spread_y)[part], color=curve.colour, alpha=0.18, linewidth=0
            )
    _line(panel, curve, curve.seeds[0], xs, ys, 1.0)


def _endings(panel: Axes, curve: Curve, axis: str, scale: float) -> None:
    """Mark the annealed losses, each a mean over the seeds, and join them."""
    points = curve.annealed()
    xs = [np.mean([getattr(p, axis) for p in seeds]) / scale for seeds in points]
    ys = [np.mean([p.loss for p in seeds]) for seeds in points]
    panel.plot(xs, ys, color=curve.colour, mec=curve.colour, **ANNEALED)


def _line(panel: Axes, curve: Curve, points: Sequence[Point], xs: Any, ys: Any, weight: float) -> None:
    """Draw one curve stage by stage: level 1 solid, coarser levels thin and dashed, the changes between marked."""
    parts = list(_stages(points))
    for part in parts:
        level = points[part.start].level
        wide = 1.7 if level == 1 else 1.1
        stroke = STROKES.get(level, STROKES[3])
        panel.plot(xs[part], ys[part], color=curve.colour, lw=wide * weight, ls=stroke, solid_capstyle="round")
    for before, after in pairwise(parts):
        ends = slice(before.stop - 1, after.start + 1)
        panel.plot(xs[ends], ys[ends], color=curve.colour, lw=0.7 * weight, ls=":")
        down = points[after.start].level > points[before.start].level
        x, y = xs[after.start], ys[after.start]
        panel.plot([x], [y], marker="v" if down else "^", ms=4.2, color=curve.colour, mec="white", mew=0.5, zorder=4)


def _stages(points: Sequence[Point]) -> Iterator[slice]:
    """Yield the slice of each run of points in one stage."""
    start = 0
    for _, members in groupby(points, key=lambda p: p.stage):
        stop = start + len(list(members))
        yield slice(start, stop)
        start = stop


def _xs(seeds: Sequence[Sequence[Point]], axis: str, scale: float) -> Any:
    return np.mean([[getattr(p, axis) for p in seed] for seed in seeds], axis=0) / scale


def _ys(seeds: Sequence[Sequence[Point]]) -> Any:
    return np.mean(_losses(seeds), axis=0)


def _losses(seeds: Sequence[Sequence[Point]]) -> Any:
    return np.asarray([[p.loss for p in seed] for seed in seeds])


def _equal_loss(panel: Axes, axis: str, scale: float, curves: Sequence[Curve], target: float) -> None:
    """Draw L*, where each curve first stays below it, and the largest savings as arrows below all curves."""
    panel.axhline(target, color=GREY, lw=0.8, ls=(0, (1, 1.5)), zorder=1)
    panel.annotate(
        f"$L^*$ = {target:.3f}", (0.0, target), xytext=(3, -3), textcoords="offset points",
        ha="left", va="top", fontsize=7.5, color="#555555",
    )  # fmt: skip
    if axis == "tokens":
        return
    reached = [(curve, ends) for curve in curves if (ends := crossings(curve.row, axis)) is not None]
    for curve, (cost, base) in reached:
        _dot(panel, base / scale, target, BASELINE)
        _dot(panel, cost / scale, target, curve.colour)
    low, high = panel.get_ylim()
    for number, curve in enumerate(reversed(saving(curves, axis))):  # the longest arrow on top: nothing crosses it
        ends = crossings(curve.row, axis)
        assert ends is not None
        height = low + (high - low) * ARROW * (number + 0.55) / (1 + ARROW * ARROWS)
        _arrow(panel, ends[1] / scale, ends[0] / scale, (target, height), curve.colour)


def _dot(panel: Axes, x: float, y: float, colour: str) -> None:
    panel.plot([x], [y], "o", ms=5.2, color=colour, mec="white", mew=0.8, zorder=6)


def saving(curves: Sequence[Curve], axis: str) -> list[Curve]:
    """Return the curves that saved most on one axis, the largest saving first."""
    costs = [(ends[0] / ends[1], curve) for curve in curves if (ends := crossings(curve.row, axis)) is not None]
    least_cost = sorted((item for item in costs if item[0] < 1), key=lambda item: item[0])[:ARROWS]
    return [curve for _, curve in least_cost]


def crossings(row: Row | None, axis: str) -> tuple[float, float] | None:
    """Return the mean costs of a method and its baselines at equal loss; None unless every seed reached it."""
    if row is None or row.spread(axis).mean is None:
        return None
    cost = spread([pair.cost[axis] for pair in row.pairs]).mean
    base = spread([pair.baseline_cost[axis] for pair in row.pairs]).mean
    return None if cost is None or base is None else (cost, base)


def _arrow(panel: Axes, start: float, end: float, heights: tuple[float, float], colour: str) -> None:
    """Draw a saving from the baseline's cost to the method's, at the second height, hung from the first (L*)."""
    target, y = heights
    for x, side in ((start, BASELINE), (end, colour)):
        panel.plot([x, x], [target, y], color=side, lw=0.6, alpha=0.55, zorder=1)
    arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.3, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9}
    panel.annotate("", (end, y), xytext=(start, y), arrowprops=arrow, zorder=5)
    panel.annotate(
        f"{100 * (end / start - 1):+.0f}%".replace("-", "\N{MINUS SIGN}"), (end, y), xytext=(-4, 0), zorder=7,
        textcoords="offset points", ha="right", va="center", color=colour, fontweight="bold",
    )  # fmt: skip


def _handles(curves: Sequence[Curve]) -> tuple[list[Line2D], int]:
    """Return what the legend names, the methods and what the strokes mean, and in how many columns it does."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=c.colour, lw=1.7, label=as_written(with_seeds(c.name, len(c.seeds)))) for c in curves
    ]
    if any(p.level > 1 for c in curves for seed in c.seeds for p in seed):
        handles += [
            Line2D([], [], color=GREY, lw=1.1, ls=STROKES[2], label="coarser level"),
            Line2D([], [], color=GREY, lw=0, marker="v", ms=4.2, label="coalesce"),
            Line2D([], [], color=GREY, lw=0, marker="^", ms=4.2, label="decoalesce"),
        ]
    if saving(curves, "flops"):
        handles.append(Line2D([], [], color=GREY, lw=0, marker="o", ms=4.2, label="first crossing, un-annealed"))
    if any(c.endings for c in curves):
        handles.append(Line2D([], [], color=GREY, mec=GREY, label="annealed ending", **ANNEALED))
    return handles, legend.columns([str(handle.get_label()) for handle in handles], WIDTH)


def with_seeds(name: str, count: int) -> str:
    """Return a method's name with the number of its seeds."""
    return f"{name}, {count} seed{'s' if count > 1 else ''}"
