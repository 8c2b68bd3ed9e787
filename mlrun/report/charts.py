"""What the page's charts draw, as plain values: curves, annealed losses with their saving, loss by learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from mlrun.report import annealed_figure, figure
from mlrun.report.compare import Group
from mlrun.report.curves import Point, thin
from mlrun.report.figure import Curve
from mlrun.report.read import Run
from mlrun.report.stats import Spread
from mlrun.report.tables import ordered

# Evaluations of a run in the page, and runs of a method: a page of hundreds of runs stays one that a browser opens.
POINTS, SEEDS = 300, 8
AXES = ("flops", "seconds")
OTHER = 8  # the colour of what the figures leave out


def charts(group: Group) -> dict[str, Any]:
    """Return what the charts of one group need; a kind of chart that has nothing to show is None.

    `curves`: per curve its name, colour, the first crossing by axis and per seed the points [stage, level, step,
    tokens, FLOPs, seconds, loss], endings with their budget in the place of the stage. `annealed`: per side its points
    [FLOPs, loss, deviation], and `arrows` with both costs. `rates`: per method [rate, mean loss, loss of each seed].
    """
    curves = figure.chosen(group)
    colours = {curve.row.method if curve.row else None: index for index, curve in enumerate(curves)}
    finite = any(math.isfinite(p.loss) for curve in curves for seed in curve.seeds for p in seed)
    return {
        "target": group.loss.mean,
        "budget": float(group.runs[0].plan["budget"]["flops"]),
        "limits": figure.limits(curves, 0) if finite else None,
        "curves": [_curve(curve, index) for index, curve in enumerate(curves)] if finite else None,
        "annealed": _annealed(group, colours),
        "rates": _rates(group, colours),
    }


def _curve(curve: Curve, colour: int) -> dict[str, Any]:
    found = {axis: figure.crossings(curve.row, axis) for axis in AXES}
    return {
        "name": curve.name,
        "colour": colour,
        "crossing": {axis: None if ends is None else ends[0] for axis, ends in found.items()},
        "seeds": [_seed(run) for run in curve.runs[:SEEDS]],
    }


def _seed(run: Run) -> dict[str, Any]:
    endings = [[ending.budget, *_values(ending.point)[1:]] for ending in run.endings]
    return {"seed": run.seed, "points": [_values(p) for p in thinned(run.evaluations)], "endings": endings}


def thinned(points: Sequence[Point]) -> list[Point]:
    """Return about `POINTS` points or fewer, with the first and the last of every stage."""
    stages = [list(members) for _, members in groupby(points, key=lambda point: point.stage)]
    share = min(1.0, POINTS / max(1, len(points)))
    return [p for stage in stages for p in thin(stage, max(2, int(share * len(stage))))]


def _values(point: Point) -> list[Any]:
    """Return a point with as many digits as anyone reads: six of a loss, whole tokens and FLOPs."""
    loss = round(point.loss, 6) if math.isfinite(point.loss) else None
    costs = (round(point.tokens), round(point.flops), round(point.seconds, 3))
    return [point.stage, point.level, point.step, *costs, loss]


def _annealed(group: Group, colours: dict[str | None, int]) -> dict[str, Any] | None:
    """Return what the headline's figure draws, a smaller model alone as a side of its own.

    None where that is not drawn.
    """
    sides = annealed_figure.sides(group) if group.annealed or group.of_sizes else []
    if group.loss.mean is None or not any(side.flops for side in sides):
        return None

    def colour(side: annealed_figure.Side) -> int:
        return OTHER if side.colour == annealed_figure.ALONE else colours[side.row.method if side.row else None]

    drawn = [
        {
            "name": side.name,
            "colour": colour(side),
            "dashed": side.dashed,
            "points": [list(point) for point in zip(side.flops, side.losses, side.deviations, strict=True)],
        }
        for side in (*sides, *annealed_figure.otherwise(group), *annealed_figure.alone(group))
    ]
    arrows = [
        {"colour": colour(side), "baseline": base, "cost": cost, "said": said}
        for side, base, cost, said in annealed_figure.arrows(sides)
    ]
    return {"sides": drawn, "arrows": arrows}


def _rates(group: Group, colours: dict[str | None, int]) -> list[dict[str, Any]] | None:
    """Return the final losses at each learning rate of whoever was tried at several; None if nobody was.

    A rate at which a seed failed has no mean, and no point.
    """
    found: dict[str | None, list[tuple[float, Spread]]] = {None: list(group.sweep.items())}
    for row in ordered(group):
        found.setdefault(row.method, []).append((row.lr, row.loss))
    swept = []
    for method, rates in found.items():
        points = [[lr, loss.mean, list(loss.values)] for lr, loss in sorted(rates, key=_rate) if loss.mean is not None]
        if len(points) > 1:
            swept.append({"name": method or "baseline", "colour": colours.get(method, OTHER), "points": points})
    return swept or None


def _rate(found: tuple[float, Spread]) -> float:
    return found[0]
