"""What is predicted: labels, masks and spans are those of the papers."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from corpora import bert, gpt, t5
from hypothesis import given, settings
from hypothesis import strategies as st

from mlrun.data.text.files import Files
from mlrun.data.text.objectives import IGNORED, Masked, Spans, span_sizes
from mlrun.data.text.tokenizer import Vocabulary
from mlrun.models.bert import BERT
from mlrun.models.gpt import GPT
from mlrun.models.t5 import T5

WORDS = Vocabulary(size=1000, limit=1100, special=(0, 1, 2, 3), first_sentinel=1099, sentinels=100,
                   end=1, start=2, mask=3, pad=0)  # fmt: skip


def test_labels_are_the_next_tokens_and_each_token_is_a_label_once(spec: Files, cache: str) -> None:
    source = spec.open(gpt(), 0, cache)
    batch = next(source.batches(0, source.samples))
    assert (batch["tokens"][:, 1:] == batch["labels"][:, :-1]).all()
    ids = np.fromfile(source.folder / "train.bin", source.made.dtype)
    labels = Counter(batch["labels"].flatten().tolist())
    assert labels == Counter(ids[1 : 1 + 16 * source.samples].tolist())


def test_masking_is_80_10_10_of_exactly_the_rate() -> None:
    goal = Masked(sequence=128, rate=0.15, vocabulary=WORDS)
    window = np.random.default_rng(0).integers(4, 1000, (3000, goal.window))
    made = goal.examples(window, np.arange(3000), seed=0)
    original = np.pad(window, ((0, 0), (1, 1)), constant_values=((0, 0), (WORDS.start, WORDS.end)))
    assert made["positions"].shape == (3000, round(0.15 * 128)) and (np.diff(made["positions"], axis=1) > 0).all()
    assert (made["labels"] == np.take_along_axis(original, made["positions"], 1)).all()
    read = np.take_along_axis(made["tokens"], made["positions"], 1)
    masked, kept = (read == WORDS.mask).mean(), (read == made["labels"]).mean()
    assert abs(masked - 0.8) < 0.01 and abs(kept - 0.1) < 0.01
    untouched = made["tokens"].copy()
    np.put_along_axis(untouched, made["positions"], made["labels"], 1)
    assert (untouched == original).all()
    share = np.bincount(made["positions"].ravel(), minlength=128)[1:-1] / 3000
    assert abs(share - 19 / 126).max() < 0.04  # every position has its turn


def test_masks_change_with_sample_and_seed() -> None:
    goal = Masked(sequence=64, rate=0.15, vocabulary=WORDS)
    window = np.full((2, goal.window), 7)
    made, other = (goal.examples(window, np.arange(2), seed)["positions"] for seed in (0, 1))
    assert (made[0] != made[1]).any() and (made != other).any()


def test_special_tokens_are_never_masked_even_where_little_else_is() -> None:
    goal = Masked(sequence=32, rate=0.25, vocabulary=WORDS)
    window = np.random.default_rng(0).choice([0, 1, 2, 3, 9], (200, goal.window), p=[0.1, 0.7, 0.05, 0.05, 0.1])
    made = goal.examples(window, np.arange(200), seed=0)
    labels, read = made["labels"], np.take_along_axis(made["tokens"], made["positions"], 1)
    assert labels.shape == (200, 8) and set(np.unique(labels)) == {IGNORED, 9}
    assert ((labels == 9).sum(1) == np.minimum((window == 9).sum(1), 8)).all()
    original = np.pad(window, ((0, 0), (1, 1)), constant_values=((0, 0), (WORDS.start, WORDS.end)))
    assert (read == np.take_along_axis(original, made["positions"], 1))[labels == IGNORED].all()


@pytest.mark.parametrize(("sequence", "window", "targets"), [(512, 568, 114), (128, 141, 29)])
def test_span_lengths_are_those_of_t5(sequence: int, window: int, targets: int) -> None:
    sizes = span_sizes(sequence, 0.15, 3.0)
    assert (sizes.window, sizes.inputs, sizes.targets) == (window, sequence, targets)


@given(sequence=st.integers(4, 600), rate=st.floats(0.05, 0.6), span=st.floats(1, 6))
@settings(max_examples=60, deadline=None)
def test_span_inputs_fill_the_sequence(sequence: int, rate: float, span: float) -> None:
    sizes = span_sizes(sequence, rate, span)
    assert sizes.inputs == sequence and 1 <= sizes.spans <= sizes.noise < sizes.window
    assert sizes.possible or rate * (1 + 1 / span) > 0.8


def test_span_corruption_reconstructs_the_text() -> None:
    goal = Spans(sequence=64, rate=0.15, span=3.0, vocabulary=WORDS)
    window = np.random.default_rng(0).integers(4, 1000, (200, goal.window))
    made = goal.examples(window, np.arange(200), seed=0)
    assert made["tokens"].shape == (200, 64) and made["labels"].shape == (200, goal.targets)
    assert (made["decoder_tokens"][:, 1:] == made["labels"][:, :-1]).all()
    assert (made["decoder_tokens"][:, 0] == WORDS.pad).all() and (made["tokens"][:, -1] == WORDS.end).all()
    lengths = []
    for row, target, text in zip(made["tokens"], made["labels"], window, strict=True):
        starts = np.flatnonzero(target >= WORDS.size)
        assert target[starts].tolist() == [WORDS.first_sentinel - n for n in range(len(starts))]
        assert target[-1] == WORDS.end
        noise = dict(zip(target[starts], np.split(target[:-1], starts)[1:], strict=True))
        back = [list(noise[token][1:]) if token >= WORDS.size else [token] for token in row[:-1]]
        assert list(chain(*back)) == text.tolist()
        lengths += [len(part) - 1 for part in noise.values()]
    assert sum(lengths) / (200 * goal.window) == goal.sizes.noise / goal.window
    assert abs(np.mean(lengths) - 3) < 0.4 and len(set(lengths)) > 4


@pytest.mark.parametrize("model", [gpt(), bert(), t5()], ids=["causal", "mlm", "span"])
def test_targets_and_sequence_tell_the_shapes(spec: Files, cache: str, model: GPT | BERT | T5) -> None:
    batch = next(spec.open(model, 0, cache).batches(0, 4))
    assert batch["labels"].shape == (4, spec.targets(model)) and batch["tokens"].shape == (4, spec.sequence)
    assert all(str(values.dtype) == "torch.int64" and values.max() < model.vocab for values in batch.values())
