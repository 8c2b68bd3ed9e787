"""Any image data set on the Hugging Face hub (or a local folder laid out like one): downloaded, or streamed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import MISSING

from mlrun.data import cache as cached
from mlrun.data.huggingface import HubSource
from mlrun.data.images.collections import Stored, stored
from mlrun.data.images.spec import Images
from mlrun.errors import UserError, mistake, mistakes
from mlrun.files import make

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from mlrun.data.images.source import Facts, ImageSource, Recipe


class _Pictures(HubSource):
    """One split of the data set that `data.path` names."""

    key: ClassVar[str] = "data.path"


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
        return mistakes("data.", ((name, getattr(self, name), good, allowed) for name, good, allowed in checks))

    def pictures(self, recipe: Recipe, cache: Path) -> ImageSource:
        return self._streamed(recipe, cache) if self.streaming else self._mapped(recipe)

    def _mapped(self, recipe: Recipe) -> ImageSource:
        from mlrun.data.images.collections import DatasetPictures
        from mlrun.data.images.source import MappedImages

        train, held_out = (DatasetPictures(self._rows(s), self.image, self.label) for s in self._splits)
        return MappedImages(recipe, train, held_out, self.validation_samples, self._facts())

    def _streamed(self, recipe: Recipe, cache: Path) -> ImageSource:
        """Open streams; the held-out pictures are the first of their split, kept in memory as stored."""
        from mlrun.data.images.source import StreamedImages
        from mlrun.data.shuffled_blocks import Blocks

        assert self.validation_samples is not None, "problems() comes first"
        first = enumerate(islice(self._rows(self.validation_split), self.validation_samples))
        held_out = [stored(row, self.image, self.label, number) for number, row in first]
        facts = self._facts()
        marks = cache / "streams" / cached.digest({"images": facts.train, "block": self.block})
        make(marks, "cache")
        blocks = Blocks(partial(self._rows, self.split), lambda rows, carry: (rows, carry), self.block, marks)

        def stream(start: int) -> Iterator[Stored]:
            rows = blocks.samples(start, recipe.seed)
            return (stored(row, self.image, self.label, row["index"]) for row in rows)

        return StreamedImages(recipe, stream, held_out, facts, self.block)

    @property
    def _splits(self) -> tuple[str, str]:
        return self.split, self.validation_split

    def _facts(self) -> Facts:
        """Return what names the pictures of both splits."""
        from mlrun.data.images.source import Facts

        columns = {"image": self.image, "label": self.label}
        sources = (_Pictures(self.path, self.name, split, self.image, self.revision) for split in self._splits)
        train, held_out = (source.facts(source.load(self.streaming), self.streaming) for source in sources)
        return Facts([columns, train], [columns, held_out])

    def _load(self, split: str) -> Dataset | IterableDataset:
        source = _Pictures(path=self.path, name=self.name, split=split, revision=self.revision)
        return source.load(self.streaming)

    def _rows(self, split: str) -> Any:
        return undecoded(self._load(split), self.image, self.label)


def undecoded(dataset: Dataset, image: str, label: str) -> Dataset:
    """Return the two columns, pictures as they are stored; UserError when one is missing or holds no pictures."""
    from datasets import Image

    from mlrun.data import huggingface

    for column, key in ((image, "data.image"), (label, "data.label")):
        huggingface.check_column(dataset, column, key, "the data")
    try:
        return dataset.select_columns([image, label]).cast_column(image, Image(decode=False))
    except Exception as error:  # `datasets` and pyarrow raise many kinds for a column that is no picture
        reason = str(error).splitlines()[0]
        raise UserError(mistake("data.image", image, "a column of pictures", f"name it ({reason})")) from error
