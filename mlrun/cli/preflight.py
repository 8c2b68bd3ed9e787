"""Before any work: every configuration of a command line is planned, and its folder and its machine looked at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from mlrun.cli import capacity, initial, run_folder
from mlrun.cli.compose import Point
from mlrun.config import CHOICES, Config, load, reference_problems
from mlrun.errors import UserError, mistake
from mlrun.plan.make import make_plan
from mlrun.plan.stages import Plan

# Tasks that make a plan and have a folder of their own; the others read the folders of finished runs.
PLANNED = ("train", "plan")


def check(points: Sequence[Point]) -> None:
    """Raise UserError with every problem of every configuration, each line once; writes nothing."""
    found: dict[str, list[str]] = {}
    for point in points:
        for line in problems(point):
            found.setdefault(line, []).append(point.label)
    if found:
        raise UserError([_line(line, labels, len(points)) for line, labels in found.items()])
    if points[0].shares_machine:
        _room(points)


def _room(points: Sequence[Point]) -> None:
    """Raise UserError if this machine has no room for runs side by side."""
    launcher = points[0].launcher
    assert launcher is not None
    wanted = {point.settings.hardware.device for point in points if point.settings.task == "train"}
    capacity.shares(launcher.runs_at_a_time, launcher.processes_per_run, "cuda" if "cuda" in wanted else "cpu")


def _line(line: str, labels: Sequence[str], total: int) -> str:
    if len(labels) == total:
        return line
    return f"{line} (in {len(labels)} of {total} runs, such as {labels[0]})"


def problems(point: Point) -> list[str]:
    """Return what is wrong with one configuration, a line each."""
    settings = point.settings
    if settings.task in CHOICES["task"] and settings.task not in PLANNED:
        return reference_problems(settings)
    training = settings.task == "train"
    try:
        config = load(initial.completed(settings, point.overrides, point.model, point.folder))
        plan = make_plan(config, sources=training)
    except UserError as error:
        return error.problems
    found = _run_problems(point) or run_folder.problems(point.folder, config.resolved)
    if training and point.on_this_machine:
        found += device_problems(config.settings.hardware.device) + _cache_problems(config.settings.cache)
    return found + _init_problems(config, plan, point.folder)


def _cache_problems(cache: str) -> list[str]:
    """Prepared data needs a place, and the working folder is not one by accident."""
    if cache and run_folder.writable(Path(os.path.expanduser(cache))):
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
    if (run / "checkpoints").exists():
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
