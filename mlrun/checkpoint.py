"""The state of a run on disk: one safetensors file, no pickle, replaced atomically; the one before is kept.

current/weights/<name>  current/exp_avg/<name> ...   the model in training and its optimizer
kept/<level>/...                                     the models that wait for their decoalesced return
metadata                                             progress as JSON, and the checksum of the tensors

What a branch starts from is a file of its own, written once: fork-<step>, with <kind>/<name>.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mlrun import storage
from mlrun.errors import UserError

LAST, BEFORE, BEST = "last.safetensors", "before.safetensors", "best.safetensors"
FORK = "fork-{}.safetensors"


@dataclass
class Snapshot:
    """A model at rest: `tensors[kind][name]` with kinds weights, exp_avg, exp_avg_sq, ema; Adam's steps taken."""

    tensors: dict[str, dict[str, Tensor]]
    adam_steps: int = 0

    @property
    def weights(self) -> dict[str, Tensor]:
        """The model's parameters."""
        return self.tensors["weights"]


@dataclass
class Progress:
    """How far a run has come; `entered` says that the transfer into `stage` was made."""

    stage: int = 0
    step: int = 0
    entered: bool = False
    log_bytes: int = 0
    content: str | None = None  # of the data, where it can be told
    best: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    stage_seconds: list[float] = field(default_factory=list)
    receipts: list[dict[str, Any]] = field(default_factory=list)
    forks: dict[str, float] = field(default_factory=dict)  # training seconds up to each, by its step


def save(folder: Path, progress: Progress, current: Snapshot, kept: Mapping[int, Snapshot]) -> None:
    """Write the run's state as the newest checkpoint; the former newest stays beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    snapshots = {"current": current} | {f"kept/{level}": s for level, s in kept.items()}
    steps = {key: s.adam_steps for key, s in snapshots.items()}
    tensors = {
        f"{key}/{k}/{n}": t for key, s in snapshots.items() for k, ts in s.tensors.items() for n, t in ts.items()
    }
    meta = {"progress": json.dumps(asdict(progress)), "adam_steps": json.dumps(steps)}
    temporary = write(folder / LAST, tensors, meta)
    if (folder / LAST).exists():
        os.replace(folder / LAST, folder / BEFORE)
    os.replace(temporary, folder / LAST)


def write(target: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write tensors with their checksum to a temporary file beside `target`, forced to disk; return its path."""
    target.parent.mkdir(parents=True, exist_ok=True)
    flat = {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        save_file(flat, temporary, {**metadata, "sha256": checksum(flat)})
        storage.ordinary(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, SafetensorError):  # its only way to say that the disk is full
            raise storage.as_os_error(error, target) from None
        raise
    return temporary


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and bytes, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read(path: Path, remedy: str = "restore the file or remove it") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and metadata of one file of ours; `remedy` is what its loss leaves to do.

    Raises:
        UserError: the file is missing, truncated, or differs from its checksum.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {remedy}") from None
    if metadata.get("sha256") != checksum(tensors):
        raise UserError(f"{path}: its bytes differ from its checksum; {remedy}")
    return tensors, metadata


def load(folder: Path) -> tuple[Progress, Snapshot, dict[int, Snapshot], str | None] | None:
    """Return the newest whole checkpoint, and what was wrong with a newer one; None if there is no checkpoint.

    Raises:
        UserError: checkpoints are there and none is whole.
    """
    present = [folder / name for name in (LAST, BEFORE) if (folder / name).exists()]
    problems: list[str] = []
    for path in present:
        try:
            tensors, metadata = read(path)
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
    steps = json.loads(metadata["adam_steps"])
    snapshots = {key: Snapshot({}, taken) for key, taken in steps.items()}
    for path, tensor in tensors.items():
        key, kind, name = path.rsplit("/", 2)
        snapshots[key].tensors.setdefault(kind, {})[name] = tensor
    current = snapshots.pop("current")
    kept = {int(key.removeprefix("kept/")): s for key, s in snapshots.items()}
    return Progress(**json.loads(metadata["progress"])), current, kept


def save_fork(folder: Path, step: int, snapshot: Snapshot) -> None:
    """Write the state after `step`, which a branch starts from, atomically."""
    path = folder / FORK.format(step)
    tensors = {f"{kind}/{name}": t for kind, named in snapshot.tensors.items() for name, t in named.items()}
    os.replace(write(path, tensors, {"adam_steps": str(snapshot.adam_steps)}), path)


def load_fork(folder: Path, step: int) -> Snapshot:
    """Return the state that a branch starts from.

    Raises:
        UserError: the file is missing or damaged.
    """
    remedy = "a branch starts from it: restore the file, or start a new folder with run=..."
    tensors, metadata = read(folder / FORK.format(step), remedy)
    found = Snapshot({}, int(metadata["adam_steps"]))
    for path, tensor in tensors.items():
        kind, name = path.split("/", 1)
        found.tensors.setdefault(kind, {})[name] = tensor
    return found


def drop_forks(folder: Path) -> None:
    """Remove what no branch will start from any more."""
    for path in folder.glob(FORK.format("*")):
        path.unlink()


def save_weights(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a model's weights alone, atomically."""
    os.replace(write(path, weights, metadata), path)
