"""Any text on the Hugging Face hub (or a local folder laid out like one): packed on disk, or streamed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from mlrun.data import cache
from mlrun.data.text.corpus import Part, held_out, select
from mlrun.data.text.spec import Settings, Text
from mlrun.errors import mistake

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from mlrun.data.source import Source

# The order in which documents of several sources take turns; the samples' order has its own seed.
_MIX_SEED = 0


@dataclass(frozen=True)
class HubSource:
    """One split of one data set; `text` is the column, `revision` a branch or commit."""

    path: str = MISSING
    name: str | None = None
    split: str = "train"
    text: str = "text"
    revision: str | None = None

    @property
    def label(self) -> str:
        """Return how messages call it."""
        return " ".join(part for part in (self.path, self.name, self.split) if part is not None)

    def load(self, streaming: bool) -> Dataset | IterableDataset:
        """Return the split, downloaded into the Hugging Face cache or streamed."""
        from mlrun.data import huggingface

        settings = {"name": self.name, "split": self.split, "revision": self.revision, "streaming": streaming}
        return huggingface.load("data.sources", self.label, self.path, **settings)

    def facts(self, loaded: Dataset | IterableDataset, streaming: bool) -> dict[str, Any]:
        """Return what names the content: a local folder's hashes, the cached files, or the hub's commit."""
        if Path(self.path).exists():
            files = sorted(file for file in Path(self.path).rglob("*") if file.is_file())
            return {**asdict(self), "files": cache.file_facts(files)}
        if streaming:
            from mlrun.data import huggingface

            return {**asdict(self), "commit": huggingface.commit("data.sources", self.label, self.path, self.revision)}
        # .../<name>/<version>/<commit of the hub>/<file>.arrow
        names = ["/".join(Path(file["filename"]).parts[-4:]) for file in loaded.cache_files]
        return {**asdict(self), "cached": sorted(names), "rows": len(loaded)}


@dataclass(frozen=True)
class HubCorpus:
    """Documents of several sources: one after the other, or mixed by weights, each exactly once."""

    sources: list[HubSource]
    validation_sources: list[HubSource]
    weights: list[float] | None
    held_out: float
    streaming: bool

    @cached_property
    def _loaded(self) -> list[Dataset | IterableDataset]:
        return [source.load(self.streaming) for source in [*self.sources, *self.validation_sources]]

    def facts(self) -> dict[str, Any]:
        """Return what names the content."""
        everything = zip([*self.sources, *self.validation_sources], self._loaded, strict=True)
        return {
            "sources": [source.facts(loaded, self.streaming) for source, loaded in everything],
            "validation": len(self.validation_sources),
            "weights": self.weights,
            "held_out": self.held_out,
        }

    def trains_on(self, index: int) -> bool:
        """Say whether document `index` of the sources is for training."""
        return not held_out(index, self.held_out)

    def documents(self, part: Part) -> Iterator[str]:
        """Yield the texts of one part."""
        from mlrun.data import huggingface

        if self.validation_sources and part == "validation":
            rows = self._mixed(len(self.sources), len(self._loaded), None)
            return huggingface.texts(rows, "data.validation_sources", self.validation_sources[0].label)
        return select(huggingface.texts(self.rows(), "data.sources", self.sources[0].label), part, self.held_out)

    def rows(self) -> IterableDataset:
        """Return all training sources as one stream of rows `text`, held-out documents included."""
        return self._mixed(0, len(self.sources), self.weights)

    def _mixed(self, first: int, last: int, weights: list[float] | None) -> IterableDataset:
        from datasets import concatenate_datasets, interleave_datasets

        parts = [self._one(number) for number in range(first, last)]
        if weights is None:
            return concatenate_datasets(parts)
        total = sum(weights)
        shares = [weight / total for weight in weights]
        return interleave_datasets(parts, shares, _MIX_SEED, stopping_strategy="all_exhausted_without_replacement")

    def _one(self, number: int) -> IterableDataset:
        from datasets import Dataset

        from mlrun.data import huggingface

        source, loaded = [*self.sources, *self.validation_sources][number], self._loaded[number]
        # A stream keeps its position in itself; each reader needs its own.
        fresh = loaded.to_iterable_dataset() if isinstance(loaded, Dataset) else copy.deepcopy(loaded)
        return huggingface.text_rows(fresh, source.text, "data.sources.text", source.label)


@dataclass(frozen=True, kw_only=True)
class Hub(Text):
    """The `_target_` of conf/data/wikibooks.yaml and openwebtext.yaml."""

    sources: list[HubSource] = MISSING
    validation_sources: list[HubSource] = field(default_factory=list)
    weights: list[float] | None = None
    held_out: float = 0.005
    streaming: bool = False
    block: int = 8192

    def corpus(self) -> HubCorpus:
        share = 0.0 if self.validation_sources else self.held_out
        return HubCorpus(self.sources, self.validation_sources, self.weights, share, self.streaming)

    def source_problems(self) -> list[str]:
        count = len(self.sources)
        weights_fit = self.weights is None or (len(self.weights) == count and all(w > 0 for w in self.weights))
        checks = [
            ("sources", count >= 1, "one or more data sets"),
            ("weights", weights_fit, f"null or {count} numbers over 0, one a source"),
            ("held_out", 0 < self.held_out < 1, "over 0 and under 1"),
            ("block", self.block >= 1, "at least 1"),
            ("validation_samples", not (self.streaming and self.validation_samples is None), "a number when streaming"),
        ]
        return [
            mistake(f"data.{name}", getattr(self, name), allowed, "correct the value")
            for name, good, allowed in checks
            if not good
        ]

    def prepare(self, settings: Settings) -> Source:
        """Return a stream, or packed windows."""
        from mlrun.data.text import prepare

        return prepare.streamed(self, settings) if self.streaming else prepare.packed(self, settings)
