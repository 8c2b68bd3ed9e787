"""What a command does, by its `task`. Heavy imports wait inside, so that a plan needs no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mlrun import files
from mlrun.cli import device
from mlrun.cli.messages import Failed, first, print_error, print_once
from mlrun.config import Config, Hardware, build, load
from mlrun.errors import mistake
from mlrun.plan.make import make_plan
from mlrun.plan.record import as_dict
from mlrun.plan.stages import Plan
from mlrun.plan.table import show
from mlrun.units import human

STOPPED = 143  # 128 + SIGTERM, as a shell reports it


@dataclass(frozen=True)
class Task:
    """A row of the table of tasks, which is all that a new one adds; the help shows its name, needs and purpose.

    `needs` are keys that must be given. A planned task has a plan and a folder of its own, and is called with
    configuration, plan and folder; any other with settings and `run`, None if only the clock named it.
    """

    name: str
    does: Callable[..., None]
    help: str
    needs: tuple[str, ...] = ()
    planned: bool = False
    trains: bool = False  # reads the data, uses the device


def perform(settings: DictConfig, folder: Path | None, checked: tuple[Config, Plan] | None = None) -> None:
    """Do a task; what is planned here already need not be planned again."""
    task = TASKS[settings.task]
    if not task.planned:
        task.does(settings, folder)
        return
    config, plan = planned(settings) if checked is None else checked
    plan = device.settle(config, plan, folder)
    if config.settings.init is not None and folder is not None:
        from mlrun.interop.initial import charged

        plan = charged(plan, config.settings, folder)
    if first():
        show(as_dict(plan), config.settings.hardware.flops_per_second)
    task.does(config, plan, folder)


def planned(settings: DictConfig, shared: dict[tuple[str, str], Any] | None = None) -> tuple[Config, Plan]:
    """Return the checked configuration and its plan; UserError with all that is wrong."""
    config = load(settings, shared)
    return config, make_plan(config, sources=TASKS[settings.task].trains)


def missing(settings: DictConfig, own_run: bool) -> list[str]:
    """Return a line for each key that a task needs and that was not given; `run` is given if not by the clock."""
    task = TASKS[settings.task]
    absent = [key for key in task.needs if settings[key] is None or (key == "run" and not own_run)]
    return [mistake(key, "not given", "a folder", f"task={task.name} needs {key}=FOLDER") for key in absent]


def plan(config: Config, plan: Plan, folder: Path) -> None:
    """Write plan.json."""
    if first():
        files.write_json(folder / files.PLAN, as_dict(plan))
    print_once(f"written to {folder / files.PLAN}")


def train(config: Config, plan: Plan, folder: Path) -> None:
    """Run a plan, and say what came out."""
    from mlrun import run
    from mlrun.data.source import Broken
    from mlrun.train.loop import Diverged, Stopped
    from mlrun.train.parallel.processes import Lost
    from mlrun.train.pruning import Pruned

    try:
        summary = run.train(config, plan, folder)
    except Diverged as error:
        raise Failed(f"{error}; the loss diverged, lower optimizer.lr") from None
    except (Broken, Lost) as error:
        raise Failed(f"{error}; the same command with run={folder} goes on") from None
    except Pruned as error:
        print_once(f"pruned: {error}; with find.prune=null and run={folder} it goes on")
        return
    except Stopped as error:
        if first():
            print_error(f"mlrun: {error}; the same command with run={folder} goes on")
        raise SystemExit(STOPPED) from None
    print_once(outcome(summary, folder))


def outcome(summary: Mapping[str, Any], folder: Path) -> str:
    """Return a finished run in one line."""
    loss, ledger = summary["val_loss"], summary["ledger"]
    total, seconds = ledger["total"], round(ledger["seconds"]["training"])
    branches = ", branches included" if any("branch" in stage for stage in ledger["stages"]) else ""
    share = f"{total['share']:.1%} of the budget{branches}"
    spent = f"{human(total['flops'])}FLOPs ({share}), {timedelta(seconds=seconds)} of training"
    return f"held-out loss {'n/a' if loss is None else format(loss, '.4f')} | {spent} | {folder}"


def report(settings: DictConfig, folder: Path | None) -> None:
    """Compare the runs that `runs` names; the report goes to `run`, or beside them."""
    from mlrun.report.read import find

    runs = find(_paths(settings.runs))
    report_on(runs, Path(os.path.commonpath(runs)) / "report" if folder is None else folder)


def _paths(text: str) -> list[Path]:
    """Return the paths in a list with commas; where a name itself holds commas, the longest that exists."""
    parts, found = text.split(","), []
    while parts:
        names = [Path(",".join(parts[:count]).strip()).expanduser() for count in range(1, len(parts) + 1)]
        count = next((n for n in range(len(parts), 0, -1) if names[n - 1].exists()), 1)
        found.append(names[count - 1])
        parts = parts[count:]
    return found


def report_on(runs: list[Path], out: Path) -> None:
    """Write and print the comparison of runs."""
    from mlrun.report.build import build, render

    print_once(render(build(runs, out)))


def evaluate(settings: DictConfig, folder: Path) -> None:
    """Measure the model of a finished run on its held-out set, with the hardware and evaluations of this command."""
    wanted = OmegaConf.to_object(settings.hardware)
    assert isinstance(wanted, Hardware)
    hardware, _ = device.settled(wanted, None)
    evaluations = [build(node, f"evaluation.{name}") for name, node in settings.evaluation.items()]
    from mlrun.evaluate.finished import evaluate as evaluate_run

    found = evaluate_run(folder, hardware, evaluations)
    print_once(
        " | ".join(
            f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}" for key, value in found.items()
        )
    )


def export(settings: DictConfig, folder: Path) -> None:
    """Write a run's model as a Hugging Face folder."""
    from mlrun.interop.folders import export_hf

    export_hf(folder, target := path(settings, "target"))
    print_once(f"written to {target}")


def import_(settings: DictConfig, folder: Path | None) -> None:
    """Write a Hugging Face folder as a model folder of ours."""
    from mlrun.interop.folders import import_hf

    import_hf(path(settings, "source"), target := path(settings, "target"))
    print_once(f"written to {target}")


def coalesce(settings: DictConfig, folder: Path | None) -> None:
    """Write the next coarser level of a model folder."""
    from mlrun.convert import coalesce_folder

    coarsening = build(settings.coarsening, "coarsening")
    coalesce_folder(path(settings, "source"), target := path(settings, "target"), coarsening)
    print_once(f"written to {target}")


def decoalesce(settings: DictConfig, folder: Path | None) -> None:
    """Write the next finer level of a model folder."""
    from mlrun.convert import decoalesce_folder

    coarsening = build(settings.coarsening, "coarsening")
    fine = None if settings.fine is None else path(settings, "fine")
    decoalesce_folder(path(settings, "source"), target := path(settings, "target"), coarsening, fine)
    print_once(f"written to {target}")


def interpolate(settings: DictConfig, folder: Path | None) -> None:
    """Write the blend of two model folders."""
    from mlrun.convert import interpolate_folders

    kept, grown, target = (path(settings, key) for key in ("source", "grown", "target"))
    interpolate_folders(kept, grown, settings.cycle.alpha, target)
    print_once(f"written to {target}")


def path(settings: DictConfig, key: str) -> Path:
    """Return the folder that a key names."""
    return Path(settings[key]).expanduser()


_ROWS = (
    Task("train", train, "train a model; the default", planned=True, trains=True),
    Task("plan", plan, "print the plan of a training, and stop", planned=True),
    Task("report", report, "compare runs, finished or not", ("runs",)),
    Task("evaluate", evaluate, "a finished run's held-out loss", ("run",)),
    Task("export", export, "a run's model as a Hugging Face folder", ("run", "target")),
    Task("import", import_, "a Hugging Face folder as a model folder", ("source", "target")),
    Task("coalesce", coalesce, "the next coarser level of a model folder", ("source", "target")),
    Task("decoalesce", decoalesce, "the next finer level of a model folder", ("source", "target")),
    Task("interpolate", interpolate, "source= blended with the decoalesced grown=", ("source", "grown", "target")),
)
TASKS: Mapping[str, Task] = {task.name: task for task in _ROWS}
