"""What is predicted: windows of packed tokens become the arrays of a batch. One class per objective.

Every shape is static. Shapes: B samples, W tokens of a window, S tokens the model reads, M masked positions,
N noise spans, T tokens the decoder reads. Draws depend on (key, sample index) only.

Where the ends of documents are given, the batch says what belongs together: `documents` (B, S) numbers each token's
document, `places` (B, S) says where in it the token stands, and nothing is predicted from another document.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from mlrun.data import counter_rng
from mlrun.data.source import Arrays
from mlrun.data.text import documents
from mlrun.data.text.tokenizer import Vocabulary
from mlrun.errors import UserError, mistake
from mlrun.models.base import IGNORED

_END = ((0, 0), (0, 1))  # one more token at the end of each row


class Objective(Protocol):
    """A sample takes `window` packed tokens, the next one starts `stride` later, and `targets` are predicted."""

    @property
    def window(self) -> int: ...
    @property
    def stride(self) -> int: ...
    @property
    def targets(self) -> int: ...

    def examples(
        self, window_BW: np.ndarray, index_B: np.ndarray, seed: int, ends_BW: np.ndarray | None = None
    ) -> Arrays:
        """Return the batch of these windows; `index_B` numbers the samples over all epochs.

        `ends_BW` marks the last token of each document, where documents are kept apart.
        """

    def cut(self, window_BW: np.ndarray, part_B: np.ndarray, pieces: int) -> np.ndarray:
        """Return of each window one of its equal pieces, which together have all of it: the windows of `of_pieces`."""

    def of_pieces(self, pieces: int) -> Objective:
        """Return the same objective on the pieces of a window; `shorter` says how many there may be."""


@dataclass(frozen=True)
class Causal:
    """Predict each next token: neighbouring windows share one token, so that every token is a label once."""

    sequence: int

    @property
    def window(self) -> int:
        return self.sequence + 1

    @property
    def stride(self) -> int:
        return self.sequence

    @property
    def targets(self) -> int:
        return self.sequence

    def examples(
        self, window_BW: np.ndarray, index_B: np.ndarray, seed: int, ends_BW: np.ndarray | None = None
    ) -> Arrays:
        tokens_BS, labels_BS = window_BW[:, :-1], window_BW[:, 1:]
        if ends_BW is None:
            return {"tokens": tokens_BS, "labels": labels_BS}
        # Nothing of a document tells how the next one begins.
        return {"tokens": tokens_BS, "labels": np.where(ends_BW[:, :-1], IGNORED, labels_BS)} | _apart(
            documents.numbers(ends_BW[:, :-1])
        )

    def cut(self, window_BW: np.ndarray, part_B: np.ndarray, pieces: int) -> np.ndarray:
        return _cut(window_BW, part_B, self.sequence // pieces, 1)  # the last label is the next piece's first token

    def of_pieces(self, pieces: int) -> Causal:
        return Causal(self.sequence // pieces)


# Tokens of the shortest sample.
SHORTEST = 4


def masked_count(sequence: int, rate: float) -> int:
    """Return how many positions of a sequence are masked."""
    return round(rate * sequence)


@dataclass(frozen=True)
class Masked:
    """BERT's masked language modelling (Devlin et al. 2018, section 3.1) on `[CLS] ... [SEP]`, drawn anew each epoch.

    Exactly `targets` positions are predicted: of them 80% read [MASK], 10% a random token, 10% the token itself.
    Special tokens are never chosen; a window with too few others fills up with ignored labels.

    `framed`: the windows still lack [CLS] and [SEP]. A piece of a sample has those that stand in it.
    """

    sequence: int
    rate: float
    vocabulary: Vocabulary
    framed: bool = field(default=True, repr=False)  # runs are compared by this text, and all that are have it

    @property
    def window(self) -> int:
        return self.sequence - 2 if self.framed else self.sequence

    @property
    def stride(self) -> int:
        return self.window

    @property
    def targets(self) -> int:
        return masked_count(self.sequence, self.rate)

    def examples(
        self, window_BW: np.ndarray, index_B: np.ndarray, seed: int, ends_BW: np.ndarray | None = None
    ) -> Arrays:
        words, tokens_BS = self.vocabulary, self._read(window_BW)
        special_BS = np.isin(tokens_BS, words.special)
        chance_BS = counter_rng.uniform(counter_rng.key(seed, 1), index_B, self.sequence) + special_BS
        positions_BM = np.sort(np.argsort(chance_BS, axis=1, kind="stable")[:, : self.targets], axis=1)
        labels_BM = np.take_along_axis(tokens_BS, positions_BM, 1)
        ignored_BM = np.take_along_axis(special_BS, positions_BM, 1)
        read_BM = np.where(ignored_BM, labels_BM, self._corrupted(labels_BM, index_B, seed))
        np.put_along_axis(tokens_BS, positions_BM, read_BM, 1)
        made = {"tokens": tokens_BS, "positions": positions_BM, "labels": np.where(ignored_BM, IGNORED, labels_BM)}
        if ends_BW is None:
            return made
        # What is put around the window belongs to its first document, and to its last one.
        return made | _apart(np.pad(documents.numbers(ends_BW), ((0, 0), (1, 1)), mode="edge"))

    def cut(self, window_BW: np.ndarray, part_B: np.ndarray, pieces: int) -> np.ndarray:
        return _cut(self._read(window_BW), part_B, self.sequence // pieces, 0)

    def of_pieces(self, pieces: int) -> Masked:
        return replace(self, sequence=self.sequence // pieces, framed=False)

    def _read(self, window_BW: np.ndarray) -> np.ndarray:
        """Return the samples (B, S), before any token is masked; a copy."""
        words = self.vocabulary
        if not self.framed:
            return window_BW.copy()
        return np.pad(window_BW, ((0, 0), (1, 1)), constant_values=((0, 0), (words.start, words.end)))

    def _corrupted(self, labels_BM: np.ndarray, index_B: np.ndarray, seed: int) -> np.ndarray:
        action_BM = counter_rng.uniform(counter_rng.key(seed, 2), index_B, self.targets)
        random_BM = counter_rng.uniform(counter_rng.key(seed, 3), index_B, self.targets) * self.vocabulary.size
        kept_BM = np.where(action_BM < 0.9, random_BM.astype(np.int64), labels_BM)
        return np.where(action_BM < 0.8, self.vocabulary.mask, kept_BM)


def _apart(documents_BS: np.ndarray) -> Arrays:
    """Return what keeps the documents of a batch apart."""
    return {"documents": documents_BS, "places": documents.places(documents_BS)}


@dataclass(frozen=True)
class SpanSizes:
    """The static sizes of span corruption, for windows of `window` tokens; each span needs kept text before it."""

    window: int
    noise: int
    spans: int

    @property
    def inputs(self) -> int:
        """Tokens the encoder reads: what is not noise, a sentinel per span, end of sequence."""
        return self.window - self.noise + self.spans + 1

    @property
    def possible(self) -> bool:
        """Whether there is kept text for every span."""
        return self.spans <= self.window - self.noise

    @property
    def targets(self) -> int:
        """Tokens the decoder predicts: the noise, a sentinel per span, end of sequence."""
        return self.noise + self.spans + 1


def _span_sizes_of(window: int, rate: float, span: float) -> SpanSizes:
    noise = min(max(round(window * rate), 1), window - 1)
    return SpanSizes(window, noise, max(round(noise / span), 1))


def span_sizes(sequence: int, rate: float, span: float) -> SpanSizes:
    """Return the sizes for the longest window whose corrupted text fills `sequence` encoder positions.

    `random_spans_helper` of the T5 code. One more token makes the input 0 or 1 longer, so every length is met
    exactly.
    """
    window = 2
    while _span_sizes_of(window + 1, rate, span).inputs <= sequence:
        window += 1
    return _span_sizes_of(window, rate, span)


def shorter(name: str, sequence: int, rate: float, span: float) -> dict[int, int]:
    """Return the lengths of samples that whole parts of one of `sequence` tokens have, each with how many these are.

    No token is read twice or left out: causal and mlm need a divisor of the length; spans of noise one of the window's,
    whose pieces fill the encoder.
    """
    if name != "span":
        found = {sequence // n: n for n in range(1, sequence // SHORTEST + 1) if sequence % n == 0}
        return {s: n for s, n in found.items() if name == "causal" or masked_count(s, rate) >= 1}
    window = span_sizes(sequence, rate, span).window
    pieces = {n: _span_sizes_of(window // n, rate, span) for n in range(1, window // 2 + 1) if window % n == 0}
    return {
        sizes.inputs: n
        for n, sizes in pieces.items()
        if sizes.inputs >= SHORTEST and sizes.possible and span_sizes(sizes.inputs, rate, span) == sizes
    }


@dataclass(frozen=True)
class Spans:
    """T5's span corruption (Raffel et al. 2019, section 3.1.4; `random_spans_noise_mask` of its code).

    Each span of noise becomes one sentinel in the encoder's input; the decoder predicts every sentinel
    followed by the tokens it stands for.

    With `ends_BW` sentinels are numbered anew in each document, the decoder starts anew in each, and the batch has
    `decoder_documents` (B, T) in the place of `places`, which no relative position needs. A span of noise across a
    boundary is one of its first document: what it hides of the next one is neither read nor predicted.
    """

    sequence: int
    rate: float
    span: float
    vocabulary: Vocabulary

    @property
    def sizes(self) -> SpanSizes:
        return span_sizes(self.sequence, self.rate, self.span)

    @property
    def window(self) -> int:
        return self.sizes.window

    @property
    def stride(self) -> int:
        return self.sizes.window

    @property
    def targets(self) -> int:
        return self.sizes.targets

    def examples(
        self, window_BW: np.ndarray, index_B: np.ndarray, seed: int, ends_BW: np.ndarray | None = None
    ) -> Arrays:
        noise_BW = self._noise(index_B, seed)
        documents_BW = np.zeros_like(window_BW) if ends_BW is None else documents.numbers(ends_BW)
        of_span_BN = documents_BW[_first(noise_BW)].reshape(len(window_BW), -1)
        sentinel_BN = self.vocabulary.first_sentinel - documents.places(of_span_BN)
        labels_BT = self._with_sentinels(window_BW, ~noise_BW, sentinel_BN)
        made = {
            "tokens": self._with_sentinels(window_BW, noise_BW, sentinel_BN),
            "decoder_tokens": np.pad(labels_BT[:, :-1], ((0, 0), (1, 0)), constant_values=self.vocabulary.pad),
            "labels": labels_BT,
        }
        return made if ends_BW is None else self._apart(made, noise_BW, documents_BW, of_span_BN)

    def _apart(self, made: Arrays, noise_BW: np.ndarray, documents_BW: np.ndarray, of_span_BN: np.ndarray) -> Arrays:
        """Return the batch with its documents kept apart."""
        # The kept text before a span of noise is in the targets as that span's sentinel, and goes with it.
        spans_BW = np.take_along_axis(of_span_BN, np.cumsum(_first(~noise_BW), axis=1) - 1, 1)
        foreign_BW = noise_BW & (spans_BW != documents_BW)
        documents_BT = np.pad(_squeezed(spans_BW, ~noise_BW), _END, mode="edge")
        starts_BT = np.pad(documents_BT[:, 1:] != documents_BT[:, :-1], ((0, 0), (1, 0)))
        return {
            "tokens": made["tokens"],
            "decoder_tokens": np.where(starts_BT, self.vocabulary.pad, made["decoder_tokens"]),
            "labels": np.where(np.pad(_squeezed(foreign_BW, ~noise_BW), _END), IGNORED, made["labels"]),
            "documents": np.pad(_squeezed(documents_BW, noise_BW), _END, mode="edge"),
            "decoder_documents": documents_BT,
        }

    def cut(self, window_BW: np.ndarray, part_B: np.ndarray, pieces: int) -> np.ndarray:
        return _cut(window_BW, part_B, self.window // pieces, 0)

    def of_pieces(self, pieces: int) -> Spans:
        return replace(self, sequence=_span_sizes_of(self.window // pieces, self.rate, self.span).inputs)

    def _noise(self, index_B: np.ndarray, seed: int) -> np.ndarray:
        """Return (B, W) bool: kept text and noise take turns, kept text first, `spans` of each."""
        sizes = self.sizes
        kept_BN = _segments(sizes.window - sizes.noise, sizes.spans, index_B, counter_rng.key(seed, 4))
        noise_BN = _segments(sizes.noise, sizes.spans, index_B, counter_rng.key(seed, 5))
        lengths_B2N = np.stack([kept_BN, noise_BN], axis=2).reshape(len(index_B), -1)
        starts_BW = np.zeros((len(index_B), sizes.window), np.int64)
        np.put_along_axis(starts_BW, np.cumsum(lengths_B2N, axis=1)[:, :-1], 1, 1)
        return np.cumsum(starts_BW, axis=1) % 2 == 1

    def _with_sentinels(self, tokens_BW: np.ndarray, hidden_BW: np.ndarray, sentinel_BN: np.ndarray) -> np.ndarray:
        """Return the rows with each hidden span as its sentinel, and the end token."""
        row_BW = tokens_BW.copy()
        row_BW[_first(hidden_BW)] = sentinel_BN.ravel()
        return np.pad(_squeezed(row_BW, hidden_BW), _END, constant_values=self.vocabulary.end)


def _first(hidden_BW: np.ndarray) -> np.ndarray:
    """Return (B, W) bool: the first token of each hidden span."""
    return hidden_BW & ~np.pad(hidden_BW[:, :-1], ((0, 0), (1, 0)))


def _squeezed(row_BW: np.ndarray, hidden_BW: np.ndarray) -> np.ndarray:
    """Return the rows with the first token alone of each hidden span; each row has as many hidden ones."""
    return row_BW[~hidden_BW | _first(hidden_BW)].reshape(len(row_BW), -1)


def _cut(window_BW: np.ndarray, part_B: np.ndarray, length: int, shared: int) -> np.ndarray:
    """Return piece `part_B` of each window: `length` tokens, and `shared` of the next piece."""
    place_BW = part_B[:, None] * length + np.arange(length + shared)
    return np.take_along_axis(window_BW, place_BW, 1)


def _segments(total: int, parts: int, index_B: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Return (B, N) lengths of at least 1 that sum to `total`, every such split equally likely."""
    chance = counter_rng.uniform(key, index_B, total - 1)
    cuts = np.sort(np.argsort(chance, axis=1, kind="stable")[:, : parts - 1], axis=1) + 1
    return np.diff(cuts, axis=1, prepend=0, append=total)


def objective(name: str, sequence: int, rate: float, span: float, vocabulary: Vocabulary) -> Objective:
    """Return the objective that the model's class names; UserError when the vocabulary lacks room for it."""
    if name == "causal":
        return Causal(sequence)
    if name == "mlm":
        return Masked(sequence, rate, vocabulary)
    assert name == "span", name
    spans = Spans(sequence, rate, span, vocabulary)
    if spans.sizes.spans > vocabulary.sentinels:
        raise UserError(
            mistake(
                "model.vocab",
                vocabulary.limit,
                f"at least {vocabulary.size + spans.sizes.spans} ({vocabulary.size} tokens and a sentinel a span)",
                "enlarge model.vocab, or take a smaller tokenizer or data.sequence",
            )
        )
    return spans
