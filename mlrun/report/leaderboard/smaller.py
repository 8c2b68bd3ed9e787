"""What a smaller model alone does beside a result, read from the runs in its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlrun.report.curves import saving
from mlrun.report.smaller import cheapest
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
    found = [(seed, cheapest(_endings(seed["smaller"]), _ending, *_end(seed["baseline"]))) for seed in tried]
    fine = [(one, seed["baseline"]) for seed, one in found if one is not None]
    if not fine:
        return f"{_sizes([run for seed in tried for run in seed['smaller']])}: {_of(tried, seeds)} above L*, or dearer"
    saved = [saving(_ending(one)[1], _end(baseline)[1]) for one, baseline in fine]
    least = min(share for share in saved if share is not None)
    return f"{_sizes([run for (run, _), _ in fine])}: {percent(least)} fewer FLOPs ({_of(fine, seeds)})"


def _end(run: Run) -> tuple[float | None, float]:
    """Return the loss and the FLOPs at the end of a run."""
    return run["val_loss"], run["endings"][-1]["flops"]


def _endings(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Return each run with each of its annealed endings."""
    return [(run, ending) for run in runs for ending in run["endings"]]


def _ending(one: tuple[Run, Run]) -> tuple[float | None, float]:
    return one[1]["loss"], one[1]["flops"]


def _sizes(runs: Sequence[Run]) -> str:
    return ", ".join(map(human, sorted({run["plan"]["levels"][0]["parameters"] for run in runs})))


def _of(some: Sequence[Any], seeds: Sequence[Seed]) -> str:
    return f"{len(some)} of {len(seeds)} seeds"
