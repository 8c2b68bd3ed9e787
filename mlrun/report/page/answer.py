"""The top of the page: the answer in one sentence, its picture, and links to the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from mlrun.report import budgets, tables
from mlrun.report.compare import Group
from mlrun.report.page.chart import HANDS, chart
from mlrun.report.page.parts import folded, listed
from mlrun.report.search import Search
from mlrun.report.sentences import SMALLER, sentences

NOTHING = "No method stands beside a finished baseline yet, so no saving can be told."
NEXT = "A baseline is what method=scratch trains: run it, and another method with the same model, data and budget."
WHY = ("no matched baseline", " failed at ", " in no mean")  # what notes say of such runs
APART = (
    "of other models, data or settings. Where a sentence compares two of them that is sound; other numbers of two "
    "groups may not be compared."
)


def picture_of(drawn: Mapping[str, Any] | None) -> str:
    """Return which chart answers beside the first sentence: annealed losses, else curves; "" where nothing is drawn."""
    return next((kind for kind in ("annealed", "curves") if drawn and drawn[kind]), "")


def top(
    groups: Sequence[Group], first: Group | None, picture: str, notes: Sequence[str], found: Sequence[Search]
) -> str:
    """Return the answer of the largest group that has one: its sentence, large, its picture, and links to the rest.

    What a smaller model alone does stands before the picture, since it may be the better answer.
    """
    links = f"<nav>{_links(groups, found)}</nav>"
    if first is None:
        unpaired = [note for note in notes if any(why in note for why in WHY)][:3]
        return f'<p class="answer">{NOTHING}</p>{listed(unpaired or [NEXT])}{links}{HANDS}'
    answer, *others = sentences(first)
    before = len(others) if not picture else 1 if first.smaller else 0
    after = folded(others[before:])
    if len(groups) > 1:
        after += listed([f"There are {len(groups)} groups of runs, {APART}"])
    against = f'<p class="hint">{escape(tables.baseline_line(first))}</p>'
    parts = [_answer(answer, first), folded(others[:before]), against]
    parts += [chart(first, picture) if picture else "", after, links, HANDS]
    return "".join(parts)


def _answer(sentence: str, group: Group) -> str:
    """Return a sentence with what was found large, and how sure that is after it, smaller.

    What is found ends at the first bracket behind the name of the method, or of the smaller model, which may have one.
    """
    smaller = len(sentence.partition(")")[0]) if sentence.startswith(SMALLER) else 0
    named = max((len(row.method) for row in group.rows if sentence.startswith(row.method)), default=smaller)
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
