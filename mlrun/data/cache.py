"""Prepared data in the cache folder: named by content, built once, never seen half written, never believed unseen."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlrun import files
from mlrun.errors import UserError, mistake

CONTENTS = "contents.json"


def digest(description: Mapping[str, Any]) -> str:
    """Return 16 hex digits that name a JSON-able description; UserError for facts of one's own that are none."""
    try:
        text = json.dumps(description, sort_keys=True)
    except TypeError as error:
        raise UserError(mistake("data", "facts of the corpus", "what JSON can hold", str(error))) from None
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_facts(files: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Return name, size and sha256 of each file; content decides, so a touched file changes nothing."""
    return [{"name": Path(f).name, **_size_and_hash(f)} for f in files]


def _size_and_hash(file: str | Path) -> dict[str, Any]:
    return {"size": os.path.getsize(file), "sha256": files.sha256(file)}


def build(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return `folder`, made by `make(temporary folder)` and renamed into place, unless it is there and whole.

    A killed process leaves only its temporary folder behind, which the next one removes. Of two processes, one waits
    for the other; where the file system has no locks, the later one finds the name taken and drops its own copy.
    A folder whose files are not those that were written is made anew, with a word; who reads it goes on
    with the files that he has opened.

    Raises:
        UserError: the disk is full, or the folder may not be written.
    """
    if folder.is_dir() and damage(folder) is None:
        return folder
    with _one_line(folder):
        files.make(folder.parent, "cache")
        with _locked(folder) as alone:
            for left in folder.parent.glob(f"{_making(folder)}*") if alone else ():
                shutil.rmtree(left)
            if folder.is_dir():
                reason = damage(folder)
                if reason is None:
                    return folder
                print(f"mlrun: {reason}; it is prepared anew", file=sys.stderr, flush=True)
                shutil.rmtree(folder)
            _build(folder, make)
    return folder


def _making(folder: Path) -> str:
    """Return how the names of folders begin that become `folder`."""
    return f".making-{folder.name}-"


def _build(folder: Path, make: Callable[[Path], None]) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=_making(folder), dir=folder.parent))
    try:
        make(temporary)
        made = sorted(file for file in temporary.rglob("*") if file.is_file())
        files.write_json(temporary / CONTENTS, {str(f.relative_to(temporary)): _size_and_hash(f) for f in made})
        files.ordinary(temporary)
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def contents(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and sha256 of each file that `build` wrote."""
    return files.read_json(folder / CONTENTS)


def damage(folder: Path) -> str | None:
    """Return what is wrong with a prepared folder, None if its files are those that were written.

    Lengths are compared first, since reading a large file for its hash takes a second a gigabyte.
    """
    try:
        listed = contents(folder)
        for name, fact in listed.items():
            if (size := os.path.getsize(folder / name)) != fact["size"]:
                return f"{folder / name} has {size} of its {fact['size']} bytes"
        changed = [name for name, fact in listed.items() if files.sha256(folder / name) != fact["sha256"]]
    except (UserError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{folder} is damaged ({type(error).__name__}: {error})"
    return f"{folder / changed[0]} is damaged: its content is not what was written" if changed else None


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold the lock beside a folder; where the file system has no locks, give False, say so and go on."""
    alone = True
    with open(f"{folder}.lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in files.NO_LOCKS:
                raise
            told = "this file system has no locks; several processes may prepare the same data at once"
            print(f"mlrun: {folder.parent}: {told}", file=sys.stderr, flush=True)
            alone = False
        yield alone


@contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    """Turn a disk that is full or forbidden, which some libraries tell in words only, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        plain = error if isinstance(error, OSError) else files.as_os_error(error, folder)
        if not files.full_or_forbidden(plain):
            raise
        raise UserError(f"cache: {files.reason(plain, folder)}, or choose another cache=...") from error
