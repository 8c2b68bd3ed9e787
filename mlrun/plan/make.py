"""The cycle worked out before anything runs: levels, stages, steps, tokens, FLOPs. Pure maths, no torch.

`make_plan` finds every mistake that can be known without data or a GPU, and raises them all at once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mlrun.config import Config, Cycle, Row
from mlrun.errors import UserError, mistake
from mlrun.models.axes import DEPTH, Resize, parameter_count
from mlrun.models.layers import Flops, Stack
from mlrun.plan import branches, check, schedule
from mlrun.plan.stages import Level, Plan, Samples, Stage
from mlrun.units import Rates, parse

# More steps than any machine will take; Python cannot count much further in a range.
MOST_STEPS = 10**15


def make_plan(config: Config, sources: bool = True) -> Plan:
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
    notes = schedule.short_warmups(plan, config.optimizer, settings.cycle.lr_policy)
    found, lacking = branches.stages(config, plan)
    return replace(plan, stages=(*stages, *found), notes=tuple(notes), lacking=tuple(lacking))


def _levels(config: Config) -> tuple[Level, ...]:
    model, levels = config.model, []
    sequence, targets = config.data.sequence, config.data.targets(config.model)
    deepest = max(row.level for row in config.settings.cycle.stages)
    for number in range(1, deepest + 1):
        resize = _coarser(config, model, number) if number < deepest else None
        parameters = parameter_count(model.params(), model.sizes())
        inexact = () if resize is None else tuple(config.growth.inexact(resize, _post_norm(model)))
        state = config.optimizer.state_bytes(model)
        levels.append(Level(number, model, parameters, model.flops(sequence, targets), resize, inexact, state))
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


def _rates(config: Config, flops: int, whole: int) -> Rates:
    """Return what `Plan.rates` does, before there is a plan."""
    batch, tokens = config.settings.batch, config.model.tokens(config.data.sequence)
    return Rates(batch, batch * tokens, batch * flops, whole)


def _budget_steps(config: Config, finest: Level) -> int:
    budget = parse(config.settings.budget)
    assert budget is not None
    steps = _rates(config, finest.flops.total, 0).steps(budget)
    if steps < 1:
        raise UserError(mistake("budget", config.settings.budget, "at least one step", "raise it or lower batch"))
    if steps > MOST_STEPS:
        raise UserError(mistake("budget", config.settings.budget, f"at most {MOST_STEPS:.0e} steps", "lower it"))
    return steps


def _stages(config: Config, levels: tuple[Level, ...], budget: int) -> tuple[Stage, ...]:
    cycle = config.settings.cycle
    kept: set[int] = set()
    transfers = [_transfer(cycle, i, kept) for i in range(len(cycle.stages))]
    _refuse_growth(config, levels, [kind for kind, _ in transfers])
    costs = [_cost(config, levels[row.level - 1], kind) for row, (kind, _) in zip(cycle.stages, transfers, strict=True)]
    stages: list[Stage] = []
    for i, steps in enumerate(_stage_steps(config, levels[0], costs, budget)):
        level = cycle.stages[i].level
        scale = cycle.lr_scale[level - 1] if cycle.lr_scale else 1.0
        first = stages[-1].end if stages else 0
        (step_flops, entry_flops), (transfer, alpha) = costs[i], transfers[i]
        stages.append(Stage(i, level, first, steps, step_flops, entry_flops, scale, transfer, alpha))
    if stages[-1].end == 0:
        raise UserError(mistake("cycle.stages", "no step at all", "a sum of at least one step", "lengthen a stage"))
    return tuple(stages)


Cost = tuple[tuple[Flops, ...], Flops]


def _cost(config: Config, level: Level, transfer: str | None) -> Cost:
    """Return the FLOPs per sample of a stage's steps, in turn, and what entering it costs."""
    if transfer != "decoalesce":
        return (level.flops,), Flops(0, 0)
    data, model = config.data, level.model
    samples = Samples(data.sequence, data.targets(config.model), config.settings.batch)
    return config.growth.step_flops(model, level.resize, samples), config.growth.entry_flops(
        model, level.resize, samples
    )


def _refuse_growth(config: Config, levels: tuple[Level, ...], transfers: list[str | None]) -> None:
    """Raise UserError for what the growing method cannot do in this cycle, all lines at once."""
    rows = list(zip(config.settings.cycle.stages, transfers, strict=True))
    problems = config.growth.policy_problems(config) if "decoalesce" in transfers else []
    for level in sorted({row.level for row, transfer in rows if transfer == "decoalesce"}):
        model, resize = levels[level - 1].model, levels[level - 1].resize
        assert resize is not None
        problems += config.growth.size_problems(model, resize)
    down = {row.level for row, transfer in rows if transfer == "coalesce"}
    empty = [n for n in down if 0 in levels[n - 1].sizes.values()]
    problems += [
        mistake(f"level {n}", "no layers", "at least one layer", "nothing coalesces into it: begin there")
        for n in empty
    ]
    if problems:
        raise UserError(dict.fromkeys(problems))


def _transfer(cycle: Cycle, i: int, kept: set[int]) -> tuple[str | None, float | None]:
    """Return (transfer, alpha) of stage `i`; `kept`, the levels that hold a model to blend with, is updated."""
    row, before = cycle.stages[i], cycle.stages[i - 1] if i > 0 else None
    if before is None or row.level == before.level:
        _refuse_alpha(row, i, None, "no decoalescing happens before this stage")
        return None, None
    if row.level > before.level:
        kept.add(before.level)
        _refuse_alpha(row, i, None, "no decoalescing happens before this stage")
        return "coalesce", None
    if row.level not in kept:
        _refuse_alpha(row, i, 1.0, f"level {row.level} was not trained before and has nothing to blend with")
        return "decoalesce", 1.0
    kept.remove(row.level)
    return "decoalesce", cycle.alpha if row.alpha is None else row.alpha


def _refuse_alpha(row: Row, i: int, only: float | None, reason: str) -> None:
    """Refuse an alpha that could have no effect."""
    if row.alpha is not None and row.alpha != only:
        allowed = "null" if only is None else f"{only:g}, null"
        raise UserError(mistake(f"cycle.stages.{i}.alpha", row.alpha, allowed, f"{reason}: remove alpha"))


def _stage_steps(config: Config, finest: Level, costs: list[Cost], budget: int) -> list[int]:
    """Return every stage's steps; `rest` takes the whole steps that the FLOPs left over pay for."""
    batch = config.settings.batch
    per_sample = [sum(f.total for f in step_flops) // len(step_flops) for step_flops, _ in costs]
    known: list[int | None] = []
    for row, flops in zip(config.settings.cycle.stages, per_sample, strict=True):
        length = parse(row.length)
        assert length is not None
        known.append(None if length.unit == "rest" else _rates(config, flops, budget).steps(length))
    whole = budget * batch * finest.flops.total
    spent = sum(entry_flops.total for _, entry_flops in costs)
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
    rounding = sum(plan.batch * s.mean_step_flops for s in plan.stages) // 2
    if spent > plan.budget_flops + rounding:
        share = spent / plan.budget_flops
        lengths = ", ".join(f"{s.steps} steps at level {s.level}" for s in plan.stages)
        remedy = "shorten a stage, end with `rest`, or raise budget"
        raise UserError(mistake("cycle.stages", f"{lengths} ({share:.0%} of the budget)", "at most 100%", remedy))
