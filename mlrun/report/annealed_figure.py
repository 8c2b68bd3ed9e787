"""The headline's figure: annealed losses of baseline and methods over FLOPs, with the saving between them at L*."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlrun.report import figure, legend, tables
from mlrun.report.compare import Group, Row
from mlrun.report.elsewhere import Variant, variants
from mlrun.report.endings import charged
from mlrun.report.read import Run
from mlrun.report.smaller import chosen
from mlrun.report.stats import spread
from mlrun.units import human

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 6.4, 4.2  # inches: a column and a half of a paper
# Where the logarithmic axis may have a tick, as shares of the budget.
TICKS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.65, 0.8, 1.0, 1.25, 1.5, 2.0)
APART = 0.065  # between two of them, as a share of the axis: what their labels take
ALONE = figure.GREY  # the colour of a smaller model alone, which is neither baseline nor method
DASHES = (0, (2.2, 1.2))  # short enough to be seen in a legend
LABEL = 60  # characters of the settings in a legend
LOWER = 0.09  # height between two arrows, as a share of the range of losses


@dataclass(frozen=True)
class Side:
    """One side as drawn: its name and colour, and per ending FLOPs with the source, mean loss and its deviation.

    What is from scratch with other settings than the baseline's is dashed, in its colour.
    """

    name: str
    colour: str
    row: Row | None
    flops: tuple[float, ...]
    losses: tuple[float, ...]
    deviations: tuple[float, ...]
    dashed: bool = False


def draw(group: Group, folder: Path, stem: str) -> list[Path]:
    """Write the figure of one group as PNG and PDF and return the paths; none without endings to compare."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    found = sides(group)
    if not (group.annealed or group.of_sizes) or not any(side.flops for side in found):
        return []
    beside = [*found, *otherwise(group), *alone(group)]
    with mpl.rc_context(figure.STYLE):
        columns = legend.columns([side.name for side in beside], WIDTH)
        high = HEIGHT + legend.taller(len(beside), columns)
        picture = Figure(figsize=(WIDTH, high), layout="constrained")
        panel = picture.subplots()
        for order, side in enumerate(beside):
            _line(panel, side, 4 - order / len(beside))  # the baseline on top
        _savings(panel, beside, group)
        _axes(panel, beside, float(group.runs[0].plan["budget"]["flops"]))
        picture.legend(loc="outside upper center", ncols=columns, frameon=False, handlelength=2.0, columnspacing=1.4)
        return figure.written(picture, folder, stem)


def sides(group: Group) -> list[Side]:
    """Return what is drawn: the baseline, then each method at its best rate, in the colours of the other figure."""
    found = []
    for curve in figure.chosen(group):
        row = curve.row
        runs = list(group.baselines.values()) if row is None else [pair.run for pair in row.pairs]
        if runs:
            found.append(_side(figure.with_seeds(curve.name, len(runs)), curve.colour, row, runs))
    return found


def otherwise(group: Group) -> list[Side]:
    """Return from scratch with the other settings that save most, if they win."""
    return [_otherwise(one) for one in variants(group)[:1] if one.wins]


def _otherwise(one: Variant) -> Side:
    runs = [pair.run for pair in one.pairs]
    name = textwrap.shorten(f"from scratch, {one.name}", LABEL, placeholder=" ...")
    return replace(_side(figure.with_seeds(name, len(runs)), figure.BASELINE, None, runs), dashed=True)


def ticked(low: float, high: float) -> list[float]:
    """Return the shares of the budget that have a tick on a logarithmic axis, from the right those that have room."""
    found: list[float] = []
    for share in reversed(TICKS):
        room = not found or math.log(found[-1] / share) >= APART * math.log(high / low)
        if low <= share <= high and room:
            found.append(share)
    return found[::-1]


def alone(group: Group) -> list[Side]:
    """Return the smaller model that alone reaches L*, with the endings that all seeds have; nothing without one."""
    if group.smaller is None:
        return []
    found = chosen(group.smaller, group.controls, group.baselines)
    name = f"a smaller model alone ({human(group.smaller.parameters)} parameters)"
    return [_side(figure.with_seeds(name, len(found)), ALONE, None, found)]


def _side(name: str, colour: str, row: Row | None, runs: Sequence[Run]) -> Side:
    """Return one side; an ending counts that all seeds have with a finite loss, and a source that is not known is 0."""
    every = [{ending.budget: ending.point for ending in run.annealed} for run in runs]
    common = sorted(set.intersection(*(set(seed) for seed in every)))
    points = [[seed[budget] for seed in every] for budget in common]
    points = [seeds for seeds in points if all(math.isfinite(point.loss) for point in seeds)]
    flops = [
        [charged(point.flops, run.source, "flops") or point.flops for point, run in zip(seeds, runs, strict=True)]
        for seeds in points
    ]
    losses = [spread([point.loss for point in seeds]) for seeds in points]
    means = tuple(sum(cost) / len(cost) for cost in flops)
    return Side(name, colour, row, means, tuple(x.mean or 0.0 for x in losses), tuple(x.sd or 0.0 for x in losses))


def _line(panel: Axes, side: Side, above: float) -> None:
    """Draw one side; between two endings the line is the rule itself, since the axis is logarithmic."""
    error = side.deviations if any(side.deviations) else None
    wide, name = 1.9 if side.colour == figure.BASELINE else 1.4, figure.as_written(side.name)
    panel.errorbar(
        side.flops, side.losses, yerr=error, color=side.colour, label=name, lw=wide, marker="D", ms=4.6,
        mfc="white", mew=1.2, elinewidth=0.9, capsize=2.0, zorder=above, ls=DASHES if side.dashed else "-",
    )  # fmt: skip


def arrows(found: Sequence[Side]) -> list[tuple[Side, float, float, str]]:
    """Return side, the mean costs of baseline and method, and the saving in words; the largest savings first."""
    told = []
    for side in found:
        if side.row is not None and (saved := side.row.headline.saved("flops")).mean is not None and saved.mean > 0:
            every = [pair.headline for pair in side.row.pairs]
            base, cost = (spread([getattr(one, of)["flops"] for one in every]) for of in ("baseline_cost", "cost"))
            assert base.mean is not None and cost.mean is not None
            said = tables.headline(side.row.headline, saved).partition("\n")[0]
            told.append((saved.mean, (side, base.mean, cost.mean, f"saves {said}")))
    return [arrow for _, arrow in sorted(told, key=lambda item: -item[0])[: figure.ARROWS]]


def _savings(panel: Axes, found: Sequence[Side], group: Group) -> None:
    """Draw L*, and at it the largest saving; the next ones hang below all losses, so that none hides another."""
    target = group.loss.mean
    assert target is not None
    panel.axhline(target, color=figure.GREY, lw=0.8, ls=(0, (1, 1.5)), zorder=1)
    panel.annotate(
        f"$L^*$\n{target:.3f}", (1.0, target), xycoords=("axes fraction", "data"), xytext=(3, 0),
        textcoords="offset points", ha="left", va="center", fontsize=7.5, color="#555555",
    )  # fmt: skip
    low, high = reach(found)
    apart = LOWER * (high - low)
    for number, (side, base, cost, said) in enumerate(arrows(found)):
        height = low - number * apart if number else target
        for x, colour in ((base, figure.BASELINE), (cost, side.colour)):
            panel.plot([x, x], [target, height], color=colour, lw=0.6, alpha=0.6, zorder=2)
            panel.plot([x], [target], "o", ms=5.0, color=colour, mec="white", mew=0.8, zorder=6)
        arrow = {"arrowstyle": "-|>", "color": side.colour, "lw": 1.5, "shrinkA": 0, "shrinkB": 4, "mutation_scale": 11}
        panel.annotate("", (cost, height), xytext=(base, height), arrowprops=arrow, zorder=5)
        box = {"fc": "white", "ec": "none", "alpha": 0.75, "pad": 0.5}
        panel.annotate(
            said, (math.sqrt(base * cost), height), xytext=(0, 2), textcoords="offset points", ha="center", va="bottom",
            color=side.colour, fontweight="bold", zorder=7, bbox=box,
        )  # fmt: skip


def reach(found: Sequence[Side]) -> tuple[float, float]:
    """Return the lowest and the highest loss, with the deviations over seeds; they are never equal."""
    ends = [(loss, sd) for side in found for loss, sd in zip(side.losses, side.deviations, strict=True)]
    low, high = min(loss - sd for loss, sd in ends), max(loss + sd for loss, sd in ends)
    return low, max(high, low + figure.LEAST)


def _axes(panel: Axes, found: Sequence[Side], budget: float) -> None:
    """Scale and name the axes: FLOPs in logarithms, marked at shares of the budget."""
    flops = [cost for side in found for cost in side.flops]
    low, high = min(flops) / 1.12, max(flops) * 1.12
    least, most = reach(found)
    ticks = [share * budget for share in ticked(low / budget, high / budget)]
    panel.set_xscale("log")
    panel.set_xticks(ticks, [f"{human(tick)}\n{tick / budget:.0%}" for tick in ticks])
    panel.set_xticks([], minor=True)
    panel.set_xlim(low, high)
    lower = 0.06 + LOWER * max(0, len(arrows(found)) - 1)
    panel.set_ylim(least - lower * (most - least), most + 0.08 * (most - least))
    panel.set_xlabel("training FLOPs of a fully annealed run, and their share of the budget")
    panel.set_ylabel("annealed validation loss (nats)")
