"""Fine-tuning: the heads are those of `transformers`, the recipe is the published one, and a number says what it is."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mlrun.cli import command, points
from mlrun.config.load import load
from mlrun.config.settings import Hardware
from mlrun.data.images.augment import Augment
from mlrun.data.images.files import ImageFiles
from mlrun.data.images.mixup import Mix
from mlrun.errors import UserError
from mlrun.evaluate import classifier, finetune, glue, glue_tasks, metrics, words
from mlrun.evaluate.base import Benchmark, Context, Result, unfit
from mlrun.evaluate.finetune import Trial
from mlrun.evaluate.finished import Data, evaluate_folder
from mlrun.evaluate.glue import Glue
from mlrun.evaluate.proportion import wilson
from mlrun.evaluate.transfer import Transfer
from mlrun.interop.read import open_folder
from mlrun.models.deit import DeiT
from mlrun.models.network import build
from mlrun.train.parallel.processes import Ranks

transformers = pytest.importorskip("transformers", reason="the reference is not installed")

GLUE = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "glue"
ALONE = Ranks(0, 1, torch.device("cpu"))
SEEN = ("The king saw the ships.", "Nobody had seen the river.")
QUICK: dict[str, Any] = {"rates": [5e-3], "seeds": [0], "batch": 8, "epochs": 1.0}


def table(path: Path, rows: Sequence[tuple[str, Any]], header: str = "sentence\tlabel") -> str:
    path.write_text("\n".join([header, *(f"{text}\t{label}" for text, label in rows)]) + "\n")
    return str(path)


def ruled(folder: Path, train: int = 64, dev: int = 20) -> dict[str, dict[str, str]]:
    """Return a task in which one word tells the answer, sst2 by name."""
    rows = [(f"{'The old king' if n % 2 else 'Nobody'} saw {n}.", n % 2) for n in range(train + dev)]
    return {"sst2": {"train": table(folder / "t.tsv", rows[:train]), "dev": table(folder / "d.tsv", rows[train:])}}


def measured(folder: Path, *evaluations: Benchmark) -> dict[str, Result]:
    data = Data(DictConfig({"_target_": "nothing"}), 0, Path("unused"), 7)
    return evaluate_folder(folder, data, Hardware(), evaluations, None)


# Heads


def learner(folder: Path, outputs: int = 3) -> tuple[classifier.Classifier, words.Words]:
    """Return a folder's network with a new head, and its words."""
    found = open_folder(folder)
    net = build(found.model, None)
    net.load_state_dict({name: found[name].float() for name in found})
    known = words.of_folder(found)
    assert known is not None
    return classifier.Classifier(net, outputs, 0.0, seed=0).eval(), known


def examples(known: words.Words, objective: str, longest: int = 24) -> list[classifier.Encoded]:
    texts = [SEEN[:1], SEEN[1:], SEEN, (SEEN[0] * 3, SEEN[1])]
    return [
        classifier.encoded(known, objective, [known.ids(text) for text in pair], number % 3, longest)
        for number, pair in enumerate(texts)
    ]


def test_a_masked_models_head_is_that_of_transformers_whatever_fills_the_batch_up(bert: Path) -> None:
    ours, known = learner(bert)
    found = examples(known, "mlm")
    assert len({len(one.tokens) for one in found}) > 1
    with torch.no_grad():
        loss, logits = ours(classifier.batch(found, masked=True))
    theirs = transformers.BertForSequenceClassification.from_pretrained(bert, num_labels=3).eval()
    theirs.bert.pooler.dense.load_state_dict(ours.pool.state_dict())
    theirs.classifier.load_state_dict(ours.out.state_dict())
    with torch.no_grad():
        expected = torch.cat([theirs(torch.tensor([one.tokens])).logits for one in found])
    assert torch.allclose(logits, expected, atol=1e-5)
    right = torch.tensor([int(one.answer) for one in found])
    assert float(loss) == pytest.approx(float(torch.nn.functional.cross_entropy(expected, right)), rel=1e-4)


def test_a_causal_models_head_is_that_of_transformers_whatever_fills_the_batch_up(gpt: Path) -> None:
    ours, known = learner(gpt)
    found = examples(known, "causal")
    with torch.no_grad():
        _, logits = ours(classifier.batch(found, masked=False))
    theirs = transformers.GPT2ForSequenceClassification.from_pretrained(gpt, num_labels=3).eval()
    theirs.score.weight.data = ours.out.weight.data
    with torch.no_grad():
        expected = torch.cat([theirs(torch.tensor([one.tokens])).logits for one in found])
    assert torch.allclose(logits, expected, atol=1e-5), "the bias starts at zero"


def test_of_two_texts_the_longer_one_is_shortened(bert: Path, gpt: Path) -> None:
    known, causal = learner(bert)[1], learner(gpt)[1]
    one, two = list(range(50, 60)), list(range(70, 73))
    start, end = known.vocabulary.start, known.vocabulary.end
    found = classifier.encoded(known, "mlm", [one, two], 1.0, 10)
    assert found.tokens == [start, *one[:4], end, *two, end] and found.shortened and found.at == 0
    found = classifier.encoded(causal, "causal", [one, two], 1.0, 16)
    between = causal.before
    assert found.tokens == [between, *one, between, *two, between] and not found.shortened
    assert found.tokens[found.at] == between and found.at == len(found.tokens) - 1


@pytest.mark.parametrize("objective", ["mlm", "causal"])
def test_the_flops_are_what_torch_counts(bert: Path, gpt: Path, objective: str) -> None:
    ours, known = learner(bert if objective == "mlm" else gpt)
    found = classifier.batch(examples(known, objective), masked=objective == "mlm")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        ours(found)[0].backward()
    assert classifier.Classifier.flops(ours.net.model, found, 3) == counter.get_total_flops()


# The recipe


def test_the_rate_rises_in_a_tenth_and_falls_to_zero() -> None:
    reference = transformers.get_linear_schedule_with_warmup
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = reference(optimizer, 10, 100)
    expected = []
    for _ in range(100):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    ours = [finetune.factor(step, 100, 0.1) for step in range(100)]
    assert ours[10:] == pytest.approx(expected[10:])
    assert ours[:10] == pytest.approx([*expected[1:10], 1.0]), "their first step has the rate 0, and teaches nothing"
    assert all(0 < one <= 1 for steps in (1, 2, 5) for one in (finetune.factor(s, steps, 0.1) for s in range(steps)))


def test_every_epoch_reads_every_example_once_in_another_order(bert: Path) -> None:
    known = learner(bert)[1]
    found = [replace(one, answer=float(n)) for n, one in enumerate(examples(known, "mlm") * 3)]
    batches = classifier.shuffled(found, 5, True, seed=0)
    epochs = [[int(x) for _ in range(3) for x in next(batches)["labels"]] for _ in range(2)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs) and epochs[0] != epochs[1]
    other = classifier.shuffled(found, 5, True, seed=1)
    assert [int(x) for x in next(other)["labels"]] != epochs[0][:5]
    recipe = Glue(tasks={}, batch=5, epochs=2.0)
    assert recipe.steps(12) == 6 and replace(recipe, epochs=0.01).steps(12) == 1


def trial(rate: float, seed: int, value: float) -> Trial:
    return Trial(rate, seed, {"accuracy": value}, 10)


def test_the_rate_is_chosen_by_its_mean_and_the_result_says_so() -> None:
    found = [trial(1, 0, 0.5), trial(1, 1, 0.9), trial(2, 0, 0.75), trial(2, 1, 0.8), trial(3, 0, math.nan)]
    found += [trial(3, 1, 1.0)]
    one = finetune.result("accuracy", found, 100, 1, {"guess": 0.5})
    assert one.value == pytest.approx(0.775) and one.n == 100
    assert one.stderr == pytest.approx(statistics.stdev([0.75, 0.8]) / math.sqrt(2))
    assert one.interval == wilson(one.value, 100)
    assert one.about["rate"] == 2 and one.about["seeds"] == {"0": 0.75, "1": 0.8} and one.about["guess"] == 0.5
    assert one.about["by_rate"] == {"1": pytest.approx(0.7), "2": pytest.approx(0.775), "3": None}
    assert one.about["fine_tuning_flops"] == 60 and "this same set" in one.about["chosen"]
    assert finetune.result("accuracy", found[:1], 100, 1, {}).stderr is None, "one seed tells no error"
    lost = finetune.result("accuracy", found[4:5], 100, 1, {}).as_dict()
    assert lost["value"] is None and "interval" not in lost
    json.dumps(lost, allow_nan=False)


def test_processes_share_the_trials_and_take_equally_many_steps(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Glue(tasks=ruled(tmp_path), **QUICK | {"rates": [1e-3, 5e-3, 1e-2]})
    ran: dict[int, list[tuple[float, int]]] = {}
    paused = [0, 0]

    def fake(subject: Any, recipe: Any, context: Any, rate: float, seed: int) -> Trial:
        ran.setdefault(context.ranks.rank, []).append((rate, seed))
        context.pause()
        return trial(rate, seed, rate)

    monkeypatch.setattr(finetune, "_trial", fake)
    everywhere: list[Any] = []
    for rank in (1, 0):

        def together(step: Any) -> list[Any]:
            everywhere.append(step())
            return everywhere

        def pause(rank: int = rank) -> None:
            paused[rank] += 1

        ranks: Any = SimpleNamespace(world=2, rank=rank, device=torch.device("cpu"), together=together)
        subject: Any = None
        if rank == 1:
            with pytest.raises(KeyError):  # the other one's are not there yet
                finetune.trials(subject, recipe, Context(None, 4, Hardware(), ranks, pause))
            continue
        found = finetune.trials(subject, recipe, Context(None, 4, Hardware(), ranks, pause))
    assert [one.rate for one in found] == recipe.rates and paused == [2, 2]
    assert ran == {1: [(5e-3, 0), (1e-2, 0)], 0: [(1e-3, 0), (1e-2, 0)]}


# What is learned


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_a_word_that_tells_the_answer_is_learned_and_the_same_again(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    recipe = Glue(tasks=ruled(tmp_path), **QUICK | {"epochs": 4.0, "seeds": [0, 1]})
    found = measured(folder, recipe)
    assert set(found) == {"glue/sst2"}
    one = found["glue/sst2"]
    assert one.value == 1.0 and one.n == 20 and one.metric == "accuracy"
    about = {key: one.about[key] for key in ("guess", "majority", "train", "shortened", "rate")}
    assert about == {"guess": 0.5, "majority": 0.5, "train": 64, "shortened": 0, "rate": 5e-3}
    assert one.about["fine_tuning_flops"] > 0 and set(one.about["seeds"]) == {"0", "1"}
    assert measured(folder, recipe) == found


def test_another_seed_is_another_number(bert: Path, tmp_path: Path) -> None:
    def loss(seed: int) -> list[float]:
        found = open_folder(bert)
        known = words.of_folder(found)
        context = Context(None, 7, Hardware(), ALONE, words=known)
        weights = {name: found[name].float() for name in found}
        recipe = Glue(tasks=ruled(tmp_path), **QUICK)
        subject = glue.Answers.of(recipe, found.model, weights, context, "sst2", recipe.tasks["sst2"], 24)
        net = subject.learner(seed)
        finetune._train(net, subject, recipe, context, 1e-3, seed)
        return finetune._logits(net, subject, context).ravel().tolist()

    torch.manual_seed(7)
    before = loss(0)
    torch.manual_seed(8)  # nothing is drawn from what others left
    assert loss(0) == before and loss(1) != before


def test_a_number_is_predicted_and_tasks_are_averaged(bert: Path, tmp_path: Path) -> None:
    rows = [(f"The old king.\t{'Nobody' if n % 3 else 'The old king'} saw {n}.", n % 3 * 2.5) for n in range(32)]
    header = "sentence1\tsentence2\tscore"
    pairs = {"train": table(tmp_path / "a.tsv", rows[:20], header), "dev": table(tmp_path / "b.tsv", rows[20:], header)}
    found = measured(bert, Glue(tasks={**ruled(tmp_path), "stsb": pairs}, **QUICK))
    assert set(found) == {"glue", "glue/sst2", "glue/stsb", "glue/stsb/pearson", "glue/stsb/spearman"}
    assert found["glue/stsb"].metric == "pearson and spearman" and "majority" not in found["glue/stsb"].about
    parts = [found[f"glue/stsb/{name}"].value for name in ("pearson", "spearman")]
    assert found["glue/stsb"].value == pytest.approx(statistics.fmean(parts))
    mean = found["glue"]
    assert mean.value == pytest.approx((found["glue/sst2"].value + found["glue/stsb"].value) / 2)
    assert mean.metric == "mean of sst2, stsb" and mean.n == 32 and mean.about["guess"] == 0.25


@pytest.mark.skipif(not GLUE.is_dir(), reason="GLUE's tasks of ../shared are absent")
def test_real_tasks_are_read() -> None:
    rte = glue_tasks.parts("rte", {part: str(GLUE / "rte" / f"{part}.tsv") for part in ("train", "dev")})
    assert [len(part) for part in rte] == [2127, 277] and all(len(one.texts) == 2 for one in rte[1])
    assert metrics.majority([one.answer for one in rte[1]]) == pytest.approx(0.527, abs=1e-3)
    sst2 = glue_tasks.of_file("sst2", str(GLUE / "sst2" / "test.tsv"))
    assert len(sst2) == 872 and sst2[0].texts == ("it 's a charming and often affecting journey . ",)


# Metrics


def test_metrics_are_gluess() -> None:
    given, right = [1, 1, 0, 0, 1], [1, 0, 0, 1, 1]
    assert metrics.score("accuracy", given, right) == pytest.approx(3 / 5)
    assert metrics.score("f1", given, right) == pytest.approx(2 / 3)
    assert metrics.score("matthews", given, right) == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))
    assert metrics.score("pearson", [1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert metrics.score("spearman", [1, 2, 30], [1, 4, 5]) == pytest.approx(1)
    assert metrics.score("pearson", [1, 1, 1], [1, 4, 5]) == 0.0 == metrics.score("matthews", [1] * 5, right)
    assert math.isnan(metrics.score("accuracy", [math.nan, 1], [0, 1]))


def test_guessing_is_the_best_single_answer() -> None:
    right = [0.0, 1.0, 1.0, 1.0]
    assert metrics.guess("accuracy", right) == metrics.majority(right) == 0.75
    assert metrics.guess("f1", [0.0, 0.0, 1.0]) == pytest.approx(0.5), "all are class 1"
    assert metrics.guess("matthews", right) == metrics.guess("pearson", [1.0, 2.5]) == 0.0


# Files and the hub


def test_every_format_gives_the_same_examples(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"sentence1": 'He said "no', "sentence2": "a, b", "label": 1},
        {"sentence1": "x", "sentence2": "y", "label": 0},
    ]
    lines = ["sentence1\tsentence2\tlabel", *(f"{r['sentence1']}\t{r['sentence2']}\t{r['label']}" for r in rows)]
    (tmp_path / "a.tsv").write_text("\n".join(lines))
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "b.tsv").write_text("\n".join(lines).replace("\t1", "\tnot_entailment").replace("\t0", "\tentailment"))
    found = [glue_tasks.of_file("rte", str(file)) for file in sorted(tmp_path.iterdir())]
    assert len(found) == 5 and set(found) == {found[0]}
    assert found[0][0] == glue_tasks.Example(('He said "no', "a, b"), 1.0)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("sentence\tlabel\na\t2\n", "line 2: label=2: allowed: negative (0) or positive (1)"),
        ("sentence\tlabel\na\t-1\n", "label=-1: allowed"),
        ("sentence\tlabel\na\t\n", "label=: allowed"),
        ("text\tlabel\na\t1\n", "no column sentence among text, label"),
        ("sentence\tlabel\na\n", "line 2: 1 columns, but the first line names 2"),
        ("sentence\tlabel\n", "no example in it"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line_before_any_work(tmp_path: Path, text: str, why: str) -> None:
    tasks = ruled(tmp_path)
    (tmp_path / "bad.tsv").write_text(text)
    (found,) = Glue(tasks={"sst2": tasks["sst2"] | {"dev": str(tmp_path / "bad.tsv")}}).problems()
    assert why in found


def test_settings_that_cannot_be_are_lines(tmp_path: Path) -> None:
    tasks = ruled(tmp_path)
    assert Glue(tasks=tasks).problems() == []

    def first(**changes: Any) -> str:
        return Glue(**{"tasks": tasks, **changes}).problems()[0]

    assert first(rates=[]).startswith("evaluation.glue.rates=[]: allowed: different ones above 0")
    assert "seeds=[0, 0]" in first(seeds=[0, 0]) and "warmup=1.0" in first(warmup=1.0)
    assert "epochs=0" in first(epochs=0) and "max_length=3" in first(max_length=3)
    assert first(tasks={}).startswith("evaluation.glue.tasks={}: allowed: cola, sst2")
    assert first(tasks={"sst": "hub"}).startswith("evaluation.glue.tasks=sst: allowed: cola")
    assert "allowed: hub, or {train: FILE, dev: FILE}" in first(tasks={"rte": "here"})
    assert "nothing is there" in first(tasks={"rte": {"train": "no.tsv", "dev": "no.tsv"}})
    assert "a file that ends in .tsv" in first(tasks={"rte": {"train": "no.txt", "dev": "no.tsv"}})
    same = dict.fromkeys(("train", "dev"), tasks["sst2"]["dev"])
    assert "allowed: other examples than those of train" in first(tasks={"sst2": same})
    lines = Path(tasks["sst2"]["train"]).read_text().splitlines()
    (tmp_path / "part.tsv").write_text("\n".join([lines[0], *lines[:2:-1]]) + "\n")
    part = {"sst2": tasks["sst2"] | {"dev": str(tmp_path / "part.tsv")}}
    assert "allowed: other examples than those of train" in first(tasks=part)
    digests = {Glue(tasks=tasks).settings}
    with open(tasks["sst2"]["dev"], "a") as dev:
        dev.write(lines[1] + "\n")
    assert Glue(tasks=tasks).settings not in digests


def test_an_example_longer_than_the_model_reads_is_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="max_length=25: allowed: null, or at most the 24 tokens"):
        measured(bert, Glue(tasks=ruled(tmp_path), max_length=25))


def test_the_hub_is_asked_for_glues_own_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(path: str, **settings: Any) -> list[dict[str, Any]]:
        asked.append((path, settings["name"], settings["split"]))
        number = len(asked)
        return [{"premise": f"a {number}", "hypothesis": "b", "label": 2, "idx": 0}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    glue_tasks.on_the_hub.cache_clear()
    assert glue_tasks.pair_problems("mnli_mm", "hub") == []
    assert asked == [("nyu-mll/glue", "mnli", "train"), ("nyu-mll/glue", "mnli", "validation_mismatched")]
    glue_tasks.on_the_hub.cache_clear()

    def away(path: str, **settings: Any) -> None:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", away)
    (line,) = Glue(tasks={"rte": "hub"}).problems()
    assert line.startswith("evaluation.glue.tasks: nyu-mll/glue rte train cannot be loaded") and "go online" in line


# Pictures


DIGITS = {"_target_": "mlrun.data.images.digits.Digits", "classes": 10, "mean": [0.13], "std": [0.31], "held_out": 0.02,
          "augment": {"crop": None, "flip": 0.0, "operations": 0, "erase": 0.0},
          "mix": {"mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0}}  # fmt: skip


def small(**changes: Any) -> DeiT:
    sizes = {"image": 14, "channel": 1, "patch": 7, "classes": 4, "embed": 16, "head": 2, "head_dim": 8, "ffn": 32}
    return DeiT(**{**sizes, "layer": 1, **changes})


def test_pictures_are_learned_with_a_new_head(tmp_path: Path) -> None:
    recipe = Transfer(data=DIGITS, rates=[3e-3], seeds=[0, 1], batch=64, epochs=0.5, dropout=0.0)
    assert recipe.problems() == [] and recipe.applies(small())
    net = build(small(), 0)
    context = Context(None, 64, Hardware(), ALONE, cache=str(tmp_path))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = recipe.measure(net, context)
    one = found["transfer"]
    assert set(found) == {"transfer"} and one.metric == "accuracy" and one.n == 100
    assert one.value > 0.25 > one.about["guess"] == 0.1 and one.interval == wilson(one.value, 100)
    assert len(set(one.about["seeds"])) == 2 and one.about["train"] == 4900
    steps, per = 2 * recipe.steps(4900), small(classes=10).flops(0, 1).total
    assert one.about["fine_tuning_flops"] == steps * 64 * per
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items()), "the run trains on"
    assert recipe.measure(net, context) == found


def test_what_is_no_other_set_of_pictures_is_one_line() -> None:
    assert "evaluation.transfer.data" in Transfer(data={"_target_": "mlrun.data.text.spec.Text"}).problems()[0]
    files = {"_target_": "mlrun.data.images.files.ImageFiles", "classes": 2, "mean": [0.5], "std": [0.5]}
    missing = Transfer(data={**files, "files": ["no"], "format": "imagefolder"}).problems()
    assert missing[0].startswith("evaluation.transfer.data.files=no: allowed: existing files")
    grey = Transfer(data=DIGITS | {"mean": [0.1] * 3, "std": [0.1] * 3})
    found = unfit([grey], small(), None)
    assert found and all(line.startswith("evaluation.transfer.data.mean") for line in found[:1])


def test_every_key_of_a_set_of_pictures_can_be_set_and_another_set_takes_its_place() -> None:
    def transfer(*words: str) -> Any:
        given = ["model=deit_digits", "data=digits", "evaluation=[held_out,transfer]", *words]
        (point,) = points.of(command.read(given))
        return load(point.settings).evaluation["transfer"]

    key = "evaluation.transfer.data"
    listed = transfer(f"{key}.files=[x]", f"{key}.validation_samples=7").data
    assert set(listed) == {"_target_", *(f.name for f in fields(ImageFiles))}
    assert set(listed["augment"]) == {f.name for f in fields(Augment)}
    assert set(listed["mix"]) == {f.name for f in fields(Mix)}
    hub = "{_target_: mlrun.data.images.hub.ImageHub, path: me/flowers, classes: 7, mean: [0.5], std: [0.2]}"
    assert hub in (Path(__file__).parents[2] / "docs/evaluation.md").read_text()
    assert transfer(f"~{key}", f"+{key}={hub}").spec().path == "me/flowers"


def test_infinite_logits_have_no_score(bert: Path, tmp_path: Path) -> None:
    found = open_folder(bert)
    context = Context(None, 7, Hardware(), ALONE, words=words.of_folder(found))
    recipe = Glue(tasks=ruled(tmp_path), **QUICK)
    subject = glue.Answers.of(recipe, found.model, {}, context, "sst2", recipe.tasks["sst2"], 24)
    logits = np.eye(2)[[int(one.answer) for one in subject.held]]
    assert subject.scores(logits) == {"accuracy": 1.0}
    logits[3] = np.inf
    assert math.isnan(subject.scores(logits)["accuracy"])
