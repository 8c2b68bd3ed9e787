"""How a run looks in W&B without any set-up: its name, its group, the axes of its charts, and what is shown as tables.

Charts stand in sections by what is before the slash in their names (see `sink.series`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlrun.log.sink import POSITION, Record

# A run of a sweep lies in a folder with its number and what it varies; one without a name in that of its time.
_OF_SWEEP = re.compile(r"\d+-(.*=.*)", re.DOTALL)
_BY_CLOCK = re.compile(r"\d{4}-\d\d-\d\d_.*", re.DOTALL)


def title(run_folder: Path, config: Record) -> str:
    """Return what a run is called: what its sweep varies, or its folder's name, which says nothing if it is a time."""
    folder = run_folder.absolute().name
    if (found := _OF_SWEEP.fullmatch(folder)) is not None:
        return found.group(1)
    if _BY_CLOCK.fullmatch(folder) and "name" in config:
        return f"{config['name']},seed={config.get('seed')}"
    return folder


def sweep(run_folder: Path) -> str | None:
    """Return the name of the sweep that a run belongs to, which is its group; None for a run of its own."""
    folder = run_folder.absolute()
    return folder.parent.name if _OF_SWEEP.fullmatch(folder.name) else None


def kind(config: Record) -> str | None:
    """Return the name of the run's cycle, by which W&B can group runs too (`job_type`)."""
    return (config.get("cycle") or {}).get("name")


def define(run: Any, x: str) -> None:
    """Draw everything over the axis `x`, and the positions themselves, which are axes to choose from, nowhere."""
    for axis in POSITION:
        run.define_metric(axis, hidden=True)
    run.define_metric("*", step_metric=x)


def tables(plan: Record) -> Iterator[tuple[str, list[Record]]]:
    """Yield the tables of a plan by name: its stages and its levels."""
    yield "plan/stages", plan["stages"]
    if plan.get("levels"):
        yield "plan/levels", plan["levels"]


def ledger(summary: Record) -> Iterator[tuple[str, list[Record]]]:
    """Yield the tables of what a run spent: by stage with the sum, and its seconds by purpose."""
    spent = summary.get("ledger") or {}
    if spent.get("stages"):
        yield "ledger/stages", [*spent["stages"], {"stage": "all", **spent.get("total", {})}]
    if spent.get("seconds"):
        yield "ledger/seconds", [{"purpose": name, "seconds": took} for name, took in spent["seconds"].items()]


def cells(rows: Iterable[Record]) -> tuple[list[str | int], list[list[Any]]]:
    """Return columns and data of a table; what is nested, or of two types in one column, becomes text."""
    given: list[dict[str | int, Any]] = [{key: _cell(value) for key, value in row.items()} for row in rows]
    columns: list[str | int] = list(dict.fromkeys(key for row in given for key in row))
    texts = {key for key in columns if any(isinstance(row.get(key), str) for row in given)}
    return columns, [[_text(row.get(key)) if key in texts else row.get(key) for key in columns] for row in given]


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, Mapping | list | tuple) else value


def share(record: Record, plan: Record) -> dict[str, float]:
    """Return what a row says of the ledger: the share of the budget's FLOPs that is spent; nothing without a budget."""
    budget = (plan.get("budget") or {}).get("flops")
    return {"ledger/share_of_budget": record["flops"] / budget} if budget else {}
