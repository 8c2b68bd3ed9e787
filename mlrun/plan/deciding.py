"""What a run settles on its way (`cycle=auto`): when to grow, which probe goes on, and the plan that follows.

All of it follows from the plan, the looks and the decisions so far; the run alone acts on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mlrun.config.load import Config
from mlrun.errors import UserError
from mlrun.plan import rule
from mlrun.plan.auto import Decision
from mlrun.plan.make import make_plan
from mlrun.plan.rule import Course, Look, Verdict
from mlrun.plan.stages import Plan, Stage

# The plan that follows from what a run has decided.
Plans = Callable[[Sequence[Decision]], Plan]


def plans(config: Config, began: Plan) -> Plans:
    """Return what gives the plan of a run after some decisions; `began` is that before any."""
    # Notes that no plan has of its settings: what this machine made of them.
    auto = config.settings.cycle.auto
    beside = () if auto is None else began.notes[len(make_plan(config, False).notes) :]

    def after(decisions: Sequence[Decision]) -> Plan:
        if not decisions:
            return began
        found = make_plan(config, False, decisions)
        return replace(found, source=began.source, notes=(*found.notes, *beside))

    return after


def weighed(plan: Plan, stage: Stage, looks: Sequence[Look], early: float) -> Verdict:
    """Return whether a stage whose end is open has had enough at the last of its looks (see `mlrun.plan.rule`)."""
    finer = plan.level(stage.level - 1).step_flops(stage.samples.batch)
    return rule.decide(looks, Course(stage.place(stage.end), stage.flops_of_a_step / finer), early)


def settled(verdict: Verdict, decisions: Sequence[Decision], after: Plans) -> tuple[Verdict, Plan | None]:
    """Return the verdict with the plan of a run that grows by it; it goes on where its branches do not fit to that.

    `decisions` are those so far and that to grow now.
    """
    if not verdict.grow:
        return verdict, None
    try:
        return verdict, after(decisions)
    except UserError as error:
        reason = f"{verdict.reason}; but not yet, as then {error.problems[0]}"
        return replace(verdict, grow=False, reason=reason), None


def lowest(losses: Sequence[float]) -> int | None:
    """Return which probe has the lowest finite held-out loss, the first of equals; None if no loss is finite."""
    finite = [number for number, loss in enumerate(losses) if math.isfinite(loss)]
    return min(finite, key=lambda number: losses[number], default=None)


def with_kept(decisions: Sequence[Decision], kept: int) -> list[Decision]:
    """Return the decisions with the last one's probe, by its number."""
    *before, last = decisions
    return [*before, replace(last, kept=kept)]


def said(verdict: Verdict) -> dict[str, Any]:
    """Return what a `decision` record says of a verdict."""
    return {"decided": "grow" if verdict.grow else "go on", "reason": verdict.reason, **verdict.numbers()}


def said_of_probes(plan: Plan, stage: Stage, kept: int, losses: Sequence[float]) -> dict[str, Any]:
    """Return what a `decision` record says of the probes that ended with `stage`, by the number of the one kept."""
    told = f"the lowest held-out loss of {len(losses)} probes after {stage.steps} steps each"
    by_name = dict(zip(plan.probes, losses, strict=True))
    return {"decided": "keep", "reason": told, "kept": plan.probes[kept], "losses": by_name}
