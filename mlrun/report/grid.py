"""Heat maps: what the methods of a grid saved over two of the numbers that it varies, all else equal."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from mlrun.report import pairing
from mlrun.report.compare import Group, Row

MAPS = 6  # of one group: three varied numbers give many, and the largest say most
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?\s*%?", re.IGNORECASE)
# What moves no loss of the trunk.
_ASIDE = ("cycle.branches", "eval.every")
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Map:
    """A table of rows by the values of two keys; `fixed` says in words at which values of other numbers."""

    x: str
    y: str
    xs: tuple[Any, ...]
    ys: tuple[Any, ...]
    cells: Mapping[tuple[Any, Any], Row]
    fixed: str


def maps(group: Group) -> list[Map]:
    """Return the heat maps of a group, the fullest first: two values of each key at least, and three cells.

    Rows belong in one map if they differ in two numbers alone. Keys whose values go together (a share of the cycle,
    and the length of the stage that follows from it) count as one, by the shortest name;
    a ratio that follows that of the width goes by the width.
    """
    alike: dict[str, list[tuple[Row, Settings]]] = {}
    given = [(row, _settings(row)) for row in group.rows if row.pairs or row.unpaired]
    for row, settings in given:
        words = {key: value for key, value in settings.items() if number(value) is None}
        alike.setdefault(json.dumps(words, sort_keys=True, default=str), []).append((row, settings))
    found = [one for rows in alike.values() for one in _maps(rows)]
    return sorted(found, key=lambda one: -len(one.cells))[:MAPS]


def number(value: Any) -> float | None:
    """Return a setting as a number, a percentage as its share; None if it is something else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    text = str(value).strip()
    if not _NUMBER.fullmatch(text):
        return None
    return float(text.rstrip("% ")) / (100 if text.endswith("%") else 1)


def _settings(row: Row) -> Settings:
    run = row.pairs[0].run if row.pairs else row.unpaired[0]
    settings = {key: value for key, value in pairing.settings(run).items() if not key.startswith(_ASIDE)}
    return settings | {"optimizer.lr": row.lr}


def _maps(rows: Sequence[tuple[Row, Settings]]) -> list[Map]:
    keys = _varied([settings for _, settings in rows])
    found = []
    for y, x in combinations(keys, 2):
        others = [key for key in keys if key not in (x, y)]
        by_rest: dict[tuple[Any, ...], dict[tuple[Any, Any], Row]] = {}
        for row, settings in rows:
            rest = tuple(settings.get(key) for key in others)
            by_rest.setdefault(rest, {})[settings.get(x), settings.get(y)] = row
        for rest, cells in by_rest.items():
            xs, ys = (tuple(sorted({at[i] for at in cells}, key=_order)) for i in (0, 1))
            if min(len(xs), len(ys)) > 1 and len(cells) > 2:
                fixed = ", ".join(f"{key}={value}" for key, value in zip(others, rest, strict=True))
                found.append(Map(x, y, xs, ys, cells, fixed))
    return found


def _order(value: Any) -> float:
    return number(value) or 0.0


def _varied(settings: Sequence[Settings]) -> list[str]:
    """Return the keys of which the values vary, one of each set that varies together."""
    kept: dict[tuple[int, ...], str] = {}
    keys = {key for one in settings for key in one}
    for key in sorted(keys, key=lambda key: (key in pairing.FOLLOWING, len(key), key)):
        values = [str(one.get(key)) for one in settings]
        first = list(dict.fromkeys(values))
        if len(first) > 1:
            kept.setdefault(tuple(first.index(value) for value in values), key)
    return list(kept.values())
