"""Run folders: find them, and read of each what the report needs, line by line."""

from __future__ import annotations

import glob
import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlrun import files
from mlrun.errors import UserError, mistake
from mlrun.report import results, whole
from mlrun.report.curves import AXES, Point, target_level
from mlrun.report.endings import Ending
from mlrun.report.results import Measured
from mlrun.units import Rates, parse

FILES = (files.CONFIG, files.PLAN, files.LOG)
# A log that has not grown for so long belongs to a run that was ended.
RUNNING_SECONDS = 600.0
# What the files of runs may raise, since anybody may have written to them.
FAULTS = (UserError, OSError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
# What a summary may say of its run.
_STATUSES = ("finished", "interrupted", "pruned", "failed")
_TRAIN = (b'"kind": "train"', b'"kind":"train"')


@dataclass(frozen=True)
class Run:
    """What one run folder says.

    `evaluations` are the trunk's, of all levels; `starts` the machines that it was started on; `health` the trunk's
    looks at the layers; `likeness` those evaluations of it that say how alike decoalesced copies still are;
    `last` is the newest record; `fault` says what is wrong with the log of a run that says that it is finished.
    `search` is what a search says of itself whose choice this run reports, on a seed that chose nothing.
    `results` are those of evaluations.
    """

    folder: Path
    config: Mapping[str, Any]
    plan: Mapping[str, Any]
    summary: Mapping[str, Any] | None
    status: str
    evaluations: tuple[Point, ...]
    branches: tuple[Ending, ...]
    transfers: tuple[Mapping[str, Any], ...]
    starts: tuple[Mapping[str, Any], ...]
    health: tuple[Mapping[str, Any], ...]
    likeness: tuple[Mapping[str, Any], ...]
    held_out_error: float | None
    last: Mapping[str, Any]
    fault: str | None = None
    search: Mapping[str, Any] | None = None
    results: tuple[Measured, ...] = ()

    @property
    def finished(self) -> bool:
        """True if the run came to the end of its plan, and its log has that end."""
        return self.status == "finished"

    @property
    def failed(self) -> bool:
        """True if the run ended without a loss: by an error, or because it diverged."""
        return self.status == "failed" or (self.finished and self.final is None)

    @property
    def ended(self) -> bool:
        """True if the run has told what it has to tell."""
        return self.finished or self.failed

    @property
    def tried(self) -> bool:
        """True if the run's settings count as tried: it has ended, or was seen to be hopeless."""
        return self.ended or self.status == "pruned"

    @property
    def looked(self) -> bool:
        """True if somebody may have seen how the run does and left it: whatever became of it, but still running."""
        return self.status != "running"

    @property
    def level_one(self) -> bool:
        """True if the whole run is one stage at level 1; branches aside."""
        return [stage["level"] for stage in self.trunk] == [1]

    @property
    def name(self) -> str | None:
        """What the user called the run; None where `name` is only that of the cycle."""
        name = str(self.config.get("name", ""))
        return None if name in ("", str(self.config["cycle"]["name"])) else name

    @property
    def trunk(self) -> list[Mapping[str, Any]]:
        """The plan's stages without its branches and probes; what follows probes begins where the kept one ended."""
        return [stage for stage in self.plan["stages"] if not {"branch", "probe"} & stage.keys()]

    @property
    def seed(self) -> int:
        """The seed that everything random was drawn from."""
        return int(self.config["seed"])

    @property
    def lr(self) -> float:
        """The peak learning rate at level 1, with the cycle's factor on it."""
        scales = [stage.get("lr_scale", 1.0) for stage in self.trunk if stage["level"] == 1]
        return float(self.config["optimizer"]["lr"]) * float(scales[-1] if scales else 1.0)

    @property
    def step_flops(self) -> int | None:
        """FLOPs of a plain step at level 1, the optimizer's products included; None where the plan does not say."""
        level: Mapping[str, Any] = next((v for v in self.plan.get("levels", ()) if v["level"] == 1), {})
        if "batch" not in self.plan or "flops_per_sample" not in level:
            return None
        return int(self.plan["batch"] * level["flops_per_sample"] + level.get("update_flops", 0))

    @property
    def cadence(self) -> int | None:
        """Steps between two evaluations at level 1; None where the plan does not say."""
        found = self.steps(self.config["eval"]["every"], self.plan["budget"].get("steps"))
        return None if found is None else max(1, found)

    def steps(self, length: Any, whole: int | None) -> int | None:
        """Return a length in steps at level 1, `%` being of `whole` steps; None where it or the plan does not say."""
        flops, batch, parsed = self.step_flops, self.plan.get("batch"), parse(length)
        if parsed is None or parsed.unit == "rest" or batch is None or flops is None or whole is None:
            return None
        return Rates(batch, self.plan["tokens_per_step"], flops, whole).steps(parsed)

    @property
    def final(self) -> Point | None:
        """The last evaluation at level 1, if its loss is finite."""
        curve = target_level(self.evaluations)
        return curve[-1] if curve and math.isfinite(curve[-1].loss) else None

    @property
    def endings(self) -> tuple[Ending, ...]:
        """The annealed losses in the order of their cost; none in a run without branches.

        Branches run when the trunk is done, so its last evaluation is its end.
        """
        return self.annealed if self.branches else ()

    @property
    def annealed(self) -> tuple[Ending, ...]:
        """The annealed losses in the order of their cost; in a run without branches the one at its end.

        Needs an evaluation at level 1.
        """
        final = Ending(self._final_budget, target_level(self.evaluations)[-1])
        return tuple(sorted((*self.branches, final), key=lambda ending: ending.point.flops))

    @property
    def lacking(self) -> Mapping[str, str]:
        """The points that were asked for `if possible` and that the run has no ending at, with the reason."""
        return {str(point["point"]): str(point["why"]) for point in self.plan.get("lacking", ())}

    @property
    def _final_budget(self) -> float:
        """The share of the budget that trunk and probes spend; what does not fill a step more is rounding."""
        last, budget = self.trunk[-1], float(self.plan["budget"]["flops"])
        left = budget - sum(stage["flops"] for stage in self.plan["stages"] if "branch" not in stage)
        return 1.0 if abs(left) <= last["flops"] / last["steps"] else 1 - left / budget

    @property
    def source(self) -> Mapping[str, Any] | None:
        """What led to the weights that the run began with, by axis; None on an axis is unknown. None from scratch."""
        given: Mapping[str, Any] | None = self.plan.get("source")
        if given is None and self.config.get("init") is None:
            return None
        unknown: dict[str, Any] = {"name": self.config.get("init"), **dict.fromkeys(AXES)}
        return unknown | dict(given or {})

    @property
    def data(self) -> Mapping[str, Any]:
        """What the run says of its data; empty if it says nothing."""
        return self.plan.get("data") or (self.summary or {}).get("data") or {}

    @property
    def overhead(self) -> float | None:
        """Seconds of everything but training: start-up, transfers, evaluation, checkpoints. None until the end."""
        if self.summary is None or self.status != "finished":
            return None
        seconds = self.summary["ledger"]["seconds"]
        return math.fsum(value for purpose, value in seconds.items() if purpose != "training")

    @property
    def progress(self) -> float:
        """Share of the plan's FLOPs that the newest record has spent."""
        return float(self.last.get("flops", 0)) / float(self.plan["totals"]["flops"])

    @property
    def stage(self) -> int:
        """Index of the stage of the newest record; ValueError for one that the plan does not have."""
        index, stages = int(self.last.get("stage", 0)), len(self.plan["stages"])
        if not 0 <= index < stages:
            raise ValueError(f"a record of stage {index + 1}, the plan has {stages}")
        return index


def reportable(folder: Path, names: Sequence[str]) -> bool:
    """Return whether a folder with files of these names has all that a report reads."""
    return all(name in names for name in FILES)


def find(
    paths: Iterable[Path], is_run: Callable[[Path, Sequence[str]], bool] = reportable, holds: str = ", ".join(FILES)
) -> list[Path]:
    """Return all run folders at or under the paths (which may be glob patterns), sorted, each once.

    `is_run` judges a folder by itself and the names of its files; `holds` says in words what it asks for.

    Raises:
        UserError: a path does not exist, or has no run folder at or under it.
    """
    found: dict[Path, None] = {}
    problems = []
    for path in paths:
        below = list(_below(path, is_run))
        if not below:
            problems.append(mistake("runs", path, f"folders that hold {holds}", _remedy(path)))
        found.update((folder, None) for folder in below)
    if problems:
        raise UserError(problems)
    return sorted(found)


def above(folders: Sequence[Path]) -> Path:
    """Return the nearest folder that holds all of these, one of them included."""
    mixed = len({folder.is_absolute() for folder in folders}) > 1
    return Path(os.path.commonpath([folder.absolute() if mixed else folder for folder in folders]))


def place(named: Sequence[Path], found: Sequence[Path]) -> Path:
    """Return the folder for what is made of the runs `found`: above what was named if all folders, else above them.

    So one run of a folder and three of it go to the same place, which lies in a run only where that run was named.
    """
    return above(named if named and all(path.is_dir() for path in named) else found)


def _remedy(path: Path) -> str:
    return "name a run folder or one above it" if _matches(path) else "no such folder: check the path"


def _matches(path: Path) -> list[str]:
    """Return the path if it exists, whatever its name holds; else what the pattern matches."""
    return [str(path)] if path.exists() else sorted(glob.glob(str(path)))


def _below(path: Path, is_run: Callable[[Path, Sequence[str]], bool]) -> Iterator[Path]:
    for match in _matches(path):
        for folder, inside, names in os.walk(match):
            if is_run(Path(folder), names):
                inside.clear()  # what lies in a run folder belongs to that run
                yield Path(folder)
            inside.sort()


def read_all(folders: Sequence[Path]) -> list[Run]:
    """Read every run folder, or raise UserError with one line for each that cannot be read."""
    runs, problems = [], []
    for folder in folders:
        try:
            runs.append(read(folder))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return runs


def read(folder: Path) -> Run:
    """Read one run folder; memory grows with its evaluations, not with its log.

    Raises:
        UserError: a file is no YAML or JSON, or lacks what every run has.
    """
    try:
        config = files.read_yaml(folder / files.CONFIG)
        plan = files.read_json(folder / files.PLAN)
        summary = _summary(folder)
        told, measured = _log(folder / files.LOG)
        run = Run(folder, config, plan, summary, str((summary or {}).get("status")), *told)
        if summary is None:
            run = replace(run, status="running" if at_work(run, files.held(folder)) else "unfinished")
        with blamed(lambda: f"{folder / files.CONFIG} or {files.PLAN}"):
            _ = run.level_one, run.seed, run.lr, run.lacking
        with blamed(lambda: f"{folder / files.PLAN} or {files.LOG}"):
            _ = run.progress
            _ = run.stage
        with blamed(lambda: f"{folder / files.PLAN}, {files.LOG} or {files.SUMMARY}"):
            _ = run.overhead
            run = _judged(run)
            _ = run.endings
        with blamed(lambda: str(folder / files.EVALUATION)):
            run = replace(run, search=_search(folder), results=results.of_run(folder, measured))
    except FAULTS as error:
        remedy = f"leave it out or restore it ({' '.join(reason(error).split())})"
        raise UserError(mistake("runs", folder, "a run folder as mlrun writes it", remedy)) from error
    return run


def _judged(run: Run) -> Run:
    """Return the run; one that says that it is finished, and whose log is not whole, with what is wrong."""
    if run.summary is None or not run.finished:
        return run
    fault = whole.fault(run.plan, run.summary["val_loss"], run.evaluations, run.branches)
    fault = fault or whole.contradiction(run.config, run.starts)
    return run if fault is None else replace(run, status="not whole", fault=fault)


def reason(error: BaseException) -> str:
    """Return what a fault says, with its kind where that is no line of ours."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__} {error}"


@contextmanager
def blamed(where: Callable[[], str]) -> Iterator[None]:
    """Name the place that is read with whatever is wrong there.

    Raises:
        UserError: any of `FAULTS`.
    """
    try:
        yield
    except UserError:
        raise
    except FAULTS as error:
        raise UserError(f"{where()}: damaged ({reason(error)}); restore the file") from error


def _summary(folder: Path) -> dict[str, Any] | None:
    path = folder / files.SUMMARY
    if not path.exists():
        return None
    found = files.read_json(path)
    needed = ("status", "val_loss", "ledger") if found.get("status") == "finished" else ("status",)
    missing = [name for name in needed if name not in found]
    if missing:
        raise UserError(f"{path}: it lacks {', '.join(missing)}; restore the file")
    if found["status"] not in _STATUSES:
        raise UserError(mistake(f"{path}: status", found["status"], ", ".join(_STATUSES), "restore the file"))
    return found


def _search(folder: Path) -> dict[str, Any] | None:
    path = folder.absolute().parent / files.SEARCH
    found = files.read_json(path) if path.exists() else {}
    return found if folder.name in found.get("fresh", {}) else None


def at_work(run: Run, held: bool | None) -> bool:
    """Return whether a process works on a run that has not finished: it holds the lock, as far as locks can tell.

    Some file systems have none, or do not show those of other machines: there a log that grows says it.
    """
    return held is True or ((held is None or _elsewhere(run)) and _grows(run))


def _grows(run: Run) -> bool:
    """Return whether the log was written a short while ago, and after what was said when the run was last left.

    One from the future was written before a clock was set back, and says nothing of now.
    """
    written = (run.folder / files.LOG).stat().st_mtime
    left = [path.stat().st_mtime for name in (files.SUMMARY, files.ERROR) if (path := run.folder / name).exists()]
    return written > max(left, default=-math.inf) and abs(time.time() - written) < RUNNING_SECONDS


def _elsewhere(run: Run) -> bool:
    """Return whether the run was last started on another machine, whose locks some file systems do not show here."""
    return bool(run.starts) and run.starts[-1].get("host") != socket.gethostname()


Records = tuple[Mapping[str, Any], ...]
Told = dict[float | None, Mapping[str, Any]]
Logged = tuple[
    tuple[Point, ...], tuple[Ending, ...], Records, Records, Records, Records, float | None, Mapping[str, Any]
]


def _log(path: Path) -> tuple[Logged, Told]:
    """Return evaluations, branches, transfers, starts, looks at the layers, likenesses of copies, the held-out set's
    error and the newest record of a log; and by the budget of the branch what its ends measured.

    A half-written last line is left out.
    """
    points, branches, newest, error, number = [], [], b"{}", None, 0
    measured: Told = {}
    kinds: dict[str, list[Mapping[str, Any]]] = {kind: [] for kind in ("transfer", "start", "health", "alike")}
    with blamed(lambda: f"{path}: line {number}"), open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):  # noqa: B007, the line above says it
            if not line.endswith(b"\n"):
                break
            newest = line
            if line.find(_TRAIN[0], 0, 40) >= 0 or line.find(_TRAIN[1], 0, 40) >= 0:
                continue  # most lines by far, and no table needs them
            record = json.loads(line)
            if record["kind"] == "val" and "branch" in record:
                branches.append(Ending(float(record["branch"]), _point(record, "own_")))
            elif record["kind"] == "val" and "probe" not in record:
                points.append(_point(record))
                error = record.get("standard_error")
                if "copy_similarity" in record:
                    kinds["alike"].append(record)
            elif record["kind"] in kinds and not (record["kind"] == "health" and "branch" in record):
                kinds[record["kind"]].append(record)
            if record["kind"] == "val":  # one in the middle of a stage has none, so the last one is that of the end
                measured[float(record["branch"]) if "branch" in record else None] = record.get("results") or {}
        last = json.loads(newest)
    transfers, starts, health, alike = (tuple(found) for found in kinds.values())
    return (tuple(points), tuple(branches), transfers, starts, health, alike, error, last), measured


def _point(record: Mapping[str, Any], of: str = "") -> Point:
    """Return an evaluation, placed by the costs whose names begin with `of`."""
    loss = math.nan if record["loss"] is None else float(record["loss"])
    tokens, flops, body, seconds = (float(record[of + name]) for name in ("tokens", *AXES))
    return Point(record["stage"], record["level"], record[of + "step"], tokens, flops, body, seconds, loss)
