"""Where a validation curve first stays at or below a loss. Pure maths on lists of points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import NamedTuple, TypeVar

AXES = ("flops", "flops_body", "seconds")
T = TypeVar("T")


class Point(NamedTuple):
    """One evaluation on the held-out set. Costs are cumulative; seconds are of training only; loss may be NaN."""

    stage: int
    level: int
    step: int
    tokens: float
    flops: float
    flops_body: float
    seconds: float
    loss: float


def target_level(points: Sequence[Point]) -> list[Point]:
    """Return the evaluations of the model that is wanted: coarser levels are other models."""
    return [point for point in points if point.level == 1]


def crossing(points: Sequence[Point], target: float, axis: str) -> float | None:
    """Return the cost on `axis` at which the curve first stays at or below `target`, or None if it never does.

    "Stays" means that no later evaluation is above it; an evaluation that is not finite is above everything.
    Between the two evaluations around the crossing the curve is taken as a line. Where they are of different
    stages (a coarser level lies between them) or the earlier is not finite, there is no line to take, and the
    later one counts.
    """
    curve = target_level(points)
    first = first_staying(curve, target)
    if first is None:
        return None
    here = curve[first]
    before = curve[first - 1] if first > 0 else None
    if before is None or before.stage != here.stage or not math.isfinite(before.loss):
        return float(getattr(here, axis))
    share = (before.loss - target) / (before.loss - here.loss)
    return float(getattr(before, axis) + share * (getattr(here, axis) - getattr(before, axis)))


def first_staying(curve: Sequence[Point], target: float) -> int | None:
    """Return the index after the last point above `target` (or not finite); None if that is the end."""
    for index in range(len(curve) - 1, -1, -1):
        if not curve[index].loss <= target:  # NaN too
            return index + 1 if index + 1 < len(curve) else None
    return 0 if curve else None


def read_every(points: Sequence[Point], steps: int) -> list[Point]:
    """Return a curve as if evaluated every `steps` steps, and where its stages begin and end.

    Between evaluations it is taken as a line, and is not finite beside one that is not.
    """
    found: list[Point] = []
    for _, members in groupby(points, key=lambda point: (point.stage, point.level)):
        stage = list(members)
        found.append(stage[0])
        for before, after in pairwise(stage):
            due = range((before.step // steps + 1) * steps, after.step + 1, steps)
            found += [_between(before, after, (step - before.step) / (after.step - before.step)) for step in due]
        if found[-1].step < stage[-1].step:
            found.append(stage[-1])
    return found


def _between(before: Point, after: Point, share: float) -> Point:
    """Return the point at a share of the way between two evaluations of one stage."""
    if share == 1:
        return after
    step = before.step + round(share * (after.step - before.step))
    costs = [a + share * (b - a) for a, b in zip(before[3:], after[3:], strict=True)]
    return Point(before.stage, before.level, step, *costs)


def unrest(points: Sequence[Point]) -> float:
    """Return the largest rise between two neighbouring evaluations at level 1 in the last third of them; 0 if none.

    A loss that is still going down rises only by noise, so a difference smaller than this may be noise too.
    """
    curve = target_level(points)
    tail = curve[-max(2, math.ceil(len(curve) / 3)) :]
    return max((after.loss - before.loss for before, after in pairwise(tail) if after.loss > before.loss), default=0.0)


def saving(cost: float | None, baseline: float | None) -> float | None:
    """Return 1 - cost / baseline; None where either is unknown or the curve never came down."""
    if cost is None or baseline is None or not baseline > 0:
        return None
    return 1 - cost / baseline


def speedup(saved: float | None) -> float | None:
    """Return the speed-up s with saving = 1 - 1 / (1 + s)."""
    return None if saved is None or saved >= 1 else saved / (1 - saved)


def thin(items: Sequence[T], limit: int = 2000) -> list[T]:
    """Return at most `limit` items, evenly spread, the first and the last among them."""
    if len(items) <= limit:
        return list(items)
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]
