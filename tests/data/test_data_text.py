"""Text data: what is held out stays out, any cursor resumes, memory is constant, mistakes are one line each."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from mlrun import config
from mlrun.data import counter_rng
from mlrun.data import shuffled_blocks as data_stream
from mlrun.data.text import sotu, token_files, tokenizer
from mlrun.data.text.corpus import held_out
from mlrun.data.text.files import Files
from mlrun.data.text.hub import Hub, HubSource
from mlrun.data.text.objectives import IGNORED, Masked, Spans, span_sizes
from mlrun.data.text.sotu import Sotu
from mlrun.data.text.tokenizer import Vocabulary
from mlrun.errors import UserError
from mlrun.models.bert import BERT
from mlrun.models.deit import DeiT
from mlrun.models.gpt import GPT
from mlrun.models.t5 import T5

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
WIDTH = {"embed": 8, "head": 1, "head_dim": 8, "ffn": 8, "layer": 1}
WORDS = Vocabulary(size=1000, limit=1100, special=(0, 1, 2, 3), first_sentinel=1099, sentinels=100,
                   end=1, start=2, mask=3, pad=0)  # fmt: skip


def gpt(vocab: int = 320, position: int = 64) -> GPT:
    return GPT(vocab=vocab, position=position, **WIDTH)


def bert(vocab: int = 320) -> BERT:
    return BERT(vocab=vocab, position=64, token_type=2, **WIDTH)


def t5(vocab: int = 340) -> T5:
    return T5(vocab=vocab, decoder_layer=1, bucket=8, distance=16, **WIDTH)


def sentences(count: int, seed: int = 0) -> list[str]:
    """Return documents that differ from each other, each named by its number."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 8))) for _ in range(200)]
    return [f"d{number} " + " ".join(rng.choices(words, k=rng.randint(20, 60))) for number in range(count)]


def write_lines(file: Path, documents: list[str]) -> Path:
    file.write_text("\n".join(documents) + "\n")
    return file


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("corpus") / "lines.txt", sentences(400))


@pytest.fixture
def spec(corpus: Path) -> Files:
    return Files(sequence=16, files=[str(corpus)], format="text", document="line")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all((a[k] == b[k]).all() for k in a)


def error_of(action) -> str:
    with pytest.raises(UserError) as caught:
        action()
    (line,) = caught.value.problems
    assert "\n" not in line
    return line


# --- draws and order -------------------------------------------------------------------------------------


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**40), epoch=st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_every_epoch_visits_every_window_once(size: int, seed: int, epoch: int) -> None:
    order = counter_rng.epoch_order(epoch * size + np.arange(size), size, seed)
    assert sorted(order) == list(range(size))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [counter_rng.permute(np.arange(100), 100, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert max(np.mean(order == np.arange(100)) for order in orders) < 0.1


def test_order_has_random_access() -> None:
    whole = counter_rng.epoch_order(np.arange(70), 23, 5)
    assert [int(counter_rng.epoch_order(np.array([i]), 23, 5)[0]) for i in range(70)] == whole.tolist()


def test_draws_look_uniform_and_uncorrelated() -> None:
    chance = counter_rng.uniform(counter_rng.key(1), np.arange(2000), 50)
    assert abs(chance.mean() - 0.5) < 0.005 and abs(chance.std() - 12**-0.5) < 0.005
    for other in (
        counter_rng.uniform(counter_rng.key(2), np.arange(2000), 50),
        np.roll(chance, 1, 0),
        np.roll(chance, 1, 1),
    ):
        assert abs(np.corrcoef(chance.ravel(), other.ravel())[0, 1]) < 0.02


# --- the embedded corpus ---------------------------------------------------------------------------------


def test_held_out_speeches_never_appear_in_training(cache: str) -> None:
    data = Sotu(sequence=64, tokenizer_characters=300_000)
    source = data.open(gpt(512), seed=0, cache=cache)
    made, speeches = source.made, data.corpus()
    text = {name: token_files.read(source.folder / f"{name}.bin", made.dtype) for name in ("train", "validation")}
    ends = {name: np.flatnonzero(ids == made.vocabulary.end) for name, ids in text.items()}
    parts = {name: [t.tobytes() for t in np.split(ids, ends[name] + 1)[:-1]] for name, ids in text.items()}
    held = list(speeches.documents("validation"))
    decoded = [made.tokenizer.decode(np.frombuffer(ids, made.dtype)[:-1].tolist()) for ids in parts["validation"]]
    assert decoded == held
    assert not set(parts["train"]) & set(parts["validation"])
    assert len(parts["train"]) + len(held) == len(list((sotu.folder() / "speeches").glob("*.txt")))


def test_held_out_speeches_are_a_twentieth_spread_over_time() -> None:
    speeches = Sotu().corpus()
    sizes = {part: [len(t) for t in speeches.documents(part)] for part in ("train", "validation")}
    assert 0.04 < sum(sizes["validation"]) / sum(sizes["train"] + sizes["validation"]) < 0.06
    places = [number / 249 for number in range(249) if held_out(number, 0.05)]
    assert max(np.diff([0, *places, 1])) < 0.1


def test_a_speech_that_differs_from_the_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "speeches").mkdir()
    (tmp_path / "speeches" / "a.txt").write_text("changed")
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {"a": {"parsed_text_sha256": "00"}}}))
    assert "such as a" in error_of(sotu.Speeches(tmp_path, 0.05).facts)


# --- packing ---------------------------------------------------------------------------------------------


def test_packed_ids_are_the_documents_with_an_end_after_each(spec: Files, cache: str, corpus: Path) -> None:
    source = spec.open(gpt(), 0, cache)
    lines = corpus.read_text().splitlines()
    for part, wanted in (("train", False), ("validation", True)):
        ids = token_files.read(source.folder / f"{part}.bin", source.made.dtype).tolist()
        text = source.made.tokenizer.decode(ids, skip_special_tokens=False)
        kept = [line for number, line in enumerate(lines) if held_out(number, 0.05) == wanted]
        assert text == "".join(f"{line}<|endoftext|>" for line in kept)


def test_special_tokens_written_in_a_document_stay_text(tmp_path: Path, cache: str) -> None:
    lines = [f"{line} <|endoftext|> [MASK]" for line in sentences(50)]
    data = Files(sequence=8, files=[str(write_lines(tmp_path / "x.txt", lines))], format="text", document="line")
    source = data.open(gpt(), 0, cache)
    ids = token_files.read(source.folder / "validation.bin", source.made.dtype)
    assert (ids == source.made.vocabulary.end).sum() == 2


@pytest.mark.parametrize("limit", [30, 1500])
def test_cutting_a_long_document_changes_no_token(spec: Files, cache: str, limit: int) -> None:
    encode = spec.open(gpt(), 0, cache).made.tokenizer.encode
    text = "\n\n ".join(sentences(60)) + "  \n x" * 20
    parts = list(token_files.pieces(text, limit))
    assert "".join(parts) == text and max(map(len, parts)) <= limit and len(parts) > 2
    assert [i for part in parts for i in encode(part).ids] == encode(text).ids


@pytest.mark.parametrize("format", ["json", "parquet"])
def test_formats_give_the_same_samples(format: str, tmp_path: Path, cache: str, spec: Files) -> None:
    import pyarrow
    import pyarrow.parquet

    documents, file = sentences(400), tmp_path / f"x.{format}"
    if format == "json":
        write_lines(file, [json.dumps({"body": d, "n": n}) for n, d in enumerate(documents)])
    else:
        pyarrow.parquet.write_table(pyarrow.table({"n": range(400), "body": documents}), file, row_group_size=50)
    other = Files(sequence=16, files=[str(tmp_path / f"*.{format}")], format=format, column="body").open(
        gpt(), 0, cache
    )
    assert equal(next(other.batches(0, 32)), next(spec.open(gpt(), 0, cache).batches(0, 32)))


def test_validation_files_are_not_trained_on(tmp_path: Path, cache: str) -> None:
    for name, start in (("train", 0), ("validation", 100)):
        write_lines(tmp_path / f"{name}.txt", sentences(200)[start : start + 100])
    files = {"files": [str(tmp_path / "train.txt")], "validation_files": [str(tmp_path / "validation.txt")]}
    source = Files(sequence=16, format="text", document="line", **files).open(gpt(), 0, cache)
    counts = json.loads((source.folder / "meta.json").read_text())["tokens"]
    ids = {part: token_files.read(source.folder / f"{part}.bin", "uint16") for part in counts}
    assert all((ids[part] == source.made.vocabulary.end).sum() == 100 for part in counts)
    assert source.made.tokenizer.decode(ids["validation"][:8].tolist()).startswith("d100 ")


def test_a_changed_file_is_packed_anew_and_an_equal_one_is_not(tmp_path: Path) -> None:
    file, cache = tmp_path / "x.txt", str(tmp_path / "cache")
    data = Files(sequence=16, files=[str(file)], format="text", document="line")
    write_lines(file, sentences(100))
    first = data.open(gpt(), 0, cache)
    built = first.folder.stat().st_ino
    os.utime(file, (1, 1))
    assert data.open(gpt(), 0, cache).folder.stat().st_ino == built
    before = file.stat()
    text = file.read_text()
    file.write_text(text[:-5] + text[-5:].swapcase())  # same length
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = data.open(gpt(), 0, cache)
    assert second.folder != first.folder and second.describe()["content"] != first.describe()["content"]


def test_two_processes_may_prepare_at_once(spec: Files, corpus: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from mlrun.data.text.files import Files; from mlrun.models.gpt import GPT\n"
        f"model = GPT(vocab=320, position=64, **{WIDTH})\n"
        f"data = Files(sequence=16, files=[{str(corpus)!r}], format='text', document='line')\n"
        f"s = data.open(model, 0, {str(tmp_path)!r}); print(next(s.batches(0, 8))['tokens'].sum().item())"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)]
    sums = [run.communicate()[0] for run in runs]
    assert sums[0] == sums[1] != b"" and [run.returncode for run in runs] == [0, 0]
    assert len([f for f in (tmp_path / "text").iterdir() if f.is_dir()]) == 1  # no half-made folder either


def test_packing_a_large_corpus_takes_constant_memory(tmp_path: Path) -> None:
    """60 MB of text; its ids as Python objects alone would be over ten times the bound."""
    rng, words = random.Random(0), [f"transformational{n:02d}" for n in range(100)]
    with (tmp_path / "large.txt").open("w") as stream:
        for _ in range(60 * 5):
            stream.write(" ".join(rng.choices(words, k=10_000)) + "\n\n")
    assert (tmp_path / "large.txt").stat().st_size > 57e6
    code = f"""
import resource, datasets, tokenizers, torch
from mlrun.data.files import Files
from mlrun.models.gpt import GPT
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
data = Files(sequence=64, files=['large.txt'], format='text', tokenizer_characters=500_000)
source = data.open(GPT(vocab=400, position=64, **{WIDTH}), 0, 'cache')
assert source.samples > 40_000, source.samples
next(source.batches(0, 8))
print((peak() - before) / 1024)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "RAYON_NUM_THREADS": "1"}
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert float(out.stdout.split()[-1]) < 180


# --- order and resuming ----------------------------------------------------------------------------------


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


# --- objectives ------------------------------------------------------------------------------------------


def test_labels_are_the_next_tokens_and_each_token_is_a_label_once(spec: Files, cache: str) -> None:
    source = spec.open(gpt(), 0, cache)
    batch = next(source.batches(0, source.samples))
    assert (batch["tokens"][:, 1:] == batch["labels"][:, :-1]).all()
    ids = token_files.read(source.folder / "train.bin", source.made.dtype)
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


# --- tokenizers ------------------------------------------------------------------------------------------


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
        assert token_files.read(source.folder / "train.bin", "uint16")[: len(ids)].tolist() == ids
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


# --- the hub and streaming -------------------------------------------------------------------------------


def hub_folder(folder: Path, documents: list[str], shards: int = 3) -> str:
    folder.mkdir()
    for number, part in enumerate(np.array_split(np.array(documents), shards)):
        write_lines(folder / f"train-{number}.jsonl", [json.dumps({"text": str(d)}) for d in part])
    return str(folder)


def given_tokenizer(folder: Path) -> str:
    tokenizer.train(iter(sentences(50)), 300, "causal").save(str(folder / "tokenizer.json"))
    return str(folder / "tokenizer.json")


def test_hub_data_packs_like_local_files(tmp_path: Path, cache: str, hub_cache: None, spec: Files) -> None:
    lines = sentences(400)
    names = [hub_folder(tmp_path / "a", lines[:150], 1), hub_folder(tmp_path / "b", lines[150:], 1)]
    data = Hub(sequence=16, sources=[HubSource(path=name) for name in names], held_out=0.05)
    source = data.open(gpt(), 0, cache)
    assert equal(next(source.batches(0, 32)), next(spec.open(gpt(), 0, cache).batches(0, 32)))


def test_weights_mix_the_sources_each_document_once(tmp_path: Path, hub_cache: None) -> None:
    lines = sentences(90)
    names = [hub_folder(tmp_path / "a", lines[:30], 1), hub_folder(tmp_path / "b", lines[30:], 2)]
    data = Hub(sources=[HubSource(path=name) for name in names], weights=[1, 2], held_out=0.01)
    texts = [row["text"] for row in data.corpus().rows()]
    assert sorted(texts) == sorted(lines) and texts != lines
    assert 5 < sum(text in lines[:30] for text in texts[:45]) < 25


@pytest.fixture
def stream(tmp_path: Path, hub_cache: None) -> Hub:
    names = [hub_folder(tmp_path / "a", sentences(150)), hub_folder(tmp_path / "b", sentences(100, seed=1))]
    return Hub(
        sequence=16,
        sources=[HubSource(path=name) for name in names],
        weights=[3, 2],
        held_out=0.05,
        streaming=True,
        block=64,
        validation_samples=6,
        tokenizer=given_tokenizer(tmp_path),
    )


def test_a_stream_resumes_anywhere_with_and_without_its_marks(stream: Hub, tmp_path: Path) -> None:
    source = stream.open(gpt(), 0, str(tmp_path / "cache"))
    assert source.samples is None
    run = source.batches(0, 10)
    whole = {k: np.concatenate(v) for k, v in _columns(islice(run, 100)).items()}  # more than an epoch
    for cache in ("cache", "elsewhere"):
        for start in (0, 7, 64, 333, 900):
            batch = next(stream.open(gpt(), 0, str(tmp_path / cache)).batches(start, 25))
            assert equal({k: v[start : start + 25] for k, v in whole.items()}, {k: v.numpy() for k, v in batch.items()})


def _columns(batches) -> dict[str, list]:
    columns: dict[str, list] = {}
    for batch in batches:
        for name, values in batch.items():
            columns.setdefault(name, []).append(values.numpy())
    return columns


def test_resuming_a_stream_reads_from_the_nearest_mark(stream: Hub, tmp_path: Path) -> None:
    source = stream.open(gpt(), 0, str(tmp_path))
    read: list[int] = []
    expand = source.blocks.expand
    source.blocks.expand = lambda rows, carry: (read.extend(rows), expand(rows, carry))[1]
    next(source.batches(3000, 1))
    from_the_beginning = len(read)
    next(source.batches(3000, 1))
    assert from_the_beginning > 250 and len(read) - from_the_beginning <= 128


def test_a_stream_stores_no_copy_and_never_trains_on_what_it_holds_out(stream: Hub, tmp_path: Path) -> None:
    source = stream.open(gpt(), 0, str(tmp_path / "cache"))
    corpus = stream.corpus()
    held, kept = (set(corpus.documents(part)) for part in ("validation", "train"))
    seen = source.made.tokenizer.decode(np.concatenate(list(source.blocks._from(0).__next__())).tolist())
    assert len(held) == 12 and not held & kept and not any(text in seen for text in held)
    assert sum(len(batch["tokens"]) for batch in source.validation(4)) == 6
    files = [f for f in source.folder.rglob("*") if f.suffix == ".bin"]
    assert [f.name for f in files] == ["validation.bin"] and files[0].stat().st_size < 1000


class Flaky:
    """A stream whose connection is lost after so many rows of each opening, as many times as it is told."""

    def __init__(self, dataset: Any, rows: int, times: list[int]) -> None:
        self.dataset, self.rows, self.times = dataset, rows, times

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(self.dataset):
            if number == self.rows and self.times[0] > 0:
                self.times[0] -= 1
                raise ConnectionError("Server Disconnected")
            yield row

    def state_dict(self) -> dict[str, Any]:
        return self.dataset.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.dataset.load_state_dict(state)


def test_a_stream_that_breaks_off_is_opened_again_where_it_was(
    stream: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(data_stream.time, "sleep", waited.append)
    whole = list(islice(stream.open(gpt(), 0, str(tmp_path / "one")).batches(0, 32), 100))
    source = stream.open(gpt(), 0, str(tmp_path / "two"))
    load, times = source.blocks.load, [3]
    source.blocks.load = lambda: Flaky(load(), 70, times)
    broken = list(islice(source.batches(0, 32), 100))
    assert times == [0] and waited == [data_stream.WAITS[0]] * 3, "rows that arrive end the patience of before"
    assert capsys.readouterr().err.count("trying again in") == 3
    assert all(equal(a, b) for a, b in zip(whole, broken, strict=True))


def test_a_stream_that_stays_away_is_given_up(stream: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(data_stream.time, "sleep", waited.append)
    source = stream.open(gpt(), 0, str(tmp_path))
    load = source.blocks.load
    source.blocks.load = lambda: Flaky(load(), 0, [10**9])
    with pytest.raises(data_stream.Broken, match="Server Disconnected") as caught:
        next(source.batches(0, 10))
    assert waited == list(data_stream.WAITS) and "\n" not in str(caught.value)


def test_a_shard_that_cannot_be_read_is_not_tried_again(
    stream: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_stream.time, "sleep", lambda seconds: pytest.fail("it waits"))
    source = stream.open(gpt(), 0, str(tmp_path / "cache"))
    (tmp_path / "a" / "train-0.jsonl").write_text('{"text": "a"}\n{"te')
    with pytest.raises(data_stream.Broken, match=r"the stream cannot be read .*; repair or replace it"):
        list(islice(source.batches(0, 10), 60))


# --- mistakes --------------------------------------------------------------------------------------------


def problem(data: Files | Hub | Sotu, model: object = None) -> str:
    (line,) = data.problems(gpt() if model is None else model)
    assert "\n" not in line
    return line


def test_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    assert "data.files=none*.txt" in problem(Files(sequence=16, files=["none*.txt"], format="text"))
    assert "it is empty" in problem(Files(sequence=16, files=[str(tmp_path / "empty.txt")], format="text"))
    assert "data.files=[]" in problem(Files(sequence=16, files=[], format="text"))
    given = {"files": [str(ROOT / "pyproject.toml")], "format": "text"}
    assert "data.validation_files=no" in problem(Files(sequence=16, validation_files=["no"], **given))
    assert "not in data.files" in problem(Files(sequence=16, validation_files=given["files"], **given))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sequence": 65}, "model.position=64"),
        ({"sequence": 2}, "data.sequence=2"),
        ({"mask_rate": 1.0}, "data.mask_rate=1.0"),
        ({"mask_span": 0.5}, "data.mask_span=0.5"),
        ({"held_out": 0.0}, "data.held_out=0.0"),
        ({"validation_samples": 0}, "data.validation_samples=0"),
        ({"tokenizer_characters": 0}, "data.tokenizer_characters=0"),
        ({"format": "jsn"}, "did you mean json?"),
        ({"document": "lines"}, "did you mean line?"),
        ({"tokenizer": "nothing/vocab.txt"}, "nothing/vocab.txt is missing"),
    ],
)
def test_wrong_settings_are_one_line_each(corpus: Path, change: dict, expected: str) -> None:
    given = {"sequence": 16, "files": [str(corpus)], "format": "text", **change}
    assert expected in problem(Files(**given))


def test_the_model_must_fit(spec: Files, corpus: Path, tmp_path: Path) -> None:
    assert "model.vocab=100" in problem(spec, gpt(100))
    given = Files(sequence=16, files=[str(corpus)], format="text", tokenizer=given_tokenizer(tmp_path))
    assert "at least 300" in problem(given, gpt(299))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "is not one" in problem(given, gpt(299))
    pictures = DeiT(image=8, channel=1, patch=4, classes=2, **WIDTH)
    assert "image data set" in problem(spec, pictures)
    assert "keep text between" in problem(Files(sequence=16, files=[str(corpus)], format="text", mask_rate=0.9), t5())
    assert "enough to mask" in problem(Files(sequence=16, files=[str(corpus)], format="text", mask_rate=0.01), bert())


def test_a_given_tokenizer_needs_the_special_tokens_of_the_objective(corpus: Path, tmp_path: Path, cache: str) -> None:
    data = Files(sequence=16, files=[str(corpus)], format="text", tokenizer=given_tokenizer(tmp_path))
    assert "no start token" in error_of(lambda: data.open(bert(), 0, cache))


def test_too_few_sentinels_are_refused(corpus: Path, tmp_path: Path, cache: str) -> None:
    tokenizer.train(iter(sentences(50)), 300, "span").save(str(tmp_path / "tokenizer.json"))
    given = {"files": [str(corpus)], "format": "text", "tokenizer": str(tmp_path)}
    assert "at least 303" in error_of(lambda: Files(sequence=64, **given).open(t5(302), 0, cache))


def test_what_only_reading_shows(tmp_path: Path, cache: str, spec: Files) -> None:
    def opened(name: str, content: str, format: str, batch: int = 1, **change) -> str:
        (tmp_path / name).write_text(content)
        data = Files(sequence=16, files=[str(tmp_path / name)], format=format, **change)
        return error_of(lambda: data.open(gpt(), 0, cache, batch))

    rows = "\n".join(json.dumps({"body": d}) for d in sentences(100))
    assert "has the columns body" in opened("a.jsonl", rows, "json")
    assert "fewer than one batch=10000" in opened("b.jsonl", rows, "json", 10000, column="body")
    assert "do not fill one window" in opened("c.jsonl", rows, "json", column="body", held_out=0.001)
    assert "cannot be" in opened("d.jsonl", '{"text": "a"}\n{"te', "json")
    assert "cannot be" in opened("e.parquet", "no parquet", "parquet")
    (tmp_path / "f.txt").write_bytes(b"caf\xe9 \n\n" * 100)
    latin = Files(sequence=16, files=[str(tmp_path / "f.txt")], format="text")
    assert "cannot be read" in error_of(lambda: latin.open(gpt(), 0, cache))
    assert not [f for f in Path(cache).rglob(".making-*")]


def test_hub_settings_are_checked() -> None:
    source = [HubSource(path="a/b")]
    assert "data.weights=[1.0, 2.0]" in problem(Hub(sequence=16, sources=source, weights=[1.0, 2.0]))
    assert "data.validation_samples=None" in problem(Hub(sequence=16, sources=source, streaming=True))
    assert "data.sources=[]" in problem(Hub(sequence=16, sources=[]))


@pytest.mark.parametrize("streaming", [False, True])
def test_offline_is_one_line_with_the_remedy(streaming: bool, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    sources = [HubSource(path="nobody/nothing", name="x")]
    data = Hub(sequence=16, sources=sources, streaming=streaming, validation_samples=4)
    assert "nobody/nothing x train cannot be loaded" in (line := error_of(lambda: data.open(gpt(), 0, cache)))
    assert "go online" in line
    named = Sotu(sequence=16, tokenizer="nobody/nothing")
    assert named.problems(gpt()) == [] and "go online once" in error_of(lambda: named.open(gpt(), 0, cache))


def answer(status: int) -> Exception:
    """Return what `huggingface_hub` raises for an answer of the hub, without the packages that it talks through."""
    error = OSError(f"{status} Client Error")
    error.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ConnectionError("no route"), "go online"),
        (TimeoutError("read timed out"), "go online"),
        (type("ConnectError", (Exception,), {"__module__": "httpx"})("no address"), "go online"),
        (answer(429), "go online"),
        (answer(503), "go online"),
        (answer(404), "correct its path, name, split or revision"),
    ],
)
def test_a_revision_that_the_hub_does_not_tell_is_one_line(
    error: Exception, remedy: str, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data set opens, and then the hub is gone, or does not know the revision."""

    def asked(self: object, path: str, revision: str | None, timeout: float) -> None:
        raise error

    monkeypatch.setattr("datasets.load_dataset", lambda *args, **settings: None)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", asked)
    sources = [HubSource(path="nobody/nothing", revision="v9")]
    data = Hub(sequence=16, sources=sources, streaming=True, validation_samples=4)
    line = error_of(lambda: data.open(gpt(), 0, cache))
    assert line.startswith("data.sources: nobody/nothing train cannot be loaded (") and remedy in line


def test_without_a_network_a_streamed_run_ends_before_it_begins(tmp_path: Path) -> None:
    small = ["model.layer=2", "model.embed=16", "model.head=2", "model.head_dim=8", "model.ffn=32", "model.vocab=280"]
    given = ["data=openwebtext", "data.streaming=true", "data.validation_samples=8", "data.tokenizer=null"]
    command = [sys.executable, "-m", "mlrun", *small, *given, "data.sequence=16", "budget=20 steps", "run=a/b"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    (tmp_path / "work").mkdir()
    done = subprocess.run(command, cwd=tmp_path / "work", env=env, capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "Skylion007/openwebtext train cannot be loaded" in line and "go online" in line
    assert list((tmp_path / "work").iterdir()) == []


# --- configuration ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sotu", "text", "json", "parquet", "wikibooks", "openwebtext"])
def test_every_text_yaml_builds_its_spec_and_names_every_setting(name: str, corpus: Path) -> None:
    file = ROOT / "conf" / "data" / f"{name}.yaml"
    node = OmegaConf.load(file)
    if OmegaConf.is_missing(node, "files"):
        node.files = [str(corpus)]
    data = config.build(node, "data")
    assert data.problems(gpt(position=2048)) == []
    assert {str(key) for key in node} - {"_target_"} == {field.name for field in fields(data)}


def test_specs_import_no_torch() -> None:
    specs = ("text.files", "text.hub", "text.sotu", "images.hub", "images.files", "images.digits")
    code = f"import sys, {', '.join(f'mlrun.data.{name}' for name in specs)}; "
    code += "sys.exit(bool({'torch', 'datasets', 'tokenizers', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
