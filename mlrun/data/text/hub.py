"""Any text on the Hugging Face hub (or a local folder laid out like one): packed on disk, or streamed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from mlrun.data.held_out import Part, held_out, select
from mlrun.data.huggingface import HubSource
from mlrun.data.text import json_files, prepare
from mlrun.data.text.prepare import ModelSide
from mlrun.data.text.spec import Text
from mlrun.errors import mistakes

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from mlrun.data.source import Source

# The order in which documents of several sources take turns; the samples' order has its own seed.
_MIX_SEED = 0


@dataclass(frozen=True)
class HubCorpus:
    """Documents of several sources: one after the other, or mixed by weights, each exactly once."""

    sources: list[HubSource]
    validation_sources: list[HubSource]
    weights: list[float] | None
    held_out: float
    streaming: bool

    @property
    def _all(self) -> list[HubSource]:
        return [*self.sources, *self.validation_sources]

    @cached_property
    def _json(self) -> list[list[str] | None]:
        return [source.json_files(self.streaming) for source in self._all]

    @cached_property
    def _loaded(self) -> list[Dataset | IterableDataset | None]:
        """Return what `datasets` opened, by source; None for JSON, whose rows need not agree in other columns."""
        given = zip(self._all, self._json, strict=True)
        return [source.load(self.streaming) if files is None else None for source, files in given]

    def facts(self) -> dict[str, Any]:
        """Return what names the content."""
        everything = zip(self._all, self._loaded, self._json, strict=True)
        return {
            "sources": [source.facts(loaded, self.streaming, files) for source, loaded, files in everything],
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

        source, loaded, files = self._all[number], self._loaded[number], self._json[number]
        if loaded is None:
            return _json_rows(files or [], source.text)
        # A stream keeps its position in itself; each reader needs its own.
        fresh = loaded.to_iterable_dataset() if isinstance(loaded, Dataset) else copy.deepcopy(loaded)
        return huggingface.text_rows(fresh, source.text, "data.sources.text", source.label)


def _json_rows(files: list[str], column: str) -> IterableDataset:
    """Return the texts of JSON files as a stream of rows `text`, which resumes at any row of any file."""
    from datasets import Features, IterableDataset, Value

    def rows(files: list[str]) -> Iterator[dict[str, str]]:
        for text in json_files.documents(files, column, "utf-8-sig", ("data.sources", "data.sources.text")):
            yield {"text": text}

    text = Features({"text": Value("string")})
    made: IterableDataset = IterableDataset.from_generator(rows, features=text, gen_kwargs={"files": files})
    return made


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
        return mistakes("data.", ((name, getattr(self, name), good, allowed) for name, good, allowed in checks))

    def prepare(self, model_side: ModelSide) -> Source:
        """Return a stream, or packed windows."""
        if self.streaming:
            return prepare.streamed(self.corpus(), self.recipe, model_side, self.block)
        return super().prepare(model_side)
