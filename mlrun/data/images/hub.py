"""Any image data set on the Hugging Face hub (or a local folder laid out like one): downloaded, or streamed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from mlrun.data import cache as cached
from mlrun.data.huggingface import HubSource
from mlrun.data.images.spec import Images
from mlrun.errors import mistake

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from mlrun.data.images.collections import Opener
    from mlrun.data.images.source import ImageSource, Recipe


@dataclass(frozen=True, kw_only=True)
class ImageHub(Images):
    """The `_target_` of conf/data/imagenet.yaml."""

    path: str = MISSING
    name: str | None = None
    revision: str | None = None
    split: str = "train"
    validation_split: str = "validation"
    image: str = "image"
    label: str = "label"
    streaming: bool = False
    block: int = 2048

    def source_problems(self) -> list[str]:
        checks = [
            ("block", self.block >= 1, "at least 1"),
            ("validation_split", self.validation_split != self.split, "another split than data.split"),
            ("validation_samples", not (self.streaming and self.validation_samples is None), "a number when streaming"),
        ]
        return [
            mistake(f"data.{name}", getattr(self, name), allowed, "correct the value")
            for name, good, allowed in checks
            if not good
        ]

    def pictures(self, recipe: Recipe, cache: Path) -> ImageSource:
        return self._streamed(recipe, cache) if self.streaming else self._mapped(recipe)

    def _mapped(self, recipe: Recipe) -> ImageSource:
        from mlrun.data.images.files import parts
        from mlrun.data.images.source import MappedImages

        train, held_out = (self._load(split) for split in (self.split, self.validation_split))
        first, second = parts(train, held_out, 0.0, self.image, self.label)
        return MappedImages(recipe, first, second, self.validation_samples)

    def _streamed(self, recipe: Recipe, cache: Path) -> ImageSource:
        """Open streams; the held-out pictures are the first of their split, kept in memory as stored."""
        from mlrun.data.images.collections import Columns, RowPictures
        from mlrun.data.images.source import StreamedImages
        from mlrun.data.shuffled_blocks import Blocks

        assert self.validation_samples is not None, "problems() comes first"
        columns = Columns(self.image, self.label)
        held_out = RowPictures(list(islice(self._rows(self.validation_split), self.validation_samples)), columns)
        source = HubSource(self.path, self.name, self.split, self.image, self.revision)
        facts = source.facts(self._load(self.split), streaming=True)
        marks = cache / "streams" / cached.digest({"images": facts, "block": self.block})
        marks.mkdir(parents=True, exist_ok=True)
        blocks = Blocks(partial(self._rows, self.split), lambda rows, carry: (rows, carry), self.block, marks)

        def stream(start: int) -> Iterator[Opener]:
            return (partial(columns.read, row, row["index"]) for row in blocks.samples(start, recipe.seed))

        return StreamedImages(recipe, stream, held_out, self.validation_samples)

    def _load(self, split: str) -> Dataset | IterableDataset:
        source = HubSource(path=self.path, name=self.name, split=split, revision=self.revision)
        return source.load(self.streaming)

    def _rows(self, split: str) -> Any:
        from mlrun.data.images.files import undecoded

        return undecoded(self._load(split), self.image, self.label)
