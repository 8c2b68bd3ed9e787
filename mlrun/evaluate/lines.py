"""Files of an evaluation: JSON lines and text lines, each with where it stands. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlrun.data.paths import file_problems
from mlrun.errors import UserError, mistake


def problems(key: str, files: Sequence[str]) -> list[str]:
    """Return a line if no file is named, or nothing is where one is named."""
    if not files:
        return [mistake(key, list(files), "one or more file names or globs", "name the files")]
    return file_problems(key, files)


def read(file: str) -> str:
    """Return the text of a file; UserError if it is none in UTF-8."""
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as text in UTF-8 ({error}); repair it") from None


def texts(file: str) -> Iterator[tuple[str, str]]:
    """Yield (where it stands, line) of the lines that are not blank."""
    for number, line in enumerate(read(file).split("\n"), start=1):
        if line.strip():
            yield f"{file}, line {number}", line


def objects(file: str, *fields: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where it stands, object) of JSON lines; UserError for a line in which one of the texts is missing."""
    for where, line in texts(file):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not a JSON object ({error}); repair it") from None
        absent = [name for name in fields if not isinstance(found, dict) or not isinstance(found.get(name), str)]
        if absent:
            raise UserError(f"{where}: needs the text {absent[0]!r}; give an object a line with {', '.join(fields)}")
        yield where, found
