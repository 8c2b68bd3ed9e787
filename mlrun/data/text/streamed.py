"""Streamed text as a Source: documents are tokenized as they arrive and never stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlrun.data.shuffled_blocks import Blocks, Row
from mlrun.data.text import token_files
from mlrun.data.text.packed import TextSource, tensors
from mlrun.data.text.tokenized import Tokenized

if TYPE_CHECKING:
    from datasets import IterableDataset

    from mlrun.data.source import Batch


class StreamedText(TextSource):
    """Windows of a stream without known length, shuffled within blocks; resumes at the nearest noted block."""

    def __init__(
        self,
        folder: Path,
        made: Tokenized,
        seed: int,
        load: Callable[[], IterableDataset],
        keep: Callable[[int], bool],
        block: int,
    ) -> None:
        super().__init__(folder, made, seed, validation_samples=None)
        self.keep = keep
        marks = folder / f"block-{block}-window-{made.objective.window}-{made.objective.stride}"
        marks.mkdir(exist_ok=True)
        self.blocks = Blocks(load, self._windows, block, marks)

    def batches(self, start: int, size: int, rows: slice | None = None) -> Iterator[Batch]:
        """Yield batches from sample `start` on, for ever (see Source.batches)."""
        samples = self.blocks.samples(start, self.seed)
        kept = slice(None) if rows is None else rows
        for first in count(start, size):
            window_BW = np.stack(list(islice(samples, size)))[kept].astype(np.int64)
            index_B = np.arange(first, first + size)[kept]
            yield tensors(self.made.objective.examples(window_BW, index_B, self.seed))

    def _windows(self, rows: list[Row], carry: list[int]) -> tuple[list[np.ndarray], list[int]]:
        """Return the windows that these documents complete, and the ids left over."""
        made = self.made
        texts = (row["text"] for row in rows if self.keep(row["index"]) and row["text"] is not None)
        arrays = token_files.encode(texts, made.tokenizer, made.vocabulary.end, made.dtype)
        tokens_N = np.concatenate([np.asarray(carry, made.dtype), *arrays])
        windows = made.windows(len(tokens_N))
        items = list(made.gather(tokens_N, np.arange(windows)).astype(made.dtype))
        return items, tokens_N[windows * made.objective.stride :].tolist()
