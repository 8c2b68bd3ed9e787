"""The plan for people: one table of levels, one of stages."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from mlrun.models.axes import RESIZED
from mlrun.plan.calibration import PURPOSES, Costs, Prediction
from mlrun.plan.record import predicted_seconds
from mlrun.units import duration, human

# Columns that a file or a pipe is given, where no terminal says how many there are.
WIDTH = 160
ROOMY = 100  # columns of a terminal with two of them between two numbers


def show(
    plan: Mapping[str, Any],
    flops_per_second: float | None,
    stream: TextIO | None = None,
    predicted: Prediction | None = None,
) -> None:
    """Print a plan as it stands in plan.json, with what it should take where this machine was measured."""
    stream = sys.stdout if stream is None else stream
    width = None if stream.isatty() else WIDTH
    console = Console(file=stream, width=width, highlight=False, markup=False, soft_wrap=False)
    console.print(headline(plan))
    gap = 2 if console.width >= ROOMY else 1
    _print(console, levels(plan), gap)
    for line in notes(plan):
        console.print(line)
    for line in prediction_notes(predicted):
        console.print(line)
    _print(console, stages(plan, flops_per_second, predicted), gap)


def _print(console: Console, table: Table, gap: int) -> None:
    table.padding = (0, gap, 0, 0)
    console.print(table)


def headline(plan: Mapping[str, Any]) -> str:
    """Return the budget and what of it is spent, in a sentence."""
    budget, batch, tokens = plan["budget"], plan["batch"], plan["tokens_per_step"]
    branches = [stage["share"] for stage in plan["stages"] if "branch" in stage]
    spent = f"{plan['totals']['share'] - sum(branches):.1%}"
    if branches:
        spent += f" and for {len(branches)} more endings {sum(branches):.1%}"
    return (
        f"{plan['name']}: {spent} of a budget of {human(budget['tokens'])} tokens"
        f" = {human(budget['flops'])}FLOPs = {budget['steps']} steps at level 1"
        f" ({batch} samples, {tokens} tokens a step)"
    )


def levels(plan: Mapping[str, Any]) -> Table:
    """Return the table of model sizes; `way up` says whether decoalescing into the level keeps its function."""
    axes = [axis for axis in RESIZED if axis in plan["levels"][0]["sizes"]]
    names = ["level", *axes, "parameters", "FLOPs/token", "cost to level 1", "state", "way up"]
    return _table(names, [_level(level, axes) for level in plan["levels"]])


def _level(level: Mapping[str, Any], axes: Sequence[str]) -> list[str]:
    exact = {None: "", True: "exact", False: "not exact"}[level["exact"]]
    return [
        str(level["level"]),
        *(str(level["sizes"][axis]) for axis in axes),
        human(level["parameters"]),
        human(level["flops_per_token"]),
        f"{level['cost_to_level_1']:.4f}",
        f"{human(level['state_bytes'])}B",
        exact,
    ]


def notes(plan: Mapping[str, Any]) -> list[str]:
    """Return where the weights come from, what endings are lacking, why a transfer up is not exact, and other notes."""
    return (
        _start(plan)
        + [f"  {note}" for note in [*_open(plan), *plan.get("notes", [])]]
        + [f"  no ending at {ending['point']}: {ending['why']}" for ending in plan.get("lacking", [])]
        + [f"  level {level['level']}: {_rates(level)}" for level in plan["levels"] if "rates" in level]
        + [
            f"  from level {level['level'] + 1} to {level['level']} not exact: {why}"
            for level in plan["levels"]
            for why in level["inexact_because"] or []
        ]
    )


def _rates(level: Mapping[str, Any]) -> str:
    """Return the factors on a level's learning rate by kind of tensor, in words."""
    moved = [f"{group['rate']:.4g} {group['kind']}" for group in level["rates"] if group["rate"] != 1]
    return f"{level['parametrization']}: lr x {'; '.join([*moved, '1 the rest' if moved else '1'])}"


def _start(plan: Mapping[str, Any]) -> list[str]:
    if (source := plan.get("source")) is None:
        return []
    if source["flops"] is None:
        return [
            f"  starts from {source['name']}: what that had cost is unknown, so no saving can be told (init_flops=...)"
        ]
    whose = ", as init_flops says" if source["declared"] else ""
    return [f"  starts from {source['name']}, which had cost {human(source['flops'])}FLOPs{whose}"]


def prediction_notes(predicted: Prediction | None) -> list[str]:
    """Return what times and memory follow from, and what a run takes beside its training."""
    if predicted is None:
        return []
    total, by = predicted.total, predicted.calibration
    parts = ", ".join(f"{key} {duration(getattr(total, key))}" for key in PURPOSES)
    known = "time" if total.bytes is None else "time and memory"
    beyond = "; extrapolated: beyond the sizes that were measured" if total.beyond else ""
    return [
        f"  {known} by the calibration of {by.time[:10]} ({by.name}, {_where(by.machine)}){beyond}",
        f"  whole run {duration(predicted.whole)}: {parts}",
    ]


def _open(plan: Mapping[str, Any]) -> list[str]:
    """Return between which steps the stage ends that is decided next; what follows is planned for the latest."""
    found, last = [], [stage for stage in plan["stages"] if "branch" not in stage][-1]
    for stage in (stage for stage in plan["stages"] if "latest_end" in stage):
        when = f"stage {stage['stage'] + 1} ends between step {stage['earliest_end']} and {stage['latest_end']}"
        most = stage["last_stage_steps_if_earliest"]
        rest = "" if most is None else f", and the last stage has {last['steps']} to {most} steps"
        found.append(f"{when}{rest}, as the run decides on its way; shown is the latest end")
    return found


def _where(machine: Mapping[str, Any]) -> str:
    return f"{machine['gpu'] or machine['processor']} on {machine['host']}"


def stages(plan: Mapping[str, Any], flops_per_second: float | None, predicted: Prediction | None = None) -> Table:
    """Return the table of stages, with the sum of all; times of training, and peak memory, need a measurement.

    A given rate (`flops_per_second`) comes before a calibration.
    Batch and sequence have columns where a stage has others than the run.
    """
    own = [key for key in ("batch", "sequence") if any(stage[key] != plan[key] for stage in plan["stages"])]
    costs = ["steps", "tokens", "FLOPs", "of budget", "time", "memory"]
    names = ["stage", "level", "begins with", "alpha", *own, *costs, "lr x"]
    expected: Sequence[Costs | None] = [None] * len(plan["stages"]) if predicted is None else predicted.stages
    rows = [
        _stage(stage, own, _cost(stage, flops_per_second, cost))
        for stage, cost in zip(plan["stages"], expected, strict=True)
    ]
    empty, total = [""] * (3 + len(own)), None if predicted is None else predicted.total
    return _table(names, [*rows, ["all", *empty, *_cost(plan["totals"], flops_per_second, total), ""]])


def _stage(stage: Mapping[str, Any], own: Sequence[str], cost: Sequence[str]) -> list[str]:
    return [
        str(stage["stage"] + 1),
        str(stage["level"]),
        _begins(stage),
        "" if stage["alpha"] is None else f"{stage['alpha']:g}",
        *(str(stage[key]) for key in own),
        *cost,
        f"{stage['lr_scale']:g}",
    ]


def _begins(stage: Mapping[str, Any]) -> str:
    """Return what a stage begins with: a transfer, or the trunk as it was where a branch forks."""
    if "branch" in stage:
        return f"fork at step {stage['fork']}, ends at {100 * stage['branch']:.4g}%"
    if "probe" in stage:
        told = {None: "", True: ", kept", False: ", not kept"}[stage["kept"]]
        return f"probe: {stage['probe']}{told}"
    turn = f", turn {stage['turn'] + 1}" if "turn" in stage else ""
    return f"{stage['transfer'] or ''}{turn}"


def _cost(record: Mapping[str, Any], flops_per_second: float | None, costs: Costs | None) -> list[str]:
    """Return steps, tokens, FLOPs, share of the budget, predicted time and peak memory of a stage or of all."""
    seconds = predicted_seconds(record, flops_per_second)
    if seconds is None and costs is not None:
        seconds = costs.training
    peak = None if costs is None else costs.bytes
    most = "up to " if "latest_end" in record else ""
    return [
        f"{most}{record['steps']}",
        human(record["tokens"]),
        human(record["flops"]),
        f"{record['share']:.1%}",
        duration(seconds),
        "n/a" if peak is None else f"{human(peak)}B",
    ]


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table whose words wrap on a narrow terminal, and whose numbers are never cut."""
    table = Table(box=None, pad_edge=False, show_edge=False)
    for number, name in enumerate(names):
        words = name in ("way up", "begins with")
        longest = max(len(word) for cell in (name, *(row[number] for row in rows)) for word in cell.split() or [""])
        table.add_column(name, justify="left" if words else "right", min_width=longest)
    for row in rows:
        table.add_row(*row)
    return table
