"""The files that we write and read back: whole or not at all, and one line where something is wrong with them.

A file is written aside, under a hidden name that ends in `.tmp`, forced to the disk, and renamed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from mlrun.errors import UserError, mistake

# What a run folder holds.
CONFIG, PLAN, LOG, SUMMARY, EVALUATION = "config.yaml", "plan.json", "log.jsonl", "summary.json", "evaluate.json"
ERROR, LOCK = "error.txt", ".lock"
CHECKPOINTS, MODEL = "checkpoints", "model"
# Beside the runs of a search: what it tried, what it chose, and which runs report that.
SEARCH = "search.json"

# What is in every report.
REPORT = "report.json"
# By any of these a folder is known as one that we have written to, or by a result of a leaderboard.
OURS = (PLAN, LOG, SUMMARY, EVALUATION, SEARCH, REPORT)
_RESULT = re.compile(r"\d+-[A-Za-z0-9.=_-]+\.json")

ASIDE = ".tmp"
# What a process that was killed leaves behind: ours, and those of versions that named them by their process.
_LEFT = re.compile(rf"\..+(\.\d+|\.parts|{re.escape(ASIDE)})")
JSON_BYTES, YAML_BYTES = 100 * 2**20, 10 * 2**20
# libyaml is ten times faster, which a report over hundreds of runs feels; what is nested deep enough ends its process.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DEEPEST = 200

# The settings in config.yaml that say where, how fast, under which name and to whom a run is told, and never what it
# computes. A resumed run may change them, and runs are compared whatever they are. The seed moves the loss: a resumed
# run keeps it, while a report takes runs that differ in it alone as repeats (report/pairing.py).
RUNTIME = (
    "task",
    "run",
    "runs",
    "results",
    "source",
    "target",
    "grown",
    "fine",
    "name",
    "recipe",
    "log_every",
    "health",
    "cache",
    "hardware",
    "data.workers",  # of runs of before; hardware.workers since
    "logger",
    "evaluation",
    "checkpoint",
    "find",
    "eval.batch",
)

# Settings that runs of before do not name, with what those runs did: at these values they are no difference.
UNNAMED = {"model.parametrization": "standard", "model.base": None, "cycle.decay": None, "cycle.auto": None}

# What a file system without locks answers to `flock`.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

# What a person can do where a file cannot be written, by the number of the system's error.
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR), "remove what lies there in the place of our file"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "choose a folder that you may write to"),
}


def make(folder: Path, key: str = "run") -> None:
    """Make the folder that `key` names; UserError where the file system does not let us: /proc, a full disk."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = f"{error.strerror}: choose another {key}=..."
        raise UserError(mistake(key, folder, "a folder that can be made", remedy)) from None


def reason(error: OSError, folder: Path) -> str | None:
    """Return the one line about a file that could not be written; None if the fault is another.

    Nothing that was saved before is lost, unless the folder itself was removed.
    """
    # What could not be written is a copy, or a new name; but a folder that takes no file's name is itself the fault.
    first = error.filename2 is None or error.errno == errno.ENOTDIR
    name = error.filename if first else error.filename2
    place = folder if name is None else Path(os.fsdecode(name))
    if error.errno in (errno.ENOENT, errno.ESTALE) and place.absolute().is_relative_to(folder.absolute()):
        return f"{place}: it was removed while the run used it; put the folder back, or start a new one with run=..."
    if error.errno not in _REMEDIES:
        return None
    saved = "; then the same command goes on from the last checkpoint" if (folder / CHECKPOINTS).is_dir() else ""
    return f"{place}: {error.strerror}: {_REMEDIES[error.errno]}{saved}"


def full_or_forbidden(error: BaseException) -> bool:
    """Return whether a file could not be written for want of room or of permission."""
    return isinstance(error, OSError) and error.errno in _REMEDIES


def as_os_error(error: Exception, path: Path) -> OSError:
    """Return what safetensors wraps: it tells the number of the system's error in its text alone."""
    found = re.search(r"code: (\d+)", str(error)) or re.search(r"os error (\d+)", str(error))
    if found is None:
        return OSError(errno.EIO, str(error), str(path))
    number = int(found.group(1))
    return OSError(number, os.strerror(number), str(path))


def ordinary(path: Path) -> None:
    """Give a file or folder the permissions that the user's umask asks for: temporary ones are made for one user."""
    mask = os.umask(0o077)  # the only way to read it is to set it
    os.umask(mask)
    os.chmod(path, (0o777 if path.is_dir() else 0o666) & ~mask)


# Places


def judge(folder: Path) -> None:
    """Raise UserError for a folder to write results to that holds files, and none of ours: it is somebody else's."""
    if not folder.is_dir() or any((folder / name).exists() for name in OURS):
        return
    there = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".") and path.name != ERROR)
    runs = (folder / name / mark for name in there for mark in OURS)
    if there and not any(map(_RESULT.fullmatch, there)) and not any(path.exists() for path in runs):
        allowed = "a new or empty folder, or one with files of mlrun"
        raise UserError(mistake("run", folder, allowed, f"it holds {there[0]}, not ours; choose another run=..."))


def expanded(path: str | Path) -> Path:
    """Return a path with the home folder that its `~` or `~name` stands for.

    Raises:
        UserError: no such home is known; a folder that is called `~` is nobody's wish.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: allowed: a path whose ~ is a home that is known here; write it in full") from None


# Writing


def aside(path: Path) -> Path:
    """Return a name beside `path` that nobody else uses, for what is not whole yet."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{ASIDE}")


def rename(temporary: Path, target: Path) -> None:
    """Put what is whole in its place; what was there is replaced."""
    os.replace(temporary, target)


@contextmanager
def whole_file(path: Path, install: Callable[[Path, Path], None] = rename) -> Iterator[Path]:
    """Give a path to write to, which becomes `path` when the block ends well; else the file stays as it was.

    `install` renames the one to the other.

    Raises:
        OSError: it cannot be written.
    """
    temporary = aside(path)
    try:
        yield temporary
        ordinary(temporary)
        sync(temporary)
        install(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)  # what the user knows
        raise


@contextmanager
def no_trace(folder: Path) -> Iterator[None]:
    """Remove the folders that were made for nothing: those still empty when the work ends by an error."""
    absent = [place for place in (folder.absolute(), *folder.absolute().parents) if not place.exists()]
    try:
        yield
    except BaseException:
        for place in absent:
            with suppress(OSError):  # it is not empty, so it is needed
                place.rmdir()
        raise


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write files to, which are put into `folder` when the block ends well, and else are gone.

    Raises:
        UserError: the folder cannot be made.
    """
    temporary = aside(folder / "files")
    with no_trace(folder):
        try:
            make(folder)
            temporary.mkdir()
            yield temporary
            for path in sorted(temporary.iterdir()):
                rename(path, folder / path.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file as a whole."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Replace a file by a JSON value, indented for readers."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def sync(path: Path) -> None:
    """Force a file to the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of unfinished writes; only who holds the folder may."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _LEFT.fullmatch(path.name):
            remove(path)


# Reading


def held(folder: Path) -> bool | None:
    """Return whether another process holds a folder; None where its file system cannot tell.

    Looks for a moment only, and two that look at once do not see each other: the lock that it asks for is shared. Needs
    no permission to write. A run that starts in this moment tries again.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def read_json(path: Path, remedy: str = "restore the file") -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        UserError: the file is missing, damaged, too large, nested too deep, or holds something else.
    """
    try:
        size = path.stat().st_size
        if size > JSON_BYTES:
            raise UserError(f"{path}: {size:,} bytes are no file of ours; {remedy}")
        found = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise UserError(f"{path}: its JSON is nested too deep; {remedy}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); {remedy}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a JSON object; {remedy}")
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        UserError: as `read_json`.
    """
    try:
        if (size := path.stat().st_size) > YAML_BYTES:
            raise UserError(f"{path}: {size:,} bytes are no file of ours; restore the file")
        text = path.read_text(encoding="utf-8")
        if _nested(text) > _DEEPEST:
            raise UserError(f"{path}: its YAML is nested too deep; restore the file")
        found = yaml.load(text, Loader=_LOADER)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read as YAML ({reason}); restore the file") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: no settings in it; restore the file")
    return found


def _nested(text: str) -> int:
    """Return a number that the depth of a YAML text does not exceed: of brackets that are open, and of indents."""
    depth = deepest = 0
    for bracket in re.finditer(r"[\[\]{}]", text):
        depth = depth + 1 if bracket.group() in "[{" else max(0, depth - 1)
        deepest = max(deepest, depth)
    return deepest + max((len(indent) for indent in re.findall(r"^[ ?-]+", text, re.MULTILINE)), default=0)


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
