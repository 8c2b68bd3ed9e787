"""A checkpoint where every process holds shards: a folder with a file of each process, written by all at once.

shard-<rank>.safetensors   the process's rows of every tensor's first dim, in order of rank; numbers by the first one
checkpoint.json            what is said of the tensors, the checksum of every shard, and its own

It is written aside and renamed when it is whole. Any number of processes reads it, by slices of the shards.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mlrun import files
from mlrun.errors import UserError
from mlrun.train.checkpoint import tensor_files
from mlrun.train.parallel.placement import Placement, local
from mlrun.train.parallel.processes import Ranks

NOTE, SHARD = "checkpoint.json", "shard-{:05}.safetensors"

# Writing


def write(
    target: Path,
    tensors: Mapping[str, Tensor],
    record: Mapping[str, Any],
    ranks: Ranks,
    install: Callable[[Path, Path], None],
) -> None:
    """Write tensors and what is said of them to a folder aside; `install` renames it once it is whole.

    All processes call it.

    Raises:
        OSError: one of them cannot write; the checkpoints are as they were.
    """
    temporary = target.with_name(f".{target.name}{files.ASIDE}")  # all processes know this name

    def clear() -> None:
        files.remove(temporary)
        temporary.mkdir()

    try:
        ranks.by_first(clear)
        sums = ranks.together(lambda: write_shard(temporary / SHARD.format(ranks.rank), tensors, ranks))
        shards = {SHARD.format(rank): found for rank, found in enumerate(sums)}
        ranks.by_first(lambda: write_note(temporary / NOTE, {**record, "files": shards}))
        ranks.by_first(lambda: install(temporary, target))
    except BaseException:
        if ranks.first:
            files.remove(temporary)
        raise


def write_shard(path: Path, tensors: Mapping[str, Tensor], ranks: Ranks) -> str:
    """Write this process's rows; return their checksum."""
    own = {name: local(tensor) for name, tensor in tensors.items()}
    return tensor_files.write(path, {name: t for name, t in own.items() if t.ndim > 0 or ranks.first}, {})


def write_note(path: Path, note: Mapping[str, Any]) -> None:
    """Write what is said of the tensors, signed."""
    files.write_json(path, {**note, "sha256": _signature(note)})


def _signature(note: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(note, sort_keys=True).encode()).hexdigest()


# Reading


def read(folder: Path, ranks: Ranks, remedy: str = tensor_files.REMEDY) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what this process keeps of the tensors of a checkpoint, and what is said of them. All processes call it.

    `remedy` is what its loss leaves to do.

    Raises:
        UserError: a file is missing or differs from its checksum.
    """
    note = ranks.together(lambda: _verified(folder, ranks, remedy))[0]
    tensors: dict[str, Tensor] = {}

    def step() -> None:
        try:
            tensors.update(_assembled([folder / name for name in sorted(note["files"])], ranks.placement))
        except Exception as error:  # what checksums cannot tell, such as shards that were signed by somebody else
            raise UserError(f"{folder}: cannot be read ({error}); {remedy}") from None

    ranks.together(step)
    return tensors, note


def _verified(folder: Path, ranks: Ranks, remedy: str) -> dict[str, Any]:
    """Return what is said of the tensors, once this process's part of the shards is as it was written."""
    path = folder / NOTE
    note = files.read_json(path, remedy)
    signed, shards = note.pop("sha256", None), note.get("files")
    if signed != _signature(note):
        raise UserError(f"{path}: it differs from its checksum; {remedy}")
    if not isinstance(shards, dict) or not all(re.fullmatch(r"shard-\d+\.safetensors", name) for name in shards):
        raise UserError(f"{path}: it names files that are not of this checkpoint; {remedy}")
    for name in sorted(shards)[ranks.rank :: ranks.world]:
        _, metadata = tensor_files.read(folder / name, lambda tensor: tensor.new_empty(0), remedy)
        if metadata["sha256"] != shards[name]:
            raise UserError(f"{folder / name}: it differs from its checksum in {NOTE}; {remedy}")
    return note


def _assembled(shards: list[Path], placement: Placement) -> Iterator[tuple[str, Tensor]]:
    """Yield what this process keeps of every tensor, read from the shards that have some of its rows."""
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(shard, "pt")) for shard in shards]
        slices: dict[str, list[Any]] = {}
        for file in opened:
            for name in file.keys():  # noqa: SIM118
                slices.setdefault(name, []).append(file.get_slice(name))
        for name, parts in slices.items():
            first, *rest = parts[0].get_shape() or [None]
            if first is None:
                yield name, parts[0][...].clone()
                continue
            shape = (sum(part.get_shape()[0] for part in parts), *rest)
            yield name, placement.read(shape, partial(_rows, parts))


def _rows(parts: list[Any], rows: slice) -> Tensor:
    """Return a copy of some rows of a tensor whose parts follow one another."""
    found, start = [], 0
    for part in parts:
        length = part.get_shape()[0]
        low, high = max(rows.start - start, 0), min(rows.stop - start, length)
        found.append(part[low : max(low, high)] if low < length else part[length:length])
        start += length
    return torch.cat(found)


# Models alone


def write_whole(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str], ranks: Ranks) -> None:
    """Write a model's weights as one file, as a whole; they are gathered a tensor at a time, for the first process.

    All processes call it.

    Raises:
        OSError, UserError: it cannot write, or the disk has no room.
    """
    pairs = ((name, ranks.placement.gather(tensor).cpu()) for name, tensor in weights.items())

    def step() -> None:
        try:
            if ranks.first:
                _fill(path, weights, metadata, pairs)
        finally:
            for _ in pairs:  # the others cannot gather alone
                pass

    ranks.together(step)


def _fill(
    path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str], pairs: Iterator[tuple[str, Tensor]]
) -> None:
    infos = [tensor_files.TensorInfo(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in weights.items()]
    parts = files.aside(path)
    try:
        parts.mkdir()
        writer = tensor_files.Writer(parts, infos, math.inf, metadata)
        for name, tensor in pairs:
            writer.write(name, tensor)
        writer.close()
        files.rename(parts / tensor_files.SINGLE, path)
    finally:
        files.remove(parts)
