"""What a method trains the whole model by that its baseline was not given, and a run from scratch could have as well.

What such a setting saves is no saving of growing: a from-scratch run with it may do as well.
"""

from __future__ import annotations

from collections.abc import Iterator

from mlrun.report import pairing
from mlrun.report.compare import Group, Row
from mlrun.report.read import Run

# The settings, as notes call them.
DECAY, BATCH, SEQUENCE, DROPPED = "decay", "batch", "sequence", "layer dropout"
KINDS = (DECAY, BATCH, SEQUENCE, DROPPED)


def own_settings(group: Group) -> dict[str, list[str]]:
    """Return, by method, the settings of its best rate that no run from scratch was tried at, each with the baseline's.

    Only of methods that come to L* at some seed.
    """
    rows = [row for row in group.rows if row.best and row.spread("flops").reached]
    found = {row.method: list(dict.fromkeys(_of_row(group, row))) for row in rows}
    return {method: settings for method, settings in found.items() if settings}


def _of_row(group: Group, row: Row) -> Iterator[str]:
    for pair in row.pairs:
        for kind in KINDS:
            for own in sorted(values(pair.run, kind) - values(pair.baseline, kind)):
                if not _tried(group, kind, own):
                    theirs = ", ".join(sorted(values(pair.baseline, kind)))
                    yield f"{kind} {own} (the baseline {theirs or 'none'})"


def _tried(group: Group, kind: str, value: str) -> bool:
    """Return whether a from-scratch run of this model, data and budget had the setting, in this group or in another."""
    runs = [run for one in (group, *group.elsewhere) for run in one.runs if pairing.as_long(run, group.runs[0])]
    return any(run.level_one and run.tried and value in values(run, kind) for run in runs)


def values(run: Run, kind: str) -> set[str]:
    """Return what the stages of a run at level 1 have of a kind of setting, as text; nothing where it has no effect."""
    cycle, schedule = run.config["cycle"], run.config["optimizer"].get("schedule") or {}
    if kind == DECAY:
        decays = schedule.get("shape") == "wsd"
        return {str(cycle.get("decay") or schedule.get("decay"))} if decays else set()
    if kind == DROPPED:
        return {f"{float(cycle.get('layer_dropout') or 0):g}"}
    return {str(stage.get(kind, run.plan.get(kind))) for stage in run.trunk if stage["level"] == 1}
