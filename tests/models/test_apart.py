"""Claim: documents that share a sample and are kept apart are computed as if each were alone, to 1e-5."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from test_flops import counted, declared
from test_models import TINY, scatter
from torch import Tensor

from mlrun.data.text.objectives import Causal, Masked, Objective, Spans
from mlrun.data.text.tokenizer import Vocabulary
from mlrun.models.base import IGNORED, Model
from mlrun.models.network import Network, build

WORDS = Vocabulary(size=40, limit=48, special=(0, 1, 2, 3), first_sentinel=47, sentinels=8, end=1, start=2, mask=3,
                   pad=0)  # fmt: skip
LENGTH, ROWS = 12, 6
APART = {name: model for name, model in TINY.items() if model.within_documents}
EVERY = pytest.mark.parametrize("model", APART.values(), ids=APART)


def objective(model: Model) -> Objective:
    goals: dict[str, Objective] = {
        "causal": Causal(LENGTH),
        "mlm": Masked(LENGTH, 0.3, WORDS),
        "span": Spans(LENGTH, 0.4, 2.0, WORDS),
    }
    return goals[model.objective]


def batch(model: Model, seed: int = 0, apart: bool = True) -> dict[str, Tensor]:
    """Return samples of random documents of 1 to 6 tokens; the last sample is one document."""
    random, goal = np.random.default_rng(seed), objective(model)
    ends = random.random((ROWS, goal.window)) < 0.3
    ends[-1] = False
    window = np.where(ends, WORDS.end, random.integers(4, WORDS.size, ends.shape))
    made = goal.examples(window, np.arange(ROWS), seed, *([ends] if apart else []))
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in made.items()}


def network(model: Model) -> Network:
    net = build(model, 0)
    scatter(net)
    return net.eval()


def alone(whole: dict[str, Tensor], row: int) -> list[tuple[dict[str, Tensor], Tensor]]:
    """Return each document of a sample as a batch of its own without marks, and which of the row's labels are its."""
    found = []
    documents = whole["documents"][row]
    for number in documents.unique():
        mine = documents == number
        cut: dict[str, Tensor] = {"tokens": whole["tokens"][row][mine]}
        if "positions" in whole:
            at = whole["positions"][row]
            labelled = mine[at]
            cut["positions"] = at[labelled] - int(mine.nonzero()[0])
        elif "decoder_documents" in whole:
            labelled = whole["decoder_documents"][row] == number
            cut["decoder_tokens"] = whole["decoder_tokens"][row][labelled]
        else:
            labelled = mine
        cut["labels"] = whole["labels"][row][labelled]
        if labelled.any():
            found.append(({name: values[None] for name, values in cut.items()}, labelled))
    return found


@EVERY
def test_a_sample_of_documents_is_what_each_is_alone(model: Model) -> None:
    net, whole = network(model), batch(model)
    parts = 0
    total = torch.zeros(())
    with torch.no_grad():
        loss, logits = net.loss_and_logits(whole)
        for row in range(ROWS):
            for one, labelled in alone(whole, row):
                own_loss, own = net.loss_and_logits(one)
                assert torch.allclose(logits[row][labelled], own[0], rtol=0, atol=1e-5)
                total += own_loss * model.label_count(one)
                parts += 1
    assert parts >= 2 * ROWS
    assert float(total) / model.label_count(whole) == pytest.approx(float(loss), abs=1e-5)


@EVERY
def test_without_marks_a_sample_is_one_text(model: Model) -> None:
    """So that the test above cannot hold by itself; a sample of one document is the same either way."""
    net = network(model)
    with torch.no_grad():
        apart, packed = (net.logits(batch(model, apart=marks)) for marks in (True, False))
    assert float((apart[:-1] - packed[:-1]).abs().max()) > 1e-3
    assert torch.allclose(apart[-1], packed[-1], rtol=0, atol=1e-5)


@EVERY
def test_a_mask_saves_no_flops_and_none_is_left_out(model: Model) -> None:
    """A dense mask computes the scores of the whole sample: that is what is charged."""
    whole = batch(model)
    assert counted(model, whole) == declared(model, whole) == declared(model, batch(model, apart=False))


@EVERY
def test_low_precision_and_recomputing_know_the_mask(model: Model) -> None:
    net, whole = build(model, 0), batch(model)
    plain = torch.autograd.grad(net(whole), list(net.parameters()))
    for block in net.modules():
        if hasattr(block, "recompute"):
            block.recompute = True
    again = torch.autograd.grad(net(whole), list(net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = float(net(whole))
    assert low == pytest.approx(float(net(whole).detach()), abs=0.05)


# What an objective makes of documents


def test_nothing_is_predicted_from_another_document() -> None:
    ends = np.array([[0, 0, 1, 1, 0, 0, 1]], bool)
    made = Causal(6).examples(np.arange(7)[None], np.arange(1), 0, ends)
    assert made["documents"].tolist() == [[0, 0, 0, 1, 2, 2]] and made["places"].tolist() == [[0, 1, 2, 0, 0, 1]]
    assert made["labels"].tolist() == [[1, 2, IGNORED, IGNORED, 5, 6]]


@pytest.mark.parametrize("last", [False, True])
def test_what_is_put_around_a_window_belongs_to_its_first_and_its_last_document(last: bool) -> None:
    ends = np.array([[0, 1, 0, 0, last]], bool)
    made = Masked(7, 0.3, WORDS).examples(np.arange(4, 9)[None], np.arange(1), 0, ends)
    assert made["documents"].tolist() == [[0, 0, 0, 1, 1, 1, 1]]
    assert made["places"].tolist() == [[0, 1, 2, 0, 1, 2, 3]]


def test_spans_of_noise_stay_in_their_document() -> None:
    goal = Spans(64, 0.3, 3.0, WORDS)
    random = np.random.default_rng(0)
    ends = random.random((200, goal.window)) < 0.05
    window = np.where(ends, WORDS.end, random.integers(4, WORDS.size, ends.shape))
    wide = Spans(64, 0.3, 3.0, Vocabulary(**{**vars(WORDS), "limit": 140, "first_sentinel": 139}))
    marked, plain = (wide.examples(window, np.arange(200), 0, *given) for given in ([ends], []))
    lost = 0
    for row in range(200):
        made = {name: array[row] for name, array in marked.items()}
        for number in np.unique(made["decoder_documents"]):
            mine = made["decoder_documents"] == number
            labels, tokens = made["labels"][mine], made["decoder_tokens"][mine]
            assert tokens[0] == WORDS.pad and not np.isin(WORDS.pad, tokens[1:])
            here = made["tokens"][made["documents"] == number]
            sentinels = [token for token in labels if token > WORDS.size]
            assert sentinels == [139 - n for n in range(len(sentinels))] == [t for t in here if t > WORDS.size]
            # What a document's spans hide are its own tokens, in its order; the rest is predicted nowhere.
            text = iter(window[row][np.cumsum(np.pad(ends[row][:-1], (1, 0))) == number].tolist())
            assert all(label in text for label in labels if label not in (IGNORED, WORDS.end) and label < WORDS.size)
        lost += int((made["labels"] == IGNORED).sum())
    assert 0 < lost < 0.1 * marked["labels"].size
    assert {name: marked[name].shape for name in plain} == {name: array.shape for name, array in plain.items()}


def test_places_begin_anew_wherever_the_number_changes() -> None:
    from mlrun.data.text import documents

    rows = np.array([[0, 0, 1, 1, 1, 3], [0, 1, 2, 3, 4, 5]])
    for row, places in zip(rows, documents.places(rows), strict=True):
        steps = [int(b) - int(a) for a, b in pairwise(places)]
        assert places[0] == 0 and all((s == 1) == (a == b) for s, (a, b) in zip(steps, pairwise(row), strict=True))


def test_every_family_of_text_keeps_documents_apart_and_none_of_images() -> None:
    assert {type(model).__name__ for model in APART.values()} == {"GPT", "Llama", "BERT", "T5"}
    assert all(model.within_documents == (model.objective != "image") for model in TINY.values())
