"""Endings before the last (`cycle.branches`): where a run leaves its stable rate to be annealed at a smaller budget.

A point says where a branch *ends*, as an amount of the budget's FLOPs: the same cost for a baseline and its cycle.
The branch is the end of the run whose last stage would end there; up to that run's decay the trunk is the same run,
so the branch forks where that decay begins (Hu et al. 2024, arXiv 2404.06395; Hagele et al. 2024, arXiv 2405.18392).
The warm-up and the stages before are those of the whole budget. A point that ends in `if possible` is left out where
the cycle cannot have it, and the plan says so (`Lacking`); any other is refused then. Pure maths, no torch.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from mlrun.config.load import Config
from mlrun.errors import UserError, mistake
from mlrun.models.layers import Flops
from mlrun.plan import schedule
from mlrun.plan.stages import Lacking, Plan, Stage
from mlrun.units import Rates, parse

IF_POSSIBLE = "if possible"


class Point(NamedTuple):
    """One of `cycle.branches`: its place in the list, as it was given, its length, and whether it may be left out."""

    place: int
    text: str
    length: str
    optional: bool


def points(texts: Sequence[str]) -> list[Point]:
    """Return the points of `cycle.branches`; whether their lengths are such is not judged."""
    found = [(text, text.strip().removesuffix(IF_POSSIBLE)) for text in texts]
    return [Point(i, text, length.strip(), length != text.strip()) for i, (text, length) in enumerate(found)]


def stages(config: Config, plan: Plan) -> tuple[list[Stage], list[Lacking]]:
    """Return the branches of a plan that has only its trunk, the smallest budget first, each a stage of its own.

    The points `if possible` that this cycle cannot have come second.

    Raises:
        UserError: a point whose fork is not in the stable phase of the last stage, two points that are one, or a
            last stage that learns from more than its own loss; unless it is one `if possible`.
    """
    asked = points(config.settings.cycle.branches)
    if not asked:
        return [], []
    if (never := _never(config, plan)) is not None:
        allowed, remedy = never
        if required := [point.text for point in asked if not point.optional]:
            raise UserError(mistake("cycle.branches", required, allowed, remedy))
        return [], [_lacking(plan, point, f"it needs {allowed}") for point in asked]
    kept, lacking = _sorted_out(config, plan, asked)
    return _stages(config, plan, kept), lacking


def _stages(config: Config, plan: Plan, kept: Sequence[Point]) -> list[Stage]:
    found: list[Stage] = []
    for point in sorted(kept, key=lambda point: _budget(plan, point)):
        before = found[-1] if found else plan.stages[-1]
        branch = _branch(config, plan, _end(config, plan, _budget(plan, point)))
        branch = replace(branch, index=before.index + 1, first=before.end)
        found.append(replace(branch, ending=_share(plan, point)))
    return found


def _never(config: Config, plan: Plan) -> tuple[str, str] | None:
    """Return (what would be needed, the remedy) where no point of this cycle can be a branch; None where some may be.

    A schedule of another shape is refused with the settings, unless all points are `if possible`.
    """
    last = plan.stages[-1]
    if config.optimizer.schedule.shape != "wsd":
        return "optimizer.schedule.shape=wsd, a stable rate to leave", "set it, or cycle.branches=[]"
    if last.step_flops != (plan.level(1).model.flops(last.samples.sequence, last.samples.targets),):
        remedy = "it is for the whole stage: give level 1 a further row after it"
        return "a last stage with the model's own loss", remedy
    return None


def _lacking(plan: Plan, point: Point, why: str) -> Lacking:
    """Return a point that is left out; one that a stage of length `auto` may still make room for is told so."""
    if any(stage.open is not None for stage in plan.stages):
        why = f"if the run grows at its latest: {why}"
    return Lacking(point.length, _share(plan, point), why)


def _branch(config: Config, plan: Plan, end: int) -> Stage:
    """Return the branch that ends where step `end` of the trunk's last stage would be."""
    last, policy = plan.stages[-1], config.settings.cycle.lr_policy
    ended = replace(last, steps=end - last.first)
    fork = min(max(_fork(config, plan, end), last.first), end)
    fade = None if last.fade is None else last.fade.over(*schedule.span(policy, ended, ended))
    nothing = Flops(0, 0)
    branch = replace(last, first=last.end, steps=end - fork, fork=fork, begins=last.cursor(fork), fade=fade)
    branch = replace(branch, start=fork, origin=last.place(fork))
    return replace(branch, entry_flops=nothing, transfer=None, alpha=None)


def _share(plan: Plan, point: Point) -> float:
    """Return a point as the share of the budget that was asked for: the same for baseline and cycle."""
    length = parse(point.length)
    assert length is not None
    return length.amount / 100 if length.unit == "%" else _budget(plan, point) / plan.budget_steps


def _budget(plan: Plan, point: Point) -> int:
    """Return a point in steps of the from-scratch run."""
    length = parse(point.length)
    assert length is not None
    tokens = plan.batch * plan.tokens_per_sample
    return Rates(plan.batch, tokens, plan.level(1).step_flops(plan.batch), plan.budget_steps).steps(length)


def _end(config: Config, plan: Plan, budget: int) -> int:
    """Return the step of the trunk's last stage at which a branch of that budget ends, given in from-scratch steps."""
    last = plan.stages[-1]
    left = budget * plan.level(1).step_flops(plan.batch) - plan.spent(last.first, last.index).flops
    if last.fade is None:
        return last.first + left // last.flops_of_a_step

    def cost(steps: int) -> int:
        branch = _branch(config, plan, last.first + steps)
        shared = last.flops(steps - branch.steps).total
        return shared - last.entry_flops.total + branch.flops(branch.steps).total

    return last.first + bisect_right(range(1, last.steps + 1), left, key=cost)


def _fork(config: Config, plan: Plan, end: int) -> int:
    """Return the step at which the run whose last stage ends at `end` begins to decay."""
    last = plan.stages[-1]
    shorter = replace(last, steps=end - last.first)
    return schedule.stable(plan, config.optimizer, config.settings.cycle.lr_policy, shorter).stop


def _sorted_out(config: Config, plan: Plan, asked: Sequence[Point]) -> tuple[list[Point], list[Lacking]]:
    """Return the points to keep, and those `if possible` that are left out; UserError for any other that cannot be."""
    low, high = _range(config, plan)
    outside = [point for point in asked if not low <= _budget(plan, point) <= high]
    _refuse(config, plan, [point for point in outside if not point.optional], (low, high))
    kept: dict[int, Point] = {}
    twice: list[Point] = []
    for point in sorted(asked, key=lambda point: point.optional):
        end = _end(config, plan, _budget(plan, point))
        if point not in outside and kept.setdefault(end, point) is not point:
            twice.append(point)
    if any(not point.optional for point in twice):
        given, allowed = [point.text for point in asked], "points that are a step or more apart"
        raise UserError(mistake("cycle.branches", given, allowed, "remove one of a pair"))
    begins = plan.spent(plan.stages[-1].first, plan.stages[-1].index).flops / plan.budget_flops
    why = f"possible: {_allowed(plan, low, high)}; the last stage begins at {begins:.1%}, and warms up"
    lacking = [(point, why) for point in outside] + [(point, "another point is the same step") for point in twice]
    return list(kept.values()), [_lacking(plan, *found) for found in sorted(lacking, key=lambda found: found[0])]


def _range(config: Config, plan: Plan) -> tuple[int, int]:
    """Return the first and last budget, in from-scratch steps, that a branch may end at; none if they are swapped."""
    last = plan.stages[-1]
    stable = _stable(config, plan)

    def late(budget: int) -> bool:
        end = _end(config, plan, budget)
        return end > last.first and max(stable.start, last.first + 1) <= _fork(config, plan, end) < end

    every = range(plan.budget_steps + 1)
    low = bisect_left(every, True, key=late)
    return low, bisect_left(every, True, key=lambda budget: _end(config, plan, budget) >= last.end) - 1


def _stable(config: Config, plan: Plan) -> range:
    return schedule.stable(plan, config.optimizer, config.settings.cycle.lr_policy, plan.stages[-1])


def _allowed(plan: Plan, low: int, high: int) -> str:
    """Return a range of budgets in words."""
    if low > high:
        return "none: no stable phase that a decay ends"
    share = 1000 / plan.budget_steps
    return f"{math.ceil(low * share) / 10:g}% to {math.floor(high * share) / 10:g}% of the budget's FLOPs"


def _refuse(config: Config, plan: Plan, outside: Sequence[Point], possible: tuple[int, int]) -> None:
    stable, allowed = _stable(config, plan), _allowed(plan, *possible)
    remedy = f"the decay to it must begin at a stable rate, in steps {stable.start} to {stable.stop} of the run"
    if outside:
        raise UserError([mistake(f"cycle.branches.{p.place}", p.text, allowed, remedy) for p in outside])
