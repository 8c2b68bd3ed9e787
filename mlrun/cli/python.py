"""What Python asks for, by the words of the command line: checked by the same code, with mistakes as exceptions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlrun.cli import command, points, preflight, run_folder
from mlrun.config.load import Config
from mlrun.errors import UserError, mistake
from mlrun.plan.stages import Plan


def plan(overrides: Sequence[str] = ()) -> Plan:
    """Return the plan of one training: sizes, parameters, steps, tokens and FLOPs by stage. Needs no torch.

    Args:
        overrides: what a command line says, such as `["model=gpt_micro", "budget=20 steps"]`.

    Raises:
        UserError: with every mistake in them, a line each. Nothing is written.
    """
    return _checked(overrides, "plan")[1]


def run(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Train, or go on where the folder `run=...` has it, and return what its summary.json says.

    Args:
        overrides: what a command line says, such as `["cycle=2level", "run=outputs/a"]`.

    Raises:
        UserError: with every mistake in them, before anything is written; or the folder or the data cannot serve.
        mlrun.train.divergence.Diverged: the loss is no longer finite.
        mlrun.data.source.Broken, mlrun.train.signals.Stopped, mlrun.train.pruning.Pruned: it ended before its time; the
            same call goes on.
    """
    config, planned, folder = _checked(overrides, "train")
    from mlrun.run import train
    from mlrun.train.signals import Signals, Stopped

    summary = train(config, planned, folder)
    if Signals.unheeded:  # a loop over runs must end too
        raise Stopped(f"a signal came when the run in {folder} had ended; the same call returns what it gave")
    return summary


def _checked(overrides: Sequence[str], task: str) -> tuple[Config, Plan, Path]:
    """Return the configuration, its plan and its folder; UserError for all that is wrong, as on the command line."""
    if isinstance(overrides, str):
        raise UserError(mistake("overrides", overrides, "a list of KEY=VALUE", "give each in quotes of its own"))
    problems = [f"{text}: allowed: KEY=VALUE; flags are of the command line" for text in overrides if text[:1] == "-"]
    if named := [text for text in overrides if text.partition("=")[0] == "task"]:
        problems += [f"{text}: allowed: no task; call the function of that name" for text in named]
    if problems:
        raise UserError(problems)
    found = points.of(command.read([*overrides, f"task={task}"]))
    if len(found) > 1 or found[0].launcher is not None:
        raise UserError("a sweep or a job of a cluster: allowed: one run on this machine; start it by the command line")
    folder = run_folder.short(found[0].folder.absolute())
    found[0].settings.run = str(folder)
    (checked,) = preflight.check(found)
    assert checked.planned is not None, "both tasks are planned"
    return *checked.planned, folder
