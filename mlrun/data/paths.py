"""Names and globs of local files: what they stand for, and what is wrong with them."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from mlrun.errors import mistake, nearest


def resolve(patterns: Sequence[str]) -> list[str]:
    """Return the files that names and globs stand for: in the given order, those of one glob by name."""
    found = (_named(str(Path(pattern).expanduser())) for pattern in patterns)
    return [name for names in found for name in sorted(names) if Path(name).is_file()]


def _named(pattern: str) -> list[str]:
    """Return what a pattern stands for; a file that is there by that name is meant, whatever [ or * are in it."""
    return [pattern] if Path(pattern).is_file() else glob.glob(pattern, recursive=True)


def file_problems(key: str, patterns: Sequence[str]) -> list[str]:
    """Return a line for each pattern without files, and for each empty file."""
    missing = [
        mistake(key, pattern, "existing files or globs", f"nothing is there (looked from {Path.cwd()}); correct it")
        for pattern in patterns
        if not resolve([pattern])
    ]
    empty = [
        mistake(key, name, "files that hold something", "it is empty; remove it or fill it")
        for name in resolve(patterns)
        if Path(name).stat().st_size == 0
    ]
    return missing + empty


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
    found += file_problems("data.files", files) + file_problems("data.validation_files", validation_files)
    train, other = ({str(Path(file).resolve()) for file in resolve(names)} for names in (files, validation_files))
    key, allowed = "data.validation_files", "files that are not in data.files"
    return found + [mistake(key, file, allowed, "remove it from one") for file in sorted(train & other)]


def with_folders(patterns: Sequence[str]) -> list[str]:
    """Return the patterns with each folder replaced by everything in it."""
    return [f"{glob.escape(str(Path(p).expanduser()))}/**" if Path(p).expanduser().is_dir() else p for p in patterns]
