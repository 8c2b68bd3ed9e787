"""How fast a run goes and when its whole plan will be done."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import accumulate
from typing import Any


class Pace:
    """Measures FLOP/s per level from the records and predicts the rest of the plan.

    A coarse level has fewer FLOP/s than a fine one on the same machine, so one average would mislead.
    """

    def __init__(self, plan: Mapping[str, Any]) -> None:
        self._stages = plan["stages"]
        self._ends = list(accumulate(stage["flops"] for stage in self._stages))
        self._flops: dict[int, float] = defaultdict(float)
        self._seconds: dict[int, float] = defaultdict(float)
        self._last: Mapping[str, Any] | None = None

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self._stages)

    @property
    def total(self) -> float:
        """FLOPs of the whole plan."""
        return self._ends[-1]

    def see(self, record: Mapping[str, Any]) -> None:
        """Take one record; spans across a stage change count for no level."""
        last, self._last = self._last, record
        if last is not None and last["stage"] == record["stage"]:
            self._flops[record["level"]] += record["flops"] - last["flops"]
            self._seconds[record["level"]] += record["seconds"] - last["seconds"]

    def seconds_left(self) -> float | None:
        """Return the training seconds that the rest of the plan will take; None before any is measured.

        A level that has not run yet is taken to run at the average FLOP/s of those that have.
        """
        overall = _rate(sum(self._flops.values()), sum(self._seconds.values()))
        if self._last is None or overall is None:
            return None
        return sum(flops / (self._level_rate(level) or overall) for level, flops in self._left(self._last))

    def _level_rate(self, level: int) -> float | None:
        return _rate(self._flops[level], self._seconds[level])

    def _left(self, record: Mapping[str, Any]) -> list[tuple[int, float]]:
        """Return (level, FLOPs still to spend) for the current stage and the later ones."""
        now = record["stage"]
        current = max(0.0, self._ends[now] - record["flops"])
        later = [(stage["level"], stage["flops"]) for stage in self._stages[now + 1 :]]
        return [(record["level"], current), *later]


def _rate(amount: float, seconds: float) -> float | None:
    return amount / seconds if seconds > 0 and amount > 0 else None
