"""What a command does, by its `task`. Heavy imports wait inside, so that a plan needs no torch."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

# compose registers what a job's folder is resolved with, wherever a launcher unpickles `job`.
from mlrun.cli import compose, initial
from mlrun.config import Config, Hardware, build, load
from mlrun.errors import UserError, mistake
from mlrun.plan.make import make_plan
from mlrun.plan.record import as_dict
from mlrun.plan.stages import Plan
from mlrun.plan.table import show
from mlrun.train.parallel import environment
from mlrun.units import human

ERROR = "error.txt"
STOPPED = 143  # 128 + SIGTERM, as a shell reports it


class Failed(Exception):
    """A run came to an end that is nobody's mistake, told in one line."""


def first() -> bool:
    """Return whether this is the one process of a run that prints and writes."""
    return environment.process().rank == 0


def print_once(text: str) -> None:
    """Print, on one process only."""
    if first():
        print(text, flush=True)


def print_error(text: str) -> None:
    """Print to standard error, on every process: what is wrong may be wrong on one alone."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def user_errors(everywhere: bool = False) -> Iterator[None]:
    """Turn the user's mistakes into lines and exit code 2, a failed run into a line and 1.

    What all processes find is printed by one; `everywhere` is for what a single one may find.
    """
    try:
        yield
    except (UserError, Failed) as error:
        for line in str(error).splitlines() if everywhere or first() else ():
            print_error(f"mlrun: {line}")
        raise SystemExit(2 if isinstance(error, UserError) else 1) from None


def job(settings: DictConfig) -> None:
    """Run one task in the folder that Hydra made for it; in a sweep a failure is written down, and the next starts."""
    hydra = HydraConfig.get()
    folder = _short(Path(hydra.runtime.output_dir))
    settings.run = str(folder)
    given = hydra.overrides.task, hydra.runtime.choices.get("model")
    if hydra.mode != RunMode.MULTIRUN:
        with user_errors(everywhere=True):
            TASKS[settings.task](initial.completed(settings, *given, folder), folder)
        return
    print_once(f"\n-- run {hydra.job.num}: {folder}")
    note = folder / ERROR
    note.unlink(missing_ok=True)
    try:
        TASKS[settings.task](initial.completed(settings, *given, folder), folder)
    except (UserError, Failed) as error:
        _note(note, "".join(f"mlrun: {line}\n" for line in str(error).splitlines()))
    except Exception:
        _note(note, traceback.format_exc())


def _note(note: Path, text: str) -> None:
    print_error(text.rstrip())
    if first():
        note.write_text(text)


def _short(folder: Path) -> Path:
    """Return the folder as seen from the working folder, if it is below."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def _planned(settings: DictConfig, folder: Path, sources: bool) -> tuple[Config, Plan]:
    """Return the configuration and its plan, printed."""
    config = load(settings)
    plan = make_plan(config, sources)
    if config.settings.init is not None:
        from mlrun.interop.initial import charged

        plan = charged(plan, config.settings, folder)
    if first():
        show(as_dict(plan), config.settings.hardware.flops_per_second)
    return config, plan


def plan(settings: DictConfig, folder: Path | None) -> None:
    """Print the plan and write plan.json."""
    assert folder is not None
    _, planned = _planned(settings, folder, sources=False)
    if first():
        (folder / "plan.json").write_text(json.dumps(as_dict(planned), indent=2) + "\n")
    print_once(f"written to {folder / 'plan.json'}")


def train(settings: DictConfig, folder: Path | None) -> None:
    """Print the plan, run it, and say what came out."""
    assert folder is not None
    config, planned = _planned(settings, folder, sources=True)
    from mlrun import run
    from mlrun.data.shuffled_blocks import Broken
    from mlrun.train.loop import Diverged, Stopped

    try:
        summary = run.train(config, planned, folder)
    except Diverged as error:
        raise Failed(f"{error}; the loss diverged, lower optimizer.lr") from None
    except Broken as error:
        raise Failed(f"{error}; the same command with run={folder} goes on") from None
    except Stopped as error:
        if first():
            print_error(f"mlrun: {error}; the same command with run={folder} goes on")
        raise SystemExit(STOPPED) from None
    print_once(_outcome(summary, folder))


def _outcome(summary: Mapping[str, Any], folder: Path) -> str:
    loss, ledger = summary["val_loss"], summary["ledger"]
    total, seconds = ledger["total"], round(ledger["seconds"]["training"])
    branches = ", branches included" if any("branch" in stage for stage in ledger["stages"]) else ""
    share = f"{total['share']:.1%} of the budget{branches}"
    spent = f"{human(total['flops'])}FLOPs ({share}), {timedelta(seconds=seconds)} of training"
    return f"held-out loss {'n/a' if loss is None else format(loss, '.4f')} | {spent} | {folder}"


def report(settings: DictConfig, folder: Path | None) -> None:
    """Compare the runs that `runs` names; the report goes to `run`, or beside them."""
    if not settings.runs:
        raise UserError(
            mistake("runs", settings.runs, "run folders, separated by commas", "add runs=outputs/a,outputs/b")
        )
    from mlrun.report.read import find

    runs = find([Path(name.strip()).expanduser() for name in settings.runs.split(",")])
    _report(runs, Path(os.path.commonpath(runs)) / "report" if folder is None else folder)


def _report(runs: list[Path], out: Path) -> None:
    from mlrun.report.build import build, render

    print_once(render(build(runs, out)))


def evaluate(settings: DictConfig, folder: Path | None) -> None:
    """Measure the model of a finished run on its held-out set, with the hardware of this command line."""
    run, hardware = given(settings, folder), OmegaConf.to_object(settings.hardware)
    assert isinstance(hardware, Hardware)
    from mlrun.evaluate import evaluate as evaluate_run

    found = evaluate_run(run, hardware)
    print_once(
        " | ".join(
            f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}" for key, value in found.items()
        )
    )


def given(settings: DictConfig, folder: Path | None) -> Path:
    """Return the run folder that a task reads; UserError if it was not given."""
    if folder is None:
        raise UserError(
            mistake("run", "not given", "the folder of a run", f"task={settings.task} needs run=outputs/NAME")
        )
    return folder


def export(settings: DictConfig, folder: Path | None) -> None:
    """Write a run's model as a Hugging Face folder."""
    from mlrun.interop.folders import export_hf

    export_hf(given(settings, folder), target := place(settings, "target"))
    print_once(f"written to {target}")


def import_(settings: DictConfig, folder: Path | None) -> None:
    """Write a Hugging Face folder as a model folder of ours."""
    from mlrun.interop.folders import import_hf

    import_hf(place(settings, "source"), target := place(settings, "target"))
    print_once(f"written to {target}")


def coalesce(settings: DictConfig, folder: Path | None) -> None:
    """Write the next coarser level of a model folder."""
    from mlrun.convert import coalesce_folder

    coarsening = build(settings.coarsening, "coarsening")
    coalesce_folder(place(settings, "source"), target := place(settings, "target"), coarsening)
    print_once(f"written to {target}")


def decoalesce(settings: DictConfig, folder: Path | None) -> None:
    """Write the next finer level of a model folder."""
    from mlrun.convert import decoalesce_folder

    coarsening = build(settings.coarsening, "coarsening")
    fine = None if settings.fine is None else Path(settings.fine)
    decoalesce_folder(place(settings, "source"), target := place(settings, "target"), coarsening, fine)
    print_once(f"written to {target}")


def interpolate(settings: DictConfig, folder: Path | None) -> None:
    """Write the blend of two model folders."""
    from mlrun.convert import interpolate_folders

    kept, grown, target = (place(settings, key) for key in ("source", "grown", "target"))
    interpolate_folders(kept, grown, settings.cycle.alpha, target)
    print_once(f"written to {target}")


def place(settings: DictConfig, key: str) -> Path:
    """Return the folder that a task needs; UserError if it was not given."""
    if settings[key] is None:
        raise UserError(mistake(key, "not given", "a folder", f"task={settings.task} needs {key}=..."))
    return Path(settings[key]).expanduser()


# What each `task` does, given the settings and `run`, which is None if only the clock named it.
TASKS: Mapping[str, Callable[[DictConfig, Path | None], None]] = {
    "train": train,
    "plan": plan,
    "report": report,
    "evaluate": evaluate,
    "export": export,
    "import": import_,
    "coalesce": coalesce,
    "decoalesce": decoalesce,
    "interpolate": interpolate,
}


def perform(point: compose.Point) -> None:
    """Do a task that needs no folder of its own."""
    TASKS[point.settings.task](point.settings, Path(point.settings.run) if point.own_run else None)


class AfterSweep(Callback):
    """Ends a sweep: the comparison of its runs, then the names of those that failed and exit code 1."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Hydra would swallow an exception here, so it is told and becomes an exit code."""
        folder = _short(Path(config.hydra.sweep.dir).absolute())
        with user_errors(), _ours():
            if config.task == "train" and any(folder.glob("*/log.jsonl")):
                print_once(f"\n-- report of {folder}")
                if first():
                    _report([folder], folder / "report")
            failed = sorted(str(note.parent) for note in folder.glob(f"*/{ERROR}"))
            if failed:
                raise Failed(f"{len(failed)} of the sweep's runs failed: {', '.join(failed)}")


@contextlib.contextmanager
def _ours() -> Iterator[None]:
    """Show a bug of ours in full, with exit code 1."""
    try:
        yield
    except (UserError, Failed):
        raise
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
