"""What a smaller model alone does beside a result, read from the runs in its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlrun.report.smaller import One, best, one
from mlrun.report.tables import percent
from mlrun.units import human

Seed = Mapping[str, Any]
Run = Mapping[str, Any]
UNTRIED = "no smaller model tried"


def told(seeds: Sequence[Seed]) -> str:
    """Return with how many fewer FLOPs a smaller model ends at or below L*, by the report's rule; or that none does."""
    tried = [seed for seed in seeds if seed["smaller"]]
    if not tried:
        return UNTRIED
    found = best(_one(run, seed) for seed in tried for run in seed["smaller"])
    if found is None:
        sizes = sorted({_size(run) for seed in tried for run in seed["smaller"]})
        return f"{', '.join(map(human, sizes))}: {_of(len(tried), seeds)} above L*, or dearer"
    least = "at least " if found.bound else ""
    start = f"{human(found.parameters)}: {least}"
    if found.saved.mean is not None:
        return f"{start}{percent(found.saved.mean)} fewer FLOPs ({_of(len(found.seeds), seeds)})"
    each = ", ".join(percent(saved) for saved in found.saved.values if saved is not None)
    return f"{start}{each} fewer FLOPs in {_of(found.saved.reached, seeds)} only"


def _one(run: Run, seed: Seed) -> One:
    """Return what one run saved at the L* of its seed."""
    ends = [(end["loss"], end["flops"]) for end in run["endings"]]
    return one(_size(run), seed["seed"], ends, seed["baseline"]["val_loss"], _flops(seed["baseline"]))


def _flops(run: Run) -> float:
    """Return the FLOPs at the end of a run."""
    return float(run["endings"][-1]["flops"])


def _size(run: Run) -> int:
    return int(run["plan"]["levels"][0]["parameters"])


def _of(some: int, seeds: Sequence[Seed]) -> str:
    return f"{some} of {len(seeds)} seeds"
