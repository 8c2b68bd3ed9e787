"""The report as a page: one file that opens from disk, asks the network for nothing and explains itself.

Text and tables are written here, so that they can be read, searched and printed without a script. Charts are drawn
by `page.js` from one JSON island. All text of a user is escaped, and the page's policy lets no other script run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from mlrun.report import annealed_figure, budgets, charts, commands, figure, grid, layers, pairing, search, tables
from mlrun.report.compare import Group, Row
from mlrun.report.notes import DEFINITIONS
from mlrun.report.read import Run
from mlrun.report.search import Search
from mlrun.report.sentences import sentences
from mlrun.report.tables import Table
from mlrun.units import duration, human

FOLDER = Path(__file__).parent
CHARTED = 6  # groups with charts, as many as have figures
LISTED = 3  # sentences of methods that are seen at once
SEEN = 12  # bars, rows or methods of a kind that are seen at once where there are many
LEDGERS = 100  # runs of a group whose stages are listed
# Where a run says what it ran on, and with what.
VERSIONS = ("commit", "mlrun", "torch", "python", "host", "processor", "cores", "gpu", "precision", "processes")


def page(groups: Sequence[Group], notes: Sequence[str], found: Sequence[Search] = (), reload: int | None = None) -> str:
    """Return index.html, which with `reload` reads itself again after so many seconds."""
    drawn = {str(group.number): charts.charts(group) | layers.charts(group) for group in groups[:CHARTED]}
    first = next((group for group in groups if sentences(group)), None)
    picture = _picture(drawn.get(str(first.number))) if first else ""
    body = [_top(groups, first, picture, notes, found)]
    body += [_section("budgets", "As the budget grows", shown) for shown in [_budgets(groups)] if shown]
    for group in groups:
        shown = picture if group is first else ""
        told = group is not first
        body.append(_group(group, drawn.get(str(group.number)), told=told, shown=shown, of=_controls_of(group, groups)))
    body += [_search(number, one, groups) for number, one in enumerate(found, 1)]
    body += [_section("notes", "Notes", _notes(notes)), _reproduce(groups), _runs(groups)]
    script = _asset("page.js")
    parts = {
        "policy": _policy(script),
        "reload": "" if reload is None else f'<meta http-equiv="refresh" content="{reload}">',
        "title": "Savings at equal loss",
        "style": _asset("page.css"),
        "body": "\n".join(body),
        "data": _island({"groups": drawn}),
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("page.html"))


def _asset(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """Return the page's content policy: nothing is fetched, and no script runs but this one."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _island(value: Any) -> str:
    """Return JSON that no HTML parser can mistake for its own, whatever the names in it are."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# The answer

NOTHING = "No method stands beside a finished baseline yet, so no saving can be told."
NEXT = "A baseline is what method=scratch trains: run it, and another method with the same model, data and budget."
WHY = ("no matched baseline", " failed at ", " in no mean")  # what notes say of such runs
APART = (
    "of other models, data or settings. Where a sentence compares two of them that is sound; other numbers of two "
    "groups may not be compared."
)


def _picture(drawn: Mapping[str, Any] | None) -> str:
    """Return which chart answers beside the first sentence: annealed losses, else curves; "" where nothing is drawn."""
    return next((kind for kind in ("annealed", "curves") if drawn and drawn[kind]), "")


def _top(
    groups: Sequence[Group], first: Group | None, picture: str, notes: Sequence[str], found: Sequence[Search]
) -> str:
    """Return the answer of the largest group that has one: its sentence, large, its picture, and links to the rest.

    What a smaller model alone does stands before the picture, since it may be the better answer.
    """
    links = f"<nav>{_links(groups, found)}</nav>"
    if first is None:
        unpaired = [note for note in notes if any(why in note for why in WHY)][:3]
        return f'<p class="answer">{NOTHING}</p>{_list(unpaired or [NEXT])}{links}{HANDS}'
    answer, *others = sentences(first)
    before = len(others) if not picture else 1 if first.smaller else 0
    after = _folded(others[before:])
    if len(groups) > 1:
        after += _list([f"There are {len(groups)} groups of runs, {APART}"])
    against = f'<p class="hint">{escape(tables.baseline_line(first))}</p>'
    parts = [_answer(answer, first), _folded(others[:before]), against]
    parts += [_chart(first, picture) if picture else "", after, links, HANDS]
    return "".join(parts)


def _answer(sentence: str, group: Group) -> str:
    """Return a sentence with what was found large, and how sure that is after it, smaller.

    What is found ends at the first bracket behind the method's name, which may have one of its own.
    """
    named = max((len(row.method) for row in group.rows if sentence.startswith(row.method)), default=0)
    rest, bracket, sure = sentence[named:].partition(" (")
    found = sentence[:named] + rest
    return f'<p class="answer">{escape(found)}<span class="sure">{escape(bracket + sure)}</span></p>'


def _links(groups: Sequence[Group], found: Sequence[Search]) -> str:
    places = [("budgets", "As the budget grows")] if budgets.over_budgets(groups) else []
    told = [f": {escape(_short(group))}" if len(groups) > 1 else "" for group in groups]
    places += [(f"group-{one.number}", f"Group {one.number}{what}") for one, what in zip(groups, told, strict=True)]
    places += [(f"search-{number}", "Search") for number, _ in enumerate(found, 1)]
    places += [("notes", "Notes"), ("reproduce", "How to reproduce"), ("runs", "All runs")]
    return "".join(f'<a href="#{place}">{name}</a>' for place, name in places)


def _short(group: Group) -> str:
    """Return what tells most groups apart: the model and the budget."""
    return f"{tables.model(group.runs[0])}, {group.runs[0].config['budget']}"


def _notes(notes: Sequence[str]) -> str:
    """Return what is to be known of these runs, then the rules that hold for every report, folded."""
    rules = [note for note in notes if note in DEFINITIONS]
    own = [note for note in notes if note not in DEFINITIONS]
    folded = f"<details><summary>How each number is defined: {len(rules)} rules</summary>{_list(rules)}</details>"
    return _list(own) + (folded if rules else "")


def _folded(lines: Sequence[str]) -> str:
    """Return lines as a list; of many the first few, the rest folded."""
    if len(lines) <= LISTED + 1:
        return _list(lines)
    rest = f"<details><summary>{len(lines) - LISTED} more</summary>{_list(lines[LISTED:])}</details>"
    return _list(lines[:LISTED]) + rest


def _list(lines: Sequence[str]) -> str:
    return f'<ul class="told">{"".join(f"<li>{_coded(line)}</li>" for line in lines)}</ul>' if lines else ""


def _coded(line: str) -> str:
    """Return a line as HTML; what Markdown has between backticks is code here too."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(line))


def _budgets(groups: Sequence[Group]) -> str:
    return "".join(_table(budgets.table(one)) for one in budgets.over_budgets(groups))


def _section(place: str, title: str, content: str) -> str:
    return f'<section id="{place}"><h2>{title}</h2>\n{content}</section>'


# One group


def _group(group: Group, drawn: Mapping[str, Any] | None, told: bool, shown: str, of: Sequence[int]) -> str:
    """Return all of one group: what was saved, the charts, and what they are made of.

    The page's top has the sentences unless they are to be `told` here, and the chart of the kind `shown`. `of` are the
    groups whose smaller model alone it has.
    """
    annealed, crossing = tables.annealed(group), tables.savings(group)
    first = annealed if annealed.rows else crossing
    parts = [_folded(sentences(group)) if told else "", _list([_control(of)] if of and not group.rows else [])]
    if first.rows:
        parts.append(_table(replace(first, title=first.title.removeprefix(tables.group_line(group)).strip())))
    else:
        parts.append(f'<p class="title">{escape(tables.reference(group))}</p>')
    parts += [_map(one) for one in grid.maps(group)]
    if drawn is None:
        parts.append(f'<p class="hint">Charts are drawn for the {CHARTED} groups with most runs.</p>')
    else:
        parts += [_chart(group, kind) for kind in TITLES if drawn[kind] and kind != shown]
    parts += [_table(crossing)] if annealed.rows else []
    parts += [_quality(tables.quality(group)), _table(tables.endings(group)), _table(tables.sweep(group))]
    parts += [_long(tables.transfers(group)), _settings(group), _ledger(group)]
    return _section(f"group-{group.number}", escape(tables.group_line(group).removesuffix(".")), "\n".join(parts))


def _controls_of(group: Group, groups: Sequence[Group]) -> list[int]:
    """Return the numbers of the groups that have runs of this one as their smaller models alone."""
    own = {run.folder for run in group.runs}
    known = {one.number: {run.folder for runs in one.controls.values() for run in runs} for one in groups}
    return [number for number, folders in known.items() if own & folders]


def _control(of: Sequence[int]) -> str:
    """Say what a group is there for that has no method: the numbers of others are read against it."""
    where = f"group{'' if len(of) == 1 else 's'} {', '.join(map(str, of))}"
    return f"No method is here. It is a smaller model alone for {where}, where what it saves is told."


# The kinds of charts, in the order of the page.
TITLES = {
    "annealed": "What annealing at each budget reaches",
    "curves": "Curves",
    "rates": "Learning rates",
    "symmetry": "Symmetry of the copies",
    "health": "Layers",
}


def _chart(group: Group, kind: str) -> str:
    """Return the place of one chart, with what is to be known of it."""
    hint = {
        "annealed": _annealed_hint,
        "curves": _curves_hint,
        "rates": lambda _: RATES_HINT,
        "symmetry": lambda _: SYMMETRY_HINT,
        "health": lambda _: layers.HINT,
    }[kind](group)
    return (
        f'<h3 class="drawn">{TITLES[kind]}</h3><figure class="chart" data-kind="{kind}" data-group="{group.number}">'
        f"<figcaption>{escape(hint)}</figcaption></figure>"
    )


HANDS = (
    '<p class="hint hands">In every chart: point at a mark to read it, or press the arrow keys; drag to zoom, '
    "double-click or press Escape for the whole range; press a name to hide it.</p>"
)
RATES_HINT = (
    "The final loss at each learning rate: a dot a seed, a line through the means. Where a seed failed there is no "
    "point."
)
SYMMETRY_HINT = (
    "How alike the units still are that began as copies of one coarse unit: the mean cosine between them, 1 for "
    "mirrored ones, which learn the same. A line a run after its return to a finer level, of each method's first seed."
)


def _annealed_hint(group: Group) -> str:
    """Return what is drawn of the annealed losses, and nothing that is not."""
    every = annealed_figure.sides(group)
    alone, other = annealed_figure.alone(group), annealed_figure.otherwise(group)
    told = ["Each diamond is the loss of a run that ends there.", TARGET]
    told += ["Arrows are savings at that loss."] if annealed_figure.arrows(every) else []
    told += ["Bars are the standard deviation over seeds."] if any(any(one.deviations) for one in every + alone) else []
    told += ["The grey line is a smaller model alone, from scratch."] if alone else []
    told += ["The dashed line is from scratch with other settings."] if other else []
    told += ["What sources cost is in them."] if any(run.source for run in group.runs) else []
    return " ".join(told)


TARGET = "The dotted line is L*, the loss at which the baseline ends."


def _curves_hint(group: Group) -> str:
    """Return how the curves are to be read, and what of them is left out."""
    told = [] if group.loss.mean is None else [TARGET]
    told += _marks_hint(group)
    if any(len(charts.thinned(run.evaluations)) < len(run.evaluations) for run in group.runs):
        told.append(f"Runs with more than {charts.POINTS} evaluations are thinned to about as many.")
    methods = len({row.method for row in group.rows})
    if methods > len(figure.COLOURS) or len({run.seed for run in group.runs}) > charts.SEEDS:
        told.append(
            f"Drawn are the baseline and, of {tables.count(methods, 'method')}, up to {len(figure.COLOURS)} with the "
            f"lowest final losses, each at its best rate, with up to {charts.SEEDS} seeds."
        )
    if any(run.source for run in group.runs):
        told.append("What a source cost is in the savings, and not in these curves.")
    return " ".join(told)


def _marks_hint(group: Group) -> list[str]:
    """Return what each kind of mark is that the curves of a group have."""
    curves = figure.chosen(group)
    told = []
    if any(point.level > 1 for curve in curves for seed in curve.seeds for point in seed):
        told.append(
            "The strips on top are the stages of each first seed. Pale in them and dashed in the curve is a smaller "
            "model on the way (a coarser level); a triangle is the change to another level, where the loss jumps."
        )
    if figure.saving(curves, "flops"):
        told.append("A dot is the first crossing: from there on a curve stays at or below L*, un-annealed.")
    if any(curve.endings for curve in curves):
        told.append(
            "Diamonds are losses of runs that end there, with their own decay of the learning rate, joined by a fine "
            "line; before its decay a run's loss stands higher."
        )
    return told


def _table(table: Table) -> str:
    """Return a table that scrolls by itself where the page is narrow; nothing for one without rows."""
    if not table.rows:
        return ""
    return f'<p class="title">{escape(table.title)}</p>{_cells(table.header, table.rows, table.numbers)}'


def _long(table: Table) -> str:
    """Return a table of which only the first rows are seen at once, where it has many."""
    if len(table.rows) <= SEEN + 1:
        return _table(table)
    told = f"<summary>{len(table.rows) - SEEN} more rows</summary>"
    rest = _cells(table.header, table.rows[SEEN:], table.numbers)
    return f"{_table(replace(table, rows=table.rows[:SEEN]))}<details>{told}{rest}</details>"


def _quality(table: Table) -> str:
    """Return what evaluations say; parts of a task, as `pairs/order` of `pairs`, are folded."""
    tasks = [row[1].partition("\n")[0] for row in table.rows]
    parts = [row for row, task in zip(table.rows, tasks, strict=True) if task.rpartition("/")[0] in tasks]
    shown = _table(replace(table, rows=tuple(row for row in table.rows if row not in parts)))
    if not parts:
        return shown
    told = f"<summary>{tables.count(len(parts), 'row')} of parts of these tasks</summary>"
    return f"{shown}<details>{told}{_cells(table.header, parts, table.numbers)}</details>"


def _cells(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: int) -> str:
    def cell(tag: str, text: str, at: int) -> str:
        word = ' class="word"' if at < numbers else ' class="each"' if text.count(", ") > 1 else ""
        return f"<{tag}{word}>{escape(text)}</{tag}>"

    head = "".join(cell("th", text, at) for at, text in enumerate(header))
    body = "".join(f"<tr>{''.join(cell('td', text, at) for at, text in enumerate(row))}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


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
            rows = [(key, _said(base), _said(own)) for key, own, base in pairing.apart(pair.run, pair.baseline)]
            table = _cells(("setting", "baseline", "method"), rows, 3)
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


def _said(value: Any) -> str:
    return "\N{EM DASH}" if value is None else str(value)


# The ledger


def _ledger(group: Group) -> str:
    """Return what each stage cost: FLOPs as bars, of many runs the first few, and everything as a table."""
    runs = [run for run in group.runs if run.summary is not None and "ledger" in run.summary]
    if not runs:
        return ""
    names = dict(zip((run.folder for run in group.runs), tables.names(group.runs), strict=True))
    shown = runs[:LEDGERS]
    rows = [row for run in shown for row in _ledger_rows(run, names[run.folder])]
    header = ("run", "stage", "level", "steps", "tokens", "FLOPs", "seconds")
    title = f"{tables.count(len(rows), 'stage')} of {tables.count(len(shown), 'run')}"
    title += f" (of {len(runs)}; report.json has all)" if len(runs) > len(shown) else ""
    best = [run for run in _compared(group) if run in runs][:LEDGERS]
    return (
        f"<h3>Ledger by stage</h3>{_bars(best, names)}{_health(shown, names)}"
        f"<details><summary>{title}</summary>{_cells(header, rows, 1)}</details>{_purposes(shown, names)}"
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
    return _table(Table(told, header, tuple(rows), 1))


def _share(ledger: Mapping[str, Any]) -> float | None:
    flops = ledger["total"]["flops"]
    return ledger["health"]["flops"] / flops if flops else None


def _compared(group: Group) -> list[Run]:
    """Return the baselines and the runs of each method at its best rate."""
    methods = [pair.run for row in tables.ordered(group) if row.best for pair in row.pairs]
    return [*group.baselines.values(), *methods]


def _ledger_rows(run: Run, name: str) -> list[tuple[str, ...]]:
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
    return f"<details><summary>Seconds by purpose</summary>{_cells(('run', *purposes), rows, 1)}</details>"


# The rest


def _search(number: int, one: Search, groups: Sequence[Group]) -> str:
    content = _table(search.table(one)) + _list(list(search.sentences(one, groups)))
    return _section(f"search-{number}", "Search", content)


def _runs(groups: Sequence[Group]) -> str:
    return _section("runs", "All runs", _table(tables.runs([run for group in groups for run in group.runs])))


def _reproduce(groups: Sequence[Group]) -> str:
    """Return what the run folders know of how they were made: commands, settings, versions and machines."""
    runs = [run for group in groups for run in group.runs]
    told = (
        "Each command makes one run again where another run=... is given: in a folder that has the run already it goes "
        "on with it, or only says what came out. Evaluations made later (task=evaluate) are commands of their own. "
        "Settings are those of one baseline of each group, as resolved; a method differs in what its group lists. "
        "The same settings, seed and versions on the same kind of machine give the same numbers."
    )
    again = shlex.join(["mlrun", "task=report", "runs=" + ",".join(_above(runs))])
    each = f"<pre>{escape(chr(10).join(commands.lines(runs)))}</pre>"
    if len(runs) > SEEN:
        each = f"<details><summary>The commands of {len(runs)} runs</summary>{each}</details>"
    parts = [f"<p>{told}</p>", each]
    parts += ["<p>This page again:</p>", f"<pre>{escape(again)}</pre>", _versions(runs)]
    for group in groups:
        run = next(iter(group.baselines.values()), group.runs[0])
        lines = "\n".join(f"{key}={_said(value)}" for key, value in pairing.settings(run).items())
        title = f"Settings of {run.folder.name} (group {group.number}, seed {run.seed})"
        parts.append(f"<details><summary>{escape(title)}</summary><pre>{escape(lines)}</pre></details>")
    return _section("reproduce", "How to reproduce", "\n".join(parts))


def _above(runs: Sequence[Run]) -> list[str]:
    """Return the folders that the runs lie in, each once."""
    return sorted({str(run.folder.parent) for run in runs})


def _short_commit(commit: str) -> str:
    """Return as much of a commit as tells it apart; a plus behind it are changes that were in no commit."""
    return commit[:10] + ("+" if commit.endswith("+") and len(commit) > 10 else "")


def _versions(runs: Sequence[Run]) -> str:
    """Return the versions and machines that runs were started with, and how many starts had each."""
    counted: dict[tuple[str, ...], int] = {}
    for start in (start for run in runs for start in run.starts):
        key = tuple(_said(start.get(name)) for name in VERSIONS)
        key = (_short_commit(key[0]), *key[1:])
        counted[key] = counted.get(key, 0) + 1
    if not counted:
        return '<p class="hint">No run says what it was started with.</p>'
    rows = [(str(count), *key) for key, count in counted.items()]
    return '<p class="title">Starts, by commit, versions and machine</p>' + _cells(("starts", *VERSIONS), rows, 11)
