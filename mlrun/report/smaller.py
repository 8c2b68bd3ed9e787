"""A smaller model alone beside a baseline: what saves against a model too large for its budget, it saves too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from mlrun.report import pairing
from mlrun.report.curves import Point
from mlrun.report.endings import cost_at
from mlrun.report.read import Run

# A control that spent this share of its baseline's FLOPs was given them: whole steps are seldom exactly as many.
ALL = 0.98


class Alone(NamedTuple):
    """A smaller model that was trained from scratch: its ending at or below L*, and the FLOPs that reach L*.

    `bound` is whether fewer might do, as its cheapest ending is there already.
    """

    run: Run
    point: Point
    flops: float
    bound: bool


class Short(NamedTuple):
    """A size that ended above L* with fewer FLOPs than its baselines: nats above, share spent, means over the seeds."""

    parameters: int
    gap: float
    share: float


def short(controls: Mapping[int, Sequence[Run]], baselines: Mapping[int, Run]) -> list[Short]:
    """Return the sizes of smaller models that ended above L* with fewer FLOPs than the baseline, small to large."""
    found: dict[int, list[tuple[float, float]]] = {}
    for seed, runs in controls.items():
        level = baselines[seed].final
        for run in runs:
            if level is not None and run.final is not None:
                ends = run.final.loss - level.loss, run.final.flops / level.flops
                found.setdefault(run.plan["levels"][0]["parameters"], []).append(ends)
    return [
        Short(size, fmean(gap for gap, _ in ends), fmean(share for _, share in ends))
        for size, ends in sorted(found.items())
        if min(ends)[0] > 0 and max(share for _, share in ends) < ALL
    ]


def lower(controls: Mapping[int, Sequence[Run]], baselines: Mapping[int, Run]) -> dict[int, Run]:
    """Return, by seed, the smaller model that ends lowest below its baseline for no more FLOPs than the budget."""
    found = {}
    for seed, runs in controls.items():
        level = baselines[seed].final
        ends = [
            (run.final.loss, run) for run in runs if run.final and pairing.no_dearer(run.final.flops, baselines[seed])
        ]
        if level is not None and (under := [end for end in ends if end[0] < level.loss]):
            found[seed] = min(under, key=lambda end: end[0])[1]
    return found


def below(run: Run, others: Iterable[Run]) -> float | None:
    """Return by how many nats a run ends below the lowest of smaller models; None unless each size had as many FLOPs.

    One size that had them says nothing of another that had fewer, and may end lowest with as many.
    """
    ends = [(one.plan["levels"][0]["parameters"], one.final) for one in others if one.final is not None]
    if run.final is None or not ends:
        return None
    given = {size for size, end in ends if end.flops >= ALL * run.final.flops}
    return min(end.loss for _, end in ends) - run.final.loss if given == {size for size, _ in ends} else None


def controls(baselines: Mapping[int, Run], plain: Iterable[Run]) -> dict[int, tuple[Run, ...]]:
    """Return, by seed, the from-scratch runs of a smaller model of a baseline's kind, on the same data.

    `plain` are from-scratch runs that came to their end, of any model.
    """
    found: dict[int, tuple[Run, ...]] = {}
    for run in plain:
        own = baselines.get(run.seed)
        if own is not None and run.final is not None and pairing.smaller(run, own):
            found[run.seed] = (*found.get(run.seed, ()), run)
    return found


def reaching(runs: Iterable[Run], baseline: Run) -> Alone | None:
    """Return what reaches a baseline's end for the fewest FLOPs, if that is fewer than its own; None if none does."""
    assert baseline.final is not None, "a baseline came to its end"
    found = []
    for run in runs:
        points = [ending.point for ending in run.annealed]
        if (cost := cost_at([(point.loss, point.flops) for point in points], baseline.final.loss)) is not None:
            point = next(point for point in points if point.flops >= cost and point.loss <= baseline.final.loss)
            found.append(Alone(run, point, cost, cost == points[0].flops))
    best = min(found, key=lambda one: one.flops, default=None)
    return best if best is not None and best.flops < baseline.final.flops else None
