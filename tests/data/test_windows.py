"""Windows of text: any cursor resumes, batch sizes agree, the held-out set stays."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from corpora import bert, equal, gpt, t5

from mlrun.data import counter_rng
from mlrun.data.text.files import Files
from mlrun.data.text.hub import Hub
from mlrun.models.bert import BERT
from mlrun.models.gpt import GPT
from mlrun.models.t5 import T5


@pytest.mark.parametrize("model", [gpt(), bert(), t5()], ids=["causal", "mlm", "span"])
def test_any_cursor_resumes_and_batch_sizes_agree(spec: Files, cache: str, model: GPT | BERT | T5) -> None:
    source = spec.open(model, seed=3, cache=cache)
    start = source.samples - 17  # so that an epoch ends in between
    whole = next(source.batches(start, 48))
    small = list(islice(spec.open(model, seed=3, cache=cache).batches(start, 8), 6))
    for name, values in whole.items():
        assert np.array_equal(values, np.concatenate([batch[name] for batch in small])), name
    later = next(source.batches(start + 8, 8))
    assert equal(later, small[1]) and not equal(later, small[0])


def test_rows_are_those_of_the_whole_batch(spec: Files, cache: str) -> None:
    source = spec.open(bert(), 0, cache)
    whole, share = next(source.batches(24, 12)), next(source.batches(24, 12, rows=slice(4, 8)))
    assert equal({k: v[4:8] for k, v in whole.items()}, share)


def test_seeds_differ_and_epochs_reshuffle(spec: Files, cache: str) -> None:
    source, other = (spec.open(gpt(), seed, cache) for seed in (0, 1))
    n = source.samples
    first, second = (next(source.batches(start, n))["tokens"] for start in (0, n))
    assert Counter(map(tuple, first.tolist())) == Counter(map(tuple, second.tolist()))
    assert (first != second).any(1).float().mean() > 0.9
    assert (first != next(other.batches(0, n))["tokens"]).any(1).float().mean() > 0.9


def test_validation_is_the_same_whatever_the_seed_and_size(spec: Files, cache: str) -> None:
    sources = [spec.open(bert(), seed, cache) for seed in (0, 1)]
    a, b, c = (
        {k: np.concatenate([batch[k] for batch in batches]) for k in ("tokens", "positions", "labels")}
        for batches in (list(sources[0].validation(4)), list(sources[1].validation(7)), list(sources[0].validation(4)))
    )
    assert equal(a, b) and equal(a, c)


def test_validation_samples_cap_the_set_evenly(spec: Files, cache: str, corpus: Path) -> None:
    few = Files(sequence=16, files=[str(corpus)], format="text", document="line", validation_samples=5)
    whole = next(spec.open(gpt(), 0, cache).validation(10**6))["tokens"]
    chosen = next(few.open(gpt(), 0, cache).validation(10**6))["tokens"]
    assert len(chosen) == 5
    places = [int(np.flatnonzero((whole.numpy() == row).all(1))[0]) for row in chosen.numpy()]
    assert places == [number * len(whole) // 5 for number in range(5)]


@pytest.mark.parametrize("pieces", [2, 4])
def test_pieces_of_causal_samples_have_every_token_and_every_label_once(spec: Files, cache: str, pieces: int) -> None:
    source = spec.open(gpt(), 0, cache)
    whole = next(source.batches(24, 12))
    cut = next(source.in_pieces(pieces).batches(24 * pieces, 12 * pieces))
    for name in ("tokens", "labels"):
        assert np.array_equal(cut[name].reshape(12, -1), whole[name])
    assert pieces in spec.sequences(gpt()).values()


def test_pieces_of_masked_samples_are_cut_as_they_are_read(spec: Files, cache: str) -> None:
    source = spec.open(bert(), 0, cache)
    objective = source.made.objective
    part = next(source.in_pieces(2).batches(48, 24))
    window_BW = source.made.read(source.tokens, counter_rng.epoch_order(np.arange(24, 36), source.samples, 0))
    text = part["tokens"].numpy().copy()
    labels = part["labels"].numpy()
    np.put_along_axis(text, part["positions"].numpy(), np.where(labels == -100, text[:, : labels.shape[1]], labels), 1)
    known = (labels != -100).all(axis=1)
    words = objective.vocabulary
    read = np.pad(window_BW, ((0, 0), (1, 1)), constant_values=((0, 0), (words.start, words.end))).reshape(24, -1)
    assert known.any() and np.array_equal(text[known], read[known])
    assert labels.shape[1] == objective.of_pieces(2).targets < objective.targets


def test_pieces_of_samples_with_spans_share_out_the_window(spec: Files, cache: str) -> None:
    lengths = spec.sequences(t5())
    source = spec.open(t5(), 0, cache)
    for sequence, pieces in lengths.items():
        objective = source.made.objective if pieces == 1 else source.made.objective.of_pieces(pieces)
        assert objective.window * pieces == source.made.objective.window
        batch = next(source.in_pieces(pieces).batches(0, 2 * pieces))
        assert batch["tokens"].shape[1] == sequence and batch["labels"].shape[1] == objective.targets


@pytest.mark.parametrize("model", [gpt(), bert()], ids=["causal", "mlm"])
def test_rows_and_cursors_of_pieces_are_those_of_the_whole(spec: Files, cache: str, model: GPT | BERT) -> None:
    cut = spec.open(model, 3, cache).in_pieces(2)
    whole, share = next(cut.batches(24, 12)), next(cut.batches(24, 12, rows=slice(3, 8)))
    assert equal({k: v[3:8] for k, v in whole.items()}, share)
    assert equal({k: v[4:] for k, v in whole.items()}, next(cut.batches(28, 8)))


def test_pieces_of_a_stream_have_every_token_once_too(stream: Hub, cache: str) -> None:
    source = stream.open(gpt(), 0, cache)
    whole, cut = next(source.batches(60, 12)), next(source.in_pieces(2).batches(120, 24))
    assert np.array_equal(cut["labels"].reshape(12, -1), whole["labels"])
    share = next(source.in_pieces(2).batches(120, 24, rows=slice(5, 12)))
    assert equal({k: v[5:12] for k, v in cut.items()}, share)
