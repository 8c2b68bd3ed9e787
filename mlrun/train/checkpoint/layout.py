"""The names in a run's `checkpoints/`, and how a new checkpoint takes the place of the newest.

last, before        the newest checkpoint and the one before it
fork-<step>         what a branch starts from
best.safetensors    the weights of the lowest held-out loss at level 1

Each is a file `.safetensors`, or a folder `.sharded` where every process holds shards.
"""

from __future__ import annotations

import os
from pathlib import Path

from mlrun import files

LAST, BEFORE, FORK = "last", "before", "fork-{}"
BEST = "best.safetensors"
WHOLE, SHARDED = ".safetensors", ".sharded"
_DISCARDED = f".discarded{files.ASIDE}"


def present(folder: Path, *names: str) -> list[Path]:
    """Return the checkpoints of these names that are there."""
    paths = (folder / f"{name}{suffix}" for name in names for suffix in (WHOLE, SHARDED))
    return [path for path in paths if path.exists()]


def install(temporary: Path, target: Path) -> None:
    """Rename what is whole to its name, where it replaces what a run that was killed left there."""
    for former in present(target.parent, target.stem):
        files.remove(former)
    os.replace(temporary, target)


def install_newest(temporary: Path, target: Path) -> None:
    """Rename a new checkpoint to `target`, the newest; the former newest becomes the one before."""
    folder, discarded = target.parent, target.with_name(_DISCARDED)
    for newest in present(folder, LAST):
        retired = newest.with_name(f"{BEFORE}{newest.suffix}")
        for former in present(folder, BEFORE):
            if former.is_dir() or former != retired:  # a file that is replaced needs no moment without it
                files.remove(discarded)
                os.replace(former, discarded)
        os.replace(newest, retired)
    os.replace(temporary, target)
    files.remove(discarded)


def drop_forks(folder: Path) -> None:
    """Remove what no branch will start from any more."""
    for path in folder.glob(FORK.format("*")):
        files.remove(path)
