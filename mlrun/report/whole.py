"""Whether a log has all that its plan and its summary promise: one that was cut or edited is no finished run's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from mlrun.report.curves import Point, target_level
from mlrun.report.endings import Ending

_ROUNDING = 1e-9
# Numbers of the settings that nothing works out anew: they are as the command has them.
_AS_SAID = ("seed", "batch", "optimizer.")


def fault(
    plan: Mapping[str, Any], loss: float | None, points: Sequence[Point], branches: Sequence[Ending]
) -> str | None:
    """Return what is wrong with the log of a finished run, None if nothing is.

    Its last evaluation at level 1 is at the plan's last step, cost what the plan says and has the summary's loss; every
    stage is evaluated where it begins and ends, and evenly between; and every branch has its end, at its own cost.
    """
    level_one = target_level(points)
    if not level_one:
        return "log.jsonl has no evaluation at level 1"
    spent = [stage for stage in plan["stages"] if "branch" not in stage]
    final, steps = level_one[-1], sum(stage["steps"] for stage in spent)
    if final.step != steps:
        return f"log.jsonl ends with an evaluation at step {final.step}, plan.json at step {steps}"
    if final.loss != (math.nan if loss is None else loss) and not (loss is None and math.isnan(final.loss)):
        return (
            f"log.jsonl ends with loss {final.loss:.6g}, summary.json says {'none' if loss is None else f'{loss:.6g}'}"
        )
    if sorted(one.budget for one in branches) != sorted(
        stage["branch"] for stage in plan["stages"] if "branch" in stage
    ):
        return "log.jsonl does not have the endings that plan.json has"
    return _stages(spent, points) or _branches(plan, points, branches)


def _branches(plan: Mapping[str, Any], points: Sequence[Point], branches: Sequence[Ending]) -> str | None:
    """Return which branch did not cost what the trunk had cost at its fork, between two evaluations, and its decay."""
    planned = {stage["branch"]: stage for stage in plan["stages"] if "branch" in stage}
    last = [point for point in points if point.stage == points[-1].stage]
    for budget, point in branches:
        stage = planned[budget]
        shared, fork = point.flops - stage["flops"], stage["fork"]
        low = max((one.flops for one in last if one.step <= fork), default=math.inf)
        high = min((one.flops for one in last if one.step >= fork), default=-math.inf)
        if point.step != fork + stage["steps"] or not low * (1 - _ROUNDING) <= shared <= high * (1 + _ROUNDING):
            return f"log.jsonl has {point.flops:.6g} FLOPs for the ending at {100 * budget:.3g}%, plan.json has others"
    return None


def contradiction(config: Mapping[str, Any], starts: Sequence[Mapping[str, Any]]) -> str | None:
    """Return which number of the settings is not that of the command that a run was started with, None if all are.

    Whoever edits config.yaml afterwards changes who is compared with whom.
    """
    for start in starts:
        said = dict(str(word).partition("=")[::2] for word in start.get("overrides") or ())
        for key, word in said.items():
            value = _setting(config, key) if key.startswith(_AS_SAID) else None
            if (given := _number(word)) is not None and (own := _number(value)) is not None and own != given:
                return f"config.yaml has {key}={value}, its command {key}={word}"
    return None


def _setting(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _stages(spent: Sequence[Mapping[str, Any]], points: Sequence[Point]) -> str | None:
    first, flops = 0, 0.0
    for stage in spent:
        last, flops = first + stage["steps"], flops + stage["flops"]
        if "probe" in stage:  # evaluated at its end, for the choice alone
            first = last
            continue
        found = [point for point in points if point.stage == stage["stage"]]
        where = f"log.jsonl in stage {stage['stage'] + 1}"
        if not found or (found[0].step, found[-1].step) != (first, last):
            return f"{where} is not evaluated from step {first} to step {last}"
        if not math.isclose(found[-1].flops, flops, rel_tol=_ROUNDING):
            return f"{where} ends after {found[-1].flops:.6g} FLOPs, plan.json has {flops:.6g}"
        gaps = [after.step - before.step for before, after in pairwise(found)]
        if len(set(gaps[1:-1])) > 1 or (len(gaps) > 2 and max(gaps[0], gaps[-1]) > gaps[1]):
            return f"{where} lacks evaluations"
        first = last
    costs = [(point.step, point.flops, point.seconds) for point in points]
    if any(b < a for before, after in pairwise(costs) for a, b in zip(before, after, strict=True)):
        return "log.jsonl is not in order"
    return None
