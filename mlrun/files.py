"""The files that we write: ordinary permissions, and one line where the disk is full, read-only or forbidden."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

# The settings in config.yaml that say where, how fast, under which name and to whom a run is told, and never what it
# computes. A resumed run may change them, and runs are compared whatever they are. The seed moves the loss: a resumed
# run keeps it, while a report takes runs that differ in it alone as repeats (report/pairing.py).
RUNTIME = (
    "task",
    "run",
    "runs",
    "source",
    "target",
    "grown",
    "fine",
    "name",
    "log_every",
    "cache",
    "hardware",
    "logger",
    "checkpoint",
    "eval.batch",
)

FULL_OR_FORBIDDEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
}


def reason(error: OSError, folder: Path) -> str:
    """Return the one line about a file that could not be written; nothing that was saved before is lost."""
    place = error.filename if error.filename is not None else folder
    remedy = _REMEDIES.get(error.errno or 0, "choose a folder that you may write to")
    saved = "; then the same command goes on from the last checkpoint" if (folder / "checkpoints").is_dir() else ""
    return f"{place}: {error.strerror}: {remedy}{saved}"


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
