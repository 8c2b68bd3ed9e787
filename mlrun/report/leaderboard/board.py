"""Results written from run folders, read from files, judged, and shown as a table."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlrun import files
from mlrun.errors import UserError, mistake
from mlrun.report.compare import Group, compare
from mlrun.report.leaderboard import rules, schema
from mlrun.report.leaderboard.entry import entry, on_fresh
from mlrun.report.leaderboard.fresh import choice
from mlrun.report.leaderboard.smaller import told
from mlrun.report.pairing import plainly
from mlrun.report.read import find, place, read_all
from mlrun.report.sentences import without_best
from mlrun.report.stats import holm
from mlrun.report.tables import Table, percent
from mlrun.report.write import nulled, write
from mlrun.units import human

FOLDER = "leaderboard"


@dataclass
class Board:
    """Results that keep the rules, by file; and the lines of those that are refused."""

    accepted: dict[Path, dict[str, Any]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def judge(self, path: Path, found: Any, name: str) -> bool:
        """Take a result, or say of it by name what it breaks."""
        lines = schema.problems(found) or rules.broken(found)
        self.refused += [f"{name}: {line}" for line in lines]
        if not lines:
            self.accepted[path] = found
        return not lines


def from_runs(board: Board, runs: Sequence[Path], out: Path | None) -> None:
    """Judge every method of the runs at its best rate on fresh seeds; write those that keep the rules, a file each.

    Raises:
        UserError: no run folder is there, or one cannot be read; `out` holds files and none of ours.
    """
    folders = find(runs)
    groups = [group for group in compare(read_all(folders)) if group.rows]
    out = place(runs, folders) / FOLDER if out is None else out
    files.judge(out)
    for group in groups:
        for method, found in _entries(group, board).items():
            path = out / f"{group.number}-{re.sub(r'[^A-Za-z0-9.=_-]+', '_', method)[:80]}.json"
            # As a reader will have it: what JSON cannot keep is gone before it is judged.
            plain = json.loads(json.dumps(nulled(found), default=str))
            if board.judge(path, plain, method):
                files.make(out)
                write(out, path.name, plain)


def _entries(group: Group, board: Board) -> dict[str, dict[str, Any]]:
    """Return the result of each method; one without a best rate, or a pair on a fresh seed, is refused here."""
    rows, found = {}, {}
    board.refused += [f"{name}: rule 'whole': none of its rates is the best, since {why}"
                      for name, why in without_best(group).items()]  # fmt: skip
    for row in (row for row in group.rows if row.best):
        chosen = choice(group, row) if row.pairs else None
        kept = None if chosen is None else on_fresh(row, chosen)
        if kept is None or not kept.pairs:
            why = "no pair of finished runs" if chosen is None else "no seed is left that chose nothing"
            board.refused.append(f"{row.method}: rule 'fresh seeds': {why}")
        else:
            rows[row.method] = (kept, chosen)
    p = holm({name: 1.0 if kept.claim.p is None else kept.claim.p for name, (kept, _) in rows.items()})
    for name, (kept, chosen) in rows.items():
        assert chosen is not None
        found[name] = entry(group, kept, chosen, None if kept.claim.p is None else p[name], len(rows))
    return found


def from_files(board: Board, paths: Sequence[Path]) -> None:
    """Judge the results in files, or in all JSON files of folders.

    Raises:
        UserError: a path does not exist or has no JSON file, or some cannot be read, a line each.
    """
    named = [(path, sorted(path.glob("*.json")) if path.is_dir() else [path]) for path in paths]
    if empty := [path for path, found in named if not found or not found[0].is_file()]:
        raise UserError(
            [mistake("results", path, "JSON files, or folders of them", "check the path") for path in empty]
        )
    results, problems = {}, []
    for path in {path.resolve(): path for _, found in named for path in found}.values():  # each once
        try:
            results[path] = files.read_json(path)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    for path, result in results.items():
        board.judge(path, result, str(path))


def table(board: Board) -> Table:
    """Return the results that keep the rules: one model, data and budget together, the largest saving first."""
    about = ("method", "a smaller model alone", "model", "data", "commit")
    header = (*about, "seeds", "L*", "budget", "FLOPs saved", "95%", "p")
    order = sorted(board.accepted.values(), key=lambda one: (_task(one), -(one["claim"]["mean"] or 0)))
    title = "Savings at equal loss, annealed, on seeds that chose nothing; each keeps the rules of docs/leaderboard.md."
    return Table(title, header, tuple(_cells(one) for one in order), len(about))


def _task(one: Any) -> str:
    return json.dumps([one["task"][key] for key in ("model", "data", "budget")], sort_keys=True)


def _cells(one: Any) -> tuple[str, ...]:
    said, run = one["claim"], one["seeds"][0]["run"]
    model, budget = str(one["task"]["model"].get("_target_", "")).rpartition(".")[2], one["task"]["budget"]["flops"]
    parameters = max((level.get("parameters", 0) for level in run["plan"].get("levels") or ()), default=0)
    return (
        plainly(one["method"]),
        told(one["seeds"]),
        f"{model} {human(parameters)}",
        str(one["task"]["data"].get("content"))[:8],
        str(run["starts"][-1]["commit"])[:8],
        str(len(one["seeds"])),
        f"{one['target']['mean']:.4f}",
        human(budget),
        percent(said["mean"]),
        f"{percent(said['low'])} to {percent(said['high'])}",
        f"{said['p_holm']:.2g}",
    )
