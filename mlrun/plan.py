"""The cycle worked out before anything runs: levels, stages, steps, tokens, FLOPs. Pure maths, no torch.

`make` finds every mistake that can be known without data or a GPU, and raises them all at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlrun import branches, check
from mlrun.coarsening.base import DEPTH
from mlrun.config import Config, Cycle, Row
from mlrun.errors import UserError, mistake
from mlrun.growth.base import Samples
from mlrun.models.axes import Resize, Sizes, parameter_count
from mlrun.models.layers import Flops, Stack
from mlrun.units import Rates, parse

# A float32 weight, its gradient and Adam's two moments, in bytes.
STATE_BYTES = 16
# More steps than any machine will take; Python cannot count much further in a range.
MOST_STEPS = 10**15


@dataclass(frozen=True)
class Level:
    """One model size; level 1 is the model you want. `resize` leads to the next coarser level, if there is one.

    `inexact` says why growing into this level changes the function, one line each; empty if it does not.
    """

    number: int
    model: Any
    parameters: int
    flops: Flops
    resize: Resize | None = None
    inexact: tuple[str, ...] = ()

    @property
    def sizes(self) -> Sizes:
        """Axis sizes of this level's model."""
        return dict(self.model.sizes())


@dataclass(frozen=True)
class Stage:
    """One stretch of training at one level: steps `first` to `first + steps`, after `transfer` from the level before.

    `alpha` is the share of the decoalesced weights: 1 where no model was kept to blend with; None without a blend.
    `turns` are the FLOPs per sample of its steps, which come in turn (mostly there is one); `entry` is what the
    growing into the stage cost by itself.

    A branch (`cycle.branches`) goes on from the state that the run had after step `fork`, with the samples that came
    next there; `ending` is the share of the budget at which it ends. Both are None for the stages of the trunk.
    """

    index: int
    level: int
    first: int
    steps: int
    turns: tuple[Flops, ...]
    entry: Flops
    lr_scale: float
    transfer: str | None = None
    alpha: float | None = None
    blend: bool = False
    fork: int | None = None
    ending: float | None = None

    @property
    def end(self) -> int:
        """The step after the stage's last."""
        return self.first + self.steps

    @property
    def step_flops(self) -> int:
        """FLOPs per sample of a step, the mean over the turns."""
        return sum(turn.total for turn in self.turns) // len(self.turns)

    def cursor(self, step: int) -> int:
        """Return how many batches lie before that of `step`: a branch reads what the trunk reads after the fork."""
        return step if self.fork is None else self.fork + step - self.first

    def flops(self, steps: int, batch: int) -> Flops:
        """Return the FLOPs of entering the stage and taking `steps` steps."""
        taken = [len(range(turn, steps, len(self.turns))) * batch for turn in range(len(self.turns))]
        body = sum(n * turn.body for n, turn in zip(taken, self.turns, strict=True))
        head = sum(n * turn.head for n, turn in zip(taken, self.turns, strict=True))
        return Flops(self.entry.body + body, self.entry.head + head)


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
    """What will run: the cycle's stages (the trunk), then its branches.

    `batch` is in samples; `budget_steps` are the matched from-scratch run's steps at level 1.
    """

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
    def trunk(self) -> tuple[Stage, ...]:
        """The stages of the cycle, which lead to the final model."""
        return tuple(stage for stage in self.stages if stage.fork is None)

    @property
    def forks(self) -> frozenset[int]:
        """The steps of the trunk after which branches fork."""
        return frozenset(stage.fork for stage in self.stages if stage.fork is not None)

    def last(self, stage: Stage) -> Stage:
        """Return the last stage of the run that `stage` belongs to: for a branch the trunk's, ended as the branch."""
        trunk = self.trunk[-1]
        return trunk if stage.fork is None else replace(trunk, steps=stage.fork + stage.steps - trunk.first)

    @property
    def budget_flops(self) -> int:
        """FLOPs of the matched from-scratch run."""
        return self.budget_steps * self.batch * self.levels[0].flops.total

    def level(self, number: int) -> Level:
        """Return a level by its number, from 1."""
        return self.levels[number - 1]

    def spent(self, step: int, stage: int | None = None) -> Spent:
        """Return what training has cost after `step` steps.

        `stage` is the stage that the run is in, entered at its own cost; None is the one that took the last step.
        """
        if stage is None:
            stage = max((s.index for s in self.stages if s.first < step), default=-1)
        entered = self.stages[: stage + 1]
        done = [s.flops(min(max(step - s.first, 0), s.steps), self.batch) for s in entered]
        samples = step * self.batch
        body, total = sum(f.body for f in done), sum(f.total for f in done)
        return Spent(step, samples, samples * self.tokens_per_sample, total, body)

    def own(self, stage: Stage, step: int) -> Spent:
        """Return what a run would have cost that ends at `step` of a branch: the trunk up to the fork, and the rest."""
        assert stage.fork is not None
        shared, trunk = self.spent(stage.fork, self.trunk[-1].index), self.spent(stage.first, stage.index - 1)
        now = self.spent(step, stage.index)
        names = Spent.__dataclass_fields__
        return Spent(*(getattr(shared, f) + getattr(now, f) - getattr(trunk, f) for f in names))

    @property
    def total(self) -> Spent:
        """What all stages cost."""
        return self.spent(self.steps, len(self.stages) - 1)

    def stage_cost(self, stage: Stage) -> Spent:
        """Return the cost of one stage alone."""
        before, after = self.spent(stage.first, stage.index - 1), self.spent(stage.end, stage.index)
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
    return replace(plan, stages=(*stages, *branches.stages(settings, plan)))


def _levels(config: Config) -> tuple[Level, ...]:
    model, levels = config.model, []
    sequence, targets = config.data.sequence, config.data.targets(config.model)
    deepest = max(row.level for row in config.settings.cycle.stages)
    for number in range(1, deepest + 1):
        resize = _coarser(config, model, number) if number < deepest else None
        parameters = parameter_count(model.params(), model.sizes())
        inexact = () if resize is None else tuple(config.growth.inexact(resize, _post_norm(model)))
        levels.append(Level(number, model, parameters, model.flops(sequence, targets), resize, inexact))
        model = model.resize(resize.coarse) if resize is not None else model
    return tuple(levels)


def _post_norm(model: Any) -> bool:
    return any(isinstance(part, Stack) and part.block.post for part in model.parts().values())


def _coarser(config: Config, model: Any, number: int) -> Resize:
    try:
        resize: Resize = config.coarsening.resize(model.sizes())
        # A coarser level may have no layers (progressive training); level 1 may not.
        judged = {axis: max(size, 1) if axis in DEPTH else size for axis, size in resize.coarse.items()}
        problems = model.resize(judged).problems()
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
    if steps > MOST_STEPS:
        raise UserError(mistake("budget", config.settings.budget, f"at most {MOST_STEPS:.0e} steps", "lower it"))
    return steps


def _stages(config: Config, levels: tuple[Level, ...], budget: int) -> tuple[Stage, ...]:
    cycle = config.settings.cycle
    kept: set[int] = set()
    ways = [_transfer(cycle, i, kept) for i in range(len(cycle.stages))]
    _refuse_growth(config, levels, [way[0] for way in ways])
    bills = [_bill(config, levels[row.level - 1], way[0]) for row, way in zip(cycle.stages, ways, strict=True)]
    stages: list[Stage] = []
    for i, steps in enumerate(_stage_steps(config, levels[0], bills, budget)):
        level = cycle.stages[i].level
        scale = cycle.lr_scale[level - 1] if cycle.lr_scale else 1.0
        first = stages[-1].end if stages else 0
        (turns, entry), (way, alpha, blend) = bills[i], ways[i]
        stages.append(Stage(i, level, first, steps, turns, entry, scale, way, alpha, blend))
    if stages[-1].end == 0:
        raise UserError(mistake("cycle.stages", "no step at all", "a sum of at least one step", "lengthen a stage"))
    return tuple(stages)


Bill = tuple[tuple[Flops, ...], Flops]


def _bill(config: Config, level: Level, way: str | None) -> Bill:
    """Return the FLOPs per sample of a stage's steps, in turn, and what entering it costs."""
    if way != "decoalesce":
        return (level.flops,), Flops(0, 0)
    data, model = config.data, level.model
    samples = Samples(data.sequence, data.targets(config.model), config.settings.batch)
    return config.growth.turns(model, level.resize, samples), config.growth.entry(model, level.resize, samples)


def _refuse_growth(config: Config, levels: tuple[Level, ...], ways: list[str | None]) -> None:
    """Raise UserError for what the growing method cannot do in this cycle, all lines at once."""
    rows = list(zip(config.settings.cycle.stages, ways, strict=True))
    problems = config.growth.unfit(config.settings) if "decoalesce" in ways else []
    for level in sorted({row.level for row, way in rows if way == "decoalesce"}):
        model, resize = levels[level - 1].model, levels[level - 1].resize
        assert resize is not None
        problems += config.growth.problems(model, resize, config.settings)
    down = {row.level for row, way in rows if way == "coalesce"}
    empty = [n for n in down if 0 in levels[n - 1].sizes.values()]
    problems += [
        mistake(f"level {n}", "no layers", "at least one layer", "nothing coalesces into it: begin there")
        for n in empty
    ]
    if problems:
        raise UserError(dict.fromkeys(problems))


def _transfer(cycle: Cycle, i: int, kept: set[int]) -> tuple[str | None, float | None, bool]:
    """Return (transfer, alpha, blend) of stage `i`; `kept`, the levels that hold a model to blend with, is updated."""
    row, before = cycle.stages[i], cycle.stages[i - 1] if i > 0 else None
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


def _stage_steps(config: Config, finest: Level, bills: list[Bill], budget: int) -> list[int]:
    """Return every stage's steps; `rest` takes the whole steps that the FLOPs left over pay for."""
    batch, tokens = config.settings.batch, config.model.tokens(config.data.sequence)
    per_sample = [sum(turn.total for turn in turns) // len(turns) for turns, _ in bills]
    known: list[int | None] = []
    for row, flops in zip(config.settings.cycle.stages, per_sample, strict=True):
        length = parse(row.length)
        rates = Rates(batch, batch * tokens, batch * flops, budget)
        known.append(None if length is None or length.unit == "rest" else rates.steps(length))
    whole = budget * batch * finest.flops.total
    spent = sum(entry.total for _, entry in bills)
    spent += sum(batch * flops * n for flops, n in zip(per_sample, known, strict=True) if n is not None)
    counts = [(whole - spent) // (batch * f) if n is None else n for f, n in zip(per_sample, known, strict=True)]
    if min(counts) < 0:
        given = f"{spent / whole:.0%} of the budget without the stage `rest`"
        raise UserError(mistake("cycle.stages", given, "at most 100%", "shorten the other stages"))
    if max(counts) > MOST_STEPS:
        raise UserError(mistake("cycle.stages", f"{max(counts):.0e} steps", f"at most {MOST_STEPS:.0e}", "shorten it"))
    return counts


def _refuse_overspending(plan: Plan) -> None:
    """A cycle may not spend more than its baseline, in FLOPs; half a step of rounding per stage is forgiven."""
    spent = plan.total.flops
    rounding = sum(plan.batch * s.step_flops for s in plan.stages) // 2
    if spent > plan.budget_flops + rounding:
        share = spent / plan.budget_flops
        lengths = ", ".join(f"{s.steps} steps at level {s.level}" for s in plan.stages)
        remedy = "shorten a stage, end with `rest`, or raise budget"
        raise UserError(mistake("cycle.stages", f"{lengths} ({share:.0%} of the budget)", "at most 100%", remedy))


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
        "inexact_because": None if level.resize is None else list(level.inexact),
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
        "entry_flops": stage.entry.total,
        "lr_scale": stage.lr_scale,
        "first_step": stage.first,
        "steps": stage.steps,
        "samples": cost.samples,
        "tokens": cost.tokens,
        "flops": cost.flops,
        "flops_body": cost.flops_body,
        "share": cost.flops / plan.budget_flops,
        **({} if stage.fork is None else {"fork": stage.fork, "branch": stage.ending}),
    }


def hours(record: Mapping[str, Any], flops_per_second: float | None) -> float | None:
    """Return the predicted hours of a stage's record, None if no rate was measured."""
    return None if flops_per_second is None else record["flops"] / flops_per_second / 3600
