"""The text of a row: a column, or a field inside one (`doc.text`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlrun.errors import UserError, mistake, nearest

ABSENT = object()
_SHOWN = 40  # characters of a wrong value


def find(row: Mapping[str, Any], column: str) -> Any:
    """Return the value of a column, or of the field that dots lead to; ABSENT if the row has none."""
    found: Any = row
    for name in [column] if column in row else column.split("."):
        if found is None:
            return None
        if not isinstance(found, Mapping) or name not in found:
            return ABSENT
        found = found[name]
    return found


def text(value: Any, column: str, key: str, where: str) -> str:
    """Return a value that is a text, "" for an absent one; UserError for everything else."""
    if value is None or value is ABSENT:
        return ""
    if isinstance(value, str):
        return _whole(value, column, key, where)
    if isinstance(value, Mapping) and value:
        remedy = (
            f"{where} has the fields {', '.join(value)} in it; name one, such as {key}={column}.{next(iter(value))}"
        )
    else:
        kind = "a list" if isinstance(value, list) else f"{value!r}"[:_SHOWN]
        remedy = f"{where} holds {kind}; name another"
    raise UserError(mistake(key, column, "a column of text", remedy))


def _whole(value: str, column: str, key: str, where: str) -> str:
    """Return the text; UserError if it has half a character in it, which JSON can hold and no text can."""
    try:
        value.isascii() or value.encode()
    except UnicodeEncodeError as error:
        remedy = f"{where} holds half a character, {value[error.start]!a}; repair it"
        raise UserError(mistake(key, column, "whole characters", remedy)) from None
    return value


def missing(column: str, names: list[str], key: str, label: str) -> UserError:
    """Return the error about data without the column."""
    return UserError(f"{key}={column}: {label} has the columns {', '.join(names)}{nearest(column, names)}; name one")
