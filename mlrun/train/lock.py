"""The lock of a run folder: one run uses it at a time, and clears up what killed ones left of unfinished files."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mlrun import files
from mlrun.errors import InUse, UserError, mistake

if TYPE_CHECKING:
    from mlrun.train.parallel.processes import Ranks


@contextmanager
def claimed(folder: Path, ranks: Ranks) -> Iterator[Callable[[], None]]:
    """Hold a run folder, which is made if need be; a second process that wants it is refused. All processes call it.

    Gives what all of them call before they write: it raises UserError if the folder is no longer the one that is held,
    and OSError if it is gone.

    Raises:
        InUse: another process holds it.
        UserError: `.lock` is no file that may be locked.
    """
    with ExitStack() as held:
        descriptor = ranks.together(lambda: _claim(folder, held) if ranks.first else -1)[0]
        yield lambda: ranks.by_first(lambda: _still(folder, descriptor))


def free(folder: Path) -> bool:
    """Return whether no other process holds a folder, as far as its file system can tell."""
    try:
        descriptor = os.open(folder / files.LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # there is no lock
        return True
    try:
        return _locked(descriptor)
    except OSError:
        return True
    finally:
        os.close(descriptor)


def _locked(descriptor: int, after: float = 0.0) -> bool:
    """Return whether the lock could be had; OSError where there are no locks."""
    time.sleep(after)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _still(folder: Path, descriptor: int) -> None:
    """Raise if the lock at its place is not the one that is held; its inode is not given away while it is open."""
    if not os.path.samestat(os.fstat(descriptor), os.stat(folder / files.LOCK)):
        remedy = "what it saved before is gone; start it again, in a folder that nothing else removes"
        raise UserError(f"{folder}: it was removed and made anew while the run used it; {remedy}")


def _claim(folder: Path, held: ExitStack) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _open(folder / files.LOCK)
    held.callback(os.close, descriptor)
    if _taken(descriptor, folder):
        for place in (folder, folder / files.CHECKPOINTS, folder / files.MODEL):
            files.remove_leftovers(place)
    return descriptor


@contextmanager
def alone(file: Path) -> Iterator[bool]:
    """Hold a file beside runs, made if need be, into which one process writes at a time; False without locks.

    Raises:
        InUse: another process holds it.
        UserError: it is no file that may be locked.
    """
    descriptor = _open(file)
    try:
        yield _taken(descriptor, file.parent)
    finally:
        os.close(descriptor)


def _taken(descriptor: int, folder: Path) -> bool:
    """Take a lock, or raise InUse; return False, with a line, where there are no locks."""
    try:
        if not (_locked(descriptor) or _locked(descriptor, after=0.2)):  # `free` may have looked just now
            raise InUse(mistake("run", folder, "a folder that no other process uses", "wait for it"))
    except OSError as error:
        if error.errno not in files.NO_LOCKS:
            raise
        print(f"mlrun: {folder}: this file system has no locks; see to it that no other process uses it", flush=True)
        return False
    return True


def _open(path: Path) -> int:
    """Open the file that is locked, made if need be; what it holds, or points to, is left alone."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise UserError(f"{path}: neither a link nor a folder can be locked; remove it") from None
