"""The report's files: report.md, savings.csv, report.json; endings.csv with branches, quality.csv with evaluations."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlrun import files
from mlrun.report import budgets, commands, headline, pairing, search, tables
from mlrun.report.budgets import Budgets, over_budgets
from mlrun.report.compare import MEASURES, Group, Pair, Row
from mlrun.report.curves import AXES, speedup
from mlrun.report.elsewhere import Variant, against, variants
from mlrun.report.endings import BEYOND, NOT_REACHED, Budget
from mlrun.report.quality import Quality, error, qualities
from mlrun.report.read import Run
from mlrun.report.search import Search
from mlrun.report.sentences import sentences
from mlrun.report.smaller import Alone
from mlrun.report.stats import Spread


def markdown(
    groups: Sequence[Group],
    notes: Sequence[str],
    figures: Mapping[int, Sequence[Path]],
    found: Sequence[Search] = (),
) -> str:
    """Return report.md; `figures` maps a group's number to its PNGs, the headline's first where it has one.

    Those of number 0 are of savings over budgets, in the order of their tables.
    """
    parts = ["# Savings at equal loss\n", *_budgets(over_budgets(groups), figures.get(0, ()))]
    for group in groups:
        parts += _summary(group)
        if (headlines := tables.annealed(group)).rows:
            parts.append(headlines.markdown())
        parts += [f"![{_caption(group, path)}]({path.name})\n" for path in figures.get(group.number, ())]
        parts.append(tables.savings(group).markdown() if group.rows else tables.baseline_line(group) + "\n")
        parts += [
            table.markdown()
            for table in (tables.sweep(group), tables.endings(group), tables.quality(group))
            if table.rows
        ]
    for one in found:
        parts += ["# Search\n", search.table(one).markdown(), *(f"{line}\n" for line in search.sentences(one, groups))]
    receipts = [table for group in groups if (table := tables.transfers(group)).rows]
    parts += ["# Notes\n", *(f"- {note}" for note in notes), ""]
    parts += ["# Transfers\n" if receipts else "", *(table.markdown() for table in receipts)]
    parts += ["# Runs\n", tables.runs([run for group in groups for run in group.runs]).markdown()]
    told = commands.lines([run for group in groups for run in group.runs])
    parts += ["# How to reproduce\n", "```sh", *(line.replace("```", "` ` `") for line in told), "```", ""]
    return "\n".join(parts)


def _budgets(found: Sequence[Budgets], pictures: Sequence[Path]) -> Iterator[str]:
    for number, one in enumerate(found):
        yield budgets.table(one).markdown()
        yield from (f"![FLOPs saved against tokens per parameter]({path.name})\n" for path in pictures[number:][:1])


def _summary(group: Group) -> list[str]:
    """Return the sentences of a group as a list."""
    told = [f"- {sentence}" for sentence in sentences(group)]
    return [*told, ""] if told else []


def _caption(group: Group, path: Path) -> str:
    if path.name.startswith("annealed"):
        return f"Annealed losses of group {group.number} against FLOPs"
    return f"Held-out loss of group {group.number} against FLOPs, time and tokens"


def savings_csv(groups: Sequence[Group]) -> str:
    """Return savings.csv: one line per method and learning rate; an empty cell is not reached or not known."""
    lines = [_line(group, row) for group in groups for row in tables.ordered(group)]
    return _csv(lines, ["group", "method"])


def endings_csv(groups: Sequence[Group]) -> str | None:
    """Return endings.csv: one line per method, learning rate and budget; None if no run has branches."""
    rows = [(group, row) for group in groups for row in tables.ordered(group)]
    lines = [_ending_line(group, row, at) for group, row in rows for at in row.endings]
    return _csv(lines, []) if lines else None


def quality_csv(groups: Sequence[Group]) -> str | None:
    """Return quality.csv: one line per method, task and place; None if no evaluation is known."""
    found = [(group, one) for group in groups for one in qualities(group, tables.ordered(group))]
    return _csv([{"group": group.number, **_quality_line(one)} for group, one in found], []) if found else None


def _quality_line(one: Quality) -> dict[str, Any]:
    """Return one line; `stderr` is over seeds, `own_stderr` the mean of what each result says of itself."""
    names = ("method", "task", "metric", "version", "n", "budget", "guess", "seeds", "of", "own_stderr", "settings")
    line: dict[str, Any] = {name: getattr(one, name) for name in names}
    spreads = {"loss": one.loss, "baseline_loss": one.baseline_loss, "value": one.value, "baseline": one.baseline}
    for name, found in {**spreads, "difference": one.gap}.items():
        line |= {name: found.mean, f"{name}_stderr": error(found)}
    return line


def _ending_line(group: Group, row: Row, at: Budget) -> dict[str, Any]:
    line: dict[str, Any] = {
        "group": group.number,
        "method": row.method,
        "lr": row.lr,
        "best": row.best,
        "budget": at.budget,
        "seeds": len(at.matches),
        "failed": at.failed,
    }
    for name, found in (("baseline_loss", at.baseline_loss), ("loss", at.loss), ("gap", at.gap)):
        line |= _columns(name, found)
    for axis in AXES:
        free = at.source_free(axis)
        line |= _columns(f"saving_{axis}", at.saved(axis))
        line[f"saving_{axis}_source_free"] = None if free is None else free.mean
    return line | {"not_reached": at.why().get(NOT_REACHED, 0), "beyond_baseline": at.why().get(BEYOND, 0)}


def _csv(lines: Sequence[Mapping[str, Any]], empty: Sequence[str]) -> str:
    """Return lines of equal keys as CSV; without any, a header of the keys `empty`."""
    stream = io.StringIO()
    header = list(lines[0]) if lines else empty
    writer = csv.DictWriter(stream, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def _line(group: Group, row: Row) -> dict[str, Any]:
    line: dict[str, Any] = {
        "group": group.number,
        "method": row.method,
        "lr": row.lr,
        "best": row.best,
        "lr_tried": row.tried,
        "seeds": len(row.pairs or row.unpaired),
        "failed": len(row.failed),
        "unfinished": len(row.unfinished),
        "unpaired": len(row.unpaired if row.pairs else ()),
        "baseline_lr": "/".join(f"{lr:g}" for lr in sorted({p.baseline.lr for p in row.pairs})),
        "baseline_lr_tried": group.tried,
        "tuned": group.tuned,
    }
    line["headline"] = "annealed" if row.annealed else "first crossing"
    for axis in headline.AXES:
        line |= _columns(f"annealed_{axis}", row.headline.saved(axis))
    line["annealed_at_least"] = row.headline.bound
    without = row.headline.source_free("flops")
    line["annealed_flops_source_free"] = None if without is None else without.mean
    for measure in MEASURES:
        line |= _columns(f"saving_{measure}", row.spread(measure))
    free = row.source_free("flops")
    line["saving_flops_source_free"] = None if free is None else free.mean
    line["speedup_flops"] = speedup(row.spread("flops").mean)
    line["p_holm"] = group.claims.get(row.method) if row.best else None
    line["tokens_over_baseline"] = row.tokens
    return line | _columns("loss", row.loss) | _columns("gap", row.gap)


def _columns(name: str, found: Spread) -> dict[str, Any]:
    return {
        name: found.mean,
        f"{name}_sd": found.sd,
        f"{name}_low": found.low,
        f"{name}_high": found.high,
        f"{name}_reached": found.reached,
    }


def as_dict(
    groups: Sequence[Group], notes: Sequence[str], files: Sequence[Path], found: Sequence[Search] = ()
) -> dict[str, Any]:
    """Return everything the report found, for report.json; unknown numbers are None."""
    return {
        "groups": [_group(group) for group in groups],
        "budgets": [_over(one) for one in over_budgets(groups)],
        "notes": list(notes),
        **({"searches": [_search(one, groups) for one in found]} if found else {}),
        "files": [path.name for path in files],
    }


def _over(one: Budgets) -> dict[str, Any]:
    saved = {name: [None if row is None else _spread(row.claim) for row in rows] for name, rows in one.methods.items()}
    return {
        "groups": [group.number for group in one.groups],
        "tokens_per_parameter": list(one.tokens),
        "baseline_loss": [group.loss.mean for group in one.groups],
        "smaller_alone": [_alone(group.smaller_on_all) for group in one.groups],
        "saved": saved,
    }


def _alone(found: Alone | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"parameters": found.parameters, "seeds": found.seeds, "bound": found.bound} | _spread(found.saved)


def _search(one: Search, groups: Sequence[Group]) -> dict[str, Any]:
    tried, said = [asdict(t) for t in one.tried], list(search.sentences(one, groups))
    return {"folder": str(one.folder), "tried": tried, "flops": one.flops, "fresh": dict(one.fresh), "said": said}


def _group(group: Group) -> dict[str, Any]:
    return {
        "group": group.number,
        "baseline": {
            "lr_tried": group.rates,
            "loss_by_lr": {f"{lr:g}": _spread(found) for lr, found in group.sweep.items()},
            "tuned": group.tuned,
            "edge": group.edge,
            "tried": group.tried,
            "loss": _spread(group.loss),
            "runs": {seed: str(run.folder) for seed, run in group.baselines.items()},
            "otherwise": [_otherwise(one) for one in variants(group)],
        },
        "summary": sentences(group),
        "p_holm": group.claims,
        "more_freedom": [asdict(freedom) for freedom in group.freer],
        "methods": [_row(row) | {"against_better": _against(group, row)} for row in tables.ordered(group)],
        "quality": [_quality_line(one) for one in qualities(group, tables.ordered(group))],
        "runs": [_run(run) for run in group.runs],
    }


def _otherwise(one: Variant) -> dict[str, Any]:
    """Return what from scratch did with other settings, beside this baseline."""
    saved = {"kinds": one.headline.kinds, "bound": one.headline.bound} | _spread(one.headline.saved("flops"))
    seeds = [pair.run.seed for pair in one.pairs]
    return {"settings": one.how, "seeds": seeds, "gap": _spread(one.gap), "saved_flops": saved}


def _against(group: Group, row: Row) -> dict[str, Any] | None:
    """Return what a method saved of FLOPs against a from-scratch run elsewhere that ends lower, if there is one."""
    found = against(group, row)
    return None if found is None else {"kinds": found.kinds, "bound": found.bound} | _spread(found.saved("flops"))


def _row(row: Row) -> dict[str, Any]:
    free = {measure: row.source_free(measure) for measure in MEASURES}
    return {
        "method": row.method,
        "lr": row.lr,
        "best": row.best,
        "lr_tried": row.tried,
        "headline": "annealed" if row.annealed else "first crossing",
        "annealed": _headlines(row),
        "saving_at_equal_loss": {measure: _spread(row.spread(measure)) for measure in MEASURES},
        "source_free": {measure: _spread(found) for measure, found in free.items() if found is not None} or None,
        "speedup": speedup(row.spread("flops").mean),
        "loss": _spread(row.loss),
        "gap": _spread(row.gap),
        "seeds": [_pair(pair) for pair in row.pairs],
        "without_baseline": [str(run.folder) for run in row.unpaired],
        "failed": [str(run.folder) for run in row.failed],
        "unfinished": [str(run.folder) for run in row.unfinished],
        "tokens_over_baseline": row.tokens,
        **({"matched_endings": [_budget(at) for at in row.endings]} if row.endings else {}),
    }


def _headlines(row: Row) -> dict[str, Any]:
    """Return the headline over the seeds; what it is of each run stands with the seeds."""
    told = row.headline
    free = {axis: told.source_free(axis) for axis in headline.AXES}
    return {
        "kinds": told.kinds,
        "at_least": told.bound,
        "saving": {axis: _spread(told.saved(axis)) for axis in headline.AXES},
        "source_free": {axis: _spread(found) for axis, found in free.items() if found is not None} or None,
    }


def _budget(at: Budget) -> dict[str, Any]:
    free = {axis: at.source_free(axis) for axis in AXES}
    return {
        "budget": at.budget,
        "baseline_loss": _spread(at.baseline_loss),
        "loss": _spread(at.loss),
        "gap": _spread(at.gap),
        "saving": {axis: _spread(at.saved(axis)) for axis in AXES},
        "source_free": {axis: _spread(found) for axis, found in free.items() if found is not None} or None,
        "outside": at.why(),
    }


def _spread(found: Spread) -> dict[str, Any]:
    return asdict(found) | {"count": found.count, "reached": found.reached}


def _pair(pair: Pair) -> dict[str, Any]:
    return {
        "seed": pair.run.seed,
        "run": str(pair.run.folder),
        "baseline": str(pair.baseline.folder),
        "target": pair.target,
        "gap": pair.gap,
        "annealed": asdict(pair.headline),
        "cost": pair.cost,
        "baseline_cost": pair.baseline_cost,
        "saving_at_equal_loss": pair.saved,
        "source_free": pair.source_free,
        "timed": pair.untimed is None,
        "untimed": pair.untimed,
        **({"endings": [asdict(match) for match in pair.endings]} if pair.endings else {}),
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "run": str(run.folder),
        "name": run.name,
        "cycle": run.config["cycle"]["name"],
        "baseline": pairing.baseline(run),
        "seed": run.seed,
        "lr": run.lr,
        "status": run.status,
        "fault": run.fault,
        "progress": run.progress,
        "val_loss": None if run.final is None else run.final.loss,
        **{key: run.last.get(key) for key in ("step", "tokens", "flops", "flops_body", "seconds")},
        "ledger": None if run.summary is None else run.summary.get("ledger"),
        "source": run.source,
        "transfers": list(run.transfers),
        "lacking": run.lacking,
        **({"endings": [{"budget": e.budget} | e.point._asdict() for e in run.endings]} if run.endings else {}),
    }


def write(out: Path, name: str, content: str | dict[str, Any]) -> Path:
    """Write one file of the report and return its path."""
    path = out / name
    text = content if isinstance(content, str) else json.dumps(nulled(content), indent=1, allow_nan=False) + "\n"
    files.write_text(path, text)
    return path


def nulled(value: Any) -> Any:
    """Return a value as JSON holds it: what is not finite is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): nulled(item) for key, item in value.items()}
    return [nulled(item) for item in value] if isinstance(value, list | tuple) else value
