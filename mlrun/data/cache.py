"""Prepared data in the cache folder: named by content, built once, never seen half written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlrun import files


def digest(description: Mapping[str, Any]) -> str:
    """Return 16 hex digits that name a JSON-able description."""
    text = json.dumps(description, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_facts(files: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Return name, size and sha256 of each file; content decides, so a touched file changes nothing."""
    return [{"name": Path(f).name, "size": os.path.getsize(f), "sha256": _sha256(f)} for f in files]


def _sha256(file: str | Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def build(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return `folder`, made by `make(temporary folder)` and renamed into place if it did not exist.

    A killed process leaves only its temporary folder behind. Of two processes, one waits for the other;
    where the file system has no locks, the later one finds the name taken and drops its own copy.
    """
    from filelock import FileLock

    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():
            return folder
        temporary = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
        try:
            make(temporary)
            files.ordinary(temporary)
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def write_json(file: Path, value: Any) -> None:
    """Write JSON through a temporary file in the same folder, so that a reader sees all of it or none."""
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".making-")
    with os.fdopen(handle, "w") as stream:
        json.dump(value, stream)
    files.ordinary(Path(temporary))
    os.replace(temporary, file)
