"""Tokenizers: trained on the training part or given, with the tokens that an objective needs."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from corpora import SHARED, bert, error_of, given_tokenizer, gpt, problem, sentences, t5, write_lines

from mlrun.data.held_out import held_out
from mlrun.data.text import tokenizer
from mlrun.data.text.files import Files
from mlrun.errors import UserError


def test_training_a_tokenizer_is_deterministic_and_fills_the_vocabulary() -> None:
    made = [tokenizer.train(iter(sentences(300)), 400, "mlm") for _ in range(2)]
    assert tokenizer.content_hash(made[0]) == tokenizer.content_hash(made[1])
    assert made[0].get_vocab_size() == 400


def test_the_tokenizer_learns_from_the_training_part_only(tmp_path: Path, cache: str) -> None:
    lines = [f"zq{'zq' * 30}" if held_out(number, 0.05) else line for number, line in enumerate(sentences(100))]
    data = Files(sequence=8, files=[str(write_lines(tmp_path / "x.txt", lines))], format="text", document="line")
    words = data.open(gpt(400), 0, cache).made.tokenizer.get_vocab()
    assert not [word for word in words if "zq" in word and "endoftext" not in word]


def test_a_given_tokenizer_is_used(spec: Files, cache: str, corpus: Path, tmp_path: Path) -> None:
    made = tokenizer.train(iter(sentences(50)), 300, "causal")
    made.save(str(tmp_path / "tokenizer.json"))
    for name in (tmp_path, tmp_path / "tokenizer.json"):
        data = Files(sequence=16, files=[str(corpus)], format="text", document="line", tokenizer=str(name))
        assert data.problems(gpt()) == [] and tokenizer.given_size(str(name)) == 300
        ids = made.encode(corpus.read_text().splitlines()[0]).ids
        source = data.open(gpt(), 0, cache)
        assert np.fromfile(source.folder / "train.bin", "uint16")[: len(ids)].tolist() == ids
        assert Path(source.describe()["tokenizer"]).is_file()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the GPT-2 and BERT vocabularies of ../shared are absent")
@pytest.mark.parametrize(
    ("name", "size", "text", "tokens"),
    [
        ("gpt2-vocab.json", 50257, "Hello world", [15496, 995]),
        ("bert-base-uncased-vocab.txt", 30522, "Hello World!", [7592, 2088, 999]),
    ],
)
def test_published_vocabularies_give_the_published_ids(name: str, size: int, text: str, tokens: list[int]) -> None:
    path = str(SHARED / "vocab" / name)
    assert tokenizer.given_size(path) == size
    assert tokenizer.load(path).encode(text, add_special_tokens=False).ids == tokens


@pytest.mark.skipif(not SHARED.is_dir(), reason="the novels of ../shared are absent")
def test_novels_load_as_parquet_with_the_bert_vocabulary(cache: str) -> None:
    files = [str(SHARED / "novels" / "validation.parquet")]
    vocab = str(SHARED / "vocab" / "bert-base-uncased-vocab.txt")
    data = Files(sequence=64, files=files, format="parquet", tokenizer=vocab, held_out=0.2, validation_samples=8)
    batch = next(data.open(bert(30522), 0, cache).batches(0, 2))
    assert (batch["tokens"][:, 0] == 101).all() and (batch["tokens"][:, -1] == 102).all()


def test_sentinels_are_the_tokenizers_own_if_it_has_them() -> None:
    made = tokenizer.train(iter(sentences(50)), 300, "span")
    assert tokenizer.vocabulary(made, "span", 340).first_sentinel == 339
    made.add_special_tokens([f"<extra_id_{n}>" for n in reversed(range(10))])
    words = tokenizer.vocabulary(made, "span", 340)
    assert (words.first_sentinel, words.sentinels) == (made.token_to_id("<extra_id_0>"), 10)


def test_a_given_tokenizer_needs_the_special_tokens_of_the_objective(corpus: Path, tmp_path: Path, cache: str) -> None:
    data = Files(sequence=16, files=[str(corpus)], format="text", tokenizer=given_tokenizer(tmp_path))
    assert "no start token" in error_of(lambda: data.open(bert(), 0, cache))


def test_too_few_sentinels_are_refused(corpus: Path, tmp_path: Path, cache: str) -> None:
    tokenizer.train(iter(sentences(50)), 300, "span").save(str(tmp_path / "tokenizer.json"))
    given = {"files": [str(corpus)], "format": "text", "tokenizer": str(tmp_path)}
    assert "at least 303" in error_of(lambda: Files(sequence=64, **given).open(t5(302), 0, cache))


def test_only_a_line_feed_ends_a_word_of_a_vocabulary(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a\u2028", "b\u0085", "c", "\u2028d"]
    (tmp_path / "vocab.txt").write_bytes("\n".join(words).encode() + b"\n")
    made = tokenizer.load(str(tmp_path / "vocab.txt"))
    assert tokenizer.given_size(str(tmp_path / "vocab.txt")) == 9 == max(made.get_vocab().values()) + 1
    assert tokenizer.vocabulary(made, "mlm", 9).size == 9


@pytest.mark.parametrize("end", ["[EOS]", "<|im_end|>"])
def test_the_end_token_can_be_named(spec: Files, tmp_path: Path, cache: str, end: str) -> None:
    made = tokenizer.train(iter(sentences(50)), 300, "causal")
    content = made.to_str().replace("<|endoftext|>", end)
    (tmp_path / "tokenizer.json").write_text(content)
    given = replace(spec, tokenizer=str(tmp_path))
    assert "name it with data.end=..." in error_of(lambda: given.open(gpt(), 0, cache))
    named = replace(given, end=end)
    assert named.problems(gpt()) == []
    source = named.open(gpt(), 0, cache)
    assert source.made.vocabulary.end == source.made.tokenizer.token_to_id(end)
    assert "data.end=[X]" in error_of(lambda: replace(given, end="[X]").open(gpt(), 0, cache))
    assert "data.end=[X]" in problem(replace(spec, end="[X]"))


def test_a_document_without_blanks_is_learned_from_in_bounded_time() -> None:
    document = "".join(random.Random(0).choices("阿爸一七三上下不与世东来", k=480_000))
    began = time.process_time()
    made = tokenizer.train([document, *sentences(50)], 400, "causal")
    assert time.process_time() - began < 60 and made.get_vocab_size() == 400


@pytest.mark.parametrize("terminal", [False, True])
def test_without_a_terminal_lines_say_how_far_training_is(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tokenizer, "TELLS", 0.05)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)

    def slowly() -> Iterator[str]:
        for text in ["one text"] * 4:
            yield text
            time.sleep(0.1)

    with tokenizer._progress(slowly()) as read:
        assert list(read) == ["one text"] * 4
        time.sleep(0.2)  # as the library learns
    lines = capsys.readouterr().err.splitlines()
    assert bool(lines) != terminal
    if not terminal:
        assert all(line.startswith("mlrun: training the tokenizer: ") for line in lines)
        assert "reading, so far 8 characters" in lines[0] and "learning from 32 characters" in lines[-1]
        time.sleep(0.15)
        assert capsys.readouterr().err == "", "nothing is told once it is done"


def test_the_library_lets_the_lines_through(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tokenizer, "TELLS", 0.005)
    tokenizer.train(iter(sentences(2000)), 2000, "causal")
    assert "learning from" in capsys.readouterr().err


def test_cutting_long_words_changes_no_other_text() -> None:
    for text in (" ".join(sentences(30)), "x" * 1000, ""):
        assert list(tokenizer._bounded(text)) == [text]
    long = "a b " + "x" * 2500 + " c " + "y" * 1001
    parts = list(tokenizer._bounded(long))
    assert "".join(parts) == long and max(len(word) for part in parts for word in part.split()) == 1000
    blank = "a" + " " * 2500 + "b"
    assert list(tokenizer._bounded(blank)) == ["a" + " " * 1000, " " * 1000, " " * 500 + "b"]


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_bytes_that_are_no_text_are_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"data\.tokenizer=.*is not one") as caught:
        tokenizer.given_size(str(tmp_path))
    assert len(caught.value.problems) == 1
