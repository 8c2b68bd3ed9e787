"""Pictures as they are stored: each is told by its number, and decoded when it is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from mlrun.data.source import Broken
from mlrun.errors import UserError, mistake

if TYPE_CHECKING:
    from datasets import Dataset


_SHOWN = 60  # characters of a wrong value


class Stored(NamedTuple):
    """A picture as a file's name, as a file's content, or as grey levels; its class; what messages call it."""

    content: str | bytes | np.ndarray
    label: int
    name: str


class Pictures(Protocol):
    """A collection of known size; a list of `Stored` is one."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> Stored: ...


def stored(row: Mapping[str, Any], image: str, label: str, number: int) -> Stored:
    """Return the picture of a data set's row; UserError when it is no picture, or its label no number."""
    content, kind = row[image], row[label]
    held, path = (content.get("bytes"), content.get("path")) if isinstance(content, dict) else (content, None)
    found = path if held is None else held
    if not isinstance(found, str | bytes):
        raise UserError(mistake("data.image", image, "a column of pictures", f"row {number} holds none; name it"))
    if not isinstance(kind, int):
        remedy = f"row {number}: {f'{kind!r}'[:_SHOWN]}"
        raise UserError(mistake("data.label", label, "a column of class numbers", remedy))
    return Stored(found, kind, f"in row {number}" if path is None else path)


@dataclass(frozen=True)
class DatasetPictures:
    """Rows of a `datasets.Dataset` with undecoded pictures."""

    dataset: Dataset
    image: str
    label: str

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> Stored:
        return stored(self.dataset[number], self.image, self.label, number)


class PackedPictures:
    """Pictures one after the other in `pictures.bin`; those of some numbers, read where they are asked for."""

    def __init__(self, folder: Path, numbers: Sequence[int] | np.ndarray | None = None) -> None:
        self.folder, self._stream = folder, (folder / "pictures.bin").open("rb", buffering=0)
        self.offsets, self.labels = np.load(folder / "offsets.npy"), np.load(folder / "labels.npy")
        self.numbers = range(len(self.labels)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> Stored:
        row = int(self.numbers[number])
        start, end = int(self.offsets[row]), int(self.offsets[row + 1])
        content = os.pread(self._stream.fileno(), end - start, start)
        if len(content) < end - start:
            raise Broken(f"{self.folder / 'pictures.bin'} was cut while the run read it")
        return Stored(content, int(self.labels[row]), f"in row {row}")


def pack(folder: Path, pictures: Iterable[Stored]) -> None:
    """Write the files that `PackedPictures` reads, in constant memory but for offsets and labels."""
    offsets, labels = [0], []
    with (folder / "pictures.bin").open("wb") as stream:
        for picture in pictures:
            content = picture.content
            if isinstance(content, str):
                content = Path(content).read_bytes()
            assert isinstance(content, bytes)
            stream.write(content)
            offsets.append(offsets[-1] + len(content))
            labels.append(picture.label)
    np.save(folder / "offsets.npy", np.array(offsets, np.int64))
    np.save(folder / "labels.npy", np.array(labels, np.int64))
