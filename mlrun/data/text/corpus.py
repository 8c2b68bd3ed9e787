"""A corpus: documents in a fixed order, of which some are held out whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from mlrun.data.held_out import Part

if TYPE_CHECKING:
    from datasets import IterableDataset


class Corpus(Protocol):
    """Where documents come from."""

    def facts(self) -> dict[str, Any]:
        """Return the JSON-able content hash of everything that `documents` depends on."""

    def documents(self, part: Part) -> Iterator[str]:
        """Yield the texts of one part, reading as it goes."""


class StreamedCorpus(Corpus, Protocol):
    """Documents that can also be read as one resumable stream."""

    def rows(self) -> IterableDataset:
        """Return all training sources as one stream of rows `text`, held-out documents included."""

    def trains_on(self, index: int) -> bool:
        """Say whether document `index` of the stream is for training."""
