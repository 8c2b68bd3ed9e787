"""Names and globs of local files: what they stand for, and what is wrong with them."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mlrun.errors import mistake, nearest
from mlrun.files import expanded


def resolve(patterns: Sequence[str]) -> list[str]:
    """Return the files that names and globs stand for: in the given order, those of one glob by name."""
    found = (_named(str(expanded(pattern))) for pattern in patterns)
    return [name for names in found for name in sorted(names) if Path(name).is_file()]


def _named(pattern: str) -> list[str]:
    """Return what a pattern stands for; a file that is there by that name is meant, whatever [ or * are in it."""
    return [pattern] if Path(pattern).is_file() else glob.glob(pattern, recursive=True)


def file_problems(key: str, patterns: Sequence[str]) -> list[str]:
    """Return a line for each pattern without files, for each empty file, and one for files that are named twice."""
    return _looked_at(key, patterns)[0]


def _looked_at(key: str, patterns: Sequence[str]) -> tuple[list[str], set[str]]:
    """Return what is wrong with files, and the files without links."""
    names = resolve(patterns)
    missing = [
        mistake(key, pattern, "existing files or globs", _absent(pattern))
        for pattern in patterns
        if not resolve([pattern])
    ]
    empty = [
        mistake(key, name, "files that hold something", "it is empty; remove it or fill it")
        for name in names
        if Path(name).stat().st_size == 0
    ]
    times = Counter(str(Path(name).resolve()) for name in names)
    return missing + empty + _repeated(key, [name for name, count in times.items() if count > 1]), set(times)


def _absent(pattern: str) -> str:
    """Return what is there in place of files, and what to do."""
    if _named(str(expanded(pattern))):
        return "no file is there, but a folder: name the files in it"
    return f"nothing is there (looked from {Path.cwd()}); correct it"


def _repeated(key: str, names: Sequence[str]) -> list[str]:
    """Return a line about files that are named more than once: each would count so often, as if it were more data."""
    if not names:
        return []
    others = f", as {len(names) - 1} more are" if len(names) > 1 else ""
    return [mistake(key, names[0], "each file once", f"it is named more than once{others}: remove what is too much")]


def share_problems(held_out: float) -> list[str]:
    """Return what is wrong with the share of the data that is held out."""
    return [] if 0 < held_out < 1 else [mistake("data.held_out", held_out, "over 0 and under 1", "correct it")]


def local_problems(
    format: str, formats: Sequence[str], files: Sequence[str], validation_files: Sequence[str], held_out: float
) -> list[str]:
    """Return what is wrong with where local data comes from: text and pictures name it alike."""
    found = []
    if format not in formats:
        found.append(mistake("data.format", format, ", ".join(formats), f"choose one{nearest(str(format), formats)}"))
    if not files:
        found.append(mistake("data.files", list(files), "one or more file names or globs", "name the files"))
    found += share_problems(held_out)
    key, allowed = "data.validation_files", "files that are not in data.files"
    (wrong, train), (wrong_too, other) = _looked_at("data.files", files), _looked_at(key, validation_files)
    both = [mistake(key, file, allowed, "remove it from one") for file in sorted(train & other)]
    return [*found, *wrong, *wrong_too, *both]


def with_folders(patterns: Sequence[str]) -> list[str]:
    """Return the patterns with each folder replaced by everything in it."""
    return [f"{glob.escape(str(expanded(p)))}/**" if expanded(p).is_dir() else p for p in patterns]
