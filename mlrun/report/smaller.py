"""A smaller model alone beside a baseline: what saves against a model too large for its budget, it saves too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from mlrun.report import pairing
from mlrun.report.curves import Point
from mlrun.report.read import Run

T = TypeVar("T")


class Alone(NamedTuple):
    """An annealed ending of a smaller model that was trained from scratch; `point` has its own cost."""

    run: Run
    point: Point


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
