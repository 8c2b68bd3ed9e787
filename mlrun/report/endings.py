"""Matched endings: annealed losses at several budgets, and what the baseline would have paid for the same loss.

An ending is where a run was annealed: its final evaluation, and the end of each of its branches (`cycle.branches`),
at the cost of a run that had ended there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mlrun.report.curves import AXES, Point, first_staying, saving
from mlrun.report.stats import Spread, spread

# Why an ending has no saving: the baseline's cheapest ending is better already, or its dearest one is not as good.
NOT_REACHED, BEYOND, DIVERGED, FAILED = "not reached", "beyond the baseline", "diverged", "failed"


class Ending(NamedTuple):
    """An annealed loss; `budget` is the share of the budget that it was meant for, `point` has its own cost."""

    budget: float
    point: Point


@dataclass(frozen=True)
class Match:
    """One ending of a method's run beside the endings of its baseline.

    `baseline_loss` is that of the baseline's ending at the same budget and `gap` the loss minus it, in nats (None if
    there is none). `price` is what the baseline would have paid for this loss, by axis, and `saved` one minus the
    ratio of `cost` to it; None where `why` says so, and for seconds that may not be compared. `source_free` leaves
    out what the run's source cost; it is None where nothing was declared.
    """

    budget: float
    loss: float | None
    baseline_loss: float | None
    gap: float | None
    why: str | None
    cost: Mapping[str, float | None]
    price: Mapping[str, float | None]
    saved: Mapping[str, float | None]
    source_free: Mapping[str, float | None] | None


@dataclass(frozen=True)
class Budget:
    """What the paired seeds of one method say at one budget; `failed` more have no loss, so there is no mean."""

    budget: float
    matches: tuple[Match, ...]
    failed: int = 0

    @property
    def loss(self) -> Spread:
        """The method's annealed loss."""
        return self._over_all([match.loss for match in self.matches])

    @property
    def baseline_loss(self) -> Spread:
        """The baseline's annealed loss at this budget."""
        return spread([match.baseline_loss for match in self.matches])

    @property
    def gap(self) -> Spread:
        """Loss minus the baseline's, seed by seed."""
        return self._over_all([match.gap for match in self.matches])

    def saved(self, axis: str) -> Spread:
        """Return the saving at matched endings on one axis."""
        return self._over_all([match.saved[axis] for match in self.matches])

    def source_free(self, axis: str) -> Spread | None:
        """Return the saving without the source's cost; None where no source was declared."""
        free = [match.source_free for match in self.matches]
        return None if any(f is None for f in free) else self._over_all([f[axis] for f in free if f is not None])

    def _over_all(self, values: Sequence[float | None]) -> Spread:
        return spread([*values, *([None] * self.failed)])

    def why(self) -> dict[str, int]:
        """Return how many seeds have no saving, by the reason."""
        reasons = [match.why for match in self.matches if match.why is not None] + [FAILED] * self.failed
        return {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}


def outside(baseline: Sequence[Ending], loss: float) -> str | None:
    """Return why no cost of the baseline belongs to an annealed loss; None if one does."""
    if not math.isfinite(loss):
        return DIVERGED
    first = first_staying([ending.point for ending in baseline], loss)
    if first is None:
        return BEYOND
    return NOT_REACHED if first == 0 and baseline[0].point.loss < loss else None


def price(baseline: Sequence[Ending], loss: float, axis: str) -> float | None:
    """Return what the baseline would have paid for an annealed loss; None outside of what its endings span.

    Its loss is taken as a straight line over the logarithm of the cost between two endings, and the cost is where
    that line first stays at or below `loss`. The endings come in the order of their cost.
    """
    if outside(baseline, loss) is not None:
        return None
    return cost_at([(ending.point.loss, float(getattr(ending.point, axis))) for ending in baseline], loss)


def cost_at(ends: Sequence[tuple[float | None, float]], target: float | None) -> float | None:
    """Return the cost at which annealed losses first stay at or below `target`; None if they never do.

    `ends` are (loss, cost) in the order of their cost. Between the ending that counts and the one before it the loss is
    a straight line over the logarithm of the cost; without one before, or beside one that is not finite, it is that of
    the ending itself. A loss that is not known is above everything; a target that is not known is never reached.
    """
    above = [i for i, (loss, _) in enumerate(ends) if loss is None or target is None or not loss <= target]
    first = above[-1] + 1 if above else 0
    if first == len(ends):
        return None
    (loss, here), (high, before) = ends[first], ends[first - 1] if first else (None, 0.0)
    if high is None or loss is None or target is None or not math.isfinite(high):
        return here
    return on_log_line(before, here, (high - target) / (high - loss))


def on_log_line(before: float, here: float, share: float) -> float:
    """Return the cost at a share of the way from one cost to a higher one, evenly in their logarithms."""
    return here if share == 1 or not before > 0 else before * (here / before) ** share


def match(
    endings: Sequence[Ending], baseline: Sequence[Ending], source: Mapping[str, Any] | None, timed: bool
) -> tuple[Match, ...]:
    """Return each ending of a run beside those of its baseline; none if either has only its final one."""
    if not endings or not baseline:
        return ()
    return tuple(_match(ending, baseline, source, timed) for ending in endings)


def _match(ending: Ending, baseline: Sequence[Ending], source: Mapping[str, Any] | None, timed: bool) -> Match:
    loss = ending.point.loss
    beside = next((_finite(other.point.loss) for other in baseline if other.budget == ending.budget), None)
    own = {axis: float(getattr(ending.point, axis)) for axis in AXES}
    cost = {axis: charged(own[axis], source, axis) for axis in AXES}
    axes = [axis for axis in AXES if timed or axis != "seconds"]
    prices: dict[str, float | None] = dict.fromkeys(AXES) | {axis: price(baseline, loss, axis) for axis in axes}
    saved = {axis: saving(cost[axis], prices[axis]) for axis in AXES}
    free = {axis: None if cost[axis] is None else saving(own[axis], prices[axis]) for axis in AXES}
    gap = None if beside is None or not math.isfinite(loss) else loss - beside
    why = outside(baseline, loss)
    found = _finite(loss)
    return Match(ending.budget, found, beside, gap, why, cost, prices, saved, None if source is None else free)


def charged(cost: float | None, source: Mapping[str, Any] | None, axis: str) -> float | None:
    """Return a cost with that of the run's source; None if either is unknown."""
    if cost is None or source is None:
        return cost
    return None if source.get(axis) is None else cost + float(source[axis])


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def by_budget(runs: Sequence[Sequence[Match]], failed: int = 0) -> tuple[Budget, ...]:
    """Return the matches of several seeds, the smallest budget first; `failed` counts those without a loss."""
    budgets = sorted({match.budget for run in runs for match in run})
    return tuple(Budget(b, tuple(m for run in runs for m in run if m.budget == b), failed) for b in budgets)
