"""Tables and figures from finished or running run folders: what was saved, at equal loss, against whom.

Reads files only (no torch, no Hydra). Everything here is computed from these fields of a run folder:

config.yaml    resolved: seed, budget, batch, model, data, optimizer.{lr, ...}, eval.{every, ...}, cycle.{name, ...},
               coarsening, hardware. Two runs are paired when model, data, budget, batch, seed, eval (but for
               `every`) and optimizer (but for `lr`) are equal.
plan.json      budget; stages: [{stage, level, steps, tokens, flops, flops_body, ...}]; totals: {flops, tokens, ...}.
               A baseline is a run whose plan has one stage, at level 1.
               source (optional): {name, flops, flops_body, seconds}: what was spent outside of this run's log
               (a pretrained small model); it is charged, and `source_free` is given beside.
               Stages with `branch` (the share of the budget at which it ends) and `fork` are no part of the trunk.
               lacking (optional): [{point, branch, why}], endings that were asked for and that the cycle cannot have.
log.jsonl      `val` records: stage, level, step, tokens, flops, flops_body, seconds, loss (null if not finite).
               Those of a branch have `branch` and own_step, own_tokens, own_flops, ...: what a run with this end
               would have spent. They are endings, and no points of the run's curve.
               `transfer` records: stage, level, operator, loss_before, loss_operator (before the interpolation;
               optional), loss_after, relative_logit_change, exact, tolerance, alpha.
               Other kinds only tell how far a running run has come.
               `results` of the last of a stage or a branch: {task: {metric, value, stderr, n, version}}.
evaluate.json  (optional) the same of the finished run's model, in the place of what the log says of its end.
summary.json   written once, at the end of a run: status ("finished" | "interrupted" | "pruned" | "failed"), val_loss,
               ledger: {stages: [{stage, level, steps, tokens, flops, flops_body, seconds}],
                        seconds: {training, transfer, evaluation, startup}},
               machine (optional): what the seconds were measured on, in words.
               A run without it is "running" while a process holds its lock (or, where locks do not show
               that, its log grows), else "unfinished".
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlrun import files
from mlrun.errors import UserError, mistake
from mlrun.report import budgets, search, tables, write
from mlrun.report.budgets import over_budgets
from mlrun.report.compare import Group, compare
from mlrun.report.notes import DEFINITIONS, notes
from mlrun.report.page import index
from mlrun.report.read import find, place, read_all
from mlrun.report.search import Search, searches
from mlrun.report.sentences import sentences

# Figures take a second each; a report over many settings shows those with most runs.
FIGURES = 6
# Sentences of a group on a terminal; report.md has them all.
SENTENCES = 3


@dataclass(frozen=True)
class Report:
    """What was found and where it was written."""

    groups: tuple[Group, ...]
    notes: tuple[str, ...]
    files: tuple[Path, ...]
    searches: tuple[Search, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return everything in it as plain values, as report.json holds it."""
        return write.as_dict(self.groups, self.notes, self.files, self.searches)

    @property
    def figure(self) -> Path | None:
        """The PNG of the largest group, or None if there was nothing to draw."""
        return next((path for path in self.files if path.suffix == ".png"), None)


def build(runs: Sequence[Path | str], out: Path | str | None = None, reload: int | None = None) -> Report:
    """Compare all runs at or under the given paths (glob patterns too) and write tables and figures to `out`.

    Without `out`, they go to a folder `report` in the nearest one that holds all that was named, of patterns all runs.

    Writes index.html (all of it as a page), report.md, savings.csv, report.json, endings.csv where runs have branches,
    quality.csv where they were evaluated by more than the loss, and loss.png and loss.pdf (loss-2, ... for further
    groups of runs that may not be compared with the first); annealed.png and annealed.pdf are the headline's, where
    methods have endings, budgets.png and budgets.pdf are of one model at several budgets. With `reload` the page reads
    itself again after so many seconds.

    Raises:
        UserError: a path is missing or holds no run, a run folder cannot be read, or `out` holds files and none of
            ours. Nothing is written then.
    """
    if isinstance(runs, str):
        raise UserError(mistake("runs", runs, "a list of folders", "put it into a list"))
    named = [files.expanded(path) for path in runs]
    folders = find(named)
    groups = tuple(compare(read_all(folders)))
    out = place(named, folders) / "report" if out is None else files.expanded(out)
    files.judge(out)
    found = searches(groups)
    caveats = tuple(notes(groups, found))
    with files.whole_folder(out) as new:
        names = [path.name for path in _written(new, groups, caveats, found, reload)]
    return Report(groups, caveats, tuple(out / name for name in names), found)


def _written(
    out: Path, groups: Sequence[Group], caveats: Sequence[str], found: Sequence[Search], reload: int | None
) -> list[Path]:
    """Write all files of a report, and return their paths."""
    drawn = _figures(groups, out)
    pictures = {number: [path for path in paths if path.suffix == ".png"] for number, paths in drawn.items()}
    written = [
        write.write(out, "index.html", index.page(groups, caveats, found, reload)),
        write.write(out, "report.md", write.markdown(groups, caveats, pictures, found)),
        write.write(out, "savings.csv", write.savings_csv(groups)),
        *(path for paths in drawn.values() for path in paths),
    ]
    annealed = write.endings_csv(groups)
    if annealed is not None:
        written.append(write.write(out, "endings.csv", annealed))
    measured = write.quality_csv(groups)
    if measured is not None:
        written.append(write.write(out, "quality.csv", measured))
    written.append(out / files.REPORT)
    write.write(out, files.REPORT, write.as_dict(groups, caveats, written, found))
    return written


def _figures(groups: Sequence[Group], out: Path) -> dict[int, list[Path]]:
    """Return the pictures of each group's number; those of 0 are of savings over budgets."""
    from mlrun.report import annealed_figure, budgets_figure, figure

    found: dict[int, list[Path]] = {}
    for group in groups[:FIGURES]:
        more = "" if group.number == 1 else f"-{group.number}"
        paths = [*annealed_figure.draw(group, out, f"annealed{more}"), *figure.draw(group, out, f"loss{more}")]
        if paths:
            found[group.number] = paths
    for number, one in enumerate(over_budgets(groups)[:FIGURES], 1):
        more = "" if number == 1 else f"-{number}"
        found.setdefault(0, []).extend(budgets_figure.draw(one, out, f"budgets{more}"))
    return found


def render(report: Report) -> str:
    """Return the tables, their caveats and at the end what was found in sentences, for a terminal of 110 columns.

    The rules that are the same for every report are in report.md and on the page.
    """
    shown = [text for group in report.groups for text in _shown(group)]
    shown += [budgets.table(one).text() for one in over_budgets(report.groups)]
    shown += [search.table(one).text() for one in report.searches]
    said = [note for note in report.notes if note not in DEFINITIONS]
    said += [f"How each number is defined: the notes of {path}" for path in report.files if path.name == "report.md"]
    lines = [textwrap.fill(note, tables.WIDTH, initial_indent="- ", subsequent_indent="  ") for note in said]
    paths = [f"{path}" for path in report.files]
    told = [_wrapped(line) for line in _told(report)]
    return "\n".join([*shown, *lines, "", *paths, *([""] if told else []), *told]) + "\n"


def _told(report: Report) -> list[str]:
    """Return what the searches of a report found, or what its groups say, the first sentences of each."""
    if report.searches:
        return [line for one in report.searches for line in search.sentences(one, report.groups)]
    names = [f"Group {group.number}: " if len(report.groups) > 1 else "" for group in report.groups]
    each = zip(names, report.groups, strict=True)
    return [name + line for name, group in each for line in sentences(group)[:SENTENCES]]


def _shown(group: Group) -> list[str]:
    """Return the tables of one group."""
    crossing = tables.savings(group).text() if group.rows else _wrapped(tables.baseline_line(group))
    others = (tables.sweep(group), tables.endings(group), tables.quality(group))
    headlines = tables.annealed(group)
    first = [headlines.text()] if headlines.rows else []
    return [*first, crossing, *(table.text() for table in others if table.rows)]


def _wrapped(line: str) -> str:
    return textwrap.fill(line, tables.WIDTH) + "\n"
