"""Local files: text, JSON (an object a line, or one array), Parquet; read in constant memory by `datasets`."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from mlrun.data import cache
from mlrun.data.text.corpus import Part, select
from mlrun.data.text.spec import Text
from mlrun.errors import mistake, nearest

FORMATS = ("text", "json", "parquet")
# What one document is in a text file, and the loader's word for it.
DOCUMENTS = {"line": "line", "paragraph": "paragraph", "file": "document"}


def resolve(patterns: Sequence[str]) -> list[str]:
    """Return the files that names and globs stand for: in the given order, those of one glob by name."""
    found = (glob.glob(str(Path(pattern).expanduser()), recursive=True) for pattern in patterns)
    return [name for names in found for name in sorted(names) if Path(name).is_file()]


def file_problems(key: str, patterns: Sequence[str]) -> list[str]:
    """Return a line for each pattern without files, and for each empty file."""
    missing = [
        mistake(key, pattern, "existing files or globs", f"nothing is there (looked from {Path.cwd()}); correct it")
        for pattern in patterns
        if not resolve([pattern])
    ]
    empty = [
        mistake(key, name, "files that hold something", "it is empty; remove it or fill it")
        for name in resolve(patterns)
        if Path(name).stat().st_size == 0
    ]
    return missing + empty


def local_problems(
    format: str, formats: Sequence[str], files: Sequence[str], validation_files: Sequence[str], held_out: float
) -> list[str]:
    """Return what is wrong with where local data comes from: text and pictures name it alike."""
    found = []
    if format not in formats:
        found.append(mistake("data.format", format, ", ".join(formats), f"choose one{nearest(str(format), formats)}"))
    if not files:
        found.append(mistake("data.files", list(files), "one or more file names or globs", "name the files"))
    if not 0 < held_out < 1:
        found.append(mistake("data.held_out", held_out, "over 0 and under 1", "correct it"))
    found += file_problems("data.files", files) + file_problems("data.validation_files", validation_files)
    train, other = ({str(Path(file).resolve()) for file in resolve(names)} for names in (files, validation_files))
    key, allowed = "data.validation_files", "files that are not in data.files"
    return found + [mistake(key, file, allowed, "remove it from one") for file in sorted(train & other)]


@dataclass(frozen=True)
class Documents:
    """The rows of local files; a share is held out unless there are files for that."""

    format: str
    files: list[str]
    validation_files: list[str]
    column: str
    document: str
    held_out: float

    def facts(self) -> dict[str, Any]:
        """Return the files' hashes and how they are read."""
        return {
            "format": self.format,
            "column": self.column,
            "document": self.document,
            "held_out": self.held_out,
            "files": cache.file_facts(self.files),
            "validation_files": cache.file_facts(self.validation_files),
        }

    def documents(self, part: Part) -> Iterator[str]:
        """Yield the texts of one part."""
        if self.validation_files:
            return self._texts(self.validation_files if part == "validation" else self.files)
        return select(self._texts(self.files), part, self.held_out)

    def _texts(self, files: list[str]) -> Iterator[str]:
        from mlrun.data import huggingface

        options = {"sample_by": DOCUMENTS[self.document]} if self.format == "text" else {}
        label = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        dataset = huggingface.load(
            "data.files", label, self.format, data_files=files, split="train", streaming=True, **options
        )
        return huggingface.texts(huggingface.text_rows(dataset, self.column, "data.column", label), "data.files", label)


@dataclass(frozen=True, kw_only=True)
class Files(Text):
    """The `_target_` of conf/data/text.yaml, json.yaml and parquet.yaml."""

    files: list[str] = MISSING
    format: str = MISSING
    validation_files: list[str] = field(default_factory=list)
    column: str = "text"
    document: str = "paragraph"
    held_out: float = 0.05

    def corpus(self) -> Documents:
        validation = resolve(self.validation_files)
        held_out = 0.0 if validation else self.held_out
        return Documents(self.format, resolve(self.files), validation, self.column, self.document, held_out)

    def source_problems(self) -> list[str]:
        found = local_problems(self.format, FORMATS, self.files, self.validation_files, self.held_out)
        if self.document not in DOCUMENTS:
            remedy = f"choose one{nearest(str(self.document), list(DOCUMENTS))}"
            found.append(mistake("data.document", self.document, ", ".join(DOCUMENTS), remedy))
        return found
