"""Stages of length `auto`: a plan is a pure function of the settings and of what the run has decided so far.

Before a decision the next such stage is planned to its latest end: the last stage keeps its decay and the mixing time
before it, the budget's FLOPs are filled. Those after it have the mixing time each. Pure maths, no torch.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlrun.config.load import Config
from mlrun.config.settings import Auto
from mlrun.errors import UserError, mistake
from mlrun.plan import rule, schedule
from mlrun.plan.stages import Open, Plan, Stage

AUTO = "auto"
# The plan of the trunk whose stages of length `auto` have these steps, by row.
Trunk = Callable[[Mapping[int, int]], Plan]


@dataclass(frozen=True)
class Decision:
    """What a run decided: a stage of length `auto` had so many steps, and which of its probes was kept (None: not yet).

    The decisions of a run come in the order of its stages.
    """

    steps: int
    kept: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError if no run can have decided so."""
        if type(self.steps) is not int or self.steps < 1 or (self.kept is not None and type(self.kept) is not int):
            raise ValueError(f"steps {self.steps!r} and kept {self.kept!r} are no decision")


def rows(config: Config) -> list[int]:
    """Return which rows of the cycle have the length `auto`."""
    return [i for i, row in enumerate(config.settings.cycle.stages) if row.length == AUTO]


def settled(config: Config, trunk: Trunk, decisions: Sequence[Decision]) -> Plan:
    """Return the plan of the trunk with these decisions.

    Raises:
        UserError: the budget is too small for decay, mixing time and probes, or the decisions cannot be of this run.
    """
    open_rows = rows(config)
    if len(decisions) > len(open_rows):
        raise UserError(f"{len(decisions)} decisions where {len(open_rows)} stages have the length auto")
    if not open_rows:
        return trunk({})
    widest = trunk(_steps(config, trunk, ()))
    longest = widest.stages[-1].place(widest.stages[-1].end)
    plan = replace(trunk(_steps(config, trunk, decisions)), longest=longest)
    plan = _kept(plan, [decision.kept for decision in decisions])
    if len(decisions) == len(open_rows):
        return plan
    index = _place(config, open_rows[len(decisions)])
    found = _open(config, plan, plan.stages[index])
    if len(decisions) == len(open_rows) - 1:
        soon = Decision(found.earliest - plan.stages[index].first)
        found = replace(found, rest=trunk(_steps(config, trunk, [*decisions, soon])).stages[-1].steps)
    opened = replace(plan.stages[index], open=found)
    return replace(plan, stages=(*plan.stages[:index], opened, *plan.stages[index + 1 :]))


def _place(config: Config, row: int) -> int:
    """Return the index of a row's stage: probes stand before what follows a stage of length `auto`."""
    return row + len(config.probes) * sum(other < row for other in rows(config))


def _steps(config: Config, trunk: Trunk, decisions: Sequence[Decision]) -> dict[int, int]:
    """Return the steps of every row of length `auto`: as decided, then the most, then the least."""
    table, short = config.settings.cycle.stages, trunk(dict.fromkeys(rows(config), 1))
    levels = {row: short.level(table[row].level) for row in rows(config)}
    least = {row: max(1, _mixing(config, short, level.step_flops(short.batch))) for row, level in levels.items()}
    known = {row: decision.steps for row, decision in zip(least, decisions, strict=False)}
    if len(known) == len(least):
        return known
    row = list(least)[len(known)]

    def too_long(steps: int) -> bool:
        try:
            return not _has_room(config, trunk({**least, **known, row: steps}))
        except UserError:  # the rows before the rest are over the budget
            return True

    if too_long(least[row]):
        auto, remedy = _settings(config), "shorten it or the warm-up, the decay or cycle.auto.probe_length"
        raise UserError(mistake("cycle.auto.mixing", auto.mixing, "a length that every level has room for", remedy))
    most = short.budget_flops // levels[row].step_flops(short.batch) + 1  # the whole budget pays for less
    return {**least, **known, row: bisect_left(range(most + 1), True, lo=least[row], key=too_long) - 1}


def _mixing(config: Config, plan: Plan, flops: int) -> int:
    """Return the mixing time in steps of so many FLOPs each."""
    return schedule.steps(_settings(config).mixing, plan.stages[0].samples.rates(flops, plan.budget_steps))


def _has_room(config: Config, plan: Plan) -> bool:
    """Return whether the mixing time fits between the last growth and the decay."""
    last = plan.stages[-1]
    decay = schedule.decay(config.optimizer, last, last.place(last.end))
    return last.steps - decay >= _mixing(config, plan, last.flops_of_a_step)


def _open(config: Config, plan: Plan, stage: Stage) -> Open:
    """Return the bounds of the stage that is to be decided next.

    Losses count once the warm-up is over, and of a level that was grown or coalesced into after its mixing time.
    """
    warm = schedule.warmup(plan, config.optimizer, stage, stage.steps)
    begin = max(warm + stage.first - stage.place(stage.first), stage.first + 1)
    if stage.transfer is not None:
        begin = max(begin, stage.first + _mixing(config, plan, stage.flops_of_a_step))
    every = schedule.due(plan, stage, config.settings.eval.every)
    return Open(begin, min((-(-begin // every) + rule.WINDOW - 1) * every, stage.end))


def _kept(plan: Plan, kept: Sequence[int | None]) -> Plan:
    """Return the plan in which each stage after probes starts where the one that was kept ended."""
    stages, left = list(plan.stages), list(kept)
    for stage in plan.stages:
        before = stages[stage.index - 1] if stage.index > 0 else None
        if before is None or before.probe is None or stage.probe is not None:
            continue
        chosen = left.pop(0) if left else None
        if chosen is not None:
            stages[stage.index] = replace(stage, start=stages[stage.index - len(plan.probes) + chosen].end)
    return replace(plan, stages=tuple(stages))


def _settings(config: Config) -> Auto:
    auto = config.settings.cycle.auto
    assert auto is not None
    return auto


def names(diffs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return what each probe is called: the class it names, and the keys that it sets."""
    return tuple(
        " ".join(str(v).rpartition(".")[2] if k == "_target_" else f"{k}={v}" for k, v in diff.items()) or "as it is"
        for diff in diffs
    )
