"""From a text spec to an open Source: tokenizer, packed token files, objective."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlrun.data import cache
from mlrun.data.text import objectives, token_files, tokenizer
from mlrun.data.text.packed import PackedText
from mlrun.data.text.streamed import StreamedText
from mlrun.data.text.tokenized import Tokenized
from mlrun.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

    from mlrun.data.text.corpus import Corpus, Part
    from mlrun.data.text.hub import Hub
    from mlrun.data.text.spec import Settings, Text

    Limits = dict[Part, int | None]

# Raised when packing changes, so that files of an older version are not taken for its own.
VERSION = 1


def packed(text: Text, settings: Settings) -> PackedText:
    """Return the corpus as packed windows, prepared in the cache if it is not there yet."""
    corpus = text.corpus()
    facts = corpus.facts()
    made = tokenize(text, settings, corpus, facts)
    limits: Limits = {"train": None, "validation": None}
    where = settings.cache / "text" / cache.digest(made.key)
    folder = cache.build(where, lambda new: _pack(new, made, corpus, limits))
    source = PackedText(folder, made, settings.seed, text.validation_samples)
    if source.samples < settings.batch:
        raise UserError(
            f"data: the corpus holds {source.samples} training sequences of {text.sequence} tokens, fewer than one "
            f"batch={settings.batch}; give more text, or lower batch or data.sequence"
        )
    return source


def streamed(text: Hub, settings: Settings) -> StreamedText:
    """Return the corpus as a stream of windows: only the held-out set and the marks are kept in the cache.

    The held-out set is the first `validation_samples` windows of the held-out documents.
    """
    corpus = text.corpus()
    assert text.validation_samples is not None, "problems() comes first"
    tokenized = tokenize(text, settings, corpus, corpus.facts())
    limit = tokenized.length(text.validation_samples)
    made = replace(tokenized, key={**tokenized.key, "validation": limit})
    where = settings.cache / "streams" / cache.digest(made.key)
    folder = cache.build(where, lambda new: _pack(new, made, corpus, {"validation": limit}))
    return StreamedText(folder, made, settings.seed, corpus.rows, corpus.trains_on, text.block)


def tokenize(text: Text, settings: Settings, corpus: Corpus, facts: dict[str, Any]) -> Tokenized:
    """Return how the corpus becomes samples: its tokenizer, vocabulary, objective and content key."""
    given = text.tokenizer
    made = _trained(text, settings, corpus, facts) if given is None else tokenizer.load(given)
    words = tokenizer.vocabulary(made, settings.objective, settings.vocab)
    goal = objectives.objective(settings.objective, text.sequence, text.mask_rate, text.mask_span, words)
    key = {"version": VERSION, "corpus": facts, "tokenizer": tokenizer.content_hash(made), "end": words.end}
    return Tokenized(made, words, goal, key)


def _trained(text: Text, settings: Settings, corpus: Corpus, facts: dict[str, Any]) -> Tokenizer:
    size = settings.vocab - settings.sentinels
    characters = text.tokenizer_characters
    key = {
        "version": VERSION,
        "corpus": facts,
        "size": size,
        "objective": settings.objective,
        "characters": characters,
    }
    folder = settings.cache / "tokenizers" / cache.digest(key)
    texts = tokenizer.first_characters(corpus.documents("train"), characters)
    return tokenizer.trained(folder, texts, size, settings.objective)


def _pack(folder: Path, made: Tokenized, corpus: Corpus, limits: Limits) -> None:
    """Write the token files of all parts, `limits` tokens of each at most, and what is in them."""
    counts = {
        part: token_files.write(arrays(made, corpus, part), folder / f"{part}.bin", limits[part]) for part in limits
    }
    made.tokenizer.save(str(folder / "tokenizer.json"))
    cache.write_json(folder / "meta.json", {"tokens": counts, **made.key})


def arrays(made: Tokenized, corpus: Corpus, part: Part) -> Iterator[np.ndarray]:
    """Yield the ids of one part of the corpus."""
    return token_files.encode(corpus.documents(part), made.tokenizer, made.vocabulary.end, made.dtype)
