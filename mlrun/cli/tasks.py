"""What a command does, by its `task`. Heavy imports wait inside, so that a plan needs no torch."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mlrun import files
from mlrun.cli import calibrated, device, said
from mlrun.cli.messages import Failed, first, print_error, print_once
from mlrun.config.choices import build
from mlrun.config.load import Config, load
from mlrun.config.settings import Hardware, Sample
from mlrun.errors import UserError, mistake
from mlrun.evaluate.base import untold
from mlrun.plan import alone, check
from mlrun.plan.calibration import Calibration
from mlrun.plan.make import make_plan
from mlrun.plan.record import as_dict
from mlrun.plan.stages import Plan
from mlrun.plan.table import show
from mlrun.units import human

STOPPED = 143  # 128 + SIGTERM, as a shell reports it
# What a model needs of `hardware` to be asked.
MACHINE = ("hardware.device", "hardware.precision", "hardware.threads")


@dataclass(frozen=True)
class Task:
    """A row of the table of tasks, which is all that a new one adds; the help shows its name, needs and purpose.

    `needs` are keys that must be given; of `a|b` one must. It `takes` these others. `settings` are those of a training
    that it reads too, `beside_source` those that it reads where `source` is given. A planned task reads all of them: it
    has a plan and a folder of its own, and is called with configuration, plan and folder; any other with settings and
    `run`, None if only the clock named it.
    """

    name: str
    does: Callable[..., None]
    help: str
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    beside_source: tuple[str, ...] = ()
    planned: bool = False
    trains: bool = False  # reads the data, uses the device
    writes: bool = False  # into `run`, where that is given, and has no plan

    @property
    def reads(self) -> tuple[str, ...]:
        """The keys that it needs or takes."""
        return (*(key for need in self.needs for key in need.split("|")), *self.takes)


def perform(
    settings: DictConfig,
    folder: Path | None,
    checked: tuple[Config, Plan] | None = None,
    overrides: Sequence[str] | None = None,
) -> None:
    """Do a task; what is planned here already need not be planned again.

    A run keeps the `overrides` that asked for it.
    """
    task = TASKS[settings.task]
    if not task.planned:
        task.does(settings, folder)
        return
    if checked is None:
        config, plan = planned(settings)
        given = said.words(overrides or ())
        plan = said.noted(plan, given, said.idle(settings, config, plan, given))
    else:
        config, plan = checked
    plan = device.settle(config, plan, folder)
    if overrides is not None:
        config = replace(config, overrides=tuple(overrides))
    if config.settings.init is not None and folder is not None:
        from mlrun.interop.initial import charged

        plan = charged(plan, config.settings, folder)
    if first():
        show(as_dict(plan), config.settings.hardware.flops_per_second, predicted=calibrated.predicted(config, plan))
    task.does(config, plan, folder)


def planned(
    settings: DictConfig, shared: dict[tuple[str, str], Any] | None = None, constant: Mapping[str, Any] | None = None
) -> tuple[Config, Plan]:
    """Return the checked configuration and its plan; UserError with all that is wrong. See `load` for the rest."""
    config, notes = alone.settled(load(settings, shared, constant))
    plan = make_plan(config, sources=TASKS[settings.task].trains)
    return config, replace(plan, notes=(*plan.notes, *notes))


def plan(config: Config, plan: Plan, folder: Path) -> None:
    """Write plan.json."""
    if first():
        files.write_json(folder / files.PLAN, as_dict(plan))
    print_once(f"written to {folder / files.PLAN}")


def calibrate(settings: DictConfig, folder: Path | None) -> None:
    """Measure this machine with the model of a configuration and its coarser levels, and keep what was found."""
    config, plan = planned(settings)
    device.settle(config, plan, None)
    from mlrun.evaluate.calibrate import calibrate as measure

    file = calibrated.place(config)
    files.make(file.parent, "cache")
    calibrated.keep(config, found := measure(config, calibrated.machine(config), file.parent))
    print_once("\n".join([*measured(found), f"written to {file}"]))


def measured(found: Calibration) -> list[str]:
    """Return a calibration in a line for each size."""
    return [
        f"{human(size.parameters)} parameters: {size.token_seconds * size.tokens * 1e3:.3g} ms a sample,"
        f" {size.pass_seconds * 1e3:.3g} ms a pass, {size.step_seconds * 1e3:.3g} ms a step,"
        f" {human(size.token_bytes * size.tokens)}B a sample"
        for size in found.sizes
    ]


def train(config: Config, plan: Plan, folder: Path) -> None:
    """Run a plan, and say what came out."""
    from mlrun.data.source import Broken
    from mlrun.run import train as go
    from mlrun.train.divergence import Diverged
    from mlrun.train.parallel.processes import Lost
    from mlrun.train.pruning import Pruned
    from mlrun.train.signals import Stopped

    try:
        summary = go(config, plan, folder)
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
    aside = [kind for kind in ("branch", "probe") if any(kind in stage for stage in ledger["stages"])]
    also = (
        f", {' and '.join({'branch': 'branches', 'probe': 'probes'}[kind] for kind in aside)} included" if aside else ""
    )
    share = f"{total['share']:.1%} of the budget{also}"
    spent = f"{human(total['flops'])}FLOPs ({share}), {timedelta(seconds=seconds)} of training"
    return f"held-out loss {'n/a' if loss is None else format(loss, '.4f')} | {spent} | {folder}"


def report(settings: DictConfig, folder: Path | None) -> None:
    """Compare the runs that `runs` names, with `watch` until Ctrl-C; the report goes to `run`, or beside them."""
    if not settings.watch:
        report_on(_paths(settings, "runs"), folder)
        return
    from mlrun.report.build import render
    from mlrun.report.watch import watch

    watch(_paths(settings, "runs"), folder, lambda found: print_once(render(found)), print_once)


def status(settings: DictConfig, folder: Path | None) -> None:
    """List the runs that `runs` names: how far each is, and whether a process holds it. Writes nothing."""
    from mlrun.report.status import look, render

    columns = [shutil.get_terminal_size().columns] if sys.stdout.isatty() else []
    print_once(render(look(_paths(settings, "runs"), files.held), *columns))


def resend(settings: DictConfig, folder: Path | None) -> None:
    """Send the logs of the runs that `runs` names to W&B once more; all of them are looked at first."""
    from mlrun.log import resend as again
    from mlrun.report.read import find

    if others := [name for name in settings.logger if name != "wandb"]:
        remedy = "logs are sent to W&B alone; other files are written anew when a run starts"
        raise UserError(mistake("logger", ", ".join(others), "wandb, none", remedy))
    given = build(settings.logger.wandb, "logger.wandb") if "wandb" in settings.logger else None
    folders = find(_paths(settings, "runs"), again.is_run, ", ".join(again.READS))
    if busy := [str(one) for one in folders if files.held(one)]:
        raise UserError(mistake("runs", ", ".join(busy), "runs that no process trains", "wait until it has ended"))
    chosen, problems = {}, []
    for one in folders:
        try:
            again.look(one)
            chosen[one] = again.settings(one, given)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    sent = {one: again.resend(one, logger) for one, logger in chosen.items()}
    for one, (count, whole) in sent.items():
        print_once(f"{'sent' if whole else 'not all sent'}: {one}, {count} records")
    if missed := [str(one) for one, (_, whole) in sent.items() if not whole]:
        raise Failed(f"W&B did not take all of {', '.join(missed)}")


def leaderboard(settings: DictConfig, folder: Path | None) -> None:
    """Judge what `runs` name, and the files `results`, by the rules of the public table; show those that keep them."""
    from mlrun.report.leaderboard import board as boards

    board = boards.Board()
    if settings.runs is not None:
        boards.from_runs(board, _paths(settings, "runs"), folder)
        for path in board.accepted:
            print_once(f"written to {path}")
    if settings.results is not None:
        boards.from_files(board, _paths(settings, "results"))
    print_once(boards.table(board).text() if board.accepted else "No result keeps the rules.")
    if board.refused:
        raise Failed("\n".join(f"refused: {line}" for line in board.refused))


def _paths(settings: DictConfig, key: str) -> list[Path]:
    """Return the paths in a list with commas; where a name itself holds commas, the longest that exists.

    Raises UserError for an empty name, such as that of a shell's variable without a value, and for an unknown home.
    """
    parts, found = settings[key].split(","), []
    while parts:
        given = [",".join(parts[:count]).strip() for count in range(1, len(parts) + 1)]
        if not given[0]:
            remedy = "a name is empty: correct it, or write . for the working folder"
            raise UserError(mistake(key, settings[key], "names with commas between them", remedy))
        names = [files.expanded(name) for name in given]
        count = next((n for n in range(len(parts), 0, -1) if names[n - 1].exists()), 1)
        found.append(names[count - 1])
        parts = parts[count:]
    return found


def report_on(runs: Sequence[Path], out: Path | None) -> None:
    """Write and print the comparison of runs, where they are if `out` is None."""
    from mlrun.report.build import build, render

    print_once(render(build(runs, out)))


def evaluate(settings: DictConfig, folder: Path | None) -> None:
    """Measure a finished run, or the model folder `source`, with the hardware and evaluations of this command."""
    wanted = OmegaConf.to_object(settings.hardware)
    assert isinstance(wanted, Hardware)
    hardware, _ = device.settled(wanted, None)
    chosen = {str(name): build(node, f"evaluation.{name}") for name, node in settings.evaluation.items()}
    evaluations = list(chosen.values())
    if problems := check.of_choices("evaluation", chosen):
        raise UserError(problems)
    from mlrun.evaluate import finished
    from mlrun.log.doing import shown

    # Results alone are on standard output.
    with shown(sys.stderr) if first() else nullcontext(untold) as tell:
        if settings.source is None:
            assert folder is not None, "looked at before"
            found = finished.evaluate(folder, hardware, evaluations, tell)
        else:
            data = finished.Data(settings.data, settings.seed, Path(settings.cache), settings.eval.batch)
            found = finished.evaluate_folder(path(settings, "source"), data, hardware, evaluations, folder, tell)
    print_once("\n".join(results(found)))


def results(found: Mapping[str, Any]) -> list[str]:
    """Return what was measured, a line each in columns: task, metric, value with its standard error, n, guessing."""
    rows = [(task, one.metric, _with_error(one), *_beside(one)) for task, one in found.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _beside(result: Any) -> tuple[str, str]:
    guess = result.about.get("guess")
    return "" if result.n is None else f"n {result.n}", "" if guess is None else f"guessing {guess:.6g}"


def _with_error(result: Any) -> str:
    return f"{result.value:.6g}" + ("" if result.stderr is None else f" ± {result.stderr:.2g}")


def sample(settings: DictConfig, folder: Path | None) -> None:
    """Let the model of a run, or of the folder `source`, say something; shown as it comes, a picture on a terminal."""
    wanted, ask = OmegaConf.to_object(settings.hardware), OmegaConf.to_object(settings.sample)
    assert isinstance(wanted, Hardware) and isinstance(ask, Sample)
    hardware, _ = device.settled(wanted, None)
    from rich.console import Console

    from mlrun.evaluate.picture import show as show_picture
    from mlrun.evaluate.sample import say

    console, key = Console(), "run" if settings.source is None else "source"
    model = folder if settings.source is None else path(settings, "source")
    assert model is not None, "looked at before"
    said = []
    for part in say(model, key, ask, settings.seed, hardware, lambda pixels: show_picture(pixels, console)):
        print(part, end="", flush=True)
        said.append(part)
    if ask.file is not None:
        files.write_text(files.expanded(ask.file), "".join(said))


def export(settings: DictConfig, folder: Path) -> None:
    """Write a run's model as a Hugging Face folder."""
    from mlrun.interop.folders import export_hf

    export_hf(folder, target := path(settings, "target"), settings.data_licence)
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
    """Return the folder that a key names; UserError if it names none."""
    if not settings[key]:
        remedy = "correct it, or write . for the working folder"
        raise UserError(mistake(key, settings[key], "the name of a folder", remedy))
    return files.expanded(settings[key])


_ROWS = (
    Task("train", train, "train a model; the default", planned=True, trains=True),
    Task("plan", plan, "print the plan of a training, and stop", planned=True),
    Task("calibrate", calibrate, "measure this machine for a family of models: hours, memory of a GPU", trains=True),
    Task("report", report, "compare runs, finished or not", ("runs",), ("watch",), writes=True),
    Task("status", status, "list runs: how far they are", ("runs",)),
    Task("leaderboard", leaderboard, "results for a public table, judged by its rules", ("runs|results",), writes=True),
    Task("resend", resend, "send the logs of runs to W&B once more", ("runs",), settings=("logger",)),
    Task(
        "evaluate",
        evaluate,
        "what `evaluation` says of a run or a model folder",
        ("run|source",),
        settings=("evaluation", *MACHINE, "hardware.sharding", "hardware.workers"),
        beside_source=("data", "seed", "cache", "eval.batch"),
        writes=True,
    ),
    Task(
        "sample",
        sample,
        "text, filled masks or classes from a trained model",
        ("run|source",),
        ("sample",),
        settings=(*MACHINE, "seed"),
    ),
    Task("export", export, "a run's model as a Hugging Face folder", ("run", "target"), ("data_licence",)),
    Task("import", import_, "a Hugging Face folder as a model folder", ("source", "target")),
    Task(
        "coalesce",
        coalesce,
        "the next coarser level of a model folder",
        ("source", "target"),
        settings=("coarsening",),
    ),
    Task(
        "decoalesce",
        decoalesce,
        "the next finer level of a model folder",
        ("source", "target"),
        ("fine",),
        settings=("coarsening",),
    ),
    Task(
        "interpolate",
        interpolate,
        "source= blended with the decoalesced grown=",
        ("source", "grown", "target"),
        settings=("cycle.alpha",),
    ),
)
TASKS: Mapping[str, Task] = {task.name: task for task in _ROWS}
