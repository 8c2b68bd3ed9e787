"""What summary.json says of a run that came to its end: its losses, what each stage cost, and on what it ran."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlrun.plan.record import as_dict
from mlrun.plan.stages import Plan
from mlrun.train.snapshot import Progress

COSTS = ("stage", "level", "branch", "probe", "kept", "steps", "tokens", "flops", "flops_body")


def finished(plan: Plan, progress: Progress, seconds: Mapping[str, float], log: Path) -> dict[str, Any]:
    """Return what follows from the plan, the progress, the seconds by purpose, and the log."""
    planned = as_dict(plan)
    stages = [
        {key: stage[key] for key in COSTS if key in stage} | {"seconds": took}
        for stage, took in zip(planned["stages"], progress.stage_seconds, strict=True)
    ]
    return {
        "status": "finished",
        "val_loss": last_val(log),
        "best_val_loss": progress.best,
        "ledger": {"stages": stages, "total": planned["totals"], "seconds": dict(seconds), **looks(log)},
        "skipped_steps": skipped(log),
        "receipts": progress.receipts,
    }


def last_val(log: Path) -> float | None:
    """Return the trunk's newest held-out loss: the log survives a restart between the last step and the summary."""
    with open(log) as lines:
        found = [r for r in map(json.loads, lines) if r["kind"] == "val" and not {"branch", "probe"} & r.keys()]
    return found[-1]["loss"] if found else None


def looks(log: Path) -> dict[str, Any]:
    """Return as `health` how often the layers were looked at and the FLOPs of that; nothing of a run without."""
    with open(log) as lines:
        costs = [r["health_flops"] for r in map(json.loads, lines) if r["kind"] == "health"]
    return {"health": {"looks": len(costs), "flops": sum(costs)}} if costs else {}


def skipped(log: Path) -> int:
    """Return how many steps were left out for a gradient that was not finite."""
    with open(log) as lines:
        return sum("skipped" in json.loads(line) for line in lines)
