"""torch.distributed.checkpoint with our promises: no pickle is trusted, and a full disk is told as such.

torch writes `.metadata` as a pickle. Only what torch 2.13 puts there for tensors may be named.
`BytesStorageMetadata` is not among them: what it describes torch would unpickle without limits.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from mlrun.errors import UserError

_META = "torch.distributed.checkpoint.metadata"
ALLOWED = frozenset(
    {
        (_META, "Metadata"),
        (_META, "TensorStorageMetadata"),
        (_META, "TensorProperties"),
        (_META, "ChunkStorageMetadata"),
        (_META, "MetadataIndex"),
        (_META, "StorageMeta"),
        (_META, "_MEM_FORMAT_ENCODING"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch.serialization", "_get_layout"),
        ("torch", "Size"),
        ("torch", "float32"),
        ("pathlib", "PosixPath"),
        ("pathlib._local", "PosixPath"),
    }
)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise UserError(f"it names {module}.{name}, which no checkpoint of ours does")
        return super().find_class(module, name)


class Reader(FileSystemReader):
    """torch's reader of a checkpoint folder; `files` are the ones that tensors may be read from.

    Tensors themselves it reads with `weights_only`.
    """

    def __init__(self, folder: Path, files: set[str]) -> None:
        super().__init__(folder)
        self._folder, self._files = folder, files

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return what the checkpoint holds.

        Raises:
            UserError: `.metadata` is damaged, or names anything that a checkpoint of tensors does not need.
        """
        path = self._folder / ".metadata"
        try:
            with open(path, "rb") as file:
                found = _Unpickler(file).load()
            places = {info.relative_path for info in found.storage_data.values()}
        except UserError as error:
            raise UserError(f"{path}: not opened: {error}; remove the folder if you do not trust it") from None
        except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
            raise UserError(f"{path}: cannot be read ({error}); restore the folder or remove it") from None
        if not isinstance(found, Metadata) or not places <= self._files:
            raise UserError(f"{path}: it names files that are not of this checkpoint; restore the folder or remove it")
        return found

    def tensors(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Return shape and type of every tensor by its name; raises as `read_metadata` does."""
        found = self.read_metadata().state_dict_metadata
        return {name: (t.size, t.properties.dtype) for name, t in found.items() if isinstance(t, TensorStorageMetadata)}


class Disk(FileSystem):
    """Files that torch writes through; remembers why one could not be written, which `torch.save` does not tell."""

    failed: OSError | None = None

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        """Open a file for writing; torch asks for nothing else."""
        raw = _File(path, mode)
        try:
            with io.BufferedWriter(raw) as stream:
                yield stream
        finally:
            self.failed = self.failed or raw.failed

    def check(self) -> None:
        """Raise what went wrong, if anything did."""
        if self.failed is not None:
            raise self.failed


class _File(io.FileIO):
    failed: OSError | None = None

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            self.failed = error
            raise


class TensorsOnly(DefaultLoadPlanner):
    """torch's plan of what to read, without objects other than tensors."""

    def load_bytes(self, read_item: Any, value: Any) -> None:
        """Refuse: torch would unpickle the bytes."""
        raise UserError(f"{read_item.dest_index.fqn}: not a tensor; restore the checkpoint")
