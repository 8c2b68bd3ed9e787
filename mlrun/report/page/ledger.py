"""What each stage cost, on the page: FLOPs as bars, and everything as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mlrun.report import tables
from mlrun.report.compare import Group
from mlrun.report.page.parts import SEEN, cells, tabled
from mlrun.report.read import Run
from mlrun.report.tables import Table
from mlrun.units import duration, human

LEDGERS = 100  # runs of a group whose stages are listed


def ledger(group: Group) -> str:
    """Return what each stage cost: FLOPs as bars, of many runs the first few, and everything as a table."""
    runs = [run for run in group.runs if run.summary is not None and "ledger" in run.summary]
    if not runs:
        return ""
    names = dict(zip((run.folder for run in group.runs), tables.names(group.runs), strict=True))
    shown = runs[:LEDGERS]
    rows = [row for run in shown for row in rows_of(run, names[run.folder])]
    header = ("run", "stage", "level", "steps", "tokens", "FLOPs", "seconds")
    title = f"{tables.count(len(rows), 'stage')} of {tables.count(len(shown), 'run')}"
    title += f" (of {len(runs)}; report.json has all)" if len(runs) > len(shown) else ""
    best = [run for run in _compared(group) if run in runs][:LEDGERS]
    return (
        f"<h3>Ledger by stage</h3>{_bars(best, names)}{_health(shown, names)}"
        f"<details><summary>{title}</summary>{cells(header, rows, 1)}</details>{_purposes(shown, names)}"
    )


def _health(runs: Sequence[Run], names: Mapping[Path, str]) -> str:
    """Return what looking at the layers took of each run that did, beside what its training took."""
    ledgers = [(names[run.folder], run.summary["ledger"]) for run in runs if run.summary is not None]
    rows = [
        (
            name,
            str(ledger["health"]["looks"]),
            human(ledger["total"]["flops"]),
            human(ledger["health"]["flops"]),
            tables.percent(_share(ledger)),
        )
        for name, ledger in ledgers
        if "health" in ledger
    ]
    told = "Looking at the layers (health=true), in FLOPs: beside what is charged above, and no part of any saving."
    header = ("run", "looks", "training", "health", "of training")
    return tabled(Table(told, header, tuple(rows), 1))


def _share(ledger: Mapping[str, Any]) -> float | None:
    flops = ledger["total"]["flops"]
    return ledger["health"]["flops"] / flops if flops else None


def _compared(group: Group) -> list[Run]:
    """Return the baselines and the runs of each method at its best rate."""
    methods = [pair.run for row in tables.ordered(group) if row.best for pair in row.pairs]
    return [*group.baselines.values(), *methods]


def rows_of(run: Run, name: str) -> list[tuple[str, ...]]:
    assert run.summary is not None
    return [
        (
            name,
            f"{stage['stage'] + 1}{_aside(stage)}",
            str(stage["level"]),
            f"{stage['steps']:,}",
            human(stage["tokens"]),
            human(stage["flops"]),
            f"{stage['seconds']:.1f}",
        )
        for stage in run.summary["ledger"]["stages"]
    ]


def _aside(stage: Mapping[str, Any]) -> str:
    """Return in words what a stage is beside the trunk; nothing for one of the trunk."""
    if "probe" in stage:
        return f" (probe {stage['probe']}, {'kept' if stage['kept'] else 'not kept'})"
    return f" (ends at {100 * stage['branch']:.3g}%)" if "branch" in stage else ""


def _bars(runs: Sequence[Run], names: Mapping[Path, str]) -> str:
    """Return a bar of FLOPs for each run, a piece for each stage."""
    found = [(run, run.summary["ledger"]["stages"]) for run in runs if run.summary is not None]
    largest = max((sum(stage["flops"] for stage in stages) for _, stages in found), default=0) or 1
    lines = []
    for run, stages in found:
        pieces = "".join(_piece(stage, largest) for stage in stages)
        lines.append(f'<span>{escape(names[run.folder])}</span><div class="bar">{pieces}</div>')
    told = (
        "FLOPs by stage: pale is a coarser level, grey a branch to an annealed ending or a probe that was not kept. "
        "All of it was spent."
    )
    shown, rest = (f'<div class="bars">{"".join(part)}</div>' for part in (lines[:SEEN], lines[SEEN:]))
    more = f"<details><summary>{len(lines) - SEEN} more runs</summary>{rest}</details>" if lines[SEEN:] else ""
    return f'<p class="title">{told}</p>{shown}{more}' if lines else ""


def _piece(stage: Mapping[str, Any], largest: float) -> str:
    kind = "branch" if "branch" in stage or stage.get("kept") is False else "coarse" if stage["level"] > 1 else "whole"
    told = f"stage {stage['stage'] + 1}, level {stage['level']}: {human(stage['flops'])}FLOPs, {stage['steps']} steps"
    share = 100 * stage["flops"] / largest
    return f'<i class="{kind}" style="width:{share:.2f}%" title="{told}"></i>'


def _purposes(runs: Sequence[Run], names: Mapping[Path, str]) -> str:
    """Return where the seconds of each run went."""
    spent = [(names[run.folder], run.summary["ledger"]["seconds"]) for run in runs if run.summary is not None]
    purposes = list(dict.fromkeys(purpose for _, seconds in spent for purpose in seconds))
    rows = [(name, *(duration(seconds.get(purpose)) for purpose in purposes)) for name, seconds in spent]
    return f"<details><summary>Seconds by purpose</summary>{cells(('run', *purposes), rows, 1)}</details>"
