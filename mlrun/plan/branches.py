"""Endings before the last (`cycle.branches`): where a run leaves its stable rate to be annealed at a smaller budget.

A point says where a branch *ends*, as an amount of the budget's FLOPs: the same cost for a baseline and its cycle.
The branch is the end of the run whose last stage would end there; up to that run's decay the trunk is the same run,
so the branch forks where that decay begins (Hu et al. 2024, arXiv 2404.06395; Hagele et al. 2024, arXiv 2405.18392).
The warm-up and the stages before are those of the whole budget. Pure maths, no torch.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import replace
from typing import TYPE_CHECKING

from mlrun.config import Config
from mlrun.errors import UserError, mistake
from mlrun.models.layers import Flops
from mlrun.plan import schedule
from mlrun.units import Rates, parse

if TYPE_CHECKING:
    from mlrun.plan.stages import Plan, Stage


def stages(config: Config, plan: Plan) -> list[Stage]:
    """Return the branches of a plan that has only its trunk, the smallest budget first, each a stage of its own.

    Raises:
        UserError: a point whose fork is not in the stable phase of the last stage, two points that are one, or a
            last stage that learns from more than its own loss.
    """
    last, points = plan.stages[-1], config.settings.cycle.branches
    if not points:
        return []
    if last.step_flops != (plan.level(1).model.flops(last.samples.sequence, last.samples.targets),):
        remedy = "it is for the whole stage: give level 1 a further row after it"
        raise UserError(mistake("cycle.branches", points, "a last stage with the model's own loss", remedy))
    budgets = [_budget(plan, text) for text in points]
    _refuse(config, plan, budgets)
    found: list[Stage] = []
    for budget, text in sorted(zip(budgets, points, strict=True)):
        before = found[-1] if found else last
        branch = replace(_branch(config, plan, _end(config, plan, budget)), index=before.index + 1, first=before.end)
        found.append(replace(branch, ending=_share(plan, budget, text)))
    return found


def _branch(config: Config, plan: Plan, end: int) -> Stage:
    """Return the branch that ends where step `end` of the trunk's last stage would be."""
    last, policy = plan.stages[-1], config.settings.cycle.lr_policy
    ended = replace(last, steps=end - last.first)
    fork = min(max(_fork(config, plan, end), last.first), end)
    fade = None if last.fade is None else last.fade.over(*schedule.span(policy, ended, ended))
    nothing = Flops(0, 0)
    branch = replace(last, first=last.end, steps=end - fork, fork=fork, begins=last.cursor(fork), fade=fade)
    return replace(branch, entry_flops=nothing, transfer=None, alpha=None)


def _share(plan: Plan, budget: int, text: str) -> float:
    """Return a point as the share of the budget that was asked for: the same for baseline and cycle."""
    length = parse(text)
    assert length is not None
    return length.amount / 100 if length.unit == "%" else budget / plan.budget_steps


def _budget(plan: Plan, text: str) -> int:
    """Return a point in steps of the from-scratch run."""
    length = parse(text)
    assert length is not None
    flops = plan.level(1).flops.total
    tokens = plan.batch * plan.tokens_per_sample
    return Rates(plan.batch, tokens, plan.batch * flops, plan.budget_steps).steps(length)


def _end(config: Config, plan: Plan, budget: int) -> int:
    """Return the step of the trunk's last stage at which a branch of that budget ends, given in from-scratch steps."""
    last = plan.stages[-1]
    left = budget * plan.batch * plan.level(1).flops.total - plan.spent(last.first, last.index).flops
    if last.fade is None:
        return last.first + left // (last.samples.batch * last.mean_step_flops)

    def cost(steps: int) -> int:
        branch = _branch(config, plan, last.first + steps)
        shared = last.flops(steps - branch.steps).total
        return shared - last.entry_flops.total + branch.flops(branch.steps).total

    return last.first + bisect_right(range(1, last.steps + 1), left, key=cost)


def _fork(config: Config, plan: Plan, end: int) -> int:
    """Return the step at which the run whose last stage ends at `end` begins to decay."""
    last = plan.stages[-1]
    shorter = replace(last, steps=end - last.first)
    return schedule.stable(config.optimizer, config.settings.cycle.lr_policy, shorter).stop


def _refuse(config: Config, plan: Plan, budgets: list[int]) -> None:
    last, points = plan.stages[-1], config.settings.cycle.branches
    stable = schedule.stable(config.optimizer, config.settings.cycle.lr_policy, last)

    def late(budget: int) -> bool:
        end = _end(config, plan, budget)
        return end > last.first and max(stable.start, last.first + 1) <= _fork(config, plan, end) < end

    every = range(plan.budget_steps + 1)
    low = bisect_left(every, True, key=late)
    high = bisect_left(every, True, key=lambda budget: _end(config, plan, budget) >= last.end) - 1
    allowed = "none: no stable phase that a decay ends"
    if low <= high:
        share = 1000 / plan.budget_steps
        allowed = f"{math.ceil(low * share) / 10:g}% to {math.floor(high * share) / 10:g}% of the budget's FLOPs"
    remedy = f"the decay to it must begin at a stable rate, in steps {stable.start} to {stable.stop} of the run"
    lines = [
        mistake(f"cycle.branches.{i}", text, allowed, remedy)
        for i, (text, budget) in enumerate(zip(points, budgets, strict=True))
        if not low <= budget <= high
    ]
    if not lines and len({_end(config, plan, budget) for budget in budgets}) < len(budgets):
        lines = [mistake("cycle.branches", points, "points that are a step or more apart", "remove one of a pair")]
    if lines:
        raise UserError(lines)
