"""Claims on `init=`: it is charged, it brings its model and tokenizer, and what does not fit is one line."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from called import Outcome, call

from mlrun import __main__
from mlrun.convert import coalesce_folder, interpolate_folders
from mlrun.interop import ledger
from mlrun.interop.folders import export_hf, import_hf
from mlrun.multilevel.coarsening.uniform import Uniform

SIZES = {"layer": 2, "embed": 16, "head": 2, "head_dim": 8, "ffn": 32, "vocab": 300, "position": 16}
MODEL = [f"model.{axis}={size}" for axis, size in SIZES.items()]
SHORT = ["data.sequence=16", "budget=8 steps", "batch=4", "data.validation_samples=8", "eval.every=100%"]


Command = Callable[..., Outcome]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a finished run A and its cache."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(sys, "argv", ["mlrun", *MODEL, *SHORT, "cache=cache", "cycle=scratch", "run=A"])
        __main__.main()
    return place


@pytest.fixture
def mlrun(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs `mlrun` where run A lies."""
    shutil.copytree(trained, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")

    def run(*arguments: str) -> Outcome:
        return call(capfd, *arguments, *([] if "task=export" in arguments else [*SHORT, "cache=cache"]))

    return run


def source(run: str) -> dict[str, Any]:
    return json.loads(Path(run, "plan.json").read_text())["source"]


def config(run: str) -> dict[str, Any]:
    return yaml.safe_load(Path(run, "config.yaml").read_text())


def log_size(run: str) -> int:
    return Path(run, "log.jsonl").stat().st_size


def spent(run: str) -> dict[str, Any]:
    return json.loads(Path(run, "summary.json").read_text())["ledger"]


def refused(outcome: Outcome, start: str, *words: str) -> None:
    """Assert one line, exit code 2, and nothing written."""
    assert (outcome.code, len(outcome.err)) == (2, 1), outcome
    assert outcome.err[0].startswith(f"mlrun: {start}") and all(word in outcome.err[0] for word in words)
    assert not Path("B").exists()


# What it cost


def test_a_start_is_charged_with_all_that_led_to_it(mlrun: Command) -> None:
    assert mlrun("init=A/model", "run=B").code == 0
    first, second = spent("A"), spent("B")
    assert source("B")["name"] == "A/model"
    assert (source("B")["flops"], source("B")["flops_body"]) == (first["total"]["flops"], first["total"]["flops_body"])
    assert source("B")["seconds"] == pytest.approx(first["seconds"]["training"], rel=0.5)
    assert mlrun("init=B", "cycle=scratch", "run=C").code == 0
    assert source("C")["flops"] == first["total"]["flops"] + second["total"]["flops"]
    assert [part["name"] for part in source("C")["parts"]] == ["A", "B"]


def test_a_recipe_is_that_of_all_seeds_and_of_no_other_setting(mlrun: Command) -> None:
    for run, given in {"C": ["seed=1"], "D": ["seed=1", "optimizer.lr=3e-3"]}.items():
        assert mlrun(*MODEL, *given, "cycle=scratch", f"run={run}").code == 0
    first, again, other = (ledger.read(Path(run, "model"))[-1].recipe for run in "ACD")
    assert first is not None and first == again != other
    assert mlrun("init=C", "seed=1", "run=B").code == 0
    assert [part["recipe"] for part in source("B")["parts"]] == [first]
    read = json.loads(Path("B/plan.json").read_text())["data"]["identity"]
    assert source("B")["parts"][0]["data"] == {name: read[name] for name in ("train", "held_out")}


def test_the_plan_says_what_the_start_had_cost(mlrun: Command) -> None:
    outcome = mlrun("task=plan", "init=A", "run=B")
    assert "starts from A, which had cost" in " ".join(outcome.out)
    assert source("B")["flops"] == spent("A")["total"]["flops"]
    (Path("A/model") / ledger.FILE).unlink()
    outcome = mlrun("task=plan", "init=A/model", "run=C")
    assert "unknown, so no saving can be told" in " ".join(outcome.out)
    assert source("C")["flops"] is None and source("C")["declared"] is False


def test_an_unknown_cost_can_be_declared_once(mlrun: Command) -> None:
    (Path("A/model") / ledger.FILE).unlink()
    assert mlrun("init=A", "init_flops=3G flops", "run=B").code == 0
    assert (source("B")["flops"], source("B")["seconds"], source("B")["declared"]) == (3 * 10**9, None, True)
    assert mlrun("init=B", "cycle=scratch", "run=C").code == 0
    assert source("C")["flops"] == 3 * 10**9 + spent("B")["total"]["flops"]
    assert source("C")["declared"]


@pytest.mark.parametrize("finished", [True, False])
def test_an_unknown_cost_can_be_declared_after_the_run_has_begun(mlrun: Command, finished: bool) -> None:
    (Path("A/model") / ledger.FILE).unlink()
    assert mlrun("init=A", "run=B").code == 0
    assert source("B")["flops"] is None
    before = Path("B/log.jsonl").read_text()
    if not finished:
        Path("B/summary.json").unlink()
    assert mlrun("init=A", "init_flops=3G flops", "run=B").code == 0
    assert Path("B/log.jsonl").read_text().startswith(before) and (not finished or len(before) == log_size("B"))
    assert (source("B")["flops"], source("B")["declared"], source("B")["seconds"]) == (3 * 10**9, True, None)
    assert config("B")["init_flops"] == "3G flops"
    assert sum(part.flops or 0 for part in ledger.read(Path("B/model"))) == 3 * 10**9 + spent("B")["total"]["flops"]
    # Told once: the same again is the same, another number is refused, and so is to take it back.
    assert mlrun("init=A", "init_flops=3G flops", "run=B").code == 0
    for other in (["init_flops=4G flops"], []):
        outcome = mlrun("init=A", *other, "run=B")
        assert outcome.code == 2 and len(outcome.err) == 1 and "init_flops (there 3G flops, here" in outcome.err[0]
    assert source("B")["flops"] == 3 * 10**9


@pytest.mark.parametrize("content", ["[" * 50_000, "null", '{"source": 3}', '{"source": {"parts": [{}]}}', "half"])
def test_a_damaged_plan_is_a_line(mlrun: Command, content: str) -> None:
    assert mlrun("init=A", "cycle=scratch", "run=D").code == 0
    Path("D/summary.json").unlink()
    Path("D/plan.json").write_text(content)
    outcome = mlrun("init=A", "cycle=scratch", "run=D")
    assert outcome.code == 2 and len(outcome.err) == 1 and "D/plan.json: " in outcome.err[0], outcome


def test_what_a_begun_run_knows_is_not_declared(mlrun: Command) -> None:
    assert mlrun("init=A", "run=B").code == 0
    began = source("B")
    outcome = mlrun("init=A", "init_flops=3G flops", "run=B")
    assert outcome.code == 2 and "init_flops=3G flops: allowed: null with init=A" in outcome.err[0]
    assert source("B") == began and config("B")["init_flops"] is None


@pytest.mark.parametrize("given", ["300", "50%", "0 flops", "5 steps", "rest"])
def test_a_declared_cost_is_a_number_of_flops(given: str, mlrun: Command) -> None:
    (Path("A/model") / ledger.FILE).unlink()
    refused(mlrun("init=A", f"init_flops={given}", "run=B"), f"init_flops={given}: allowed: FLOPs above 0")


def test_what_is_known_is_not_declared(mlrun: Command) -> None:
    refused(mlrun("init=A", "init_flops=1 flops", "run=B"), "init_flops=1 flops: allowed: null with init=A")
    refused(mlrun("init_flops=1 flops", "run=B"), "init_flops=1 flops: allowed: null without init")


def test_a_damaged_ledger_is_a_line(mlrun: Command) -> None:
    for content in (
        "{}",
        '{"parts": []}',
        '{"parts": [{"id": "x", "name": "A", "flops": -1}]}',
        "[",
        '{"parts": [{}]}',
    ):
        (Path("A/model") / ledger.FILE).write_text(content)
        refused(mlrun("init=A", "run=B"), "A/model/ledger.json:")


def test_a_resumed_run_keeps_what_it_began_with(mlrun: Command) -> None:
    assert mlrun("init=A", "run=B").code == 0
    began = source("B")
    shutil.rmtree("A")
    Path("B/summary.json").unlink()
    outcome = mlrun("init=A", "run=B")
    assert outcome.code == 2 and "data.tokenizer=A/model" in outcome.err[0], "the tokenizer is needed to go on"
    Path("A/model").mkdir(parents=True)
    shutil.copy("B/model/tokenizer.json", "A/model")
    assert mlrun("init=A", "run=B").code == 0
    assert source("B") == began


def test_folders_carry_what_they_cost(mlrun: Command, tmp_path: Path) -> None:
    a = ledger.read(Path("A/model"))
    assert a[0].flops == spent("A")["total"]["flops"]
    export_hf(Path("A"), Path("hf"))
    import_hf(Path("hf"), Path("back"))
    coalesce_folder(Path("hf"), Path("small"), Uniform(ffn=2))
    for place in ("hf", "back/model", "small"):
        assert ledger.read(Path(place)) == a
    assert mlrun("init=A", "run=B", "cycle=scratch").code == 0
    b = ledger.read(Path("B/model"))
    interpolate_folders(Path("A"), Path("B"), 0.5, Path("blend"))
    assert ledger.read(Path("blend/model")) == b, "A led to both and counts once"


def test_two_unknown_trainings_are_told_apart_and_known_beats_unknown() -> None:
    unknown, other = ledger.Training("x", "X"), ledger.Training("y", "Y")
    known = ledger.Training("x", "X", flops=5)
    assert ledger.merged((unknown,), (known, other)) == (known, other)
    assert not ledger.known((known, other))
    assert ledger.source("Z", (known, other))["flops"] is None
    told = ledger.declared((known, other), 7)
    assert ledger.source("Z", told)["flops"] == 12
    assert ledger.source("Z", told)["seconds"] is None


# What it brings


def test_the_tokenizer_beside_the_weights_is_taken(mlrun: Command) -> None:
    # Another corpus would have given another tokenizer.
    Path("text.txt").write_text("zebra quagga okapi\n\n" * 4000)
    assert mlrun("init=A", "data=text", "data.files=[text.txt]", "cycle=scratch", "run=B").code == 0
    assert Path("B/model/tokenizer.json").read_bytes() == Path("A/model/tokenizer.json").read_bytes()
    assert config("B")["data"]["tokenizer"] == "A/model/tokenizer.json"


def test_another_tokenizer_is_refused(mlrun: Command, tmp_path: Path) -> None:
    other = json.loads(Path("A/model/tokenizer.json").read_text())
    Path("same").mkdir()
    Path("same/tokenizer.json").write_text(json.dumps(other, indent=3))
    assert mlrun("task=plan", "init=A", "data.tokenizer=same", "run=C").code == 0
    vocab = other["model"]["vocab"]
    one, two = list(vocab)[-2:]
    vocab[one], vocab[two] = vocab[two], vocab[one]
    Path("same/tokenizer.json").write_text(json.dumps(other))
    for task in ("train", "plan"):
        outcome = mlrun(f"task={task}", "init=A", "data.tokenizer=same", "run=B")
        refused(outcome, "data.tokenizer=same: allowed: the tokenizer beside the weights")
    Path("A/model/tokenizer.json").unlink()
    refused(mlrun("init=A", "run=B"), "data.tokenizer=null: allowed: the tokenizer that the weights")
    assert mlrun("task=plan", "init=A", "data.tokenizer=same", "run=C").code == 0


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json"])
def test_a_tokenizer_that_cannot_be_read_is_named(name: str, mlrun: Command) -> None:
    Path("A/model/tokenizer.json").rename(Path("A/model") / name)
    refused(mlrun("init=A", "run=B"), "data.tokenizer=null: allowed:", f"{name} beside them cannot be read")


def test_what_was_published_of_generating_goes_on(mlrun: Command) -> None:
    assert mlrun("task=export", "run=A", "target=hf").code == 0
    facts = {"bos_token_id": 3, "eos_token_id": [0, 5]}
    path = Path("hf/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    beside = {
        "generation_config.json": '{"eos_token_id": [5, 7], "temperature": 0.5}',
        "chat_template.jinja": "{{ x }}",
    }
    for name, text in beside.items():
        Path("hf", name).write_text(text)
    assert mlrun("init=hf", "cycle=scratch", "run=B").code == 0
    assert mlrun("task=export", "run=B", "target=again").code == 0
    assert {name: Path("again", name).read_text() for name in beside} == beside
    again = json.loads(Path("again/config.json").read_text())
    assert {key: again[key] for key in facts} == facts
    # An end that the user chose is what the model learns to stop with.
    assert mlrun("init=hf", "data.end=ion", "cycle=scratch", "run=C").code == 0
    words = json.loads(Path("C/model/tokenizer.json").read_text())["model"]["vocab"]
    assert json.loads(Path("C/model/published.json").read_text()) == {"bos_token_id": 3, "eos_token_id": words["ion"]}
    assert not Path("C/model/generation_config.json").exists()


def test_sizes_that_nobody_gave_are_those_of_the_folder(mlrun: Command) -> None:
    assert mlrun("init=A", "model.dropout=0.1", "cycle=scratch", "run=B").code == 0
    assert {axis: config("B")["model"][axis] for axis in SIZES} == SIZES
    assert config("B")["model"]["dropout"] == 0.1
    assert json.loads(Path("B/model/config.json").read_text())["embed"] == 16


@pytest.mark.parametrize("task", ["train", "plan"])
def test_what_was_given_must_agree(task: str, mlrun: Command) -> None:
    asked = [f"task={task}", "init=A", "run=B", "cycle=scratch"]
    refused(mlrun(*asked, "model.layer=4"), "init=A: allowed: a GPT", "layer (there 2, here 4)")
    refused(mlrun(*asked, "model=gpt_tiny"), "init=A: allowed: a GPT", "embed (there 16, here 128)")
    refused(mlrun(*asked, "model=llama_tiny"), "init=A: allowed: a Llama", "it is a GPT")
    refused(mlrun(*asked, "init=nowhere"), "init=nowhere: allowed: a model folder")


def test_a_coarse_first_stage_is_judged_by_its_own_level(mlrun: Command) -> None:
    grow = ["cycle=grow", "coarsening.width=2", "coarsening.ffn=2", "coarsening.head=2", "coarsening.depth=1"]
    assert "grow" in {path.stem for path in (Path(__main__.__file__).parents[1] / "conf/cycle").glob("*.yaml")}
    wide = [f"model.{axis}={size}" for axis, size in (SIZES | {"embed": 32, "head": 4, "ffn": 64}).items()]
    assert mlrun("task=plan", "init=A", *grow, *wide, "run=C").code == 0
    refused(mlrun("task=plan", "init=A", *grow, *MODEL, "run=B"), "init=A: allowed: a GPT", "embed (there 16, here 8)")


def test_a_sweep_reads_the_folder_for_each_point(mlrun: Command) -> None:
    outcome = mlrun("-m", "init=A", "seed=0,1", "cycle=scratch", "run=S")
    assert outcome.code == 0, outcome
    assert [source(str(run))["name"] for run in sorted(Path("S").glob("[01]-*"))] == ["A", "A"]
