"""The cycle worked out before anything runs: levels, stages, steps, tokens, FLOPs. Pure maths, no torch.

`make` finds every mistake that can be known without data or a GPU, and raises them all at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlrun import check
from mlrun.axes import Resize, Sizes, parameter_count
from mlrun.coarsening.base import inexact
from mlrun.config import Config, Cycle, Row
from mlrun.errors import UserError, mistake
from mlrun.layers import Flops, Stack
from mlrun.units import Rates, parse

# A float32 weight, its gradient and Adam's two moments, in bytes.
STATE_BYTES = 16


@dataclass(frozen=True)
class Level:
    """One model size; level 1 is the model you want. `resize` leads to the next coarser level, if there is one."""

    number: int
    model: Any
    parameters: int
    flops: Flops
    resize: Resize | None = None

    @property
    def sizes(self) -> Sizes:
        """Axis sizes of this level's model."""
        return dict(self.model.sizes())

    @property
    def inexact(self) -> list[str]:
        """Why decoalescing into this level changes the function, one line each; empty if it does not."""
        if self.resize is None:
            return []
        stacks = [part for part in self.model.parts().values() if isinstance(part, Stack)]
        return inexact(self.resize, post_norm=any(stack.block.post for stack in stacks))


@dataclass(frozen=True)
class Stage:
    """One stretch of training at one level: steps `first` to `first + steps`, after `transfer` from the level before.

    `alpha` is the share of the decoalesced weights: 1 where no model was kept to blend with; None without a blend.
    """

    index: int
    level: int
    first: int
    steps: int
    lr_scale: float
    transfer: str | None = None
    alpha: float | None = None
    blend: bool = False

    @property
    def end(self) -> int:
        """The step after the stage's last."""
        return self.first + self.steps


@dataclass(frozen=True)
class Spent:
    """Cumulative cost of training: steps, samples, tokens and FLOPs of forward and backward."""

    step: int
    samples: int
    tokens: int
    flops: int
    flops_body: int


@dataclass(frozen=True)
class Plan:
    """What will run. `batch` is in samples; `budget_steps` are the matched from-scratch run's steps at level 1."""

    name: str
    batch: int
    sequence: int
    tokens_per_sample: int
    budget_steps: int
    levels: tuple[Level, ...]
    stages: tuple[Stage, ...]

    @property
    def steps(self) -> int:
        """Steps of all stages together."""
        return self.stages[-1].end

    @property
    def budget_flops(self) -> int:
        """FLOPs of the matched from-scratch run."""
        return self.budget_steps * self.batch * self.levels[0].flops.total

    def level(self, number: int) -> Level:
        """Return a level by its number, from 1."""
        return self.levels[number - 1]

    def spent(self, step: int) -> Spent:
        """Return what training has cost after `step` steps."""
        done = [(self.level(s.level).flops, min(max(step - s.first, 0), s.steps)) for s in self.stages]
        samples = step * self.batch
        return Spent(
            step,
            samples,
            samples * self.tokens_per_sample,
            sum(f.total * n * self.batch for f, n in done),
            sum(f.body * n * self.batch for f, n in done),
        )

    def stage_cost(self, stage: Stage) -> Spent:
        """Return the cost of one stage alone."""
        before, after = self.spent(stage.first), self.spent(stage.end)
        return Spent(*(getattr(after, f) - getattr(before, f) for f in Spent.__dataclass_fields__))


def make(config: Config, sources: bool = True) -> Plan:
    """Return the plan of a configuration; UserError with every problem that can be known without reading data.

    Without `sources` the data's files need not exist.
    """
    problems = check.problems(config, sources)
    if problems:
        raise UserError(problems)
    settings, data = config.settings, config.data
    levels = _levels(config)
    budget = _budget_steps(config, levels[0])
    stages = _stages(config, levels, budget)
    tokens = config.model.tokens(data.sequence)
    plan = Plan(settings.cycle.name, settings.batch, data.sequence, tokens, budget, levels, stages)
    _refuse_overspending(plan)
    return plan


def _levels(config: Config) -> tuple[Level, ...]:
    model, levels = config.model, []
    sequence, targets = config.data.sequence, config.data.targets(config.model)
    deepest = max(row.level for row in config.settings.cycle.stages)
    for number in range(1, deepest + 1):
        resize = _coarser(config, model, number) if number < deepest else None
        parameters = parameter_count(model.params(), model.sizes())
        levels.append(Level(number, model, parameters, model.flops(sequence, targets), resize))
        model = model.resize(resize.coarse) if resize is not None else model
    return tuple(levels)


def _coarser(config: Config, model: Any, number: int) -> Resize:
    try:
        resize: Resize = config.coarsening.resize(model.sizes())
        problems = model.resize(resize.coarse).problems()
    except UserError as error:
        problems = error.problems
    if problems:
        raise UserError([f"level {number + 1}: {line}" for line in problems])
    return resize


def _rates(config: Config, level: Level, whole: int) -> Rates:
    batch, tokens = config.settings.batch, config.model.tokens(config.data.sequence)
    return Rates(batch, batch * tokens, batch * level.flops.total, whole)


def _budget_steps(config: Config, finest: Level) -> int:
    budget = parse(config.settings.budget)
    assert budget is not None
    steps = _rates(config, finest, 0).steps(budget)
    if steps < 1:
        raise UserError(mistake("budget", config.settings.budget, "at least one step", "raise it or lower batch"))
    return steps


def _stages(config: Config, levels: tuple[Level, ...], budget: int) -> tuple[Stage, ...]:
    cycle = config.settings.cycle
    stages: list[Stage] = []
    kept: set[int] = set()
    for i, (row, steps) in enumerate(zip(cycle.stages, _stage_steps(config, levels, budget), strict=True)):
        before = stages[-1] if stages else None
        scale = cycle.lr_scale[row.level - 1] if cycle.lr_scale else 1.0
        first = before.end if before is not None else 0
        stages.append(Stage(i, row.level, first, steps, scale, *_transfer(cycle, i, before, kept)))
    if stages[-1].end == 0:
        raise UserError(mistake("cycle.stages", "no step at all", "a sum of at least one step", "lengthen a stage"))
    return tuple(stages)


def _transfer(cycle: Cycle, i: int, before: Stage | None, kept: set[int]) -> tuple[str | None, float | None, bool]:
    """Return (transfer, alpha, blend) of stage `i`; `kept`, the levels that hold a model to blend with, is updated."""
    row = cycle.stages[i]
    if before is None or row.level == before.level:
        _refuse_alpha(row, i, None, "no decoalescing happens before this stage")
        return None, None, False
    if row.level > before.level:
        kept.add(before.level)
        _refuse_alpha(row, i, None, "no decoalescing happens before this stage")
        return "coalesce", None, False
    if row.level not in kept:
        _refuse_alpha(row, i, 1.0, f"level {row.level} was not trained before and has nothing to blend with")
        return "decoalesce", 1.0, False
    kept.remove(row.level)
    return "decoalesce", cycle.alpha if row.alpha is None else row.alpha, True


def _refuse_alpha(row: Row, i: int, only: float | None, reason: str) -> None:
    """Refuse an alpha that could have no effect."""
    if row.alpha is not None and row.alpha != only:
        allowed = "null" if only is None else f"{only:g}, null"
        raise UserError(mistake(f"cycle.stages.{i}.alpha", row.alpha, allowed, f"{reason}: remove alpha"))


def _stage_steps(config: Config, levels: tuple[Level, ...], budget: int) -> list[int]:
    """Return every stage's steps; `rest` takes the whole steps that the FLOPs left over pay for."""
    rows = [(levels[row.level - 1], parse(row.length)) for row in config.settings.cycle.stages]
    known = [
        None if length is None or length.unit == "rest" else _rates(config, level, budget).steps(length)
        for level, length in rows
    ]
    spent = sum(level.flops.total * n for (level, _), n in zip(rows, known, strict=True) if n is not None)
    rest = budget * levels[0].flops.total - spent
    counts = [rest // level.flops.total if n is None else n for (level, _), n in zip(rows, known, strict=True)]
    if min(counts) < 0:
        given = f"{spent / (budget * levels[0].flops.total):.0%} of the budget without the stage `rest`"
        raise UserError(mistake("cycle.stages", given, "at most 100%", "shorten the other stages"))
    return counts


def _refuse_overspending(plan: Plan) -> None:
    """A cycle may not spend more than its baseline, in FLOPs; half a step of rounding per stage is forgiven."""
    spent = plan.spent(plan.steps).flops
    rounding = sum(plan.batch * plan.level(s.level).flops.total for s in plan.stages) // 2
    if spent > plan.budget_flops + rounding:
        share = spent / plan.budget_flops
        lengths = ", ".join(f"{s.steps} steps at level {s.level}" for s in plan.stages)
        remedy = "shorten a stage, end with `rest`, or raise budget"
        raise UserError(mistake("cycle.stages", f"{lengths} ({share:.0%} of the budget)", "at most 100%", remedy))


def as_dict(plan: Plan) -> dict[str, Any]:
    """Return the plan as it stands in plan.json; costs are per stage unless named otherwise."""
    total = plan.spent(plan.steps)
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
        "stages": [_stage_dict(plan, stage) for stage in plan.stages],
        "totals": {
            "steps": total.step,
            "samples": total.samples,
            "tokens": total.tokens,
            "flops": total.flops,
            "flops_body": total.flops_body,
            "share": total.flops / plan.budget_flops,
        },
    }


def _level_dict(plan: Plan, level: Level) -> dict[str, Any]:
    return {
        "level": level.number,
        "sizes": dict(level.sizes),
        "parameters": level.parameters,
        "flops_per_sample": level.flops.total,
        "flops_per_sample_body": level.flops.body,
        "flops_per_token": level.flops.total / plan.tokens_per_sample,
        "cost_to_level_1": level.flops.total / plan.level(1).flops.total,
        "state_bytes": level.parameters * STATE_BYTES,
        "exact": None if level.resize is None else not level.inexact,
        "inexact_because": None if level.resize is None else level.inexact,
    }


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
        "lr_scale": stage.lr_scale,
        "first_step": stage.first,
        "steps": stage.steps,
        "samples": cost.samples,
        "tokens": cost.tokens,
        "flops": cost.flops,
        "flops_body": cost.flops_body,
        "share": cost.flops / plan.budget_flops,
    }


def hours(record: Mapping[str, Any], flops_per_second: float | None) -> float | None:
    """Return the predicted hours of a stage's record, None if no rate was measured."""
    return None if flops_per_second is None else record["flops"] / flops_per_second / 3600
