"""The cycle worked out before anything runs: levels, stages, steps, tokens, FLOPs. Pure maths, no torch.

`make` finds every mistake that can be known without data or a GPU, and raises them all at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlrun import check
from mlrun.axes import Resize, Sizes, depth_axis, parameter_count
from mlrun.config import Config, Cycle, Row
from mlrun.errors import UserError, mistake
from mlrun.layers import Flops
from mlrun.units import ALLOWED, Length, Rates, parse

# float32 weight, gradient and Adam's two moments.
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


def make(config: Config) -> Plan:
    """Return the plan of a configuration; UserError with every problem that can be known without data."""
    problems = check.problems(config)
    if problems:
        raise UserError(problems)
    levels = _levels(config)
    budget = _budget_steps(config, levels[0])
    stages = _stages(config, levels, budget)
    sample_tokens = config.model.tokens(config.data.sequence)
    plan = Plan(
        config.settings.cycle.name,
        config.settings.batch,
        config.data.sequence,
        sample_tokens,
        budget,
        levels,
        stages,
    )
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
    counts = _stage_steps(config, levels, budget)
    stages: list[Stage] = []
    kept: set[int] = set()
    for i, (row, steps) in enumerate(zip(cycle.stages, counts, strict=True)):
        before = stages[-1] if stages else None
        scale = cycle.lr_scale[row.level - 1] if cycle.lr_scale else 1.0
        first = before.end if before else 0
        stages.append(Stage(i, row.level, first, steps, scale, *_transfer(cycle, i, row, before, kept)))
    if stages[-1].end == 0:
        raise UserError(mistake("cycle.stages", "no step at all", "a sum of at least one step", "lengthen a stage"))
    return tuple(stages)


def _transfer(
    cycle: Cycle, i: int, row: Row, before: Stage | None, kept: set[int]
) -> tuple[str | None, float | None, bool]:
    """Return how stage `i` begins; `kept` is the set of levels that hold a model to blend with, and is updated."""
    if before is not None and row.level > before.level:
        kept.add(before.level)
        return "coalesce", None, False
    if before is not None and row.level < before.level:
        blend = row.level in kept
        kept.discard(row.level)
        alpha = (cycle.alpha if row.alpha is None else row.alpha) if blend else 1.0
        if row.alpha is not None and row.alpha != alpha:
            remedy = f"level {row.level} was never trained before: nothing to blend with, remove alpha"
            raise UserError(mistake(f"cycle.stages.{i}.alpha", row.alpha, "1 or null", remedy))
        return "decoalesce", alpha, blend
    if row.alpha is not None:
        remedy = "no decoalescing happens before this stage, remove alpha"
        raise UserError(mistake(f"cycle.stages.{i}.alpha", row.alpha, "null", remedy))
    return None, None, False


def _stage_steps(config: Config, levels: tuple[Level, ...], budget: int) -> list[int]:
    rows = config.settings.cycle.stages
    lengths = [parse(row.length) for row in rows]
    known = [_steps_of(config, levels[r.level - 1], n, budget) for r, n in zip(rows, lengths, strict=True) if n]
    rest = budget * levels[0].flops.total - sum(
        levels[r.level - 1].flops.total * n for r, n in zip(rows, known, strict=True) if n is not None
    )
    counts = [n if n is not None else rest // levels[r.level - 1].flops.total for r, n in zip(rows, known, strict=True)]
    if min(counts) < 0:
        remedy = "shorten the other stages"
        raise UserError(mistake("cycle.stages", "rest", "stages that leave FLOPs of the budget over", remedy))
    return counts


def _steps_of(config: Config, level: Level, length: Length, budget: int) -> int | None:
    return None if length.unit == "rest" else _rates(config, level, budget).steps(length)


def _refuse_overspending(plan: Plan) -> None:
    """A cycle may not spend more than its baseline, in FLOPs; half a step of rounding per stage is forgiven."""
    spent = plan.spent(plan.steps).flops
    rounding = sum(plan.batch * plan.level(s.level).flops.total for s in plan.stages)
    if spent > plan.budget_flops + rounding:
        share = spent / plan.budget_flops
        lengths = ", ".join(f"{s.steps} steps at level {s.level}" for s in plan.stages)
        remedy = "shorten a stage, end with `rest`, or raise budget"
        raise UserError(mistake("cycle.stages", f"{lengths} ({share:.0%} of the budget)", "at most 100%", remedy))


def exact_axes(resize: Resize) -> tuple[bool, list[str]]:
    """Return whether decoalescing keeps the function exactly, and the reasons why not.

    Copies of the width keep it if all groups of an axis have one size (norms weigh units equally); copies in depth
    do not, as x + f(x) becomes about x + 2 f(x).
    """
    uneven = [f"{axis}: groups of unequal size" for axis, m in resize.merges.items() if not m.even]
    depth = [f"{axis}: copies in depth" for axis in resize.merges if axis in DEPTH_AXES]
    return not (uneven or depth), uneven + depth


DEPTH_AXES = ("layer", "decoder_layer")


def depth_axes(model: Any) -> set[str]:
    """Return the axes of a model that its parameters' names run over."""
    return {axis for axis in map(depth_axis, model.params()) if axis is not None}


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
        "exact": None if level.resize is None else exact_axes(level.resize)[0],
        "inexact_because": None if level.resize is None else exact_axes(level.resize)[1],
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
