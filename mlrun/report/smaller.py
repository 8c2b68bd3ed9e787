"""A smaller model alone beside a baseline: what saves against a model too large for its budget, it saves too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from mlrun.report import pairing
from mlrun.report.read import Run

T = TypeVar("T")


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
