"""Evaluations with data of their own, against the arithmetic of `transformers` on the same folders."""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from hf_folders import POSITIONS, TEXT
from omegaconf import DictConfig

from mlrun.cli import command, points
from mlrun.config.load import load
from mlrun.config.settings import Hardware
from mlrun.errors import UserError
from mlrun.evaluate import grammar, scoring, words
from mlrun.evaluate.base import Benchmark, Result, as_dict
from mlrun.evaluate.cloze import Cloze
from mlrun.evaluate.finished import Data, evaluate, evaluate_folder
from mlrun.evaluate.held_out import HeldOut
from mlrun.evaluate.pairs import Pairs
from mlrun.evaluate.proportion import wilson
from mlrun.evaluate.text_perplexity import TextPerplexity
from mlrun.interop.folders import export_hf
from mlrun.interop.read import open_folder
from mlrun.plan.make import make_plan
from mlrun.run import train

transformers = pytest.importorskip("transformers", reason="the reference is not installed")

WIKITEXT = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "wikitext2" / "validation.txt"


def measured(folder: Path, *evaluations: Benchmark, batch: int = 7, out: Path | None = None) -> dict[str, Result]:
    """Return the results; no evaluation asks for data, so none is opened."""
    data = Data(DictConfig({"_target_": "nothing"}), 0, Path("unused"), batch)
    return evaluate_folder(folder, data, Hardware(), evaluations, out)


class Reference:
    """Log-probabilities as `transformers` gives them, a text at a time."""

    def __init__(self, folder: Path, kind: Any) -> None:
        from tokenizers import Tokenizer

        self.model = kind.from_pretrained(folder).eval()
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.end = self.tokenizer.token_to_id("<|endoftext|>")

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    def logs(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)

    def after(self, read: list[int], ids: list[int]) -> list[float]:
        """Return the log-probability of each of `ids` after what is read."""
        logs = self.logs([*read, *ids][:-1])
        return [float(logs[len(read) - 1 + i, id]) for i, id in enumerate(ids)]

    def masked(self, ids: list[int]) -> float:
        cls, sep, mask = (self.tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]", "[MASK]"))
        total = 0.0
        for place, id in enumerate(ids):
            hidden = [cls, *ids[:place], mask, *ids[place + 1 :], sep]
            total += float(self.logs(hidden)[place + 1, id])
        return total


# Pairs


def test_the_embedded_pairs_are_distinct_and_always_the_same() -> None:
    found = grammar.pairs()
    assert found == grammar.pairs()
    assert {name: len(set(pairs)) for name, pairs in found.items()} == dict.fromkeys(found, grammar.PAIRS)
    for name, pairs in found.items():
        for good, bad in pairs:
            one, other = (re.findall(r"\w+", sentence) for sentence in (good, bad))
            assert good != bad and abs(len(one) - len(other)) <= 0, name
            assert name != "order" or sorted(map(str.lower, one)) == sorted(map(str.lower, other))
    assert found["agreement"][0] != found["agreement"][1]


def test_pairs_of_a_causal_model_are_those_of_transformers(gpt: Path) -> None:
    reference = Reference(gpt, transformers.GPT2LMHeadModel)
    net, known = opened(gpt)
    sentences = [sentence for pairs in grammar.pairs().values() for pair in pairs[:4] for sentence in pair]
    found = scoring.log_probabilities(net, [known.ids(s) for s in sentences], context(known))
    expected = [sum(reference.after([reference.end], reference.ids(s))) for s in sentences]
    assert found == pytest.approx(expected, abs=1e-4)
    results = measured(gpt, Pairs())
    assert set(results) == {"pairs", *(f"pairs/{name}" for name in grammar.PHENOMENA)}
    assert results["pairs"].n == 600 and results["pairs"].metric == "accuracy"
    parts = [results[f"pairs/{name}"].value for name in grammar.PHENOMENA]
    assert results["pairs"].value == pytest.approx(statistics.fmean(parts))


def test_pairs_of_a_masked_model_are_those_of_transformers(bert: Path) -> None:
    reference = Reference(bert, transformers.BertForMaskedLM)
    net, known = opened(bert)
    sentences = [pairs[0][i] for pairs in grammar.pairs().values() for i in (0, 1)]
    found = scoring.log_probabilities(net, [known.ids(s) for s in sentences], context(known))
    assert found == pytest.approx([reference.masked(reference.ids(s)) for s in sentences], abs=1e-4)


def test_pairs_of_files_are_named_and_ties_are_wrong(gpt: Path, tmp_path: Path) -> None:
    same = {"sentence_good": "The king.", "sentence_bad": "The king.", "UID": "tie"}
    rows = [{"sentence_good": "The king.", "sentence_bad": "The the king the king the old king."}, same]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    results = measured(gpt, Pairs([str(tmp_path / "*.jsonl")]), out=tmp_path / "out")
    assert {task: one.value for task, one in results.items()} == {"pairs": 0.5, "pairs/long": 1.0, "pairs/tie": 0.0}
    written = json.loads((tmp_path / "out" / "evaluate.json").read_text())
    assert set(written["pairs"]) == {"metric", "value", "stderr", "n", "version", "interval", "settings"}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "line 2: not a JSON object"),
        ('{"sentence_good": "a"}', "line 2: needs the text 'sentence_bad'"),
        ("[]", "line 2: needs the text 'sentence_good'"),
    ],
)
def test_a_line_that_is_no_pair_is_one_line_before_any_work(tmp_path: Path, line: str, why: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"sentence_good": "a", "sentence_bad": "b"}\n' + line + "\n")
    (found,) = Pairs([str(tmp_path / "a.jsonl")]).problems()
    assert why in found
    assert "nothing is there" in Pairs([str(tmp_path / "b.jsonl")]).problems()[0]


# The last word


def test_cloze_is_that_of_transformers(gpt: Path, tmp_path: Path) -> None:
    passages = ["The old king saw the ships", "Nobody had seen\tthe river ", "The end", "the " * 30 + "ships were old"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in passages[:2]))
    (tmp_path / "b.txt").write_text("\n\n".join(passages[2:]))
    reference, bits, right = Reference(gpt, transformers.GPT2LMHeadModel), [], []
    for text in passages:
        before, blank, last = re.fullmatch(r"(.*)(\s)(\S+)\s*", text).groups()
        read, whole = ([reference.end, *reference.ids(part)] for part in (before, before + blank + last))
        assert whole[: len(read)] == read
        target = whole[len(read) :]
        read = read[-(POSITIONS + 1 - len(target)) :]
        bits.append(-sum(reference.after(read, target)) / math.log(2))
        logs = reference.logs([*read, *target][:-1])[len(read) - 1 :]
        right.append(logs.argmax(-1).tolist() == target)
    results = measured(gpt, Cloze([str(tmp_path / "*")]))
    assert results["cloze/bits"].value == pytest.approx(statistics.fmean(bits), abs=1e-4)
    assert results["cloze/bits"].stderr == pytest.approx(statistics.stdev(bits) / 2, abs=1e-4)
    assert results["cloze"].value == statistics.fmean(right) and results["cloze"].n == 4


def test_a_passage_of_one_word_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("two words\nword\n")
    assert "line 2: needs a word before the last one" in Cloze([str(tmp_path / "a.txt")]).problems()[0]
    assert Cloze([]).problems()[0].startswith("evaluation.cloze.files=[]: allowed: one or more")


# Any text


@pytest.mark.parametrize(("window", "stride"), [(None, None), (24, 24), (10, 3), (7, 1)])
def test_text_perplexity_is_that_of_transformers(
    gpt: Path, tmp_path: Path, window: int | None, stride: int | None
) -> None:
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    reference = Reference(gpt, transformers.GPT2LMHeadModel)
    ids, size = reference.ids(TEXT), window or POSITIONS
    read, nats = [reference.end, *ids], 0.0
    # A token at a time: which window predicts it follows from the rule alone.
    for place in range(len(ids)):
        step = stride or size // 2
        end = size if place < size else size + step * ((place - size) // step + 1)
        begin = max(0, min(end, len(ids)) - size)
        nats -= reference.after(read[begin : place + 1], [ids[place]])[0]
    results = measured(gpt, TextPerplexity([str(tmp_path / "a.txt")], window, stride))
    words, size = len(TEXT.split()), len(TEXT.encode())
    assert results["text_perplexity"].value == pytest.approx(math.exp(nats / words), rel=1e-5)
    assert results["text_perplexity/bits_per_byte"].value == pytest.approx(nats / size / math.log(2), rel=1e-5)
    assert results["text_perplexity/tokens"].value == pytest.approx(math.exp(nats / len(ids)), rel=1e-5)
    assert [one.n for one in results.values()] == [words, size, len(ids)]


def test_a_wrong_window_is_one_line(gpt: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    files = [str(tmp_path / "a.txt")]
    assert (
        TextPerplexity(files, 8, 9).problems()[0].startswith("evaluation.text_perplexity.stride=9: allowed: null, or")
    )
    with pytest.raises(UserError, match="window=25: allowed: null, or at most the 24 tokens"):
        measured(gpt, TextPerplexity(files, window=25))
    with pytest.raises(UserError, match="stride=25: allowed: null, or at most the 24 tokens of a window"):
        measured(gpt, TextPerplexity(files, stride=25))


def test_a_file_that_is_no_text_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe bytes")
    (tmp_path / "b.txt").write_text(" \n")
    first, second = TextPerplexity([str(tmp_path / "*.txt")]).problems()
    assert "a.txt: cannot be read as text in UTF-8" in first and "b.txt: no word in it" in second


# What does not fit a model


def test_a_run_is_told_what_does_not_fit_its_model_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words\nthe end is " + "x" * 300 + "\n")
    (tmp_path / "read.txt").write_text("\n\n".join(f"The king saw {n} ships near the house." for n in range(400)))
    asked = ["data=text", f"data.files=[{tmp_path / 'read.txt'}]", f"cache={tmp_path / 'cache'}",
             "model=gpt_micro", "model.vocab=264", "hardware=cpu", "budget=12 steps", *toy.SMALL]  # fmt: skip
    (point,) = points.of(command.read(asked))
    most = point.settings.data.sequence
    files = [str(tmp_path / "a.txt")]
    for wrong, said in (
        (TextPerplexity(files, window=most + 1), f"window={most + 1}: allowed: null, or at most the {most} tokens"),
        (Cloze(files), f"a.txt, line 2: last word=[0-9]+ tokens: allowed: 1 to {most} tokens"),
    ):
        config = load(point.settings)
        config.evaluation["wrong"] = wrong
        with pytest.raises(UserError, match=said):
            train(config, make_plan(config), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_sentence_without_a_token_wins_no_pair(gpt: Path, tmp_path: Path) -> None:
    rows = [
        {"sentence_good": "", "sentence_bad": "The king."},
        {"sentence_good": "a", "sentence_bad": "b", "UID": None},
    ]
    (tmp_path / "named.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"evaluation\.pairs: named: no token in the sentence ''"):
        measured(gpt, Pairs([str(tmp_path / "named.jsonl")]))
    assert list(Pairs([str(tmp_path / "named.jsonl")]).pairs()) == ["named"]


def test_where_nothing_can_be_measured_the_results_of_before_stay(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("two words\n")
    measured(bert, Pairs(), out=tmp_path / "out")
    before = (tmp_path / "out" / "evaluate.json").read_text()
    for asked, said in (([Cloze([str(tmp_path / "a.txt")])], "evaluation=cloze"), ([], "evaluation=nothing")):
        with pytest.raises(UserError, match=f"{said}: allowed: what can be measured of a model whose objective is mlm"):
            measured(bert, *asked, out=tmp_path / "out")
    assert (tmp_path / "out" / "evaluate.json").read_text() == before


def test_a_file_named_twice_counts_once_or_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("two words\n")
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    for names in (["a.txt", "a.txt"], ["a.txt", "*.txt"], ["a.txt", "link.txt"]):
        (found,) = Cloze([str(tmp_path / name) for name in names]).problems()
        assert "a.txt: allowed: each file once; it is named more than once" in found
    (found,) = Cloze([str(tmp_path)]).problems()
    assert "no file is there, but a folder" in found


def test_numbers_of_other_files_have_other_settings(gpt: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"

    def settings(text: str) -> set[str | None]:
        file.write_text(text)
        found = {**measured(gpt, Cloze([str(file)])), **measured(gpt, TextPerplexity([str(file)]))}
        return {one.settings for one in found.values()}

    first = settings("The old king\n")
    assert len(first) == 2 and settings("The old king\n") == first
    assert not settings("The old ship\n") & first


@pytest.mark.skipif(not WIKITEXT.is_file(), reason="WikiText-2 of ../shared is absent")
def test_the_wikitext_file_is_read_to_its_end(gpt: Path) -> None:
    _, known = opened(gpt)
    text = WIKITEXT.read_text(encoding="utf-8")
    ids = known.ids(text)
    assert known.text(ids) == text and known.widths[ids].sum() == len(text.encode())


# The held-out set in bytes


def test_bits_per_byte_are_those_of_the_text_that_the_labels_cover(gpt: Path, tmp_path: Path) -> None:
    documents = [f"{TEXT} {number} più vecchio" for number in range(40)]
    (tmp_path / "a.txt").write_text("\n\n".join(" ".join(d.split()) for d in documents), encoding="utf-8")
    node = {"_target_": "mlrun.data.text.files.Files", "files": [str(tmp_path / "a.txt")], "format": "text",
            "sequence": 16, "tokenizer": None, "held_out": 0.3}  # fmt: skip
    results = {
        batch: evaluate_folder(gpt, Data(DictConfig(node), 0, tmp_path / "cache", batch), Hardware(), [HeldOut()], None)
        for batch in (3, 64)
    }
    source = evaluate_source(node, gpt, tmp_path)
    reference, nats, sizes = Reference(gpt, transformers.GPT2LMHeadModel), [], []
    for row in source.validation(1):
        labels, tokens = row["labels"][0].tolist(), row["tokens"][0].tolist()
        logs = reference.logs(tokens)
        nats.append(-sum(float(logs[i, id]) for i, id in enumerate(labels)))
        # Byte by byte: a window may end inside a letter.
        names = [reference.tokenizer.id_to_token(id) for id in labels if id != reference.end]
        sizes.append(sum(map(len, names)))
    rate = sum(nats) / sum(sizes)
    left = [x - rate * b for x, b in zip(nats, sizes, strict=True)]
    n = len(nats)
    error = math.sqrt(sum(x**2 for x in left) / (n - 1) / n) / (sum(sizes) / n) / math.log(2)
    for found in results.values():
        assert found["bits_per_byte"].value == pytest.approx(rate / math.log(2), rel=1e-5)
        assert found["bits_per_byte"].stderr == pytest.approx(error, rel=1e-3)
        assert found["bits_per_byte"].n == sum(sizes) and found["held_out"].n == n


def test_a_tokenizer_that_changes_the_text_has_no_bytes(tmp_path: Path, bert: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((bert / name).read_bytes())
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "king"]) + "\n")
    assert words.of_folder(open_folder(tmp_path)).widths is None
    assert words.of_folder(open_folder(bert)).widths is not None


def test_a_share_has_an_interval_even_where_all_are_right() -> None:
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    low, high = wilson(1.0, 10)
    assert (low, high) == pytest.approx((0.7225, 1.0), abs=1e-4) and high <= 1.0
    assert wilson(0.0, 10)[0] == 0.0


# In a run


def test_a_run_measures_them_where_a_stage_ends_and_its_export_says_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(f"The king saw {n} ships near the house." for n in range(400)))
    few = [{"sentence_good": good, "sentence_bad": bad} for good, bad in grammar.pairs()["agreement"][:20]]
    (tmp_path / "few.jsonl").write_text("\n".join(map(json.dumps, few)))
    asked = ["data=text", f"data.files=[{tmp_path / 'a.txt'}]", f"cache={tmp_path / 'cache'}", "model=gpt_micro",
             "model.vocab=300", "hardware=cpu", "budget=12 steps", "evaluation=[held_out,pairs]", "optimizer.ema=0.9",
             f"evaluation.pairs.files=[{tmp_path / 'few.jsonl'}]", "cycle.optimizer_policy=carry",
             f"run={tmp_path / 'run'}", *toy.SMALL]  # fmt: skip
    (point,) = points.of(command.read(asked))
    config = load(point.settings)
    plan = make_plan(config)
    train(config, plan, tmp_path / "run")
    records = [one for one in toy.records(tmp_path / "run") if one["kind"] == "val"]
    ends = {stage.end for stage in plan.stages}
    assert all(("results" in one) == ("pairs" in one) for one in records) and len(records) > len(ends)
    assert {one["step"] for one in records if "results" in one} == ends
    last = records[-1]
    assert last["results"]["pairs"]["value"] == last["pairs"] and last["results"]["held_out"]["value"] == last["loss"]
    assert {"ema_pairs", "ema_loss", "bits_per_byte"} <= set(last) and "ema_held_out" in last["results"]
    again = evaluate(tmp_path / "run", Hardware(), config.evaluation.values())
    assert as_dict(again) == {key: one for key, one in last["results"].items() if not key.startswith("ema_")}
    export_hf(tmp_path / "run", tmp_path / "hf")
    data = Data(point.settings.data, 0, tmp_path / "cache", 32)
    exported = evaluate_folder(tmp_path / "hf", data, Hardware(), config.evaluation.values(), None)
    assert as_dict(exported) == as_dict(again)


def test_without_a_tokenizer_text_cannot_be_measured_and_nothing_is_written(tmp_path: Path) -> None:
    config = toy.make()
    config.evaluation["pairs"] = Pairs()
    with pytest.raises(UserError, match="evaluation=Pairs: allowed: what needs no tokenizer"):
        toy.run(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_whoever_waits_is_told_what_is_measured_and_how_far(gpt: Path, tmp_path: Path) -> None:
    (tmp_path / "cloze.txt").write_text("one two three\nsome words\n")
    told: list[tuple[str, int, int | None]] = []
    data = Data(DictConfig({"_target_": "nothing"}), 0, Path("unused"), 1)
    asked = [Pairs(), Cloze(files=[str(tmp_path / "cloze.txt")])]
    found = evaluate_folder(gpt, data, Hardware(), asked, None, lambda *how: told.append(how))
    assert found == evaluate_folder(gpt, data, Hardware(), asked, None)
    assert told[0] == ("pairs", 0, None) and told[-3:] == [("cloze", 0, None), ("cloze", 0, 2), ("cloze", 1, 2)]
    pieces = [(done, of) for what, done, of in told if what == "pairs" and of is not None]
    assert pieces == [(done, len(pieces)) for done in range(len(pieces))] and len(pieces) > 2


def evaluate_source(node: dict[str, Any], folder: Path, cache: Path) -> Any:
    from mlrun.config.choices import build

    spec = build(DictConfig({**node, "tokenizer": str(folder)}), "data")
    return spec.open(open_folder(folder).model, 0, str(cache / "cache"))


def opened(folder: Path) -> tuple[Any, words.Words]:
    from mlrun.evaluate.finished import network
    from mlrun.train.parallel import processes

    found = open_folder(folder)
    known = words.of_folder(found)
    assert known is not None
    return network(found, processes.start(Hardware()), Hardware()), known


def context(known: words.Words) -> Any:
    from mlrun.evaluate.base import Context
    from mlrun.train.parallel import processes

    return Context(None, 5, Hardware(), processes.start(Hardware()), words=known)
