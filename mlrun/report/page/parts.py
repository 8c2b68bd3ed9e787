"""What a page is made of: lists, tables and sections as HTML. All text of a user is escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from typing import Any

from mlrun.report.tables import Table

LISTED = 3  # sentences of methods that are seen at once
SEEN = 12  # bars, rows or methods of a kind that are seen at once where there are many


def folded(lines: Sequence[str]) -> str:
    """Return lines as a list; of many the first few, the rest folded."""
    if len(lines) <= LISTED + 1:
        return listed(lines)
    rest = f"<details><summary>{len(lines) - LISTED} more</summary>{listed(lines[LISTED:])}</details>"
    return listed(lines[:LISTED]) + rest


def listed(lines: Sequence[str]) -> str:
    return f'<ul class="told">{"".join(f"<li>{coded(line)}</li>" for line in lines)}</ul>' if lines else ""


def coded(line: str) -> str:
    """Return a line as HTML; what Markdown has between backticks is code here too."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(line))


def section(place: str, title: str, content: str) -> str:
    return f'<section id="{place}"><h2>{title}</h2>\n{content}</section>'


def tabled(table: Table) -> str:
    """Return a table that scrolls by itself where the page is narrow; nothing for one without rows."""
    if not table.rows:
        return ""
    return f'<p class="title">{escape(table.title)}</p>{cells(table.header, table.rows, table.numbers)}'


def long(table: Table) -> str:
    """Return a table of which only the first rows are seen at once, where it has many."""
    if len(table.rows) <= SEEN + 1:
        return tabled(table)
    told = f"<summary>{len(table.rows) - SEEN} more rows</summary>"
    rest = cells(table.header, table.rows[SEEN:], table.numbers)
    return f"{tabled(replace(table, rows=table.rows[:SEEN]))}<details>{told}{rest}</details>"


def cells(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: int) -> str:
    def cell(tag: str, text: str, at: int) -> str:
        word = ' class="word"' if at < numbers else ' class="each"' if text.count(", ") > 1 else ""
        return f"<{tag}{word}>{escape(text)}</{tag}>"

    head = "".join(cell("th", text, at) for at, text in enumerate(header))
    body = "".join(f"<tr>{''.join(cell('td', text, at) for at, text in enumerate(row))}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def said(value: Any) -> str:
    return "\N{EM DASH}" if value is None else str(value)
