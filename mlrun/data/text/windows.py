"""Text as a Source: windows of tokens, from packed files or from a stream.

Shapes: B samples, N tokens, W tokens of a window.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from mlrun.data import cache, counter_rng
from mlrun.data.shuffled_blocks import Blocks, Row
from mlrun.data.source import spread, tensors
from mlrun.data.text import token_files
from mlrun.data.text.objectives import Objective
from mlrun.data.text.token_files import TokenFile
from mlrun.data.text.tokenizer import Vocabulary
from mlrun.errors import UserError

if TYPE_CHECKING:
    from datasets import IterableDataset
    from tokenizers import Tokenizer

    from mlrun.data.source import Batch

# The masks of the held-out set never change, whatever the run's seed.
VALIDATION_SEED = 0


@dataclass(frozen=True)
class Tokenized:
    """Tokenizer, vocabulary and objective of one corpus, and the JSON-able key of its cached token files.

    `within_documents`: samples say where their documents end.
    """

    tokenizer: Tokenizer
    vocabulary: Vocabulary
    objective: Objective
    key: dict[str, Any]
    within_documents: bool = False

    @property
    def boundary(self) -> int:
        """Return what is stored at the end of each document.

        The end token, but where documents are told apart an id beyond all tokens: a text may hold the end token too.
        """
        return self.vocabulary.size if self.within_documents else self.vocabulary.end

    @property
    def dtype(self) -> str:
        """Return the numpy type of stored ids."""
        return token_files.token_type(max(self.vocabulary.size, self.boundary + 1))

    def windows(self, tokens: int) -> int:
        """Return how many whole windows that many tokens give."""
        return max(0, tokens - self.objective.window + self.objective.stride) // self.objective.stride

    def length(self, windows: int) -> int:
        """Return how many tokens that many windows take."""
        return windows * self.objective.stride + self.objective.window - self.objective.stride

    def read(self, tokens: TokenFile, number_B: np.ndarray) -> np.ndarray:
        """Return the windows (B, W), as int64, that have these numbers in a file."""
        return tokens.windows(number_B * self.objective.stride, self.objective.window)

    def examples(self, window_BW: np.ndarray, index_B: np.ndarray, seed: int) -> Batch:
        """Return the batch of windows as they are stored (see Objective.examples)."""
        if not self.within_documents:
            return tensors(self.objective.examples(window_BW, index_B, seed))
        ends_BW = window_BW == self.boundary
        tokens_BW = np.where(ends_BW, self.vocabulary.end, window_BW)
        return tensors(self.objective.examples(tokens_BW, index_B, seed, ends_BW))

    def cut(self, tokens_N: np.ndarray) -> list[np.ndarray]:
        """Return all whole windows of some tokens."""
        stride, window = self.objective.stride, self.objective.window
        return [tokens_N[n * stride : n * stride + window] for n in range(self.windows(len(tokens_N)))]


class TextSource:
    """The held-out half of a text source, and how windows become samples: one each, or several pieces."""

    samples: int | None = None
    pieces: int = 1

    def __init__(self, folder: Path, made: Tokenized, seed: int, validation_samples: int | None) -> None:
        self.folder, self.made, self.seed = folder, made, seed
        # Read now: the cache may be emptied while a run goes on.
        self.contents, self.meta = cache.contents(folder), json.loads((folder / "meta.json").read_text())
        self.held_out = TokenFile(folder / "validation.bin", made.dtype)
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
            window_BW = self.made.read(self.held_out, number_B)
            yield self.made.examples(window_BW, number_B, VALIDATION_SEED)

    def in_pieces(self, pieces: int) -> Self:
        """Return the same source with each sample cut into so many, numbered in their order; the held-out set stays.

        A start and a size are then multiples of `pieces`.
        """
        cut = copy(self)
        cut.pieces = pieces
        return cut

    def _batch(self, window_BW: np.ndarray, index_B: np.ndarray) -> Batch:
        """Return the samples of these numbers, each from the window that holds it."""
        if self.pieces == 1:
            return self.made.examples(window_BW, index_B, self.seed)
        objective = self.made.objective
        piece_BW = objective.cut(window_BW, index_B % self.pieces, self.pieces)
        return tensors(objective.of_pieces(self.pieces).examples(piece_BW, index_B, self.seed))

    def describe(self) -> dict[str, Any]:
        """Return JSON-able facts (see Source.describe); `copies` counts held-out documents that are trained on too."""
        return {
            "samples": self.samples,
            "validation_samples": len(self.chosen),
            "vocabulary": self.made.vocabulary.size,
            "end": self.made.vocabulary.end,
            "tokenizer": str(self.folder / "tokenizer.json"),
            "content": cache.digest(self.made.key),
            "identity": self._identity(),
            "held_out_documents": self.meta["held_out_documents"],
            "copies": self.meta["copies"],
            "notes": self._notes(),
        }

    def _identity(self) -> dict[str, str]:
        held_out = {"tokens": self.contents["validation.bin"]["sha256"], "windows": len(self.chosen)}
        return {
            "train": self._train_digest(),
            "held_out": cache.digest(held_out),
            "tokenizer": cache.digest({"tokenizer": self.made.key["tokenizer"]}),
            "preprocessing": cache.digest(self._preprocessing()),
        }

    def _preprocessing(self) -> dict[str, Any]:
        made = self.made
        apart = {"within_documents": True} if made.within_documents else {}
        return {"objective": repr(made.objective), "end": made.vocabulary.end} | apart

    def _train_digest(self) -> str:
        """Return what names the training part."""
        return cache.digest(self.made.key["corpus"])

    def _notes(self) -> list[str]:
        copies, documents = self.meta["copies"], self.meta["held_out_documents"]
        if not copies:
            return []
        share = f"{copies} of {documents} held-out documents"
        return [f"data: {share} are exact copies of training documents, which flatters the held-out loss; remove them"]

    def model_files(self) -> dict[str, str]:
        """Return the tokenizer (see Source.model_files)."""
        return {"tokenizer.json": self.made.tokenizer.to_str(pretty=True)}


class PackedText(TextSource):
    """All windows of a corpus on disk, in another order every epoch, at random access."""

    samples: int

    def __init__(self, folder: Path, made: Tokenized, seed: int, validation_samples: int | None) -> None:
        super().__init__(folder, made, seed, validation_samples)
        self.tokens = TokenFile(folder / "train.bin", made.dtype)
        self.samples = made.windows(len(self.tokens))

    def _train_digest(self) -> str:
        return cache.digest({"tokens": self.contents["train.bin"]["sha256"]})

    def batches(self, start: int, size: int, rows: slice | None = None) -> Iterator[Batch]:
        """Yield batches from sample `start` on, for ever (see Source.batches)."""
        for first in count(start, size):
            index_B = np.arange(first, first + size)[slice(None) if rows is None else rows]
            number_B = counter_rng.epoch_order(index_B // self.pieces, self.samples, self.seed)
            yield self._batch(self.made.read(self.tokens, number_B), index_B)


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
        self.block = block
        marks = folder / f"block-{block}-window-{made.objective.window}-{made.objective.stride}"
        marks.mkdir(exist_ok=True)
        self.blocks = Blocks(load, self._windows, block, marks)

    def _train_digest(self) -> str:
        """Return the same with the length of a block, which says in which order the training part is read."""
        return cache.digest({"corpus": self.made.key["corpus"], "block": self.block})

    def batches(self, start: int, size: int, rows: slice | None = None) -> Iterator[Batch]:
        """Yield batches from sample `start` on, for ever (see Source.batches)."""
        windows = self.blocks.samples(start // self.pieces, self.seed)
        kept = slice(None) if rows is None else rows
        for first in count(start, size):
            window_NW = np.stack(list(islice(windows, size // self.pieces))).astype(np.int64)
            index_B = np.arange(first, first + size)[kept]
            yield self._batch(window_NW[(index_B - first) // self.pieces], index_B)

    def _windows(self, rows: list[Row], carry: list[int]) -> tuple[list[np.ndarray], list[int]]:
        """Return the windows that these documents complete, and the ids left over."""
        made = self.made
        texts = (row["text"] for row in rows if self.keep(row["index"]) and row["text"] is not None)
        arrays = token_files.encode(texts, made.tokenizer, made.boundary, made.dtype)
        tokens_N = np.concatenate([np.asarray(carry, made.dtype), *arrays])
        items = made.cut(tokens_N)
        return items, tokens_N[len(items) * made.objective.stride :].tolist()
