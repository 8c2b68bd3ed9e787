"""The state of a run on disk where every process holds shards: a folder, written by all of them at once.

__<rank>_0.distcp, .metadata   tensors by torch.distributed.checkpoint, under the names of `store.py`
checkpoint.json                progress, and the SHA-256 of every file and of itself

It is written aside and renamed when it is whole, and read by any number of processes. A model alone is one
safetensors file here too, filled a tensor at a time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from mlrun.errors import UserError
from mlrun.train.checkpoint import store
from mlrun.train.parallel.processes import Ranks
from mlrun.train.snapshot import Progress, Snapshot

NOTE, SUFFIX = "checkpoint.json", ".sharded"
REMEDY = "restore the folder or remove it"


# Writing


def save(folder: Path, progress: Progress, current: Snapshot, kept: Mapping[int, Snapshot], ranks: Ranks) -> None:
    """Write the run's state as the newest checkpoint; the former newest stays beside it. All processes call it.

    Raises:
        OSError: one of them cannot write; the checkpoints are as they were.
    """
    tensors, steps = store.flat(current, kept)
    note = {"progress": json.dumps(asdict(progress)), "optimizer_steps": json.dumps(steps)}
    _save(folder / f".last{SUFFIX}", tensors, note, ranks, store.install)


def save_fork(folder: Path, step: int, snapshot: Snapshot, ranks: Ranks) -> None:
    """Write the state after `step`, which a branch starts from. All processes call it; raises as `save` does."""
    target = folder / f"{store.FORK.format(step)}{SUFFIX}"

    def install(temporary: Path) -> None:
        store.remove(target)  # of a life before, which was ended before its next checkpoint
        os.replace(temporary, target)

    tensors, steps = store.flat(snapshot, {})
    _save(folder / f".fork{SUFFIX}", tensors, {"optimizer_steps": json.dumps(steps)}, ranks, install)


def _save(
    temporary: Path,
    tensors: Mapping[str, Tensor],
    note: Mapping[str, Any],
    ranks: Ranks,
    install: Callable[[Path], None],
) -> None:
    """Write tensors and their note to a folder aside; `install` renames it once it is whole."""

    def clear() -> None:
        store.remove(temporary)
        temporary.mkdir(parents=True)

    try:
        _first(ranks, clear)
        _write(temporary, tensors, ranks)
        files = {k: v for sums in ranks.together(lambda: _sums(temporary, ranks)) for k, v in sums.items()}
        _first(ranks, lambda: _sign(temporary, {**note, "files": files}))
        _first(ranks, lambda: install(temporary))
    except BaseException:
        if ranks.first:
            store.remove(temporary)
        raise


def _first(ranks: Ranks, step: Callable[[], None]) -> None:
    """Let the first process take a step; the others wait, and fail with it."""
    ranks.together(step if ranks.first else lambda: None)


def _write(folder: Path, tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Write the tensors, and raise what torch wraps or hides as the OSError that it was."""
    from torch.distributed.checkpoint import FileSystemWriter, save
    from torch.distributed.checkpoint.api import CheckpointException

    from mlrun.train.checkpoint.dcp import Disk

    writer = FileSystemWriter(folder)
    writer.fs = disk = Disk()
    try:
        save(dict(tensors), storage_writer=writer)
    except CheckpointException as failed:
        ranks.together(disk.check)
        causes = [error for error, _ in failed.failures.values() if isinstance(error, OSError)]
        raise (causes[0] if causes else OSError(errno.EIO, str(failed), str(folder))) from None


def _sums(folder: Path, ranks: Ranks) -> dict[str, str]:
    """Return the checksums of what this process wrote."""
    mine = [*folder.glob(f"__{ranks.rank}_*.distcp"), *([folder / ".metadata"] if ranks.first else [])]
    return {path.name: _sum(path) for path in mine}


def _sum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sign(folder: Path, note: Mapping[str, Any]) -> None:
    with open(folder / NOTE, "w") as file:
        file.write(json.dumps({**note, "sha256": _signature(note)}))
        file.flush()
        os.fsync(file.fileno())


def _signature(note: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(note, sort_keys=True).encode()).hexdigest()


# Reading


def read(folder: Path, ranks: Ranks, remedy: str = REMEDY) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return what this process keeps of the tensors of one checkpoint, and its notes. All processes call it.

    `remedy` is what its loss leaves to do.

    Raises:
        UserError: a file is missing or differs from its checksum, or `.metadata` is not what torch writes.
    """
    from torch.distributed.checkpoint import load
    from torch.distributed.checkpoint.api import CheckpointException

    from mlrun.train.checkpoint.dcp import Reader, TensorsOnly

    note = _note(folder / NOTE, remedy)
    ranks.together(lambda: _verify(folder, note["files"], ranks, remedy))
    reader = Reader(folder, set(note["files"]))
    tensors = {name: ranks.placement.empty(shape, dtype) for name, (shape, dtype) in reader.tensors().items()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is")  # one process may have no group
            load(tensors, storage_reader=reader, planner=TensorsOnly())
    except CheckpointException as failed:
        reason = next(iter(failed.failures.values()))[0]
        raise UserError(f"{folder}: cannot be read ({reason}); {remedy}") from None
    return tensors, note


def _note(path: Path, remedy: str) -> dict[str, Any]:
    """Return what is said of a checkpoint beside its tensors; UserError unless it is as it was written."""
    try:
        note: dict[str, Any] = json.loads(path.read_bytes())
        signed = note.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {remedy}") from None
    if signed != _signature(note):
        raise UserError(f"{path}: its text differs from its checksum; {remedy}")
    return note


def _verify(folder: Path, files: Mapping[str, str], ranks: Ranks, remedy: str) -> None:
    """Compare this process's share of the files with their checksums."""
    for name in sorted(files)[ranks.rank :: ranks.world]:
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: missing; {remedy}")
        if _sum(path) != files[name]:
            raise UserError(f"{path}: its bytes differ from its checksum; {remedy}")


# Models alone


def save_weights(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str], ranks: Ranks) -> None:
    """Write a model's weights alone, atomically; all processes call it, the first one writes.

    Raises:
        OSError, UserError: it cannot write, or the disk has no room.
    """
    temporary = path.with_name(f".{path.name}.parts")
    try:
        _first_of_all(ranks, weights, lambda pairs: _fill(temporary, path, weights, metadata, pairs))
    except BaseException:
        if ranks.first:
            store.remove(temporary)
        raise


Pairs = Iterator[tuple[str, Tensor]]


def _first_of_all(ranks: Ranks, weights: Mapping[str, Tensor], write: Callable[[Pairs], None]) -> None:
    """Gather tensor by tensor, for the first process to write; where that fails, all of them fail in the end."""
    pairs = ((name, ranks.placement.gather(tensor).cpu()) for name, tensor in weights.items())

    def step() -> None:
        try:
            if ranks.first:
                write(pairs)
        finally:
            for _ in pairs:  # the others cannot gather alone
                pass

    ranks.together(step)


def _fill(
    temporary: Path, path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str], pairs: Pairs
) -> None:
    from mlrun.train.checkpoint.tensor_files import SINGLE, TensorInfo, Writer

    store.remove(temporary)
    temporary.mkdir(parents=True)
    infos = [TensorInfo(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in weights.items()]
    writer = Writer(temporary, infos, math.inf, metadata)
    for name, tensor in pairs:
        writer.write(name, tensor)
    writer.close()
    os.replace(temporary / SINGLE, path)
    temporary.rmdir()
