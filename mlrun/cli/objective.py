"""What a job of a sweep returns to Hydra's sweeper: one number from its run folder, less being better."""

from __future__ import annotations

import math
from pathlib import Path

from omegaconf import DictConfig

from mlrun import files
from mlrun.report.curves import crossing
from mlrun.report.endings import charged
from mlrun.report.read import read


def status(folder: Path) -> str:
    """Return how a run of a sweep ended: finished | pruned | interrupted | failed, also where it told nothing."""
    if (folder / files.ERROR).exists() or not (folder / files.SUMMARY).exists():
        return "failed"
    return str(files.read_json(folder / files.SUMMARY)["status"])


def objective(folder: Path, find: DictConfig) -> float:
    """Return the final held-out loss in nats, or the FLOPs to reach `find.objective_loss`, its source charged.

    inf where the run has none: it failed, was pruned, never reached that loss, or nobody knows what its source cost.
    """
    if status(folder) != "finished":
        return math.inf
    run = read(folder)
    if not run.finished or run.final is None:
        return math.inf
    if find.objective == "loss":
        return run.final.loss
    cost = charged(crossing(run.evaluations, float(find.objective_loss), "flops"), run.source, "flops")
    return math.inf if cost is None else cost
