"""The folder that a task writes: judged before anything is read, written aside, and there only when it is whole.

A new folder is written beside its place and renamed. One that exists and is empty (a mount point, a link to a disk with
room) stays what it is: all is written inside it, and moved up at the end with config.json last.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlrun import files
from mlrun.errors import UserError, mistake
from mlrun.interop.read import CONFIG


def judge(target: Path, *sources: Path) -> None:
    """Raise UserError unless `target` is new or empty, can be written, and lies apart from what is read.

    What a killed process of this machine left there is removed first.
    """
    try:
        for leftover in _leftovers(target):
            shutil.rmtree(leftover, ignore_errors=True)
        own, empty = target.resolve(), not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir()))
    except (OSError, RuntimeError) as error:  # a folder that may not be read, a link to itself
        raise UserError(mistake("target", target, "a place to write to", f"{error}; name another")) from None
    for source in sources:
        other = source.resolve()
        if own.is_relative_to(other) or other.is_relative_to(own):
            allowed = f"a folder that is not in {source}, and does not hold it"
            raise UserError(mistake("target", target, allowed, "it would change the model that is read; name another"))
    if own.name == files.MODEL and any((own.parent / name).is_file() for name in (CONFIG, files.CONFIG)):
        remedy = f"{own.parent} would be read as the model that lies in it; name another"
        raise UserError(mistake("target", target, "a folder that is no model/ of another model or run", remedy))
    if not empty:
        raise UserError(mistake("target", target, "a new or an empty folder", "remove it or name another"))
    with _aside(target):
        pass


@contextmanager
def fresh(target: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `target` when the block ends well, and nothing at all when it does not.

    Raises:
        UserError: the target cannot be written, the disk is full.
    """
    with _aside(target) as temporary:
        try:
            yield temporary
            _install(temporary, target)
        except OSError as error:
            other = mistake("target", target, "a place to write to", f"{error}; name another")
            raise UserError(files.reason(error, target) or other) from None


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """Give a folder on the target's disk; it and the parents made for it go, unless something was made of it."""
    inside = target.is_dir()
    place = target if inside else target.parent
    absent = [parent for parent in (place, *place.parents) if not parent.exists()]
    temporary = place / f".{target.name}{_mark(os.getpid())}"
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        _remove_empty(absent)
        raise UserError(mistake("target", target, "a place to write to", f"{error.strerror}; name another")) from None
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(absent)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # it is not empty, so it is needed
            folder.rmdir()


def _install(temporary: Path, target: Path) -> None:
    """Make the temporary folder the target, or move what it holds there."""
    if temporary.parent != target:
        os.replace(temporary, target)
        return
    for path in sorted(temporary.iterdir(), key=lambda path: path.name == CONFIG):
        os.replace(path, target / path.name)


def _mark(process: int) -> str:
    """Return the end of a temporary folder's name: on a shared disk, processes of other machines are not ours."""
    return f".{socket.gethostname().partition('.')[0]}.{process}"


def _leftovers(target: Path) -> list[Path]:
    """Return the temporary folders for `target` whose processes are no more."""
    stem = f".{target.name}{_mark(0)[:-1]}"
    found = [path for place in (target, target.parent) if place.is_dir() for path in place.iterdir()]
    ours = [path for path in found if path.name.startswith(stem) and path.name.removeprefix(stem).isdecimal()]
    return [path for path in ours if _gone(int(path.name.removeprefix(stem)))]


def _gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
