"""What a result claims, worked out again from the runs in its file: who is compared with whom, and their endings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlrun.report import pairing
from mlrun.report.read import Run

Entry = Mapping[str, Any]


def as_run(found: Entry) -> Run:
    """Return a run as a report has it, of what a file says; its log is not in it."""
    plan = {**found["plan"], "data": found["data"], "source": found["source"]}
    summary = {"skipped_steps": found["skipped_steps"]}
    return Run(
        Path(found["name"]),
        found["config"],
        plan,
        summary,
        found["status"],
        evaluations=(),
        branches=(),
        transfers=(),
        starts=(),
        health=(),
        likeness=(),
        held_out_error=None,
        last={},
    )


def unmatched(seed: Entry, searched: bool) -> Iterator[str]:
    """Yield why the two runs of a seed may not be compared; how both are trained is open where a search chose it."""
    run, baseline = as_run(seed["run"]), as_run(seed["baseline"])
    names = pairing.differences(run, baseline)
    if searched:
        names = [name for name in names if name not in (*pairing.TUNABLE, "model")]
        names += ["model"] * (pairing.model(run) != pairing.model(baseline))
    if names:
        yield f"seed {seed['seed']}: method and baseline differ in {', '.join(names)}"
    if not pairing.baseline(baseline):
        why = ", ".join(pairing.unplain(baseline)) or "its stages"
        yield f"seed {seed['seed']}: its baseline is no plain from-scratch run of the whole budget ({why})"


def untold(found: Entry) -> Iterator[str]:
    """Yield where the task that the table shows is not that of the runs."""
    task, runs = found["task"], [seed[side] for seed in found["seeds"] for side in ("run", "baseline")]
    if any(run["config"]["model"] != task["model"] for run in runs):
        yield "the model of its task is not that of its runs"
    if any(run["plan"]["budget"]["flops"] != task["budget"]["flops"] for run in runs):
        yield "the budget of its task is not that of its runs"


def unlike_its_plan(run: Entry) -> Iterator[str]:
    """Yield where the endings of a run are not those that its plan has and that it ended with."""
    stages, endings = run["plan"]["stages"], run["endings"]
    branches = sorted(stage["branch"] for stage in stages if "branch" in stage)
    *before, last = endings
    if sorted(ending["budget"] for ending in before) != branches:
        yield f"{run['name']}: its endings are not those of its plan"
    spent = sum(stage["flops"] for stage in stages if "branch" not in stage)
    if not math.isclose(last["flops"], spent, rel_tol=1e-9):
        yield f"{run['name']}: its end is after {last['flops']:.6g} FLOPs, its plan has {spent:.6g}"
    if last["loss"] != run["val_loss"]:
        yield f"{run['name']}: it ended at {run['val_loss']}, its last ending at {last['loss']}"
