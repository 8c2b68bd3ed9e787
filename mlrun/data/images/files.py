"""Local pictures: Parquet files with an image column, or folders with a subfolder per class."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import MISSING

from mlrun.data import cache as cached
from mlrun.data.held_out import held_out
from mlrun.data.images.spec import Images
from mlrun.data.paths import local_problems, resolve, with_folders
from mlrun.data.source import spread
from mlrun.errors import UserError, mistake, nearest

if TYPE_CHECKING:
    from mlrun.data.images.collections import Stored
    from mlrun.data.images.source import ImageSource, Recipe

FORMATS = ("parquet", "imagefolder")
# Raised when packing changes.
VERSION = 1
_ROWS = 64  # read at once
_NAMED = 5  # classes that a message names
_LOOKED_INTO = 256  # pictures of a folder whose content tells it from others, and so many bytes of each
_BYTES = 2**20


def in_folders(files: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the files whose names are those of pictures, and the others."""
    from PIL import Image

    known = Image.registered_extensions()
    pictures = [file for file in files if Path(file).suffix.lower() in known]
    return pictures, [file for file in files if Path(file).suffix.lower() not in known]


def class_of(file: str) -> str:
    """Return the class of a picture, which is the name of its folder."""
    return Path(file).parent.name


def rows(files: Sequence[str], image: str, label: str) -> Iterator[Stored]:
    """Yield the pictures of Parquet files; UserError when a column is missing or a file is none."""
    import pyarrow.parquet

    from mlrun.data import huggingface
    from mlrun.data.images.collections import stored

    number = 0
    for file in files:
        with huggingface.readable("data.files", file):
            opened = pyarrow.parquet.ParquetFile(file)
            names = opened.schema_arrow.names
        for column, key in ((image, "data.image"), (label, "data.label")):
            if column not in names:
                columns = f"{', '.join(names)}{nearest(column, names)}"
                raise UserError(f"{key}={column}: {file} has the columns {columns}; name one")
        with huggingface.readable("data.files", file):
            for batch in opened.iter_batches(_ROWS, columns=[image, label]):
                for row in batch.to_pylist():
                    yield stored(row, image, label, number)
                    number += 1


def parts(count: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the training pictures, and of an evenly spread share that is held out."""
    out_N = np.array([held_out(number, share) for number in range(count)], bool)
    return np.flatnonzero(~out_N), np.flatnonzero(out_N)


@dataclass(frozen=True, kw_only=True)
class ImageFiles(Images):
    """The `_target_` of conf/data/cifar10.yaml and imagefolder.yaml."""

    files: list[str] = MISSING
    format: str = MISSING
    validation_files: list[str] = field(default_factory=list)
    image: str = "image"
    label: str = "label"
    held_out: float = 0.05

    def source_problems(self) -> list[str]:
        files, validation_files = with_folders(self.files), with_folders(self.validation_files)
        return local_problems(self.format, FORMATS, files, validation_files, self.held_out)

    def pictures(self, recipe: Recipe, cache: Path) -> ImageSource:
        files, others = resolve(with_folders(self.files)), resolve(with_folders(self.validation_files))
        return (
            self._packed(recipe, cache, files, others)
            if self.format == "parquet"
            else self._folders(recipe, files, others)
        )

    def _folders(self, recipe: Recipe, files: list[str], others: list[str]) -> ImageSource:
        """Open pictures where they lie; their classes are the names of their folders, in order."""
        from mlrun.data.images.collections import Stored
        from mlrun.data.images.source import Facts, MappedImages

        (train, strange), (held, more) = in_folders(files), in_folders(others)
        classes = sorted({class_of(file) for file in train + held})
        if len(classes) != self.classes:
            raise UserError(self._other_classes(classes))
        number = {name: place for place, name in enumerate(classes)}
        if not others:
            train, held = ([train[n] for n in part] for part in parts(len(train), self.held_out))
        stored = [[Stored(file, number[class_of(file)], file) for file in part] for part in (train, held)]
        named = [[[class_of(f), Path(f).name, os.path.getsize(f)] for f in part] for part in (train, held)]
        notes = tuple(_ignored(strange + more))
        seen = [_looked_into(part) for part in (train, held)]
        facts = Facts([classes, named[0], seen[0]], [classes, named[1], seen[1]], notes, tuple(classes))
        return MappedImages(recipe, stored[0], stored[1], self.validation_samples, facts)

    def _other_classes(self, found: list[str]) -> str:
        names = ", ".join(found[:_NAMED]) + (", ..." if len(found) > _NAMED else "")
        allowed = f"{len(found)}, the folders that pictures lie in ({names})"
        return mistake("data.classes", self.classes, allowed, "correct data.classes and model.classes, or data.files")

    def _packed(self, recipe: Recipe, cache: Path, files: list[str], others: list[str]) -> ImageSource:
        """Open Parquet files, copied into the cache as one file of pictures each part."""
        from mlrun.data.images.collections import PackedPictures
        from mlrun.data.images.source import Facts, MappedImages

        train = self._pack(cache, files)
        if others:
            held = self._pack(cache, others)
            names = (_sha256(train), _sha256(held))
            first, second = PackedPictures(train), PackedPictures(held)
        else:
            numbers = parts(len(PackedPictures(train)), self.held_out)
            first, second = (PackedPictures(train, part) for part in numbers)
            names = ([_sha256(train), self.held_out, "train"], [_sha256(train), self.held_out, "held out"])
        self._judge_labels(np.concatenate([first.labels, second.labels]))
        return MappedImages(recipe, first, second, self.validation_samples, Facts(*names))

    def _pack(self, cache: Path, files: list[str]) -> Path:
        from mlrun.data.images.collections import pack

        facts = [{key: fact[key] for key in ("size", "sha256")} for fact in cached.file_facts(files)]
        key = {"version": VERSION, "files": facts, "image": self.image, "label": self.label}
        where = cache / "images" / cached.digest(key)
        return cached.build(where, lambda new: pack(new, rows(files, self.image, self.label)))

    def _judge_labels(self, labels_N: np.ndarray) -> None:
        """Raise UserError for labels beyond the classes, and if there is nothing to tell apart."""
        from mlrun.data.images.source import beyond

        found = np.unique(labels_N)
        for label in found[(found < 0) | (found >= self.classes)]:
            raise UserError(beyond(self.classes, int(label)))
        if len(found) == 1 and self.classes > 1:
            raise UserError(mistake("data.classes", self.classes, f"1: every label is {found[0]}", "name other files"))


def _looked_into(files: Sequence[str]) -> str:
    """Return a digest of what some pictures hold, evenly spread: two classes may have equal names and sizes."""
    digest = hashlib.sha256()
    for number in spread(len(files), min(len(files), _LOOKED_INTO)).tolist():
        with open(files[number], "rb") as file:
            digest.update(hashlib.sha256(file.read(_BYTES)).digest())
    return digest.hexdigest()


def _sha256(folder: Path) -> Any:
    """Return what names the pictures and labels of a packed folder."""
    return {name: fact["sha256"] for name, fact in cached.contents(folder).items()}


def _ignored(files: Sequence[str]) -> Iterator[str]:
    """Yield the remarks about files among the pictures that are not read."""
    tables = [file for file in files if Path(file).stem == "metadata"]
    if tables:
        yield f"data.files: {tables[0]} is not read: a picture's class is the name of its folder"
    if others := [file for file in files if file not in tables]:
        yield f"data.files: {len(others)} files are no pictures, such as {others[0]}; they are not read"
