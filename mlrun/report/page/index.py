"""The report as a page: one file that opens from disk, asks the network for nothing and explains itself.

Text and tables are written here, so that they can be read, searched and printed without a script. Charts are drawn
by `page.js` from one JSON island. All text of a user is escaped, and the page's policy lets no other script run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlrun.report import budgets, charts, layers, search, tables
from mlrun.report.compare import Group
from mlrun.report.notes import DEFINITIONS
from mlrun.report.page.answer import picture_of, top
from mlrun.report.page.chart import CHARTED
from mlrun.report.page.group import controls_of, group_section
from mlrun.report.page.parts import listed, section, tabled
from mlrun.report.page.reproduce import reproduce
from mlrun.report.search import Search
from mlrun.report.sentences import sentences

FOLDER = Path(__file__).parent


def page(groups: Sequence[Group], notes: Sequence[str], found: Sequence[Search] = (), reload: int | None = None) -> str:
    """Return index.html, which with `reload` reads itself again after so many seconds."""
    drawn = {str(group.number): charts.charts(group) | layers.charts(group) for group in groups[:CHARTED]}
    first = next((group for group in groups if sentences(group)), None)
    picture = picture_of(drawn.get(str(first.number))) if first else ""
    body = [top(groups, first, picture, notes, found)]
    body += [section("budgets", "As the budget grows", shown) for shown in [_budgets(groups)] if shown]
    for group in groups:
        shown = picture if group is first else ""
        told = group is not first
        of = controls_of(group, groups)
        body.append(group_section(group, drawn.get(str(group.number)), told=told, shown=shown, of=of))
    body += [_search(number, one, groups) for number, one in enumerate(found, 1)]
    body += [section("notes", "Notes", _notes(notes)), reproduce(groups), _runs(groups)]
    script = asset("page.js")
    parts = {
        "policy": _policy(script),
        "reload": "" if reload is None else f'<meta http-equiv="refresh" content="{reload}">',
        "title": "Savings at equal loss",
        "style": asset("page.css"),
        "body": "\n".join(body),
        "data": _island({"groups": drawn}),
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], asset("page.html"))


def asset(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """Return the page's content policy: nothing is fetched, and no script runs but this one."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _island(value: Any) -> str:
    """Return JSON that no HTML parser can mistake for its own, whatever the names in it are."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _notes(notes: Sequence[str]) -> str:
    """Return what is to be known of these runs, then the rules that hold for every report, folded."""
    rules = [note for note in notes if note in DEFINITIONS]
    own = [note for note in notes if note not in DEFINITIONS]
    folded = f"<details><summary>How each number is defined: {len(rules)} rules</summary>{listed(rules)}</details>"
    return listed(own) + (folded if rules else "")


def _budgets(groups: Sequence[Group]) -> str:
    return "".join(tabled(budgets.table(one)) for one in budgets.over_budgets(groups))


def _search(number: int, one: Search, groups: Sequence[Group]) -> str:
    content = tabled(search.table(one)) + listed(list(search.sentences(one, groups)))
    return section(f"search-{number}", "Search", content)


def _runs(groups: Sequence[Group]) -> str:
    return section("runs", "All runs", tabled(tables.runs([run for group in groups for run in group.runs])))
