"""What a result claims, worked out again from the runs in its file: who is compared with whom, and their endings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlrun.report import pairing, whole
from mlrun.report.read import Run

Entry = Mapping[str, Any]
_ROUNDING = 1e-9


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
    planned = [(stage["branch"], stage.get("fork"), stage["flops"]) for stage in stages if "branch" in stage]
    *before, last = endings
    budgets = [ending["budget"] for ending in before]
    forked = all(isinstance(fork, int) for _, fork, _ in planned)
    if not forked or sorted(budgets) != sorted(branch for branch, _, _ in planned):
        yield f"{run['name']}: its endings are not those of its plan"
        return
    for ending, (_, fork, decay) in zip(_by_budget(before), sorted(planned), strict=True):
        low, high = _shared(run, fork)
        own = ending["flops"] - decay
        if not low * (1 - _ROUNDING) <= own <= high * (1 + _ROUNDING):
            yield f"{run['name']}: its ending at {ending['budget']:g} cost {ending['flops']:.6g}, not as planned"
    spent = sum(stage["flops"] for stage in stages if "branch" not in stage)
    if not math.isclose(last["flops"], spent, rel_tol=_ROUNDING):
        yield f"{run['name']}: its end is after {last['flops']:.6g} FLOPs, its plan has {spent:.6g}"
    if last["loss"] != run["val_loss"]:
        yield f"{run['name']}: it ended at {run['val_loss']}, its last ending at {last['loss']}"


def _by_budget(endings: Sequence[Entry]) -> list[Entry]:
    return sorted(endings, key=lambda ending: float(ending["budget"]))


def _shared(run: Entry, fork: int) -> tuple[float, float]:
    """Return between which FLOPs the trunk was at a fork; layer dropout, which is drawn, leaves the stage open."""
    *before, last = (stage for stage in run["plan"]["stages"] if "branch" not in stage)
    first, start = sum(stage["steps"] for stage in before), sum(stage["flops"] for stage in before)
    if run["config"]["cycle"].get("layer_dropout"):
        return start, start + last["flops"]
    entry = last.get("entry_flops", 0)
    at = start + entry + (last["flops"] - entry) * (fork - first) / max(1, last["steps"])
    return at, at


def unlike_its_records(run: Entry) -> Iterator[str]:
    """Yield where a run's ledger or its command says something else than its plan or its settings."""
    spent = [stage["flops"] for stage in (run["ledger"] or {}).get("stages", ())]
    if spent != [stage["flops"] for stage in run["plan"]["stages"]]:
        yield f"{run['name']}: its ledger has other FLOPs than its plan"
    if (other := whole.contradiction(run["config"], run["starts"])) is not None:
        yield f"{run['name']}: {other}"


def unlike_its_model(run: Entry) -> Iterator[str]:
    """Yield that a plain run at level 1 has a plan whose steps cost something else than its model does."""
    level, config = run["plan"]["levels"][0], run["config"]
    per_step = config["batch"] * level["flops_per_sample"] + level.get("update_flops", 0)
    for stage in run["plan"]["stages"]:
        if not math.isclose(stage["flops"], stage["steps"] * per_step, rel_tol=1e-6):
            yield f"{run['name']}: {stage['steps']} steps cost {stage['flops']:.6g} in its plan, its model's others"


def other_costs(seed: Entry) -> Iterator[str]:
    """Yield that the one model costs other FLOPs in the two runs of a seed."""
    found = {seed[side]["plan"]["levels"][0]["flops_per_sample"] for side in ("run", "baseline")}
    if len(found) > 1:
        yield f"seed {seed['seed']}: a sample costs the model of its baseline other FLOPs than that of its method"


def copied(found: Entry) -> Iterator[str]:
    """Yield which seeds have runs with the very same losses: no seed gives another's."""
    for side, whose in (("run", "method"), ("baseline", "baseline")):
        seen: dict[tuple[Any, ...], int] = {}
        for seed in found["seeds"]:
            losses = tuple(ending["loss"] for ending in seed[side]["endings"])
            other = seen.setdefault(losses, seed["seed"])
            if other != seed["seed"]:
                yield f"seeds {other} and {seed['seed']}: the losses of the {whose} are the same, as of a copy"


def no_control(seed: Entry) -> Iterator[str]:
    """Yield which runs of a smaller model are none: they would say that it does worse than it does."""
    baseline = as_run(seed["baseline"])
    for one in seed["smaller"]:
        run = as_run(one)
        plain = pairing.baseline(run) and run.status == "finished"
        if not plain or run.seed != baseline.seed or not pairing.smaller(run, baseline):
            yield f"seed {seed['seed']}: {one['name']} is no smaller model alone on its data"
