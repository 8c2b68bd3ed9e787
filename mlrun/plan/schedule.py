"""The learning rate as a pure function of the plan and the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from mlrun.config.settings import Schedule
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


def factor(schedule: Schedule, step: int, span: int, rates: Rates, warmup: int | None = None) -> float:
    """Return the share of the peak rate at `step` of a span of `span` steps, in (0, 1].

    The warm-up is linear and reaches the peak at its last step; what follows has the schedule's shape. `warmup` are its
    steps, where they do not follow from the span.
    `wsd` is stable until its decay begins, then linear to the floor (Hu et al. 2024).
    """
    warmup = steps(schedule.warmup, rates) if warmup is None else warmup
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

    A branch has the rate of the run that ends with it. Steps of probes that were not kept do not count.
    """
    last, place = plan.last(stage), stage.place(step)
    if stage.fork is not None:
        stage = last
    first, length = span(policy, stage, last)
    warm = warmup(plan, optimizer, stage, length)
    share = factor(optimizer.schedule, place - first, length, stage.rates(length), warm)
    if policy == "rewarm" and stage.first > 0:
        again = steps(optimizer.schedule.warmup, stage.rates(stage.steps))
        share *= min(1.0, (place - stage.place(stage.first) + 1) / max(again, 1))
    return optimizer.lr * stage.lr_scale * share


def warmup(plan: Plan, optimizer: Optimizer, stage: Stage, length: int) -> int:
    """Return the steps of the warm-up of a schedule; `%` is of the longest that may be where a run decides its own."""
    return steps(optimizer.schedule.warmup, stage.rates(length if plan.longest is None else plan.longest))


def short_warmups(plan: Plan, optimizer: Optimizer, policy: str) -> list[str]:
    """Return a line for each stage of the trunk that ends before its own warm-up, or the one of all stages, does."""
    found = []
    for stage in plan.trunk[-1:] if policy == "continue" else plan.trunk:
        length = span(policy if policy == "continue" else "restart", stage, plan.trunk[-1])[1]
        warm = warmup(plan, optimizer, stage, length)
        if warm > length:
            reached = rate(plan, optimizer, policy, stage, stage.end - 1) / (optimizer.lr * stage.lr_scale)
            where = "the run" if policy == "continue" else f"stage {stage.index + 1}"
            line = f"{where} ends in its warm-up: {warm} steps of it, {length} in all"
            found.append(f"{line}; it reaches {reached:.0%} of its rate")
    return found


def stable(plan: Plan, optimizer: Optimizer, policy: str, last: Stage) -> range:
    """Return the steps between warm-up and decay in the last stage of a run; it may end before that of the plan."""
    first, length = span(policy, last, last)
    first += last.first - last.place(last.first)  # steps of probes that were not kept
    warm = first + warmup(plan, optimizer, last, length)
    decays = max(first + length - decay(optimizer, last, length), warm)
    if policy == "rewarm" and last.first > 0:
        warm = max(warm, last.first + steps(optimizer.schedule.warmup, last.rates(last.steps)))
    return range(max(warm, last.first), decays)


def decay(optimizer: Optimizer, last: Stage, length: int) -> int:
    """Return the steps of the decay that ends a schedule of some length."""
    return steps(optimizer.schedule.decay, last.rates(length))


def span(policy: str, stage: Stage, last: Stage) -> tuple[int, int]:
    """Return the first step and the length of the schedule that a stage is in: its own, or that of all stages.

    Steps of probes that were not kept do not count.
    """
    return (stage.place(stage.first), stage.steps) if policy == "restart" else (0, last.place(last.end))
