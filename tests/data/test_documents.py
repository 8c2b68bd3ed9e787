"""`data.within_documents`: where documents end is known of every window, and is part of what the data is."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy
from corpora import bert, equal, given_tokenizer, gpt, problem, sentences, t5, write_lines
from test_identity import differing, identity

from mlrun.config.settings import Checkpoint, Eval, Hardware
from mlrun.data.text.files import Files
from mlrun.data.text.hub import Hub
from mlrun.errors import UserError
from mlrun.models.base import IGNORED
from mlrun.models.gpt import GPT
from mlrun.train import loop

DOCUMENTS = [line[: 20 + 7 * number % 60] for number, line in enumerate(sentences(300))]


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Files:
    file = write_lines(tmp_path_factory.mktemp("short") / "x.txt", DOCUMENTS)
    return Files(sequence=32, files=[str(file)], format="text", document="line", within_documents=True)


def test_every_window_says_where_its_documents_end(apart: Files, cache: str) -> None:
    source, plain = (replace(apart, within_documents=flag).open(gpt(), 0, cache) for flag in (True, False))
    for marked, packed in (
        (next(source.batches(0, 40)), next(plain.batches(0, 40))),
        *zip(source.validation(7), plain.validation(7), strict=True),
    ):
        tokens, labels, numbers = (marked[name].numpy() for name in ("tokens", "labels", "documents"))
        assert (tokens == packed["tokens"].numpy()).all()
        ends = tokens == source.made.vocabulary.end
        assert (np.diff(numbers, axis=1) == ends[:, :-1]).all() and (numbers[:, 0] == 0).all() and ends.any()
        assert (labels == np.where(ends, IGNORED, packed["labels"].numpy())).all()
        assert marked["places"].numpy().max() < 32 and (marked["places"].numpy()[:, 1:][ends[:, :-1]] == 0).all()
    assert packed.keys() == {"tokens", "labels"}


def test_an_end_token_inside_a_text_ends_no_document(tmp_path: Path, cache: str) -> None:
    """A user may name any token, such as a blank line; where documents end is stored by itself."""
    lines = [f"{line} and . so on" for line in sentences(100)]
    given = {"tokenizer": given_tokenizer(tmp_path), "end": "."}
    data = Files(
        sequence=64, files=[str(write_lines(tmp_path / "x.txt", lines))], format="text", document="line", **given,
        within_documents=True,
    )  # fmt: skip
    source = data.open(gpt(), 0, cache)
    batch = next(source.batches(0, source.samples))
    ends = int((batch["tokens"] == source.made.vocabulary.end).sum())
    assert int((batch["documents"][:, 1:] != batch["documents"][:, :-1]).sum()) < 0.7 * ends
    assert int(batch["tokens"].max()) < source.made.vocabulary.size <= source.made.boundary


@pytest.mark.parametrize("model", [gpt(), bert(), t5()], ids=["causal", "mlm", "span"])
def test_any_cursor_resumes_and_rows_are_those_of_the_whole_batch(apart: Files, cache: str, model: Any) -> None:
    source = apart.open(model, 3, cache)
    start = source.samples - 9
    whole = next(source.batches(start, 24))
    assert "documents" in whole
    small = list(islice(apart.open(model, 3, cache).batches(start, 8), 3))
    assert all(equal({k: v[8 * n : 8 * n + 8] for k, v in whole.items()}, part) for n, part in enumerate(small))
    assert equal(next(source.batches(start, 24, slice(4, 9))), {k: v[4:9] for k, v in whole.items()})


def test_a_stream_carries_the_ends_over_its_blocks_and_marks(stream: Hub, tmp_path: Path) -> None:
    marked = replace(stream, within_documents=True)
    whole = list(islice(marked.open(gpt(), 0, str(tmp_path / "c")).batches(0, 16), 20))
    packed = islice(stream.open(gpt(), 0, str(tmp_path / "c")).batches(0, 16), 20)
    for batch, plain in zip(whole, packed, strict=True):
        assert (batch["tokens"] == plain["tokens"]).all()
        ends = batch["tokens"] == 0  # <|endoftext|> of the given tokenizer
        assert (batch["documents"].diff(dim=1) == ends[:, :-1]).all()
    again = next(marked.open(gpt(), 0, str(tmp_path / "c")).batches(16 * 15, 16))
    assert equal(again, whole[15])


def test_it_is_part_of_what_the_data_is_and_changes_nothing_where_it_is_off(apart: Files, tmp_path: Path) -> None:
    plain = replace(apart, within_documents=False)
    marked, packed = identity(apart, tmp_path), identity(plain, tmp_path)
    assert differing(marked, packed) >= {"preprocessing"} and marked["tokenizer"] == packed["tokenizer"]
    told, was = (one.open(gpt(), 0, str(tmp_path / "cache")) for one in (apart, plain))
    assert told.describe()["content"] != was.describe()["content"]
    assert "within_documents" not in was.made.key
    assert told.meta["tokens"] == was.meta["tokens"] and told.samples == was.samples


def test_the_largest_vocabulary_of_16_bits_leaves_room_for_the_mark(apart: Files, cache: str) -> None:
    made = apart.open(gpt(), 0, cache).made
    full = replace(made, vocabulary=replace(made.vocabulary, size=1 << 16))
    assert full.dtype == "uint32" and replace(full, within_documents=False).dtype == "uint16"


def test_a_model_that_knows_no_documents_is_refused(apart: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GPT, "within_documents", False)
    assert problem(apart) == (
        "data.within_documents=true: allowed: false with this model; GPT does not tell documents apart"
    )


# Runs

MODEL = GPT(vocab=320, position=32, embed=16, head=2, head_dim=8, ffn=32, layer=2)


def config(apart: Files, cache: str, **changes: Any) -> Any:
    often = {"eval": Eval(every="20%", batch=5), "checkpoint": Checkpoint(every="2 steps"), "budget": "10 steps"}
    given = {"model": MODEL, "data": apart, "cache": cache, **often, **changes}
    made = toy.make(**{key: value for key, value in given.items() if key != "data"})
    return replace(made, data=given["data"])


def test_a_v_cycle_resumes_bitwise_and_micro_batches_change_nothing(
    apart: Files, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.run(tmp_path / "whole", config(apart, cache))
    with monkeypatch.context() as patch:
        toy.at_event(patch, 5, lambda: os.kill(os.getpid(), 15))
        with pytest.raises(loop.Stopped):
            toy.run(tmp_path / "cut", config(apart, cache))
    toy.run(tmp_path / "cut", config(apart, cache))
    assert toy.records(tmp_path / "cut") == toy.records(tmp_path / "whole")
    toy.run(tmp_path / "micro", config(apart, cache, hardware=Hardware(micro_batch=2, activation_checkpointing=True)))
    toy.run(tmp_path / "packed", config(replace(apart, within_documents=False), cache))
    whole, micro, packed = (
        [r["loss"] for r in toy.records(tmp_path / name) if "loss" in r] for name in ("whole", "micro", "packed")
    )
    assert micro == pytest.approx(whole, rel=1e-4) and packed != pytest.approx(whole, rel=1e-4)
    assert (
        len({json.loads((tmp_path / n / "plan.json").read_text())["totals"]["flops"] for n in ("whole", "packed")}) == 1
    )


def test_a_run_does_not_go_on_with_the_other_setting(
    apart: Files, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        toy.at_event(patch, 5, lambda: os.kill(os.getpid(), 15))
        with pytest.raises(loop.Stopped):
            toy.run(tmp_path, config(apart, cache))
    with pytest.raises(UserError, match="the data that this run began with"):
        toy.run(tmp_path, config(replace(apart, within_documents=False), cache))
