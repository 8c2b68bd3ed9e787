"""How far runs are: a line for each, from its files alone, whatever state they are in.

A run says in its log what it has spent, and in its plan what there is to spend. Whether a process works on it is known
by its lock, which whoever calls looks at; where locks say nothing, by a log that still grows.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from mlrun import files
from mlrun.errors import UserError
from mlrun.report import read
from mlrun.report.compare import compare, pair
from mlrun.report.curves import target_level
from mlrun.report.endings import NOT_REACHED
from mlrun.report.headline import AT_LEAST
from mlrun.report.pairing import baseline
from mlrun.report.read import Run, at_work
from mlrun.report.tables import MINUS, WIDTH

STATES = ("running", "waiting", "stopped", "failed", "pruned", "finished", "damaged")
HEADER = ("run", "state", "stage", "done", "time left", "loss", "saved", "host")
NUMBERS = ("done", "time left", "loss", "saved")
UNKNOWN, ELLIPSIS, GAP = "n/a", "\N{HORIZONTAL ELLIPSIS}", "  "
# The newest records lie in so many bytes at the end of a log.
TAIL_BYTES = 2**16
# Seconds that the clocks of a run and of its file system may lie apart.
_APART = 1.0
# Columns of a host's name, and the least of a run's folder.
_HOST, _NAME = 12, 16

# Whether another process holds a folder; None where that cannot be known.
Held = Callable[[Path], bool | None]


@dataclass(frozen=True)
class Line:
    """What is known of one run; None is unknown.

    `done` is the share of the plan's FLOPs that are spent, `seconds_left` an estimate for a run that is at work,
    `loss` the last held-out loss, in nats, at the level that was trained; `saved` is in words; `reason` says what is
    damaged.
    """

    folder: Path
    state: str
    stage: str | None = None
    done: float | None = None
    seconds_left: float | None = None
    loss: float | None = None
    saved: str | None = None
    host: str | None = None
    reason: str | None = None


def look(paths: Iterable[Path], held: Held) -> list[Line]:
    """Return a line for every run at or under the paths (glob patterns too), in order of their folders.

    Raises:
        UserError: a path does not exist, or has no run at or under it.
    """

    def is_run(folder: Path, names: Sequence[str]) -> bool:
        kept = any(name in names for name in (files.LOG, files.PLAN, files.ERROR))
        return kept or (files.LOCK in names and held(folder) is True)

    folders = read.find(paths, is_run, f"{files.LOG}, {files.PLAN} or {files.ERROR}")
    found = [_read(folder, held(folder)) for folder in sorted(folders, key=_natural)]
    savings = _savings([run for run, _ in found if run is not None])
    return [replace(line, saved=savings.get(line.folder)) for _, line in found]


def _natural(folder: Path) -> list[tuple[int, str]]:
    """Sort 2-... before 10-...."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(folder)) if part]


def _read(folder: Path, held: bool | None) -> tuple[Run | None, Line]:
    """Return what is known of a run, and the run itself where a report can read it."""
    if not (folder / files.LOG).exists():
        if _trained(folder):
            return None, Line(folder, "damaged", reason=f"{folder / files.LOG}: it is missing; restore the file")
        failed = (folder / files.ERROR).exists()
        return None, Line(folder, "running" if held else "failed" if failed else "waiting")
    try:
        run = read.read(folder)
        with read.blamed(lambda: f"{folder / files.CONFIG}, {files.PLAN} or {files.LOG}"):
            compare([run])  # reads what pairs it
            line = _line(run, held)
    except UserError as error:
        # Of a run that cannot be read, what is wrong inside.
        told = error.__cause__ if isinstance(error.__cause__, read.FAULTS) and "runs=" in str(error) else error
        return None, Line(folder, "damaged", reason=" ".join(read.reason(told).split()))
    return (run, line) if run.fault is None else (None, Line(folder, "damaged", reason=run.fault))


def _trained(folder: Path) -> bool:
    """Return whether a folder has what a run leaves only once it has written to its log."""
    saved = folder / files.CHECKPOINTS
    return any((folder / name).exists() for name in (files.SUMMARY, files.MODEL)) or any(saved.glob("*"))


def _line(run: Run, held: bool | None) -> Line:
    state, last = _state(run, held), run.last
    stage = f"{run.stage + 1}/{len(run.plan['stages'])} level {last['level']}" if last else None
    loss = run.evaluations[-1].loss if run.evaluations else math.nan
    return Line(
        run.folder,
        state,
        stage,
        run.progress,
        seconds_left(run) if state == "running" else None,
        loss if math.isfinite(loss) else None,
        host=str(run.starts[-1]["host"]) if run.starts else None,
    )


def _state(run: Run, held: bool | None) -> str:
    """Return one of `STATES`: what the summary says holds once no process works on the run."""
    if run.failed and run.finished:
        return "failed"
    if run.finished:
        return "finished"
    if at_work(run, held):
        return "running"
    if run.failed or run.status == "pruned":
        return run.status
    return "failed" if (run.folder / files.ERROR).exists() else "stopped"


# Time left


def seconds_left(run: Run) -> float | None:
    """Return the seconds until the plan's end at the speed of the newest records; None before any is measured.

    Each level goes on at its own FLOP/s; one that has not run yet is taken to run at those of the others together. What
    evaluations, transfers and checkpoints took beside the training, since the last start, they take from now on. None
    too where that is unknown, as a clock was set back since then.
    """
    rates = _rates(run)
    if not rates or not run.last:
        return None
    overall = sum(flops for flops, _ in rates.values()) / sum(seconds for _, seconds in rates.values())
    speeds = {level: flops / seconds for level, (flops, seconds) in rates.items()}
    left = sum(flops / speeds.get(level, overall) for level, flops in _flops_left(run))
    beside = _beside_training(run)
    return None if beside is None else left * beside


def _rates(run: Run) -> dict[int, tuple[float, float]]:
    """Return FLOPs and seconds by level: of the newest records at the level at work, of its evaluations at others."""
    points = [(p.stage, p.level, p.flops, p.seconds) for p in run.evaluations]
    rates = _measured(points)
    recent = [(r["stage"], r["level"], r["flops"], r["seconds"]) for r in _tail(run.folder / files.LOG)]
    return rates | _measured([row for row in recent if row[0] == run.last["stage"]])


def _measured(rows: Sequence[tuple[int, int, float, float]]) -> dict[int, tuple[float, float]]:
    """Return FLOPs and seconds by level between neighbours of one stage."""
    sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for (stage, level, flops, seconds), (stage_after, _, flops_after, seconds_after) in pairwise(rows):
        if stage == stage_after:
            sums[level][0] += flops_after - flops
            sums[level][1] += seconds_after - seconds
    return {level: (flops, seconds) for level, (flops, seconds) in sums.items() if flops > 0 and seconds > 0}


def _tail(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the last whole records of a log."""
    with open(path, "rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES)
        file.seek(start)
        lines = file.read().splitlines(keepends=True)[1 if start else 0 :]
    for line in lines:
        with suppress(ValueError, RecursionError):  # an estimate goes by what can be read
            if line.endswith(b"\n") and isinstance(record := json.loads(line), dict):
                yield record


def _flops_left(run: Run) -> list[tuple[int, float]]:
    """Return (level, FLOPs still to spend) of the stage at work and the later ones."""
    stages, here = run.plan["stages"], run.stage
    ends = list(accumulate(stage["flops"] for stage in stages))
    now = (run.last["level"], max(0.0, ends[here] - run.last["flops"]))
    return [now, *((stage["level"], stage["flops"]) for stage in stages[here + 1 :])]


def _beside_training(run: Run) -> float | None:
    """Return wall-clock seconds by training seconds since the last start; 1 where it is not told.

    None where there are fewer of them: a clock was set back in between, or the log lies on a machine of another time.
    """
    start = run.starts[-1] if run.starts else {}
    trained = float(run.last.get("seconds", 0.0)) - float(start.get("seconds", 0.0))
    if "time" not in start or trained <= 0:
        return 1.0
    wall = (run.folder / files.LOG).stat().st_mtime - datetime.fromisoformat(start["time"]).timestamp()
    if wall < trained - _APART:
        return None
    return max(1.0, wall / trained)


# Saving


def _savings(runs: Sequence[Run]) -> dict[Path, str]:
    """Return what each run has saved so far in FLOPs against the best baseline of its seed among them, in words."""
    found = {}
    for group in compare(runs):
        for run in group.runs:
            if run.seed not in group.baselines or not target_level(run.evaluations):
                continue
            found[run.folder] = "baseline" if baseline(run) else _saved(run, group.baselines[run.seed])
    return found


def _saved(run: Run, against: Run) -> str:
    """Return the saving as the report has it: annealed where a finished run has endings, else at the first crossing."""
    if run.final is None:
        return UNKNOWN
    found = pair(run, against)
    headline = found.headline if run.finished and run.branches else None
    saved = found.saved["flops"] if headline is None else headline.saved["flops"]
    if saved is not None:
        bound = "\N{GREATER-THAN OR EQUAL TO} " if headline is not None and headline.kind == AT_LEAST else ""
        return f"{bound}{saved:.1%}".replace("-", MINUS)
    charged = run.source is None or run.source.get("flops") is not None
    if headline is None:
        return NOT_REACHED if run.finished and charged else UNKNOWN
    return NOT_REACHED if headline.kind == NOT_REACHED else UNKNOWN


# As text


def render(lines: Sequence[Line], columns: int = WIDTH) -> str:
    """Return a row for each run, in at most 110 columns or fewer, and how many are in which state.

    Names of folders give way where there are fewer, down to a width at which they still say something.
    """
    most = min(WIDTH, columns)
    counts = {state: sum(line.state == state for line in lines) for state in STATES}
    total = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    rows = [HEADER, *map(_cells, lines)]
    widths = [max((len(row[i]) for row in rows if len(row) == len(HEADER)), default=0) for i in range(len(HEADER))]
    widths[:2] = (max(len(row[i]) for row in rows) for i in range(2))
    widths[0] = min(widths[0], max(_NAME, most - sum(widths[1:]) - len(GAP) * (len(HEADER) - 1)))
    shown = [_joined(row, widths, most) for row in rows]
    return "\n".join([*shown, f"{len(lines)} {'run' if len(lines) == 1 else 'runs'}: {total}"])


def _joined(row: Sequence[str], widths: Sequence[int], most: int) -> str:
    """Return one row; of a damaged run, what is wrong takes the place of the numbers."""
    columns = zip(HEADER, (_end(row[0], widths[0]), *row[1:]), widths, strict=False)
    cells = (cell.rjust(width) if name in NUMBERS else cell.ljust(width) for name, cell, width in columns)
    return _begin(GAP.join(cells).rstrip(), most)


def _cells(line: Line) -> tuple[str, ...]:
    if line.reason is not None:
        # The folder is named already, and a long one would push the file's name out of sight.
        return str(line.folder), line.state, line.reason.replace(f"{line.folder}{os.sep}", "")
    known = (
        line.stage,
        None if line.done is None else f"{math.floor(100 * line.done + 1e-9)}%",
        None if line.seconds_left is None else _time(line.seconds_left),
        None if line.loss is None else f"{line.loss:.4f}",
        line.saved,
        None if line.host is None else _begin(line.host, _HOST),
    )
    return str(line.folder), line.state, *(UNKNOWN if value is None else value for value in known)


def _time(seconds: float) -> str:
    """Return hours, minutes and seconds; beyond four days, days and hours."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours < 100 else f"{hours // 24}d {hours % 24:02}h"


def _begin(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}{ELLIPSIS}"


def _end(text: str, most: int) -> str:
    return text if len(text) <= most else f"{ELLIPSIS}{text[1 - most :]}"
