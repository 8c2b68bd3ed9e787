"""The learning rate as a pure function of the plan and the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from mlrun.config import Schedule
from mlrun.units import Rates, parse

if TYPE_CHECKING:
    from mlrun.plan.stages import Plan, Stage


class Optimizer(Protocol):
    """What the rate follows from."""

    @property
    def lr(self) -> float:
        """The peak at level 1."""

    @property
    def schedule(self) -> Schedule:
        """What it is at each step."""


def factor(schedule: Schedule, step: int, span: int, rates: Rates) -> float:
    """Return the share of the peak rate at `step` of a span of `span` steps, in (0, 1].

    The warm-up is linear and reaches the peak at its last step; what follows has the schedule's shape.
    `wsd` is stable until its decay begins, then linear to the floor (Hu et al. 2024).
    """
    warmup = steps(schedule.warmup, rates)
    if step < warmup:
        return (step + 1) / warmup
    decay = steps(schedule.decay, rates) if schedule.shape == "wsd" else span - warmup
    start = max(span - decay, warmup)
    done = (step - start) / max(span - 1 - start, 1) if step > start else 0.0
    return schedule.floor + (1 - schedule.floor) * fall(schedule.shape, done)


def fall(shape: str, done: float) -> float:
    """Return how much of the way down remains after a share `done` of the decay."""
    if shape == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * done)) if shape == "cosine" else 1.0 - done


def steps(length: str, rates: Rates) -> int:
    """Return a schedule's length in steps; `%` refers to the schedule's span."""
    parsed = parse(length)
    assert parsed is not None
    return rates.steps(parsed)


def due(plan: Plan, stage: Stage, every: str) -> int:
    """Return a period in steps; `%` refers to the budget, so that a cycle and its baseline are read equally often."""
    return max(1, steps(every, stage.rates(plan.budget_in(stage.samples))))


def rate(plan: Plan, optimizer: Optimizer, policy: str, stage: Stage, step: int) -> float:
    """Return the learning rate of one step of the run.

    restart    every stage has a whole schedule of its own
    continue   one schedule runs through all stages
    rewarm     as `continue`, with the warm-up repeated at the start of every stage

    A branch has the rate of the run that ends with it.
    """
    last = plan.last(stage)
    if stage.fork is not None:
        stage, step = last, stage.place(step)
    first, length = span(policy, stage, last)
    share = factor(optimizer.schedule, step - first, length, stage.rates(length))
    if policy == "rewarm" and stage.first > 0:
        warmup = steps(optimizer.schedule.warmup, stage.rates(stage.steps))
        share *= min(1.0, (step - stage.first + 1) / max(warmup, 1))
    return optimizer.lr * stage.lr_scale * share


def short_warmups(plan: Plan, optimizer: Optimizer, policy: str) -> list[str]:
    """Return a line for each stage of the trunk that ends before its own warm-up, or the one of all stages, does."""
    found = []
    for stage in plan.trunk[-1:] if policy == "continue" else plan.trunk:
        length = span(policy if policy == "continue" else "restart", stage, plan.trunk[-1])[1]
        warmup = steps(optimizer.schedule.warmup, stage.rates(length))
        if warmup > length:
            reached = rate(plan, optimizer, policy, stage, stage.end - 1) / (optimizer.lr * stage.lr_scale)
            where = "the run" if policy == "continue" else f"stage {stage.index + 1}"
            line = f"{where} ends in its warm-up: {warmup} steps of it, {length} in all"
            found.append(f"{line}; it reaches {reached:.0%} of its rate")
    return found


def stable(optimizer: Optimizer, policy: str, last: Stage) -> range:
    """Return the steps between warm-up and decay in the last stage of a run; it may end before that of the plan."""
    first, length = span(policy, last, last)
    rates = last.rates(length)
    warm = first + steps(optimizer.schedule.warmup, rates)
    decays = max(first + length - steps(optimizer.schedule.decay, rates), warm)
    if policy == "rewarm" and last.first > 0:
        warm = max(warm, last.first + steps(optimizer.schedule.warmup, last.rates(last.steps)))
    return range(max(warm, last.first), decays)


def span(policy: str, stage: Stage, last: Stage) -> tuple[int, int]:
    """Return the first step and the length of the schedule that a stage is in: its own, or that of all stages."""
    return (stage.first, stage.steps) if policy == "restart" else (0, last.end)
