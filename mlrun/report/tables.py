"""The tables as headers and rows of text, and their two forms: Markdown and terminal."""

from __future__ import annotations

import io
import math
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlrun.report import pairing
from mlrun.report.compare import Group, Row
from mlrun.report.curves import AXES, speedup
from mlrun.report.endings import Budget
from mlrun.report.headline import AT_LEAST, Headlines
from mlrun.report.headline import AXES as SPENT
from mlrun.report.quality import Quality, error, qualities
from mlrun.report.read import Run
from mlrun.report.stats import Spread
from mlrun.units import duration, human

WIDTH = 110
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Table:
    """A title, a header and rows of cells; the columns from `numbers` on are numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: int

    def markdown(self) -> str:
        """Return the table as Markdown."""
        rule = ["---" if i < self.numbers else "---:" for i in range(len(self.header))]
        cells = [[cell.replace("\n", "<br>") for cell in row] for row in (self.header, *self.rows)]
        body = "\n".join("| " + " | ".join(line) + " |" for line in (cells[0], rule, *cells[1:]))
        return f"{self.title}\n\n{body}\n"

    def text(self) -> str:
        """Return the table for a terminal of `WIDTH` columns."""
        from rich import box
        from rich.console import Console
        from rich.table import Table as Rich

        table = Rich(box=box.SIMPLE_HEAD, pad_edge=False)
        for index, name in enumerate(self.header):
            words = [len(word) for row in self.rows if index < self.numbers for word in row[index].split()]
            whole = min(max(words, default=0), WIDTH // 4)  # of names, no word is cut unless it is very long
            justify: Any = "left" if index < self.numbers else "right"
            table.add_column(name, justify=justify, overflow="fold", min_width=whole or None)
        for row in self.rows:
            table.add_row(*row)
        stream = io.StringIO()
        console = Console(file=stream, width=WIDTH, color_system=None, markup=False, highlight=False)
        console.print(table)
        body = [line.rstrip() for line in stream.getvalue().splitlines()]
        return "\n".join([textwrap.fill(self.title, WIDTH), *body]) + "\n"


def annealed(group: Group) -> Table:
    """Return the headline: what the smallest annealed budget that reaches L* saved; empty without endings.

    The first crossing of the curve stands beside, in a column of its name.
    """
    saved = ("FLOPs saved", "of body", "time saved", "tokens saved")
    header = ("method", "rate", "seeds", *saved, "first crossing", "loss gap")
    rows = [cells for row in ordered(group) for cells in _annealed_rows(row)] if group.annealed else []
    title = f"{baseline_line(group)} Saved by the smallest annealed budget that reaches L*:"
    return Table(title, header, tuple(rows), 1)


def _annealed_rows(row: Row) -> list[tuple[str, ...]]:
    if not row.pairs:
        name, rate, seeds, why, *_, loss = _saving_rows(row)[0]
        return [(name, rate, seeds, why, "", "", "", "", loss)]
    headlines = row.headline
    shown = [_annealed_on(row, axis, headlines.saved(axis)) for axis in SPENT]
    rows = [
        (_starred(row), f"{row.lr:g}", _seeds(row), *shown, _saved_on(row, "flops", row.spread("flops")), _gap(row))
    ]
    free = {axis: found for axis in SPENT if (found := headlines.source_free(axis)) is not None}
    if free and not all(row.uncharged(axis) for axis in AXES):
        rows.append(("  source free", "", "", *(_annealed_on(row, axis, free[axis]) for axis in SPENT), "", ""))
    return rows


def claimed(row: Row) -> str:
    """Return in words what a row with pairs saved of the FLOPs: annealed where it has endings, else un-annealed."""
    return _annealed_on(row, "flops", row.claim) if row.annealed else _saved_on(row, "flops", row.claim)


def _annealed_on(row: Row, axis: str, found: Spread) -> str:
    if row.uncharged(axis):
        return "n/a: source not charged"
    return headline(row.headline, found) if row.timed or axis != "seconds" else "n/a"


def headline(told: Headlines, found: Spread) -> str:
    """Return a saving of the headline in words: a number, a bound, or how many seeds have none and why.

    A mean with bounds in it has the least and the most of its seeds beside it, as it has no interval.
    """
    known = [(value, kind) for kind, value in zip(told.kinds, found.values, strict=True) if value is not None]
    each = [("\N{GREATER-THAN OR EQUAL TO}" if kind == AT_LEAST else "") + percent(value) for value, kind in known]
    if found.mean is not None:
        least, most = (each[known.index(one)] for one in (min(known), max(known)))
        return bounded(found, told.bound) + (f"\n({least} to {most})" if told.bound and least != most else "")
    why = [kind for kind, value in zip(told.kinds, found.values, strict=True) if value is None]
    if not each and len(set(why)) == 1:
        return why[0]
    lines = [f"{kind} {why.count(kind)}/{found.count}" for kind in dict.fromkeys(why)]
    return "\n".join([*lines, *([f"({', '.join(each)})"] if each else [])])


def bounded(found: Spread, bound: bool) -> str:
    """Return a saving that every seed has in words: a number with what is known of it, or a lower bound."""
    if bound:
        return f"\N{GREATER-THAN OR EQUAL TO}{percent(found.mean)}"
    return saved(found).replace(" ± ", "\n± ")


def savings(group: Group) -> Table:
    """Return what each method of a group saved at the first crossing; every method's best learning rate is starred."""
    header = ("method", "rate", "seeds", "FLOPs saved", "of body", "time saved", "speed-up", "tokens", "loss gap")
    rows = [cells for row in ordered(group) for cells in _saving_rows(row)]
    title = f"Group {group.number}" if group.annealed else baseline_line(group)
    crossing = " Saved at the first crossing of the curve, un-annealed:" if group.baselines else ""
    return Table(title.removesuffix(".") + "." + crossing, header, tuple(rows), 1)


def ordered(group: Group) -> list[Row]:
    """Return the rows, the largest FLOPs saving first; then by loss gap, and where there is no baseline, by loss."""

    def key(row: Row) -> tuple[int, float]:
        mean, gap, loss = row.claim.mean, row.gap.mean, row.loss.mean
        if mean is not None:
            return 0, -mean
        if gap is not None:
            return 1, gap
        return 2, float("inf") if loss is None else loss

    return sorted(group.rows, key=key)


def _starred(row: Row) -> str:
    return row.method + (" *" if row.best and row.tried > 1 else "")


def _saving_rows(row: Row) -> list[tuple[str, ...]]:
    name = _starred(row)
    if not row.pairs:
        ended = [*row.unpaired, *row.failed]
        why = "no baseline" if row.unpaired else ", ".join(sorted({run.status for run in row.failed or row.unfinished}))
        loss = f"loss {_level(row.loss)}".replace("\n", " ") if row.unpaired else ""
        return [(name, f"{row.lr:g}", _seeds(row) if ended else "0", why, "", "", "", "", loss)]
    shown = [_saved_on(row, axis, row.spread(axis)) for axis in AXES]
    faster = speedup(row.spread("flops").mean)
    tokens = "n/a" if row.tokens is None else f"\N{MULTIPLICATION SIGN}{row.tokens:.2f}"
    rows = [(name, f"{row.lr:g}", _seeds(row), *shown, percent(faster), tokens, _gap(row))]
    free = {axis: found for axis in AXES if (found := row.source_free(axis)) is not None}
    if free and not all(row.uncharged(axis) for axis in free):
        rows.append(("  source free", "", "", *(_saved_on(row, axis, free[axis]) for axis in AXES), "", "", ""))
    return rows


def _saved_on(row: Row, axis: str, found: Spread) -> str:
    if row.uncharged(axis):
        return "n/a: source not charged"
    return saved(found, row.timed or axis != "seconds")


def _gap(row: Row) -> str:
    gap, failed = row.gap, len(row.failed)
    return f"failed {failed}/{gap.count}" if failed else _nats(gap).replace(" ", "\n", 1 if gap.sd is not None else 0)


def sweep(group: Group) -> Table:
    """Return the baseline's final loss at each learning rate, and of how many seeds it is L*; empty for one rate."""
    chosen = [run.lr for run in group.baselines.values()]
    rows = [
        (f"{lr:g}", str(found.count), _swept(found), str(chosen.count(lr)))
        for lr, found in (group.sweep.items() if len(group.rates) > 1 else ())
    ]
    title = f"The baseline of group {group.number} at each learning rate"
    return Table(title, ("rate", "seeds", "final loss", "best for"), tuple(rows), 0)


def _swept(found: Spread) -> str:
    failed = found.count - found.reached
    return f"failed {failed}/{found.count}" if failed else _level(found).replace("\n", " ")


def endings(group: Group) -> Table:
    """Return the annealed losses of a group's best rows beside the baseline's at equal budgets, and what they saved."""
    losses = ("baseline loss", "loss", "gap")
    header = ("method", "budget", *losses, "FLOPs saved", "of body", "time saved")
    rows = [cells for row in ordered(group) if row.best for at in row.endings for cells in _ending_rows(row, at)]
    title = f"Matched endings of group {group.number}: annealed losses at equal budgets, and what each saved against "
    return Table(title + "what the baseline would have paid for the same annealed loss.", header, tuple(rows), 1)


def _ending_rows(row: Row, at: Budget) -> list[tuple[str, ...]]:
    shown = [_ending_saved(row, at, axis, at.saved(axis)) for axis in AXES]
    gap = "n/a" if at.gap.mean is None else _nats(at.gap).replace(" ", "\n", 1)
    losses = (_level(at.baseline_loss), _level(at.loss), gap)
    budget = f"{100 * at.budget:.3g}%"
    if len(at.matches) < len(row.pairs):
        budget += f"\n{len(at.matches)}/{len(row.pairs)} seeds"
    rows = [(row.method, budget, *losses, *shown)]
    free = {axis: found for axis in AXES if (found := at.source_free(axis)) is not None}
    if free and not all(row.uncharged(axis) for axis in free):
        cells = [_ending_saved(row, at, axis, free[axis]) for axis in AXES]
        rows.append(("  source free", "", "", "", "", *cells))
    return rows


def _ending_saved(row: Row, at: Budget, axis: str, found: Spread) -> str:
    if row.uncharged(axis):
        return "n/a: source not charged"
    return _matched(at, found, row.timed or axis != "seconds")


def _matched(at: Budget, found: Spread, comparable: bool) -> str:
    """Return a saving at matched endings in words; where some seeds have none, how many and why."""
    if not comparable or found.mean is not None:
        return saved(found, comparable).replace(" ± ", "\n± ")
    why = at.why()
    if len(why) == 1 and found.reached == 0:
        return next(iter(why))
    known = [percent(value) for value in found.values if value is not None]
    lines = [f"{reason} {count}/{found.count}" for reason, count in why.items()]
    return "\n".join([*lines, *([f"({', '.join(known)})"] if known else [])])


def quality(group: Group) -> Table:
    """Return what evaluations say of each method's best rate beside its baseline; empty where nothing was measured."""
    header = ("method", "task", "at", "seeds", "loss", "baseline loss", "value", "baseline", "difference")
    rows = tuple(_quality_row(one) for one in qualities(group, ordered(group)))
    title = f"Saving and quality of group {group.number}: what evaluations say, beside the loss; "
    return Table(title + "\N{PLUS-MINUS SIGN} is the standard error over seeds.", header, rows, 2)


def _quality_row(one: Quality) -> tuple[str, ...]:
    told = [one.metric, "" if one.n is None else f"n {one.n:,}", "" if one.version == "1" else f"version {one.version}"]
    named = [one.task, ", ".join(part for part in told if part)]
    named += [] if one.guess is None else [f"guessing {one.guess:.4g}"]
    place = "end" if one.budget is None else f"{100 * one.budget:.3g}%"
    losses = (_with_error(one.loss), _with_error(one.baseline_loss))
    values = (_with_error(one.value), _with_error(one.baseline), _with_error(one.gap, signed=True))
    return (one.method, "\n".join(named), place, f"{one.seeds}/{one.of}", *losses, *values)


def _with_error(found: Spread, signed: bool = False) -> str:
    """Return a mean over seeds with its standard error; n/a unless every seed has a value."""
    if found.mean is None:
        return "n/a"
    reach = error(found)
    places = _places(found.mean, reach)
    shown = _signed(found.mean, f"+.{places}f" if signed else f".{places}f")
    return shown if reach is None else f"{shown}\n\N{PLUS-MINUS SIGN} {reach:.{places}f}"


def _places(value: float, reach: float | None) -> int:
    """Return how many digits behind the point say something: two of the error, four figures where there is none."""
    known = reach is not None and reach > 1e-9 * abs(value)
    of, figures, most = (reach or 1.0, 2, 6) if known else (abs(value) or 1.0, 4, 4)
    return min(most, max(0, figures - 1 - math.floor(math.log10(of))))


def _level(found: Spread) -> str:
    """Return a loss over the seeds."""
    if found.mean is None:
        return "n/a"
    return _loss(found.mean) if found.sd is None else f"{found.mean:.4f}\n± {found.sd:.4f}"


def _seeds(row: Row) -> str:
    kept = len(row.pairs or row.unpaired)
    text = f"{kept}" + (f", failed {len(row.failed)}/{kept + len(row.failed)}" if row.failed else "")
    return text + (f" (+{len(row.unfinished)} unfinished)" if row.unfinished else "")


def saved(found: Spread, comparable: bool = True) -> str:
    """Return a saving over seeds in words: mean, deviation, interval, or how many seeds reached L*."""
    if not comparable:
        return "n/a"
    if found.mean is None:
        reached = [value for value in found.values if value is not None]
        if not reached:
            return "not reached"
        return f"reached {found.reached}/{found.count}\n({', '.join(percent(v) for v in reached)})"
    text = percent(found.mean)
    if found.sd is not None:
        text += f" ± {100 * found.sd:.1f}"
    if found.low is not None and found.high is not None:
        text += f"\n[{_signed(100 * found.low)}, {_signed(100 * found.high)}]"
    return text


def percent(value: float | None) -> str:
    """Return a share as a percentage with one digit."""
    return "n/a" if value is None else _signed(100 * value) + "%"


def _signed(value: float, form: str = ".1f") -> str:
    return format(value, form).replace("-", MINUS)


def _nats(found: Spread) -> str:
    if found.mean is None:
        return f"diverged {found.count - found.reached}/{found.count}" if found.count else "n/a"
    text = _signed(found.mean, "+.4f")
    return text if found.sd is None else f"{text} ± {found.sd:.4f}"


def baseline_line(group: Group) -> str:
    """Return what the group is and which baseline everything is measured against."""
    return f"{group_line(group)} {reference(group)}"


def group_line(group: Group) -> str:
    """Return what all runs of a group share."""
    run = group.runs[0]
    return f"Group {group.number}: {model(run)}, budget {run.config['budget']}, batch {run.config['batch']}."


def reference(group: Group) -> str:
    """Return which baseline everything is measured against."""
    if not group.baselines:
        return "No finished baseline."
    best = next(iter(group.baselines.values()))
    rates = ", ".join(f"{lr:g}" for lr in sorted({b.lr for b in group.baselines.values()}))
    loss, seeds = group.loss, len(group.baselines)
    spread = "" if loss.sd is None else f" ± {loss.sd:.4f}"
    level = f"L* = {loss.mean:.4f}{spread} ({count(seeds, 'seed')})"
    return f"Baseline {pairing.called([best])} at rate {rates} ({tuning(group)}), {level}."


def tuning(group: Group) -> str:
    """Return how the baseline's learning rate was found."""
    if group.searched:
        return "chosen by a search"
    if group.tried < 2:
        return "not swept"
    return f"best of {group.tried}" + (", at the edge of its sweep" if group.edge else "")


def count(number: int, noun: str) -> str:
    """Return a number with its noun: 1 seed, 3 seeds."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def model(run: Run) -> str:
    """Return what a run trains: its kind and its parameters."""
    name = str(run.config["model"].get("_target_", "model")).rpartition(".")[2]
    parameters = next((level["parameters"] for level in run.plan.get("levels", []) if level["level"] == 1), None)
    return name if parameters is None else f"{name}, {parameters / 1e6:.3g}M parameters"


def runs(found: Sequence[Run]) -> Table:
    """Return every run that was read."""
    header = ("run", "cycle", "seed", "rate", "status", "val loss", "FLOPs", "tokens", "training", "in all")
    rows = tuple(_run_row(run, name) for run, name in zip(found, names(found), strict=True))
    title = "Runs (time in training, and in all: also start-up, transfers, evaluation, ...)"
    if any(run.branches for run in found):
        title = title.replace("...)", "...; costs are with all branches)")
    return Table(title, header, rows, 2)


def _run_row(run: Run, name: str) -> tuple[str, ...]:
    status = run.status if run.finished else f"{run.status} ({100 * run.progress:.0f}%)"
    loss = "n/a" if run.final is None else f"{run.final.loss:.4f}"
    cycle, last = pairing.called([run]), run.last
    seconds = last.get("seconds")
    every = None if seconds is None or run.overhead is None else seconds + run.overhead
    costs = (_amount(last.get("flops")), _amount(last.get("tokens")), duration(seconds), duration(every))
    return (name, cycle, str(run.seed), f"{run.lr:g}", status, loss, *costs)


def _amount(value: float | None) -> str:
    return "n/a" if value is None else human(value)


def names(found: Sequence[Run]) -> list[str]:
    """Return each run's folder, without what all have in common."""
    paths = [run.folder.absolute() for run in found]
    if len(paths) < 2:
        return [path.name for path in paths]
    above = Path(os.path.commonpath([str(path) for path in paths]))
    return [str(path.relative_to(above)) for path in paths]


def transfers(group: Group) -> Table:
    """Return the parity receipts of a group's best rows, over their seeds: means of losses, the largest change."""
    losses = ("loss before", "operator alone", "loss after", "jump")
    header = ("method", "stage", "operator", "alpha", "seeds", *losses, "logit change", "exact")
    rows = []
    for row in group.rows:
        if row.best:
            every = [pair.run for pair in row.pairs]
            rows += [_transfer(row.method, found) for found in zip(*(run.transfers for run in every), strict=False)]
    return Table("Transfers: the same held-out batch just before and just after", header, tuple(rows), 1)


def _transfer(method: str, found: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    first = found[0]
    before, after = (_mean(record[key] for record in found) for key in ("loss_before", "loss_after"))
    jump = None if before is None or after is None else after - before
    changes = [record["relative_logit_change"] for record in found]
    change = "n/a" if any(c is None for c in changes) else f"{max(changes):.2g}"
    alpha = "" if first.get("alpha") is None else f"{first['alpha']:g}"
    place = (str(first["stage"] + 1), first["operator"], alpha, str(len(found)))
    alone = _mean(record.get("loss_operator") for record in found)
    losses = (_loss(before), _loss(alone), _loss(after), "n/a" if jump is None else _signed(jump, "+.4f"))
    return (method, *place, *losses, change, "promised, kept" if first["exact"] else "not promised")


def _mean(values: Iterable[float | None]) -> float | None:
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if len(known) == len(found) else None


def _loss(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"
