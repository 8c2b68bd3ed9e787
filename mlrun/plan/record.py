"""A plan as plan.json has it, and the time that follows from a measured rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlrun.plan.stages import Lacking, Level, Open, Plan, Stage


def as_dict(plan: Plan) -> dict[str, Any]:
    """Return the plan as it stands in plan.json; costs are per stage unless named otherwise."""
    total = plan.total
    return {
        "name": plan.name,
        "batch": plan.batch,
        "sequence": plan.sequence,
        "tokens_per_step": plan.batch * plan.tokens_per_sample,
        "budget": {
            "steps": plan.budget_steps,
            "tokens": plan.budget_steps * plan.batch * plan.tokens_per_sample,
            "flops": plan.budget_flops,
        },
        "levels": [_level_dict(plan, level) for level in plan.levels],
        "notes": list(plan.notes),
        "stages": [_stage_dict(plan, stage) for stage in plan.stages],
        "totals": {
            "steps": total.step,
            "samples": total.samples,
            "tokens": total.tokens,
            "flops": total.flops,
            "flops_body": total.flops_body,
            "share": total.flops / plan.budget_flops,
        },
        **({"lacking": [_lacking_dict(ending) for ending in plan.lacking]} if plan.lacking else {}),
        **({} if plan.source is None else {"source": dict(plan.source)}),
    }


def _level_dict(plan: Plan, level: Level) -> dict[str, Any]:
    return {
        "level": level.number,
        "sizes": dict(level.sizes),
        "parameters": level.parameters,
        "flops_per_sample": level.flops.total,
        "flops_per_sample_body": level.flops.body,
        **({"update_flops": level.update_flops} if level.update_flops else {}),
        "flops_per_token": level.step_flops(plan.batch) / (plan.batch * plan.tokens_per_sample),
        "cost_to_level_1": level.step_flops(plan.batch) / plan.level(1).step_flops(plan.batch),
        "state_bytes": level.state_bytes,
        "exact": None if level.resize is None else not level.inexact,
        "inexact_because": None if level.resize is None else list(level.inexact),
        **_parametrized(level),
    }


def _parametrized(level: Level) -> dict[str, Any]:
    """Return the factors on the learning rate by kind of tensor, where there are any."""
    model = level.model
    if not level.rates:
        return {}
    return {"parametrization": model.parametrization, "base": model.base_sizes(), "rates": list(level.rates)}


def _stage_dict(plan: Plan, stage: Stage) -> dict[str, Any]:
    cost = plan.stage_cost(stage)
    level = plan.level(stage.level)
    return {
        "stage": stage.index,
        "level": stage.level,
        "sizes": dict(level.sizes),
        "parameters": level.parameters,
        "transfer": stage.transfer,
        "alpha": stage.alpha,
        **({"turn": stage.turn} if plan.pair(stage).turns and stage.transfer is not None else {}),
        "entry_flops": stage.entry_flops.total,
        "lr_scale": stage.lr_scale,
        "batch": stage.samples.batch,
        "sequence": stage.samples.sequence,
        "tokens_per_step": stage.samples.batch * stage.samples.tokens,
        "first_step": stage.first,
        "steps": stage.steps,
        "samples": cost.samples,
        "tokens": cost.tokens,
        "flops": cost.flops,
        "flops_body": cost.flops_body,
        "share": cost.flops / plan.budget_flops,
        **({} if stage.fork is None else {"fork": stage.fork, "branch": stage.ending}),
        **({} if stage.probe is None else {"probe": plan.probes[stage.probe], "kept": plan.kept(stage)}),
        **({} if stage.open is None else _open_dict(stage, stage.open)),
    }


def _lacking_dict(ending: Lacking) -> dict[str, Any]:
    return {"point": ending.point, "branch": ending.ending, "why": ending.why}


def _open_dict(stage: Stage, bounds: Open) -> dict[str, Any]:
    return {"earliest_end": bounds.earliest, "latest_end": stage.end, "last_stage_steps_if_earliest": bounds.rest}


def predicted_seconds(record: Mapping[str, Any], flops_per_second: float | None) -> float | None:
    """Return how long a stage's record should take, None if no rate was measured."""
    return None if flops_per_second is None else record["flops"] / flops_per_second
