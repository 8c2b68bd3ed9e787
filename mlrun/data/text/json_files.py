"""JSON files, an object a line or one array of them: the named column as it is written, whatever else they hold.

`datasets` reads JSON into columns of one type each, so that rows had to agree in columns that nobody asked for,
and texts that look like dates came out as dates.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from mlrun.data import columns, huggingface


def documents(
    files: Sequence[str], column: str, encoding: str, keys: tuple[str, str] = ("data.files", "data.column")
) -> Iterator[str]:
    """Yield the texts in order, "" for an absent one; UserError for a file that is no JSON or lacks the column.

    `keys` are the settings that name the files and the column.
    """
    for file in files:
        names: dict[str, None] = {}  # in order; only until the column is found
        found = False
        for where, row in _rows(file, encoding, keys[0]):
            value = columns.find(row, column)
            found |= value is not columns.ABSENT
            if not found:
                names |= dict.fromkeys(row)
            yield columns.text(value, column, keys[1], f"{file}, {where},")
        if not found:
            raise columns.missing(column, list(names), keys[1], file)


def _rows(file: str, encoding: str, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where it stands, object); compressed files are read through their ending, as `datasets` does."""
    import fsspec

    where = "its beginning"
    text = {"compression": "infer", "encoding": encoding}
    with huggingface.readable(key, file, lambda: where), fsspec.open(file, "rt", **text) as stream:
        for number, line in enumerate(stream, start=1):
            where = f"line {number}"
            if number == 1 and line.lstrip().startswith("["):
                rows = json.loads(line + stream.read())
                yield from ((f"object {n}", _object(row)) for n, row in enumerate(rows, start=1))
                return
            if line.strip():
                yield where, _object(json.loads(line))


def _object(row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError("not an object")
    return row
