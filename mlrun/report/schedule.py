"""Where the learning rate of a from-scratch run ends: a loss at a high rate is not annealed."""

from __future__ import annotations

from mlrun.report.read import Run

# A rate that ends above this share of its peak has not come down.
ANNEALED = 0.5
# A decay over a smaller share of the steps is none.
SHORT = 0.01


def ends_at(run: Run) -> float:
    """Return the share of its peak at which the rate of a run of one stage ends; 0 where its settings do not say."""
    schedule = run.config["optimizer"].get("schedule") or {}
    total = run.trunk[-1]["steps"]
    warmup, decay = (run.steps(schedule.get(key), total) for key in ("warmup", "decay"))
    if schedule.get("shape") == "constant" or (warmup is not None and warmup >= total):
        return 1.0
    if schedule.get("shape") == "wsd" and decay is not None and decay < SHORT * total:
        return 1.0
    return float(schedule.get("floor") or 0.0)
