"""From a corpus to an open Source: tokenizer, packed token files, objective."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlrun import files
from mlrun.data import cache
from mlrun.data.held_out import Part
from mlrun.data.text import objectives, token_files, tokenizer
from mlrun.data.text.copies import Copies
from mlrun.data.text.windows import PackedText, StreamedText, Tokenized
from mlrun.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from mlrun.data.text.corpus import Corpus, StreamedCorpus

Limits = dict[Part, int | None]

# Raised when packing changes, so that files of an older version are not taken for its own.
VERSION = 3
PARTS: tuple[Part, ...] = ("validation", "train")


@dataclass(frozen=True)
class Recipe:
    """How documents become samples, as the data's settings say it."""

    sequence: int
    tokenizer: str | None
    tokenizer_characters: int
    mask_rate: float
    mask_span: float
    validation_samples: int | None
    end: str | None
    within_documents: bool


@dataclass(frozen=True)
class ModelSide:
    """What a run adds: the model's side, the seed, the least samples of an epoch, the cache folder."""

    objective: str
    vocab: int
    sentinels: int
    seed: int
    batch: int
    cache: Path


def packed(corpus: Corpus, recipe: Recipe, side: ModelSide) -> PackedText:
    """Return the corpus as packed windows, prepared in the cache if it is not there yet."""
    made = tokenize(corpus, corpus.facts(), recipe, side)
    limits: Limits = {"train": None, "validation": None}
    where = side.cache / "text" / cache.digest(made.key)
    folder = cache.build(where, lambda new: _pack(new, made, corpus, limits))
    source = PackedText(folder, made, side.seed, recipe.validation_samples)
    if source.samples < side.batch:
        raise UserError(
            f"data: the corpus holds {source.samples} training sequences of {recipe.sequence} tokens, fewer than one "
            f"batch={side.batch}; give more text, or lower batch or data.sequence"
        )
    return source


def streamed(corpus: StreamedCorpus, recipe: Recipe, side: ModelSide, block: int) -> StreamedText:
    """Return the corpus as a stream of windows: only the held-out set and the marks are kept in the cache.

    The held-out set is the first `validation_samples` windows of the held-out documents.
    """
    assert recipe.validation_samples is not None, "problems() comes first"
    tokenized = tokenize(corpus, corpus.facts(), recipe, side)
    limit = tokenized.length(recipe.validation_samples)
    made = replace(tokenized, key={**tokenized.key, "validation": limit})
    where = side.cache / "streams" / cache.digest(made.key)
    folder = cache.build(where, lambda new: _pack(new, made, corpus, {"validation": limit}))
    return StreamedText(folder, made, side.seed, corpus.rows, corpus.trains_on, block)


def tokenize(corpus: Corpus, facts: dict[str, Any], recipe: Recipe, side: ModelSide) -> Tokenized:
    """Return how the corpus becomes samples: its tokenizer, vocabulary, objective and content key."""
    given = recipe.tokenizer
    made = _trained(corpus, facts, recipe, side) if given is None else tokenizer.load(given)
    words = tokenizer.vocabulary(made, side.objective, side.vocab, recipe.end)
    goal = objectives.objective(side.objective, recipe.sequence, recipe.mask_rate, recipe.mask_span, words)
    key = {"version": VERSION, "corpus": facts, "tokenizer": tokenizer.content_hash(made), "end": words.end}
    if recipe.within_documents:  # other files; without it they are those that they were
        key["within_documents"] = True
    return Tokenized(made, words, goal, key, recipe.within_documents)


def _trained(corpus: Corpus, facts: dict[str, Any], recipe: Recipe, side: ModelSide) -> Tokenizer:
    size = side.vocab - side.sentinels
    characters = recipe.tokenizer_characters
    key = {
        "version": VERSION,
        "corpus": facts,
        "size": size,
        "objective": side.objective,
        "characters": characters,
    }
    folder = side.cache / "tokenizers" / cache.digest(key)
    texts = tokenizer.first_characters(corpus.documents("train"), characters)
    return tokenizer.trained(folder, texts, size, side.objective)


def _pack(folder: Path, made: Tokenized, corpus: Corpus, limits: Limits) -> None:
    """Write the token files of all parts, `limits` tokens of each at most, and what is in them.

    The held-out part comes first: its documents are then looked for in the training part.
    """
    copies = Copies()
    watch = {"validation": copies.held_out, "train": copies.train}
    parts = [part for part in PARTS if part in limits]
    counts = {}
    for part in parts:
        texts = watch[part](corpus.documents(part))
        ids = token_files.encode(texts, made.tokenizer, made.boundary, made.dtype)
        counts[part] = token_files.write(ids, folder / f"{part}.bin", limits[part])
    made.tokenizer.save(str(folder / "tokenizer.json"))
    compared = "train" in parts  # a stream's training part is not read here
    meta = {
        "tokens": counts,
        "held_out_documents": copies.documents if compared else None,
        "copies": copies.count if compared else None,
    }
    files.write_json(folder / "meta.json", meta | made.key)
