"""Before any work: every configuration of a command line is planned, and its folder and its machine looked at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache

from mlrun import folder, plan
from mlrun.compose import Point
from mlrun.config import CHOICES, load
from mlrun.errors import UserError, mistake

# Tasks that make a plan and have a folder of their own; the others read the folders of finished runs.
PLANNED = ("train", "plan")


def check(points: Sequence[Point]) -> None:
    """Raise UserError with every problem of every configuration, each line once; writes nothing."""
    found: dict[str, list[str]] = {}
    for point in points:
        for line in problems(point):
            found.setdefault(line, []).append(point.label)
    if found:
        raise UserError([_told(line, labels, len(points)) for line, labels in found.items()])


def _told(line: str, labels: Sequence[str], total: int) -> str:
    if len(labels) == total:
        return line
    return f"{line} (in {len(labels)} of {total} runs, such as {labels[0]})"


def problems(point: Point) -> list[str]:
    """Return what is wrong with one configuration, a line each."""
    settings = point.settings
    if settings.task in CHOICES["task"] and settings.task not in PLANNED:
        return []
    training = settings.task == "train"
    try:
        config = load(settings)
        plan.make(config, sources=training)
    except UserError as error:
        return error.problems
    found = _run_problems(point) or folder.problems(point.folder, config.resolved)
    if training and point.here:
        found += device_problems(config.settings.hardware.device)
    return found


def _run_problems(point: Point) -> list[str]:
    """A folder named by the clock would be another one for each process."""
    if not point.own_run and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return [mistake("run", point.settings.run, "a folder given by name", "several processes share it: add run=...")]
    return []


@cache
def device_problems(device: str) -> list[str]:
    """Return a line if this machine has not the device; loads torch to look for a GPU."""
    if device != "cuda":
        return []
    import torch

    if torch.cuda.is_available():
        return []
    return [mistake("hardware.device", device, "cpu", "torch sees no GPU here; choose hardware=cpu")]
