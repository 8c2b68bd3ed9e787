"""The cycle worked out before anything runs: levels, stages, steps, tokens, FLOPs. Pure maths, no torch.

`make_plan` finds every mistake that can be known without data or a GPU, and raises them all at once.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

from mlrun.config.load import Config
from mlrun.config.settings import Cycle, Row
from mlrun.errors import UserError, mistake
from mlrun.models import parametrization
from mlrun.models.axes import DEPTH, Resize, parameter_count
from mlrun.models.layers import Flops, Stack
from mlrun.plan import auto, branches, check, check_auto, schedule
from mlrun.plan.fade import Fade, fading
from mlrun.plan.stages import Level, Plan, Samples, Stage
from mlrun.units import parse

# More steps than any machine will take; Python cannot count much further in a range.
MOST_STEPS = 10**15
# The share of a step's FLOPs from which an optimizer's own work is told.
MUCH = 0.1


def make_plan(config: Config, sources: bool = True, decisions: Sequence[auto.Decision] = ()) -> Plan:
    """Return the plan of a configuration; UserError with every problem that can be known without reading data.

    Without `sources` the data's files need not exist. `decisions` are what a run has decided so far about stages of
    length `auto` (see `mlrun/plan/auto.py`).
    """
    problems = check.problems(config, sources)
    if config.settings.cycle.stages:
        problems += check_auto.problems(config)
    if problems:
        raise UserError(problems)
    settings, data = config.settings, config.data
    levels = _levels(config)
    budget = _budget_steps(config, levels[0])
    tokens = config.model.tokens(data.sequence)
    names = auto.names(settings.cycle.auto.probe) if settings.cycle.auto is not None else ()

    def trunk(steps: Mapping[int, int]) -> Plan:
        stages = _stages(config, levels, budget, steps)
        return Plan(settings.cycle.name, settings.batch, data.sequence, tokens, budget, levels, stages, probes=names)

    plan = auto.settled(config, trunk, decisions)
    _refuse_overspending(plan)
    warmups = schedule.short_warmups(plan, config.optimizer, settings.cycle.lr_policy)
    remarks = _remarks(config, plan) + _own_work(plan)
    notes = _recipe(settings.recipe) + warmups + _left_out(config, plan.stages) + remarks
    found, lacking = branches.stages(config, plan)
    return replace(plan, stages=(*plan.stages, *found), notes=tuple(notes), lacking=tuple(lacking))


def _remarks(config: Config, plan: Plan) -> list[str]:
    """Return what the growing methods say of themselves with these settings."""
    resizes = [plan.pair(stage).resize for stage in plan.stages if stage.transfer == "decoalesce"]
    methods = config.probes or (config.growth,)
    lines = (
        line for one in methods for resize in resizes if resize is not None for line in one.remarks(config, resize)
    )
    return list(dict.fromkeys(lines))


def _own_work(plan: Plan) -> list[str]:
    """Return a line where the optimizer's own products are much of a step: they are charged, and grow with no batch."""
    level = plan.level(1)
    share = level.update_flops / level.step_flops(plan.batch)
    if share < MUCH:
        return []
    return [f"{share:.0%} of a step's FLOPs at level 1 are the optimizer's own; at a larger batch they are less of it"]


def _recipe(recipe: str | None) -> list[str]:
    """Return where the ways come from that nobody gave."""
    return [] if recipe is None else [f"recipe {recipe}; what you, a scale or an experiment say comes first"]


def _levels(config: Config) -> tuple[Level, ...]:
    model, levels = config.model, []
    whole = _samples(config)
    deepest = max(row.level for row in config.settings.cycle.stages)
    for number in range(1, deepest + 1):
        resize = _coarser(config, model, number) if number < deepest else None
        parameters = parameter_count(model.params(), model.sizes())
        inexact = () if resize is None else tuple(config.growth.inexact(resize, _post_norm(model)))
        state, update = config.optimizer.state_bytes(model), _update_flops(config, model)
        flops = _model_flops(model, whole)
        turns = () if resize is None else config.coarsening.turns(model.sizes())
        levels.append(
            Level(number, model, parameters, flops, resize, inexact, state, update, turns, _rates(config, model))
        )
        model = model.resize(resize.coarse) if resize is not None else model
    return tuple(levels)


def _rates(config: Config, model: Any) -> tuple[Mapping[str, Any], ...]:
    if model.parametrization == parametrization.STANDARD:
        return ()
    return tuple(parametrization.rates(model.params(), model.sizes(), config.optimizer.rate))


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


def _samples(config: Config, row: Row | None = None) -> Samples:
    """Return what a step of a row of the cycle reads; None is the matched from-scratch run."""
    settings, data, model = config.settings, config.data, config.model
    batch = settings.batch if row is None or row.batch is None else row.batch
    sequence = data.sequence if row is None or row.sequence is None else row.sequence
    whole = sequence == data.sequence
    targets = (data if whole else replace(data, sequence=sequence)).targets(model)
    pieces = 1 if whole else data.sequences(model)[sequence]
    return Samples(sequence, targets, batch, model.tokens(sequence), pieces)


def _budget_steps(config: Config, finest: Level) -> int:
    budget = parse(config.settings.budget)
    assert budget is not None
    steps = _samples(config).rates(finest.step_flops(config.settings.batch), 0).steps(budget)
    if steps < 1:
        raise UserError(mistake("budget", config.settings.budget, "at least one step", "raise it or lower batch"))
    if steps > MOST_STEPS:
        raise UserError(mistake("budget", config.settings.budget, f"at most {MOST_STEPS:.0e} steps", "lower it"))
    return steps


def _stages(config: Config, levels: tuple[Level, ...], budget: int, steps: Mapping[int, int]) -> tuple[Stage, ...]:
    """Return the stages of the trunk and their probes; `steps` are those of the rows of length `auto`."""
    cycle = config.settings.cycle
    kept: set[int] = set()
    transfers = [_transfer(cycle, i, kept) for i in range(len(cycle.stages))]
    _refuse_growth(config, levels, [kind for kind, _ in transfers])
    drafts = []
    for i, (row, (transfer, alpha)) in enumerate(zip(cycle.stages, transfers, strict=True)):
        level, samples = levels[row.level - 1], _samples(config, row)
        scale = cycle.lr_scale[row.level - 1] if cycle.lr_scale else 1.0
        draft = Stage(i, row.level, samples, *_cost(config, level, transfer, samples), scale, transfer, alpha)
        draft = replace(draft, turn=_turn(cycle, [kind for kind, _ in transfers], i))
        drafts.append(replace(draft, fade=_fade(config, level, draft), update_flops=level.update_flops))
    probes = [_probe_steps(config, draft, budget) for draft in drafts]
    counts = _stage_steps(config, levels[0], drafts, budget, steps, probes)
    stages = _in_turn(config, drafts, counts, probes)
    if stages[-1].end == 0:
        raise UserError(mistake("cycle.stages", "no step at all", "a sum of at least one step", "lengthen a stage"))
    return stages


def _in_turn(
    config: Config, drafts: Sequence[Stage], counts: Sequence[int], probes: Sequence[int]
) -> tuple[Stage, ...]:
    """Return the stages of so many steps each, one after the other in steps, data and layer dropout.

    `probes` are the steps of each probe before a stage, 0 where none come before it.
    """
    stages: list[Stage] = []
    for draft, steps, tried in zip(drafts, counts, probes, strict=True):
        stage = replace(draft, index=len(stages), steps=steps)
        if stages:
            first, before = stages[-1].end, stages[-1]
            origin = None if before.origin is None else before.place(first)
            stage = replace(stage, first=first, begins=before.cursor(first), origin=origin)
        stages += _probed(config, stage, tried)
    spans = [schedule.span(config.settings.cycle.lr_policy, stage, stages[-1]) for stage in stages]
    return tuple(
        stage if stage.fade is None else replace(stage, fade=stage.fade.over(*span))
        for stage, span in zip(stages, spans, strict=True)
    )


def _fade(config: Config, level: Level, stage: Stage) -> Fade | None:
    """Return the layer dropout of a stage, None without; UserError where it cannot be charged by what it leaves out."""
    rate, samples = config.settings.cycle.layer_dropout, stage.samples
    if rate == 0:
        return None
    if stage.step_flops != (level.model.flops(samples.sequence, samples.targets),):
        growth = type(config.growth).__name__
        remedy = f"{growth} changes what stage {stage.index + 1} trains; choose another growth"
        raise UserError(mistake("cycle.layer_dropout", rate, "0", remedy))
    seed = config.settings.seed, stage.index
    fade = fading(level.model, rate, samples.sequence, samples.targets, samples.batch, *seed)
    if level.number == 1 and not any(fade.rates):
        remedy = "the first block is never left out, and level 1 has no other"
        raise UserError(mistake("cycle.layer_dropout", rate, "0", remedy))
    return fade


def _left_out(config: Config, stages: tuple[Stage, ...]) -> list[str]:
    """Return a line on what layer dropout spares."""
    rate = config.settings.cycle.layer_dropout
    if rate == 0:
        return []
    full = sum(s.samples.batch * step.total * s.steps for s in stages for step in s.step_flops)
    spent = sum(s.flops(s.steps).total - s.entry_flops.total - s.update_flops * s.steps for s in stages)
    spared = f"{1 - spent / full:.1%} of the FLOPs of its steps"
    return [f"layers are left out, the last for {rate:.3g} of the samples and less and less: spares {spared}"]


def _probed(config: Config, stage: Stage, steps: int) -> list[Stage]:
    """Return the probes before a stage, one after the other and each from where they begin, then the stage."""
    if steps == 0:
        return [stage]
    place = stage.place(stage.first)
    probe = replace(stage, steps=steps, start=stage.first, origin=place)
    found = [
        replace(probe, index=stage.index + n, first=stage.first + n * steps, probe=n) for n in range(len(config.probes))
    ]
    last = found[-1]
    after = replace(stage, index=last.index + 1, first=last.end, begins=last.cursor(last.end), origin=place + steps)
    return [*found, replace(after, entry_flops=Flops(0, 0), transfer=None, alpha=None)]


def _probe_steps(config: Config, draft: Stage, budget: int) -> int:
    """Return the steps of each probe before the stage of a row; 0 where none come before it."""
    cycle, row = config.settings.cycle, draft.index
    if cycle.auto is None or not config.probes or row == 0 or cycle.stages[row - 1].length != auto.AUTO:
        return 0
    length = parse(cycle.auto.probe_length)
    assert length is not None
    return max(1, draft.rates(budget).steps(length))


Cost = tuple[tuple[Flops, ...], Flops]


def _cost(config: Config, level: Level, transfer: str | None, samples: Samples) -> Cost:
    """Return the FLOPs per sample of a stage's steps, in turn, and what entering it costs."""
    model, growth = level.model, config.growth
    if transfer != "decoalesce":
        return (_model_flops(model, samples),), Flops(0, 0)
    steps, entry = growth.step_flops(model, level.resize, samples), growth.entry_flops(model, level.resize, samples)
    name = type(growth).__name__
    if not steps:
        raise UserError(mistake("growth", f"() from {name}.step_flops", "at least one", "correct what it returns"))
    costs = tuple(_possible(one, "growth", f"{name}.step_flops", 1) for one in steps)
    return costs, _possible(entry, "growth", f"{name}.entry_flops", 0)


def _model_flops(model: Any, samples: Samples) -> Flops:
    """Return the FLOPs per sample of a step of plain training."""
    told = model.flops(samples.sequence, samples.targets)
    return _possible(told, "model", f"{type(model).__name__}.flops", 1)


def _update_flops(config: Config, model: Any) -> int:
    """Return the FLOPs of the optimizer's own products in a step."""
    told = Flops(config.optimizer.update_flops(model), 0)
    return _possible(told, "optimizer", f"{type(config.optimizer).__name__}.update_flops", 0).body


def _possible(told: Flops, group: str, where: str, least: int) -> Flops:
    """Return the FLOPs that a class tells; UserError for what no work can cost."""
    numbers = (told.body, told.head)
    # 0 <= nan is false; a numpy integer is fine, and becomes one of Python.
    if not all(isinstance(one, Real) and 0 <= one < math.inf and one == int(one) for one in numbers):
        given, allowed = f"{told} from {where}", "whole numbers of at least 0"
        raise UserError(mistake(group, given, allowed, "correct what it returns"))
    if told.total < least:
        raise UserError(mistake(group, f"{told} from {where}", f"at least {least} FLOP", "correct what it returns"))
    return Flops(int(told.body), int(told.head))


def _refuse_growth(config: Config, levels: tuple[Level, ...], transfers: list[str | None]) -> None:
    """Raise UserError for what the growing method cannot do in this cycle, all lines at once."""
    cycle = config.settings.cycle
    rows = list(zip(cycle.stages, transfers, strict=True))
    problems = config.growth.policy_problems(config) if "decoalesce" in transfers else []
    up = {(row.level, _turn(cycle, transfers, i)) for i, (row, kind) in enumerate(rows) if kind == "decoalesce"}
    for number, turn in sorted(up):
        level = levels[number - 1].at(turn)
        assert level.resize is not None
        problems += config.growth.size_problems(level.model, level.resize)
        problems += check_auto.probe_problems(config, level)
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


def _turn(cycle: Cycle, transfers: Sequence[str | None], i: int) -> int:
    """Return at which coming down to its level, from 0, the coarse model of the transfer into stage `i` was made."""
    coarse = cycle.stages[i].level + (transfers[i] == "decoalesce")
    rows = zip(cycle.stages[: i + 1], transfers, strict=False)
    return max(sum(row.level == coarse and kind == "coalesce" for row, kind in rows) - 1, 0)


def _refuse_alpha(row: Row, i: int, only: float | None, reason: str) -> None:
    """Refuse an alpha that could have no effect."""
    if row.alpha is not None and row.alpha != only:
        allowed = "null" if only is None else f"{only:g}, null"
        raise UserError(mistake(f"cycle.stages.{i}.alpha", row.alpha, allowed, f"{reason}: remove alpha"))


def _stage_steps(
    config: Config,
    finest: Level,
    drafts: Sequence[Stage],
    budget: int,
    decided: Mapping[int, int],
    probes: Sequence[int],
) -> list[int]:
    """Return the steps of every row's stage; `rest` takes the whole steps that the FLOPs left over pay for.

    `decided` are those of rows of length `auto`, `probes` those of each probe before the stage.
    """
    scratch = _samples(config)
    counts: list[int] = []
    for row, draft in zip(config.settings.cycle.stages, drafts, strict=True):
        length, own = parse(row.length), draft.samples
        if length is None:
            counts.append(decided[draft.index])
            continue
        whole = budget * (scratch.batch * scratch.tokens) / (own.batch * own.tokens)
        counts.append(0 if length.unit == "rest" else draft.rates(whole).steps(length))
    lengths = [row.length for row in config.settings.cycle.stages]
    if "rest" in lengths:
        at = lengths.index("rest")
        counts[at] = _rest(config, drafts, counts, probes, at, budget * finest.step_flops(scratch.batch))
    if max(counts) > MOST_STEPS:
        raise UserError(mistake("cycle.stages", f"{max(counts):.0e} steps", f"at most {MOST_STEPS:.0e}", "shorten it"))
    return counts


def _rest(
    config: Config, drafts: Sequence[Stage], counts: Sequence[int], probes: Sequence[int], at: int, whole: int
) -> int:
    """Return the most steps of stage `at` with which all stages cost at most `whole` FLOPs.

    What layer dropout spares follows from the length of the schedule, and so from the answer: it is found by bisection.
    """

    def cost(steps: int) -> int:
        stages = _in_turn(config, drafts, [*counts[:at], steps, *counts[at + 1 :]], probes)
        return sum(stage.flops(stage.steps).total for stage in stages)

    if (spent := cost(0)) > whole:
        given = f"{spent / whole:.0%} of the budget without the stage `rest`"
        raise UserError(mistake("cycle.stages", given, "at most 100%", "shorten the other stages"))
    spared = [0.0 if draft.fade is None else draft.samples.batch * draft.fade.most for draft in drafts]
    left = whole - spent + sum(per_step * steps for per_step, steps in zip(spared, counts, strict=True))
    most = int(left / (drafts[at].flops_of_a_step - spared[at])) + 2
    return bisect_right(range(1, min(most, 10 * MOST_STEPS)), whole, key=cost)


def _refuse_overspending(plan: Plan) -> None:
    """A cycle may not spend more than its baseline, in FLOPs; half a step of rounding per stage is forgiven."""
    spent = plan.total.flops
    rounding = sum(s.flops_of_a_step for s in plan.stages) // 2
    if spent > plan.budget_flops + rounding:
        share = spent / plan.budget_flops
        lengths = ", ".join(f"{s.steps} steps at level {s.level}" for s in plan.stages)
        remedy = "shorten a stage, end with `rest`, or raise budget"
        raise UserError(mistake("cycle.stages", f"{lengths} ({share:.0%} of the budget)", "at most 100%", remedy))
