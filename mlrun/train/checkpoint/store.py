"""The state of a run on disk: one safetensors file, no pickle, replaced atomically; the one before is kept.

Where every process holds shards it is a folder instead (see `sharded.py`); either is read by any run. In both

current/weights/<name>  current/exp_avg/<name> ...   the model in training and its optimizer
kept/<level>/...                                     the models that wait for their decoalesced return
metadata                                             progress as JSON, and the checksum of the tensors

What a branch starts from is a file or a folder of its own, written once: fork-<step>, with `current` alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mlrun import files
from mlrun.errors import UserError
from mlrun.train.parallel.processes import Ranks
from mlrun.train.snapshot import Progress, Snapshot

LAST, BEFORE, BEST = "last.safetensors", "before.safetensors", "best.safetensors"
FORK = "fork-{}"
REMEDY = "restore the file or remove it"
ALONE = Ranks(0, 1, torch.device("cpu"))


def save(folder: Path, progress: Progress, current: Snapshot, kept: Mapping[int, Snapshot]) -> None:
    """Write the run's state as the newest checkpoint; the former newest stays beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors, steps = flat(current, kept)
    meta = {"progress": json.dumps(asdict(progress)), "optimizer_steps": json.dumps(steps)}
    install(write(folder / LAST, tensors, meta))


def flat(current: Snapshot, kept: Mapping[int, Snapshot]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return all tensors by their path in a checkpoint, and the optimizer's steps by snapshot."""
    snapshots = {"current": current} | {f"kept/{level}": s for level, s in kept.items()}
    tensors = {
        f"{key}/{k}/{n}": t for key, s in snapshots.items() for k, ts in s.tensors.items() for n, t in ts.items()
    }
    return tensors, {key: s.optimizer_steps for key, s in snapshots.items()}


def install(temporary: Path) -> None:
    """Rename a new checkpoint, a file or a folder, to be the newest; the former newest becomes the one before."""
    folder, discarded = temporary.parent, temporary.parent / ".discarded"
    suffix = ".sharded" if temporary.is_dir() else ".safetensors"
    for newest in present(folder, "last"):
        target = newest.with_name(f"before{newest.suffix}")
        for former in present(folder, "before"):
            if former.is_dir() or former != target:  # a file that is replaced needs no moment without it
                remove(discarded)
                os.replace(former, discarded)
        os.replace(newest, target)
    os.replace(temporary, folder / f"last{suffix}")
    remove(discarded)


def present(folder: Path, *names: str) -> list[Path]:
    """Return the checkpoints of these names (last, before), whole files or folders of shards."""
    paths = (folder / f"{name}{suffix}" for name in names for suffix in (".safetensors", ".sharded"))
    return [path for path in paths if path.exists()]


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write(target: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write tensors with their checksum to a temporary file beside `target`, forced to disk; return its path."""
    target.parent.mkdir(parents=True, exist_ok=True)
    flat = {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        save_file(flat, temporary, {**metadata, "sha256": checksum(flat)})
        files.ordinary(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, SafetensorError):  # its only way to say that the disk is full
            raise files.as_os_error(error, target) from None
        raise
    return temporary


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and bytes, in order of name."""
    return _digest((name, tensors[name]) for name in sorted(tensors))


def _digest(ordered: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in ordered:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read(
    path: Path, keep: Callable[[Tensor], Tensor] = lambda tensor: tensor, remedy: str = REMEDY
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and metadata of one file of ours; of each tensor what `keep` returns is held, one at a time.

    `remedy` is what its loss leaves to do.

    Raises:
        UserError: the file is missing, truncated, or differs from its checksum.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Tensor] = {}
            found = _digest(_keeping(file, keep, tensors))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {remedy}") from None
    if metadata.get("sha256") != found:
        raise UserError(f"{path}: its bytes differ from its checksum; {remedy}")
    return tensors, metadata


def _keeping(file: Any, keep: Callable[[Tensor], Tensor], kept: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a file in order of name, and keep of each what is to be kept."""
    for name in sorted(file.keys()):
        tensor = file.get_tensor(name)
        kept[name] = keep(tensor)
        yield name, tensor


def load(folder: Path, ranks: Ranks = ALONE) -> tuple[Progress, Snapshot, dict[int, Snapshot], str | None] | None:
    """Return the newest whole checkpoint, and what was wrong with a newer one; None if there is no checkpoint.

    However it was written, its tensors are what this process keeps of them. All processes call it.

    Raises:
        UserError: checkpoints are there and none is whole.
    """
    from mlrun.train.checkpoint import sharded

    problems: list[str] = []
    for path in present(folder, "last", "before"):
        try:
            tensors, metadata = sharded.read(path, ranks) if path.is_dir() else read(path, ranks.placement.shard)
        except UserError as error:
            problems += error.problems
            continue
        return (*_unpack(tensors, metadata), problems[0] if problems else None)
    if problems:
        raise UserError(problems)
    return None


def _unpack(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[Progress, Snapshot, dict[int, Snapshot]]:
    snapshots = _snapshots(tensors, metadata)
    current = snapshots.pop("current")
    kept = {int(key.removeprefix("kept/")): s for key, s in snapshots.items()}
    return Progress(**json.loads(metadata["progress"])), current, kept


def _snapshots(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Snapshot]:
    snapshots = {key: Snapshot({}, taken) for key, taken in json.loads(metadata["optimizer_steps"]).items()}
    for path, tensor in tensors.items():
        key, kind, name = path.rsplit("/", 2)
        snapshots[key].tensors.setdefault(kind, {})[name] = tensor
    return snapshots


def save_fork(folder: Path, step: int, snapshot: Snapshot) -> None:
    """Write the state after `step`, which a branch starts from, atomically."""
    path = folder / f"{FORK.format(step)}.safetensors"
    tensors, steps = flat(snapshot, {})
    os.replace(write(path, tensors, {"optimizer_steps": json.dumps(steps)}), path)


def load_fork(folder: Path, step: int, ranks: Ranks = ALONE) -> Snapshot:
    """Return what this process keeps of the state that a branch starts from. All processes call it.

    Raises:
        UserError: the file is missing or damaged.
    """
    from mlrun.train.checkpoint import sharded

    path, shards = (folder / f"{FORK.format(step)}{suffix}" for suffix in (".safetensors", ".sharded"))
    remedy = "a branch starts from it: restore the file, or start a new folder with run=..."
    if shards.exists():
        tensors, metadata = sharded.read(shards, ranks, remedy)
    else:
        tensors, metadata = read(path, ranks.placement.shard, remedy)
    return _snapshots(tensors, metadata)["current"]


def drop_forks(folder: Path) -> None:
    """Remove what no branch will start from any more."""
    for path in folder.glob(FORK.format("*")):
        remove(path)


def save_weights(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a model's weights alone, atomically."""
    os.replace(write(path, weights, metadata), path)
