"""A smaller model alone beside a baseline: what saves against a model too large for its budget, it saves too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple, TypeVar

from mlrun.report import pairing
from mlrun.report.curves import Point
from mlrun.report.read import Run

T = TypeVar("T")
# A control that spent this share of its baseline's FLOPs was given them: whole steps are seldom exactly as many.
ALL = 0.98


class Alone(NamedTuple):
    """An annealed ending of a smaller model that was trained from scratch; `point` has its own cost."""

    run: Run
    point: Point


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
            if level is not None and run.final is not None and run.final.loss is not None and level.loss is not None:
                ends = run.final.loss - level.loss, run.final.flops / level.flops
                found.setdefault(run.plan["levels"][0]["parameters"], []).append(ends)
    return [
        Short(size, fmean(gap for gap, _ in ends), fmean(share for _, share in ends))
        for size, ends in sorted(found.items())
        if min(ends)[0] > 0 and max(share for _, share in ends) < ALL
    ]


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
    """Return the cheapest ending, a branch's too, at or below a baseline's end for fewer FLOPs; None if none is."""
    assert baseline.final is not None, "a baseline came to its end"
    found = [Alone(run, ending.point) for run in runs for ending in run.annealed]
    return cheapest(found, lambda one: (one.point.loss, one.point.flops), baseline.final.loss, baseline.final.flops)


def cheapest(
    found: Sequence[T], end: Callable[[T], tuple[float | None, float]], loss: float | None, flops: float
) -> T | None:
    """Return the cheapest that ends at or below a loss for fewer FLOPs; None if none does.

    `end` gives (loss, FLOPs) of one; a loss that is not known reaches nothing.
    """

    def as_good(one: T) -> bool:
        ends, cost = end(one)
        return ends is not None and loss is not None and ends <= loss and cost < flops

    return min(filter(as_good, found), key=lambda one: end(one)[1], default=None)
