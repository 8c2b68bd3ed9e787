"""Before any work: every configuration of a command line is planned, and its folder and its machine looked at."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from mlrun import files
from mlrun.cli import arguments, capacity, device, initial, run_folder, said, tasks
from mlrun.cli.points import Point
from mlrun.config.load import Config, reference_problems
from mlrun.errors import UserError, mistake, nearest
from mlrun.plan import unused
from mlrun.plan.stages import Plan
from mlrun.plan.unused import Idle, Said


@dataclass(frozen=True)
class Checked:
    """A point whose folder is settled, and its configuration and plan if its task has one.

    `given` is what the user gave for it, `idle` what of that does nothing.
    """

    point: Point
    planned: tuple[Config, Plan] | None = None
    given: Mapping[str, Said] = field(default_factory=dict)
    idle: Mapping[str, Idle] = field(default_factory=dict)


def check(points: Sequence[Point]) -> list[Checked]:
    """Return the points with their plans; UserError with every problem of all, each line once. Writes nothing."""
    found: dict[str, list[str]] = {}
    checked: list[Checked] = []
    shared: dict[tuple[str, str], Any] = {}
    for point in points:
        try:
            checked.append(_planned(point, shared))
        except UserError as error:
            _add(found, error.problems, point)
    for line, labels in _idle(checked).items():
        found.setdefault(line, []).extend(labels)
    if not found:
        checked = [_settled(one) for one in _placed(checked)]
        for one in checked:
            _add(found, _surroundings(one), one.point)
    if found:
        raise UserError([_line(line, labels, len(points)) for line, labels in found.items()])
    if points[0].shares_machine:
        _room(checked)
    return checked


def _add(found: dict[str, list[str]], lines: Sequence[str], point: Point) -> None:
    for line in lines:
        found.setdefault(line, []).append(point.label)


def _line(line: str, labels: Sequence[str], total: int) -> str:
    if len(labels) == total:
        return line
    return f"{line} (in {len(labels)} of {total} runs, such as {labels[0]})"


def _planned(point: Point, shared: dict[tuple[str, str], Any]) -> Checked:
    """Return a point with its plan; UserError with what is wrong in its settings."""
    settings = point.settings
    task = tasks.TASKS.get(settings.task)
    if task is None:
        known = list(tasks.TASKS)
        raise UserError(mistake("task", settings.task, ", ".join(known), f"choose one{nearest(settings.task, known)}"))
    strays = [] if reference_problems(settings) else arguments.stray(settings, said.words(point.said))
    if task.planned:
        if strays:
            raise UserError(strays)
        return _weighed(point, shared)
    place: list[str] = []
    if task.writes and point.own_run:
        reads_it = "run|source" in task.needs and settings.source is None
        place = run_folder.unwritable(point.folder) if reads_it else run_folder.foreign(point.folder)
    if problems := reference_problems(settings) or arguments.missing(settings, point.own_run) + strays or place:
        raise UserError(problems)
    if problems := arguments.wrong(settings):
        raise UserError(problems)
    return Checked(point)


def _weighed(point: Point, shared: dict[tuple[str, str], Any]) -> Checked:
    """Return a point with its plan, and what was given for it that does nothing."""
    completed = initial.completed(point.settings, point.said, point.model, point.folder)
    constant = point.constant if completed is point.settings else None
    config, plan = tasks.planned(completed, shared, constant)
    given = said.given(point.said, point.diffs)
    idle = said.idle(point.settings, config, plan, given)
    return Checked(point, (config, said.noted(plan, given, idle)), given, idle)


def _idle(checked: Sequence[Checked]) -> dict[str, list[str]]:
    """Return a line, with its runs, for each value given that does nothing in any run for which it was given.

    Runs of a sweep share what they are given: it is enough that one reads it. A run that has begun keeps what it began
    with.
    """
    if said.JUDGED in os.environ or _begun(checked):
        return {}
    idle = {key for one in checked for key, why in one.idle.items() if not why.shared}
    idle -= {key for one in checked for key in idle & one.given.keys() if key not in one.idle}
    found: dict[str, list[str]] = {}
    for one in checked:
        for key in idle & one.idle.keys():
            found.setdefault(unused.line(key, one.given[key], one.idle[key].why), []).append(one.point.label)
    return found


def _begun(checked: Sequence[Checked]) -> bool:
    """Return whether the run, or one of its sweep, has begun."""
    sweeps = {one.point.folder.parent for one in checked if one.point.overrides is not None}
    alone = [one.point.folder for one in checked if one.point.overrides is None]
    try:
        return any(any(place.glob(f"*/{files.CONFIG}")) for place in sweeps) or any(
            (place / files.CONFIG).exists() for place in alone
        )
    except OSError:  # a name that no folder can have, which is judged where folders are
        return False


def _placed(checked: list[Checked]) -> list[Checked]:
    """Return the points of a sweep in the folders that were begun with their configurations, or else in new ones."""
    wanted = [(one.point.folder, one.planned[0].resolved) for one in checked if one.planned is not None]
    if len(wanted) != len(checked) or checked[0].point.overrides is None:
        return checked
    names = run_folder.place(wanted)
    return [
        replace(one, point=replace(one.point, folder=one.point.folder.parent / name))
        for one, name in zip(checked, names, strict=True)
    ]


def _settled(one: Checked) -> Checked:
    """Return a point that runs on this machine with what `auto` means here; elsewhere the job finds out."""
    if one.planned is None or not one.point.on_this_machine:
        return one
    config, plan = one.planned
    return replace(one, planned=(config, device.settle(config, plan, one.point.folder)))


def _surroundings(one: Checked) -> list[str]:
    """Return what is wrong with the folder and the machine, a line each; the configuration learns its folder."""
    if one.planned is None:
        return []
    point, (config, plan) = one.point, one.planned
    if point.overrides is not None:
        config.settings.run = config.resolved["run"] = str(run_folder.short(point.folder))
    found = _run_problems(point) or run_folder.problems(point.folder, config.resolved)
    if tasks.TASKS[config.settings.task].trains and point.on_this_machine:
        found += device_problems(config.settings.hardware.device) + _cache_problems(config.settings.cache)
    return found + _init_problems(config, plan, point.folder)


def _room(checked: Sequence[Checked]) -> None:
    """Raise UserError if this machine has no room for runs side by side."""
    launcher = checked[0].point.launcher
    assert launcher is not None
    planned = [one.planned[0].settings for one in checked if one.planned is not None]
    wanted = {settings.hardware.device for settings in planned if tasks.TASKS[settings.task].trains}
    capacity.shares(launcher.runs_at_a_time, launcher.processes_per_run, "cuda" if "cuda" in wanted else "cpu")


def _cache_problems(cache: str) -> list[str]:
    """Prepared data needs a place, and the working folder is not one by accident."""
    with suppress(UserError):  # of a home that is not known
        if cache and run_folder.writable(files.expanded(cache)):
            return []
    return [mistake("cache", cache, "a folder that can be written", "choose another cache=..., such as ~/.cache/mlrun")]


def _run_problems(point: Point) -> list[str]:
    """A folder named by the clock would be another one for each process."""
    if not point.own_run and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return [mistake("run", point.settings.run, "a folder given by name", "several processes share it: add run=...")]
    return []


def _init_problems(config: Config, plan: Plan, run: Path) -> list[str]:
    """Only a run that begins reads `init`."""
    init, flops = config.settings.init, config.settings.init_flops
    if init is None:
        remedy = "it says what the model in init=... had cost"
        return [] if flops is None else [mistake("init_flops", flops, "null without init", remedy)]
    if (run / files.CHECKPOINTS).exists():
        return []
    from mlrun.interop.initial import problems as unfit

    try:
        return unfit(init, plan.level(plan.stages[0].level).model, flops)
    except UserError as error:
        return error.problems


@cache
def device_problems(device: str) -> list[str]:
    """Return a line if this machine has not the device; loads torch to look for a GPU."""
    if device != "cuda":
        return []
    import torch

    if torch.cuda.is_available():
        return []
    return [mistake("hardware.device", device, "cpu", "torch sees no GPU here; choose hardware=cpu")]
