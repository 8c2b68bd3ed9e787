"""Local files: text, JSON (an object a line, or one array), Parquet; read as they come, in constant memory."""

from __future__ import annotations

import codecs
import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from mlrun.data import cache
from mlrun.data.held_out import Part, select
from mlrun.data.paths import local_problems, resolve
from mlrun.data.text import json_files
from mlrun.data.text.spec import Text
from mlrun.errors import mistake, nearest

FORMATS = ("text", "json", "parquet")
# What one document is in a text file, and the loader's word for it.
DOCUMENTS = {"line": "line", "paragraph": "paragraph", "file": "document"}


@dataclass(frozen=True)
class Documents:
    """The rows of local files; a share is held out unless there are files for that."""

    format: str
    files: list[str]
    validation_files: list[str]
    column: str
    document: str
    encoding: str
    held_out: float

    def facts(self) -> dict[str, Any]:
        """Return the files' hashes and how they are read."""
        return {
            "format": self.format,
            "column": self.column,
            "document": self.document,
            "encoding": self.encoding,
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

        # Without the mark that some editors put at the beginning of UTF-8.
        encoding = "utf-8-sig" if codecs.lookup(self.encoding).name == "utf-8" else self.encoding
        if self.format == "json":
            return json_files.documents(files, self.column, encoding)
        options = {"sample_by": DOCUMENTS[self.document], "encoding": encoding} if self.format == "text" else {}
        label = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        # `datasets` takes names for globs: d[1]/a.txt would be d1/a.txt, also where [ is in the working folder's name.
        names = [glob.escape(os.path.abspath(file)) for file in files]
        dataset = huggingface.stream_files("data.files", label, self.format, names, **options)
        return huggingface.file_texts(dataset, self.column, "data.column", "data.files", label)


@dataclass(frozen=True, kw_only=True)
class Files(Text):
    """The `_target_` of conf/data/text.yaml, json.yaml and parquet.yaml."""

    files: list[str] = MISSING
    format: str = MISSING
    validation_files: list[str] = field(default_factory=list)
    column: str = "text"
    document: str = "paragraph"
    encoding: str = "utf-8"
    held_out: float = 0.05

    def corpus(self) -> Documents:
        validation = resolve(self.validation_files)
        held_out = 0.0 if validation else self.held_out
        return Documents(
            self.format, resolve(self.files), validation, self.column, self.document, self.encoding, held_out
        )

    def source_problems(self) -> list[str]:
        found = local_problems(self.format, FORMATS, self.files, self.validation_files, self.held_out)
        if self.document not in DOCUMENTS:
            remedy = f"choose one{nearest(str(self.document), list(DOCUMENTS))}"
            found.append(mistake("data.document", self.document, ", ".join(DOCUMENTS), remedy))
        try:
            "a".encode(self.encoding)
        except LookupError:
            allowed = "an encoding that Python knows, such as utf-8, utf-16 or latin-1"
            found.append(mistake("data.encoding", self.encoding, allowed, "correct it"))
        return found
