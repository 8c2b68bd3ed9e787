"""Text as a Source: windows of packed tokens, from files that the operating system pages in as needed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlrun.data import cache, counter_rng
from mlrun.data.text import token_files
from mlrun.data.text.objectives import Arrays
from mlrun.data.text.tokenized import Tokenized
from mlrun.errors import UserError

if TYPE_CHECKING:
    from mlrun.data.source import Batch

# The masks of the held-out set never change, whatever the run's seed.
VALIDATION_SEED = 0


class TextSource:
    """The held-out half of a text source. Shapes: B samples, W tokens of a window."""

    samples: int | None = None

    def __init__(self, folder: Path, made: Tokenized, seed: int, validation_samples: int | None) -> None:
        self.folder, self.made, self.seed = folder, made, seed
        self.held_out = token_files.read(folder / "validation.bin", made.dtype)
        windows = made.windows(len(self.held_out))
        if windows == 0:
            raise UserError(
                f"data: the {len(self.held_out)} held-out tokens do not fill one window of {made.objective.window}; "
                "hold out more documents, give larger validation files, or shorten data.sequence"
            )
        chosen = windows if validation_samples is None else min(windows, validation_samples)
        self.chosen = spread(windows, chosen)

    def validation(self, size: int) -> Iterator[Batch]:
        """Yield the fixed held-out windows (see Source.validation)."""
        for start in range(0, len(self.chosen), size):
            number_B = self.chosen[start : start + size]
            window_BW = self.made.gather(self.held_out, number_B)
            yield tensors(self.made.objective.examples(window_BW, number_B, VALIDATION_SEED))

    def describe(self) -> dict[str, Any]:
        """Return JSON-able facts."""
        return {
            "samples": self.samples,
            "validation_samples": len(self.chosen),
            "vocabulary": self.made.vocabulary.size,
            "tokenizer": str(self.folder / "tokenizer.json"),
            "content": cache.digest(self.made.key),
        }


class PackedText(TextSource):
    """All windows of a corpus on disk, in another order every epoch, at random access."""

    samples: int

    def __init__(self, folder: Path, made: Tokenized, seed: int, validation_samples: int | None) -> None:
        super().__init__(folder, made, seed, validation_samples)
        self.tokens = token_files.read(folder / "train.bin", made.dtype)
        self.samples = made.windows(len(self.tokens))

    def batches(self, start: int, size: int, rows: slice | None = None) -> Iterator[Batch]:
        """Yield batches from sample `start` on, for ever (see Source.batches)."""
        for first in count(start, size):
            index_B = np.arange(first, first + size)[slice(None) if rows is None else rows]
            number_B = counter_rng.epoch_order(index_B, self.samples, self.seed)
            window_BW = self.made.gather(self.tokens, number_B)
            yield tensors(self.made.objective.examples(window_BW, index_B, self.seed))


def spread(total: int, chosen: int) -> np.ndarray:
    """Return `chosen` of `total` numbers, evenly spaced: a small held-out set still hears every speaker."""
    return np.arange(chosen) * total // chosen


def tensors(arrays: Arrays) -> Batch:
    """Return the arrays as torch tensors."""
    import torch

    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
