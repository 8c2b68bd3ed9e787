"""What a smaller model alone does beside a result, read from the runs in its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlrun.report.curves import saving
from mlrun.report.endings import cost_at
from mlrun.report.tables import percent
from mlrun.units import human

Seed = Mapping[str, Any]
Run = Mapping[str, Any]
UNTRIED = "no smaller model tried"


def told(seeds: Sequence[Seed]) -> str:
    """Return for how much less a smaller model ends at or below L*, the least over the seeds; or that none does."""
    tried = [seed for seed in seeds if seed["smaller"]]
    if not tried:
        return UNTRIED
    fine = [(*least, seed["baseline"]) for seed in tried if (least := _least(seed)) is not None]
    if not fine:
        return f"{_sizes([run for seed in tried for run in seed['smaller']])}: {_of(tried, seeds)} above L*, or dearer"
    saved = [saving(cost, _flops(baseline)) for cost, _, baseline in fine]
    share = min(one for one in saved if one is not None)
    return f"{_sizes([run for _, run, _ in fine])}: {percent(share)} fewer FLOPs ({_of(fine, seeds)})"


def _least(seed: Seed) -> tuple[float, Run] | None:
    """Return the fewest FLOPs at which a smaller model reaches L*, if fewer than the baseline's, and its run."""
    target, whole = seed["baseline"]["val_loss"], _flops(seed["baseline"])
    costs = [(cost_at([(end["loss"], end["flops"]) for end in run["endings"]], target), run) for run in seed["smaller"]]
    return min(
        ((cost, run) for cost, run in costs if cost is not None and cost < whole), key=lambda one: one[0], default=None
    )


def _flops(run: Run) -> float:
    """Return the FLOPs at the end of a run."""
    return float(run["endings"][-1]["flops"])


def _sizes(runs: Sequence[Run]) -> str:
    return ", ".join(map(human, sorted({run["plan"]["levels"][0]["parameters"] for run in runs})))


def _of(some: Sequence[Any], seeds: Sequence[Seed]) -> str:
    return f"{len(some)} of {len(seeds)} seeds"
