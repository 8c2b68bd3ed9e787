"""Safetensors: one file with a checksum, a model's files as a lazy mapping, a writer that is given a tensor at a time.

A model is one file, or shards beside an index (`model.safetensors.index.json`), as Hugging Face lays it out.

The checksum of a file is the SHA-256 of its metadata, if it has any, and of names, types, shapes and bytes in order of
name. It lies in the metadata itself, as `sha256`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mlrun import files
from mlrun.errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CODES = {dtype: code for code, dtype in DTYPES.items()}
SHARD_BYTES = 5 * 10**9  # what the hub's own tools choose
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
REMEDY = "restore the file or remove it"


# One file


def write(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    install: Callable[[Path, Path], None] = files.rename,
) -> str:
    """Write tensors and metadata as one file, as a whole; return their checksum, which the file holds as well.

    Raises:
        OSError: it cannot be written.
    """
    flat = {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}
    found = checksum(flat, metadata)
    with files.whole_file(path, install) as temporary:
        try:
            save_file(flat, temporary, {**metadata, "sha256": found})
        except SafetensorError as error:  # its only way to say that the disk is full
            raise files.as_os_error(error, path) from None
    return found


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the checksum of a file with these tensors and metadata."""
    return _digest(((name, tensors[name]) for name in sorted(tensors)), metadata)


def _digest(ordered: Iterable[tuple[str, Tensor]], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    covered = {key: metadata[key] for key in metadata if key not in ("format", "sha256")}
    if covered:
        digest.update(json.dumps(covered, sort_keys=True).encode() + b"\n")
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
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            found = _digest(_keeping(file, keep, tensors), metadata)
    except Exception as error:  # a damaged header raises whatever its bytes happen to mean
        raise UserError(f"{path}: cannot be read ({error}); {remedy}") from None
    if metadata.get("sha256") != found:
        raise UserError(f"{path}: it differs from its checksum; {remedy}")
    return tensors, metadata


def _keeping(file: Any, keep: Callable[[Tensor], Tensor], kept: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a file in order of name, and keep of each what is to be kept."""
    for name in sorted(file.keys()):
        tensor = file.get_tensor(name)
        kept[name] = keep(tensor)
        yield name, tensor


# Reading a model


@dataclass(frozen=True)
class Entry:
    """One stored tensor: where it is and what its header says; `dtype` is None if it is not floating point."""

    file: Path
    dtype: torch.dtype | None
    shape: tuple[int, ...]


class Shards(Mapping[str, Tensor]):
    """The tensors of a folder by their stored names. Each is mapped into memory when it is asked for, and only then.

    Asking raises UserError for NaN or infinite values, opening for files that are missing, cut off or not safetensors.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.files = paths
        self.entries = {name: entry for file in paths for name, entry in scan(file).items()}

    def __getitem__(self, name: str) -> Tensor:
        entry = self.entries[name]
        # Opened anew each time, so that the pages of one tensor go when the tensor goes.
        with safe_open(entry.file, "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        if entry.dtype is not None and tensor.numel() > 0:
            low, high = torch.aminmax(tensor)  # no temporary of the tensor's size
            if not (math.isfinite(low) and math.isfinite(high)):
                value = "NaN" if math.isnan(low) else "infinite"
                raise UserError(f"tensor {name}: holds {value} values ({entry.file}); use an earlier checkpoint")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def verify(self) -> None:
        """Compare each file with the checksum in its header, where it has one; UserError if they differ."""
        for path in self.files:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
            if "sha256" in metadata and checksum(Shards([path]), metadata) != metadata["sha256"]:
                raise UserError(f"{path}: it differs from its checksum; restore the file")


def open_shards(folder: Path) -> Shards:
    """Return the checkpoint of a folder; UserError if there is none or a part of it is missing or broken."""
    index = folder / INDEX
    if index.is_file():
        return _indexed(index)
    if (folder / SINGLE).is_file():
        return Shards([folder / SINGLE])
    pickles = sorted(str(path) for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        remedy = "a pickle can run code when it is read; convert it to safetensors where you trust it"
        raise UserError(f"{pickles[0]}: allowed: weights as safetensors; {remedy}")
    raise UserError(f"{folder}: it holds no {SINGLE} or {INDEX}; name a folder with a model's weights")


def _indexed(index: Path) -> Shards:
    """Return the shards that an index names."""
    placed = files.read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
        raise UserError(f"{index}: weight_map is missing or no table of file names; restore the file")
    foreign = [name for name in placed.values() if Path(name).name != name]
    if foreign:
        raise UserError(f"{index}: {foreign[0]} is not the name of a file beside it; restore the file")
    named = {name: index.with_name(name) for name in dict.fromkeys(placed.values())}
    absent = [
        f"tensor {tensor}: missing, as {named[name]} is; restore the file"
        for tensor, name in placed.items()
        if not named[name].is_file()
    ]
    if absent:
        raise UserError(absent[0])
    shards = Shards(list(named.values()))
    lost = [
        f"tensor {tensor}: not in {named[name]}, where the index has it; restore the file"
        for tensor, name in placed.items()
        if tensor not in shards or shards.entries[tensor].file != named[name]
    ]
    if lost:
        raise UserError(lost)
    return shards


def scan(path: Path) -> dict[str, Entry]:
    """Return what a file's header says; UserError names the first tensor that is cut off, or else the file."""
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {n: Entry(path, DTYPES.get(s.get_dtype()), tuple(s.get_shape())) for n, s in slices.items()}
    except (SafetensorError, OSError) as error:
        cut = _cut_off(path)
        what = f"tensor {cut}: cut off in {path}" if cut is not None else f"{path}: no safetensors file ({error})"
        raise UserError(f"{what}; restore the file") from None


def _cut_off(path: Path) -> str | None:
    """Return the first tensor that ends beyond the end of a broken file, or None if its header is not readable."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, 10**8)))
        ends = {n: 8 + length + entry["data_offsets"][1] for n, entry in header.items() if n != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
    return next((name for name in sorted(ends, key=ends.__getitem__) if ends[name] > path.stat().st_size), None)


# Writing a model


@dataclass(frozen=True)
class TensorInfo:
    """One tensor to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size on disk."""
        return math.prod(self.shape) * self.dtype.itemsize


class Writer:
    """Files laid out in advance, tensors put into place one by one, in any order.

    Raises:
        UserError: the disk has no room.
    """

    def __init__(
        self,
        folder: Path,
        infos: Sequence[TensorInfo],
        shard_bytes: float = SHARD_BYTES,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        shards = list(_sharded(infos, shard_bytes))
        total, free = sum(info.bytes for info in infos), shutil.disk_usage(folder).free
        if total > free:
            raise UserError(f"{folder}: {total:,} bytes are to be written and {free:,} are free; make room")
        count = len(shards)
        names = [SINGLE] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
        self.paths, self.metadata = [folder / name for name in names], metadata or {}
        self.places: dict[str, tuple[Path, int, TensorInfo]] = {}
        for path, shard in zip(self.paths, shards, strict=True):
            self.places |= {info.name: (path, start, info) for info, start in _lay_out(path, shard, self.metadata)}
        self.missing = set(self.places)
        if count > 1:
            placed = {info.name: path.name for path, shard in zip(self.paths, shards, strict=True) for info in shard}
            index = {"metadata": {"total_size": total}, "weight_map": placed}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def write(self, name: str, tensor: Tensor) -> None:
        """Put a tensor into its place."""
        path, start, info = self.places[name]
        assert (tensor.dtype, tuple(tensor.shape)) == (info.dtype, info.shape), f"{name} is not what was announced"
        with open(path, "r+b") as file:
            file.seek(start)
            file.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        self.missing.remove(name)

    def close(self) -> None:
        """Sign each file with its checksum and force it to disk; everything must have been written."""
        assert not self.missing, f"not written: {sorted(self.missing)}"
        for path in self.paths:
            digest = checksum(Shards([path]), self.metadata).encode()
            with open(path, "r+b") as file:
                length = int.from_bytes(file.read(8), "little")
                place = file.read(length).index(_UNSIGNED.encode())
                file.seek(8 + place)
                file.write(digest)
                file.flush()
                os.fsync(file.fileno())


_UNSIGNED = "0" * 64


def _sharded(infos: Iterable[TensorInfo], limit: float) -> Iterator[list[TensorInfo]]:
    """Yield the infos of each file, in order; a tensor over the limit has a file of its own."""
    shard: list[TensorInfo] = []
    for info in infos:
        if shard and sum(one.bytes for one in shard) + info.bytes > limit:
            yield shard
            shard = []
        shard.append(info)
    yield shard


def _lay_out(path: Path, shard: Sequence[TensorInfo], metadata: Mapping[str, str]) -> list[tuple[TensorInfo, int]]:
    """Write a file's header and reserve its length; return where each tensor begins."""
    # Wide numbers first, so that every tensor is aligned to its own.
    ordered = sorted(shard, key=lambda info: -info.dtype.itemsize)
    entries: dict[str, object] = {"__metadata__": {"format": "pt", **metadata, "sha256": _UNSIGNED}}
    starts, end = [], 0
    for info in ordered:
        starts.append(end)
        end += info.bytes
        entries[info.name] = {
            "dtype": CODES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [starts[-1], end],
        }
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    return [(info, 8 + len(header) + start) for info, start in zip(ordered, starts, strict=True)]
