"""One group of runs on the page: what was saved, the charts, and what they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any

from mlrun.report import grid, pairing, tables
from mlrun.report.compare import Group, Row
from mlrun.report.page.chart import CHARTED, TITLES, chart
from mlrun.report.page.ledger import ledger
from mlrun.report.page.parts import SEEN, cells, folded, listed, long, said, section, tabled
from mlrun.report.sentences import sentences
from mlrun.report.tables import Table


def group_section(group: Group, drawn: Mapping[str, Any] | None, told: bool, shown: str, of: Sequence[int]) -> str:
    """Return all of one group: what was saved, the charts, and what they are made of.

    The page's top has the sentences unless they are to be `told` here, and the chart of the kind `shown`. `of` are the
    groups whose smaller model alone it has.
    """
    annealed, crossing = tables.annealed(group), tables.savings(group)
    first = annealed if annealed.rows else crossing
    parts = [folded(sentences(group)) if told else "", listed([control(of)] if of and not group.rows else [])]
    if first.rows:
        parts.append(tabled(replace(first, title=first.title.removeprefix(tables.group_line(group)).strip())))
    else:
        parts.append(f'<p class="title">{escape(tables.reference(group))}</p>')
    parts += [_map(one) for one in grid.maps(group)]
    if drawn is None:
        parts.append(f'<p class="hint">Charts are drawn for the {CHARTED} groups with most runs.</p>')
    else:
        parts += [chart(group, kind) for kind in TITLES if drawn[kind] and kind != shown]
    parts += [tabled(crossing)] if annealed.rows else []
    parts += [_quality(tables.quality(group)), tabled(tables.endings(group)), tabled(tables.sweep(group))]
    parts += [long(tables.transfers(group)), _settings(group), ledger(group)]
    return section(f"group-{group.number}", escape(tables.group_line(group).removesuffix(".")), "\n".join(parts))


def controls_of(group: Group, groups: Sequence[Group]) -> list[int]:
    """Return the numbers of the groups that have runs of this one as their smaller models alone."""
    own = {run.folder for run in group.runs}
    known = {one.number: {run.folder for runs in one.controls.values() for run in runs} for one in groups}
    return [number for number, folders in known.items() if own & folders]


def control(of: Sequence[int]) -> str:
    """Say what a group is there for that has no method: the numbers of others are read against it."""
    where = f"group{'' if len(of) == 1 else 's'} {', '.join(map(str, of))}"
    return f"No method is here. It is a smaller model alone for {where}, where what it saves is told."


def _quality(table: Table) -> str:
    """Return what evaluations say; parts of a task, as `pairs/order` of `pairs`, are folded."""
    tasks = [row[1].partition("\n")[0] for row in table.rows]
    parts = [row for row, task in zip(table.rows, tasks, strict=True) if task.rpartition("/")[0] in tasks]
    shown = tabled(replace(table, rows=tuple(row for row in table.rows if row not in parts)))
    if not parts:
        return shown
    told = f"<summary>{tables.count(len(parts), 'row')} of parts of these tasks</summary>"
    return f"{shown}<details>{told}{cells(table.header, parts, table.numbers)}</details>"


def _map(one: grid.Map) -> str:
    """Return a heat map; its script colours the cells and shows one of the two values."""
    head = "".join(f"<th>{escape(str(x))}</th>" for x in one.xs)
    lines = []
    for y in one.ys:
        row = "".join(_map_cell(one.cells.get((x, y))) for x in one.xs)
        lines.append(f'<tr><th class="word">{escape(str(y))}</th>{row}</tr>')
    corner = f"{escape(one.y)} \N{DOWNWARDS ARROW}\n{escape(one.x)} \N{RIGHTWARDS ARROW}"
    fixed = f" At {one.fixed}." if one.fixed else ""
    told = (
        f"The greener the better; orange costs more than the baseline.{fixed} A saving is the headline where a method "
        "has endings, else that of the first crossing; losses are means over the seeds."
    )
    return (
        f'<h3>{escape(one.y)} and {escape(one.x)}</h3><figure data-kind="map"><div class="wide"><table class="map">'
        f'<tr><th class="word">{corner}</th>{head}</tr>{"".join(lines)}</table></div>'
        f"<figcaption>{escape(told)}</figcaption></figure>"
    )


def _map_cell(row: Row | None) -> str:
    if row is None:
        return "<td></td>"
    saved, loss = row.claim.mean, row.loss.mean
    bound = "\N{GREATER-THAN OR EQUAL TO}" if row.annealed and row.headline.bound else ""
    told = "no number" if saved is None else bound + tables.percent(saved)
    values = {"loss": loss, "saving": saved}
    known = " ".join(f'data-{name}="{_attribute(value)}"' for name, value in values.items())
    loss_told = "n/a" if loss is None else f"{loss:.4f}"
    return f'<td {known} data-saving-said="{told}" data-loss-said="{loss_told}">{told}\n{loss_told}</td>'


def _attribute(value: float | None) -> str:
    return "" if value is None else str(value)


def _settings(group: Group) -> str:
    """Return, for each method, the settings in which its first run differs from the baseline of its seed."""
    parts = []
    for row in tables.ordered(group):
        if row.best and row.pairs:
            pair = row.pairs[0]
            rows = [(key, said(base), said(own)) for key, own, base in pairing.apart(pair.run, pair.baseline)]
            table = cells(("setting", "baseline", "method"), rows, 3)
            parts.append(
                f'<details class="settings"><summary>'
                f"{escape(row.method)}: {tables.count(len(rows), 'setting')}</summary>{table}</details>"
            )
    if not parts:
        return ""
    hint = "Of the first seed. Coarsening, growth and a cycle's policies do nothing in a baseline, which has one stage."
    title = "<h3>Settings that differ from the baseline's</h3>"
    rest = "".join(parts[SEEN:])
    more = f"<details><summary>{len(parts) - SEEN} more methods</summary>{rest}</details>" if rest else ""
    return "".join([title, f'<p class="hint">{hint}</p>', *parts[:SEEN], more])
