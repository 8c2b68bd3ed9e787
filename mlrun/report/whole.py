"""Whether a log has all that its plan and its summary promise: one that was cut or edited is no finished run's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from mlrun.report.curves import Point, target_level


def fault(
    plan: Mapping[str, Any], loss: float | None, points: Sequence[Point], branches: Sequence[float]
) -> str | None:
    """Return what is wrong with the log of a finished run, None if nothing is.

    Its last evaluation at level 1 is at the plan's last step, cost what the plan says and has the summary's loss; every
    stage is evaluated where it begins and ends, and evenly between; and every branch has its end.
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
    if sorted(branches) != sorted(stage["branch"] for stage in plan["stages"] if "branch" in stage):
        return "log.jsonl does not have the endings that plan.json has"
    return _stages(spent, points)


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
        if not math.isclose(found[-1].flops, flops, rel_tol=1e-9):
            return f"{where} ends after {found[-1].flops:.6g} FLOPs, plan.json has {flops:.6g}"
        gaps = [after.step - before.step for before, after in pairwise(found)]
        if len(set(gaps[1:-1])) > 1 or (len(gaps) > 2 and max(gaps[0], gaps[-1]) > gaps[1]):
            return f"{where} lacks evaluations"
        first = last
    costs = [(point.step, point.flops, point.seconds) for point in points]
    if any(b < a for before, after in pairwise(costs) for a, b in zip(before, after, strict=True)):
        return "log.jsonl is not in order"
    return None
