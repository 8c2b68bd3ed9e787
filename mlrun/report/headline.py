"""The headline: the smallest fully annealed budget that reaches L*, against what the baseline paid for it.

L* is the baseline's final loss, which is annealed. A run's curve before its decay is not: it stands higher than a run
would that had ended there. So the cost of a method is read from its endings, each what a whole run of that budget
would have reached and cost: on a straight line over the logarithm of the cost, between the two that bracket L*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlrun.report import curves
from mlrun.report.curves import first_staying, saving
from mlrun.report.endings import DIVERGED, FAILED, NOT_REACHED, Ending, charged, cost_at
from mlrun.report.stats import Spread, spread

AXES = (*curves.AXES, "tokens")
# What one run says beside "not reached" and "diverged": a number, a lower bound of it, or that there is none.
BRACKETED, AT_LEAST, NOT_BRACKETED = "bracketed", "at least", "not bracketed"
NUMBERS = (BRACKETED, AT_LEAST)
# A baseline whose own curve stays at L* from before this share of what its endings say has not needed those endings.
EARLY = 0.95


@dataclass(frozen=True)
class Headline:
    """What one run's smallest annealed budget that reaches L* saved against the baseline of its seed.

    `kind` is `bracketed` (two endings lie around L*), `at least` (the cheapest one that counts is there already: `cost`
    is more than was needed, and `saved` a lower bound), `not bracketed` (only one ending, or a baseline that was at L*
    before its endings say so), `not reached` or `diverged`. Costs, one of `AXES` each, are those of a run that ends
    there, a source charged; `saved` is one minus their ratio. None is no number, not known or, for seconds, not
    comparable. `source_free` leaves out what the source cost; it is None where there is none.
    """

    kind: str
    cost: Mapping[str, float | None]
    baseline_cost: Mapping[str, float | None]
    saved: Mapping[str, float | None]
    source_free: Mapping[str, float | None] | None


@dataclass(frozen=True)
class Headlines:
    """The headlines of one method over its seeds; a run that failed is a None."""

    found: tuple[Headline | None, ...]

    @property
    def bound(self) -> bool:
        """True if a seed has only a lower bound: so is then every mean that it is in."""
        return any(one is not None and one.kind == AT_LEAST for one in self.found)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What each seed says."""
        return tuple(FAILED if one is None else one.kind for one in self.found)

    def saved(self, axis: str) -> Spread:
        """Return the saving over the seeds; without interval, deviation and p-value where it is a bound."""
        return spread([None if one is None else one.saved[axis] for one in self.found], self.bound)

    def source_free(self, axis: str) -> Spread | None:
        """Return the saving without the source's cost; None where no source was declared."""
        free = [None if one is None else (one.source_free or {}).get(axis) for one in self.found]
        declared = [one.source_free is not None for one in self.found if one is not None]
        return spread(free, self.bound) if declared and all(declared) else None


def headline(
    endings: Sequence[Ending],
    baseline: Sequence[Ending],
    target: float,
    source: Mapping[str, Any] | None,
    timed: bool,
    crossed: float | None = None,
) -> Headline:
    """Return what a run saved by its endings, in the order of their cost, against those of its baseline.

    Both sides follow one rule (`reach`). `target` is L*, in nats; seconds are left out unless `timed`. `crossed` is the
    FLOPs from which the baseline's own curve, un-annealed, stays at L*.
    """
    kind = reach(endings, target)
    if kind in NUMBERS and _there_before(baseline, target, crossed):
        kind = NOT_BRACKETED
    if kind not in NUMBERS:
        nothing: dict[str, float | None] = dict.fromkeys(AXES)
        return Headline(kind, nothing, nothing, nothing, None if source is None else nothing)
    cost = {axis: price(endings, target, axis, source) for axis in AXES}
    base = {axis: price(baseline, target, axis, None) for axis in AXES}
    told = {axis: None if axis == "seconds" and not timed else base[axis] for axis in AXES}
    saved = {axis: saving(cost[axis], told[axis]) for axis in AXES}
    own = {axis: None if cost[axis] is None else price(endings, target, axis, None) for axis in AXES}
    free = {axis: saving(own[axis], told[axis]) for axis in AXES}
    return Headline(kind, cost, base, saved, None if source is None else free)


def _there_before(baseline: Sequence[Ending], target: float, crossed: float | None) -> bool:
    """Return whether a baseline was at L* for less than its endings say: it overfits, or does not learn any more."""
    if len(baseline) > 1 and _first(baseline, target) == 0:
        return True
    needed = price(baseline, target, "flops", None)
    return crossed is not None and needed is not None and crossed < EARLY * needed


def reach(endings: Sequence[Ending], target: float) -> str:
    """Return how an annealed loss is reached, one of the kinds of `Headline`.

    The cheapest ending counts after which no dearer one is above `target` (or not finite): "first stays at or below",
    as for a curve. It is `bracketed` if the ending before it, which is above, has a finite loss.
    """
    first = _first(endings, target)
    if first is None:
        return NOT_REACHED if math.isfinite(endings[-1].point.loss) else DIVERGED
    if len(endings) == 1:
        return NOT_BRACKETED
    return BRACKETED if first > 0 and math.isfinite(endings[first - 1].point.loss) else AT_LEAST


def _first(endings: Sequence[Ending], target: float) -> int | None:
    return first_staying([ending.point for ending in endings], target)


def price(endings: Sequence[Ending], target: float, axis: str, source: Mapping[str, Any] | None) -> float | None:
    """Return the cost on an axis at which endings first stay at or below `target`, the source's cost in it.

    Where nothing brackets it, it is that of the first ending that counts; None if none does, or the source's cost is
    not known. The source is charged before the logarithm is taken: the budget that grows is all that was spent.
    """
    ends = [(end.point.loss, charged(float(getattr(end.point, axis)), source, axis)) for end in endings]
    known = [(loss, cost) for loss, cost in ends if cost is not None]
    return cost_at(known, target) if len(known) == len(ends) else None
