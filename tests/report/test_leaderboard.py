"""Claims about the public table: what keeps the rules gets in with all that redoing it needs; the rest is told."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_runs as fake
import pytest
import yaml
from test_endings import branched
from test_truth import small

from mlrun.errors import UserError
from mlrun.report.leaderboard import board as boards
from mlrun.report.leaderboard import rules, schema
from mlrun.report.leaderboard.board import Board, from_files, from_runs, table
from mlrun.report.leaderboard.entry import claim
from mlrun.report.leaderboard.smaller import told
from mlrun.report.public import named

WHOLE = ((2, 0), (1, 1000))
RATES = (1e-3, 2e-3, 4e-3)
FRESH = (1, 2, 3)


def a_pair(folder: Path, seed: int, lr: float, worse: float = 0.0, noise: float = 0.0) -> None:
    """Write a baseline and a cycle that needs less; by hand, 3.2 at 50% and 2.9 at 100% bracket its L* of 3."""
    branched(folder / f"s{seed}-{lr}", "scratch", [4.0 + worse + noise, 3.5 + worse, 3.0 + worse], seed=seed, lr=lr)
    found = [3.9 + worse, 3.2 + worse + noise, 2.9 + worse]
    branched(folder / f"g{seed}-{lr}", "grow", found, WHOLE, seed=seed, lr=lr)


def a_study(folder: Path) -> Path:
    """Write a sweep of both sides on seed 0, and its best rate on three fresh seeds."""
    for lr in RATES:
        a_pair(folder, 0, lr, 0.0 if lr == 2e-3 else 0.1)
    for seed in FRESH:
        a_pair(folder, seed, 2e-3, noise=0.01 * seed)
    return folder


def judged(folder: Path) -> Board:
    board = Board()
    from_runs(board, [folder], folder / "leaderboard")
    return board


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the result of the study, as its file has it."""
    board = judged(a_study(tmp_path_factory.mktemp("study")))
    assert board.refused == []
    (path,) = board.accepted
    return json.loads(path.read_text())


def test_a_study_on_fresh_seeds_gets_in_with_all_that_redoing_it_needs(result: Any) -> None:
    assert schema.problems(result) == [] and rules.broken(result) == []
    assert [seed["seed"] for seed in result["seeds"]] == list(FRESH), "the seed that chose is not among them"
    by_hand = [1 - 0.5 * 2 ** ((0.2 + 0.01 * s) / (0.3 + 0.01 * s)) for s in FRESH]
    assert result["claim"]["values"] == pytest.approx(by_hand)
    assert result["claim"]["low"] < result["claim"]["mean"] < result["claim"]["high"]
    chosen = result["chosen"]
    assert (chosen["seeds"], chosen["method"], chosen["baseline"], chosen["best"]) == ([0], 3, 3, 2e-3)
    run = result["seeds"][0]["run"]
    assert run["config"]["cycle"]["stages"] and run["config"]["seed"] == 1 and "run" not in run["config"]
    assert run["data"]["identity"] == fake.IDENTITY and run["starts"][0]["commit"] == fake.MACHINE["commit"]
    assert run["starts"][0]["processor"] and run["ledger"]["stages"] and result["target"]["mean"] == 3.0


def strings(value: Any) -> Iterator[str]:
    """Yield every string of a file, keys included."""
    below = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    yield from [value] if isinstance(value, str) else [text for one in below for text in strings(one)]


def test_a_result_names_no_place_of_the_machine_that_it_comes_from(tmp_path: Path) -> None:
    study = a_study(tmp_path / "study")
    for run in study.iterdir():
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["data"]["files"] = ["/home/zelda/my texts/train.txt", "~/own/more.txt"]
        (run / "config.yaml").write_text(yaml.safe_dump(config | {"init_flops": None, "cache": "/home/zelda/cache"}))
        plan = json.loads((run / "plan.json").read_text())
        plan["data"]["tokenizer"] = "/home/zelda/cache/text/0123/tokenizer.json"
        (run / "plan.json").write_text(json.dumps(plan))
        told = ["data.files=[/home/zelda/my texts/train.txt,~/own/more.txt]", f"run={run}", "cache=/home/zelda/cache"]
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        lines[0] |= {"overrides": told, "host": "zeldas-laptop"}
        (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    board = judged(study)
    assert board.refused == []
    found = json.loads(next(iter(board.accepted)).read_text())
    assert [text for text in strings(found) if any(word in text for word in ("/home", "~", "zelda"))] == []
    run = found["seeds"][0]["run"]
    assert run["config"]["data"]["files"] == ["train.txt", "more.txt"]
    assert run["starts"][0]["overrides"][0] == "data.files=[train.txt,more.txt]"
    assert run["starts"][0]["overrides"][1] == f"run={run['name']}" and "tokenizer" not in run["data"]
    assert run["starts"][0]["host"] == found["seeds"][0]["baseline"]["starts"][0]["host"]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/a/b c/d.txt", "d.txt"),
        ("~/x", "x"),
        ("~ada/x/", "x"),
        ("init=/a/b", "init=b"),
        ("+data={'path': '/a/b'}", "+data={'path': 'b'}"),
        ("grow, init=/a/b", "grow, init=b"),
        ("read /a/b c (/d/e)", "read b c (e)"),
        ("hf://a/b", "hf://a/b"),
        ("https://a.org/b", "https://a.org/b"),
        ("c4/en", "c4/en"),
        ("1/2", "1/2"),
        ("steps / s", "steps / s"),
    ],
)
def test_a_path_becomes_its_last_name(text: str, left: str) -> None:
    assert named(text) == left


def test_files_from_elsewhere_are_judged_and_shown(tmp_path: Path, result: Any) -> None:
    (tmp_path / "good.json").write_text(json.dumps(result))
    (tmp_path / "bad.json").write_text(json.dumps(result | {"failed": ["g4"]}))
    board = Board()
    from_files(board, [tmp_path])
    assert list(board.accepted) == [tmp_path / "good.json"]
    assert board.refused == [
        f"{tmp_path / 'bad.json'}: rule 'whole': g4 did not come to its end; a seed may not be left out"
    ]
    (cells,) = table(board).rows
    assert cells[0].startswith("grow") and cells[5:7] == ("3", "3.0000") and "%" in cells[8]
    assert cells[1] == "no smaller model tried"
    with pytest.raises(UserError, match="check the path"):
        from_files(Board(), [tmp_path / "none.json"])


def test_every_file_that_cannot_be_read_is_named_and_one_named_twice_stands_once(tmp_path: Path, result: Any) -> None:
    good = tmp_path / "good.json"
    good.write_text(json.dumps(result))
    board = Board()
    from_files(board, [tmp_path, good, tmp_path / ".." / tmp_path.name / "good.json"])
    assert len(board.accepted) == 1
    (tmp_path / "a.json").touch()
    (tmp_path / "b.json").mkdir()
    with pytest.raises(UserError) as error:
        from_files(Board(), [tmp_path])
    first, second = error.value.problems
    assert "a.json: cannot be read as JSON" in first and "b.json: cannot be read as JSON" in second


def at(*path: Any, value: Any) -> Callable[[Any], None]:
    def change(found: Any) -> None:
        for key in path[:-1]:
            found = found[key]
        found[path[-1]] = value

    return change


def each_run(key: str, value: Any) -> Callable[[Any], None]:
    return at("seeds", 1, "run", key, value=value)


def bound_as_a_number(found: Any) -> None:
    """Let the cheapest ending of two seeds be at L* already, and the claim be what its values would be."""
    for seed, loss in zip(found["seeds"], (2.96, 2.97, 3.05), strict=True):
        for ending, lower in zip(seed["run"]["endings"][:2], (0, 0.1), strict=True):
            ending["loss"] = loss - lower
    told = claim(found["seeds"])
    assert told.low is not None and told.low > 0
    found["claim"] |= {"values": list(told.values), "mean": told.mean, "low": told.low, "high": told.high, "p": told.p}
    found["claim"]["p_holm"] = told.p


def half_an_ending(found: Any) -> None:
    run = found["seeds"][0]["run"]
    taken = run["plan"]["stages"][2]["flops"] // 2
    run["plan"]["stages"][2]["flops"] -= taken
    run["endings"][0]["flops"] -= taken


def dearer_baseline(found: Any) -> None:
    """Double all that a baseline is said to have spent."""
    run = found["seeds"][0]["baseline"]
    for row in (*run["plan"]["stages"], *run["ledger"]["stages"], *run["endings"], run["plan"]["budget"]):
        row["flops"] *= 2


def dearer_model(found: Any) -> None:
    dearer_baseline(found)
    found["seeds"][0]["baseline"]["plan"]["levels"][0]["flops_per_sample"] *= 2


def copied_seed(found: Any) -> None:
    for mine, other in zip(*(found["seeds"][i]["run"]["endings"] for i in (1, 0)), strict=True):
        mine["loss"] = other["loss"]


def each_start(word: str) -> Callable[[Any], None]:
    return lambda found: found["seeds"][1]["run"]["starts"][0].update(overrides=[word])


def stranger(found: Any) -> None:
    found["seeds"][0]["smaller"] = [copy.deepcopy(found["seeds"][0]["baseline"])]


BREAKS = {
    "first crossing": (at("claim", "measure", value="first crossing"), "no stopping on validation", "cycle.branches"),
    "pruning": (at("seeds", 0, "run", "config", "find", value={"prune": 0.1}), "no stopping on validation", "prune"),
    "another length": (at("seeds", 0, "run", "plan", "stages", 0, "steps", value=7), "no stopping", "other stages"),
    "failed seed": (at("failed", value=["g9"]), "whole", "g9 did not come to its end"),
    "unfinished": (each_run("status", "running"), "whole", "is not finished"),
    "skipped": (each_run("skipped_steps", 2), "whole", "skipped steps"),
    "seed that chose": (at("chosen", "seeds", value=[0, 2]), "fresh seeds", "seed 2 took part"),
    "seed twice": (at("seeds", 1, "seed", value=1), "fresh seeds", "twice"),
    "bound": (at("claim", "at_least", value=True), "significance", "lower bound"),
    "not above 0": (at("claim", "low", value=-0.1), "significance", "not above 0"),
    "among many": (at("claim", "p_holm", value=0.06), "significance", "methods compared"),
    "baseline not swept": (at("chosen", "baseline", value=1), "matched baseline", "not swept"),
    "method tried more": (at("chosen", "method", value=4), "matched baseline", "4 settings, the baseline at 3"),
    "baseline at another rate": (at("chosen", "best", value=1e-3), "matched baseline", "best of its sweep is 0.001"),
    "edge": (at("chosen", "edge", value=True), "matched baseline", "edge"),
    "better elsewhere": (at("chosen", "better_elsewhere", value="s9"), "matched baseline", "ends lower"),
    "no digests": (each_run("data", {}), "known", "no digests"),
    "changed checkout": (each_run("starts", [{"commit": "abc+"}]), "known", "commit"),
    "uncharged": (each_run("source", {"flops": None}), "known", "not known"),
    "made up": (at("claim", "mean", value=0.5), "recomputed", "its endings say"),
    "made up seed": (at("claim", "values", 0, value=0.5), "recomputed", "its endings say"),
    "another L*": (at("seeds", 0, "target", value=3.1), "recomputed", "its baseline ended at 3.0"),
    "a bound as a number": (bound_as_a_number, "recomputed", "at_least is False; its endings say True"),
    "another mean of L*": (at("target", "mean", value=2.0), "recomputed", "L* is 2.0 over the seeds"),
    "ending made cheaper": (at("seeds", 0, "run", "endings", 1, "flops", value=9), "recomputed", "not as planned"),
    "its plan and ending made cheaper": (half_an_ending, "recomputed", "its ledger has other FLOPs than its plan"),
    "fork moved": (at("seeds", 0, "run", "plan", "stages", 2, "fork", value=9), "recomputed", "not as planned"),
    "without a fork": (at("seeds", 0, "run", "plan", "stages", 2, "fork", value=None), "recomputed", "not those of"),
    "dearer baseline": (dearer_baseline, "recomputed", "its model's others"),
    "dearer model": (dearer_model, "matched baseline", "other FLOPs than that of its method"),
    "copied seed": (copied_seed, "fresh seeds", "seeds 1 and 2: the losses of the method are the same"),
    "another seed in the command": (each_start("seed=9"), "recomputed", "config.yaml has seed=2, its command seed=9"),
    "another rate in the command": (each_start("optimizer.lr=0.5"), "recomputed", "its command optimizer.lr=0.5"),
    "a control that is none": (stranger, "matched baseline", "is no smaller model alone on its data"),
    "p too good": (at("claim", "p_holm", value=0.0), "recomputed", "below that of this one"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_result_that_breaks_a_rule_is_refused_with_its_line(name: str, result: Any) -> None:
    change, rule, said = BREAKS[name]
    found = copy.deepcopy(result)
    change(found)
    lines = [line for line in rules.broken(found) if line.startswith(f"rule '{rule}")]
    assert any(said in line for line in lines), rules.broken(found)


def test_two_seeds_are_too_few(result: Any) -> None:
    assert any("at least 3" in line for line in rules.broken(result | {"seeds": result["seeds"][:2]}))


def test_every_rule_is_broken_by_one_of_these_and_stands_in_the_page() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "leaderboard.md").read_text()
    for rule in rules.RULES:
        assert any(rule.startswith(broken) for _, broken, _ in BREAKS.values())
        assert f"**{rule}**" in page


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (at("format", value="mlrun leaderboard 1"), "format=mlrun leaderboard 1: allowed: mlrun leaderboard 2"),
        (at("claim", "mean", value="much"), "claim.mean=much: allowed: int or float or NoneType"),
        (at("seeds", 1, "run", "endings", 0, value={}), "seeds[1].run.endings[0].budget: missing"),
        (at("failed", value="none"), "failed: allowed: a list"),
        (at("seeds", 1, "run", "endings", value=[]), "seeds[1].run.endings: allowed: one or more"),
        (at("seeds", 1, "smaller", value=None), "seeds[1].smaller: allowed: a list"),
        (at("claim", value=[]), "claim: allowed: an object"),
        (at("claim", "at_least", value=1), "claim.at_least=1: allowed: bool"),
        (at("claim", "methods_compared", value=True), "claim.methods_compared=true: allowed: int"),
    ],
)
def test_a_file_of_another_form_is_told_where(change: Callable[[Any], None], said: str, result: Any) -> None:
    found = copy.deepcopy(result)
    change(found)
    assert said in schema.problems(found)


def test_a_method_chosen_on_the_seeds_that_it_reports_is_refused(tmp_path: Path) -> None:
    for seed in (0, *FRESH):
        for lr in RATES:
            a_pair(tmp_path, seed, lr, 0.0 if lr == 2e-3 else 0.1)
    board = judged(tmp_path)
    assert board.accepted == {} and board.refused == ["grow: rule 'fresh seeds': no seed is left that chose nothing"]
    assert not (tmp_path / "leaderboard").exists()


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ({1: 2.9, 2: 3.0, 3: 2.95}, "5.76k: at least 80.0% fewer FLOPs (3 of 3 seeds)"),
        ({1: 2.9, 2: 3.1}, "5.76k: at least 90.0% fewer FLOPs in 1 of 3 seeds only"),
        ({1: 3.1, 3: 3.1}, "5.76k: 2 of 3 seeds above L*, or dearer"),
        ({0: 2.9}, "no smaller model tried"),  # on the seed that chose
    ],
)
def test_what_a_smaller_model_alone_does_stands_in_file_and_table(
    ends: dict[int, float], said: str, tmp_path: Path
) -> None:
    a_study(tmp_path)
    for seed, loss in ends.items():
        small(tmp_path / f"small-{seed}", [loss + 1, loss], 0.1 * seed, seed)
    board = judged(tmp_path)
    assert board.refused == []
    (path,) = board.accepted
    told = [run for seed in json.loads(path.read_text())["seeds"] for run in seed["smaller"]]
    assert [run["val_loss"] for run in told] == [loss for seed, loss in ends.items() if seed in FRESH]
    again = Board()
    from_files(again, [path])
    for one in (board, again):
        (cells,) = table(one).rows
        assert cells[1] == said
    shown = table(board).text().split()
    assert {*said.split(), cells[-1]} <= set(shown), "no column is cut off at a terminal's width"


def test_a_smaller_model_that_is_as_good_before_its_end_saves_what_that_ending_saves(tmp_path: Path) -> None:
    a_study(tmp_path)
    board = judged(tmp_path)
    (path,) = board.accepted
    found = json.loads(path.read_text())
    for seed in found["seeds"]:
        flops = seed["baseline"]["endings"][-1]["flops"]
        ends = [{"loss": 2.95, "flops": 0.3 * flops}, {"loss": 2.9, "flops": 0.5 * flops}]
        seed["smaller"] = [{**seed["baseline"], "val_loss": 2.9, "endings": ends}]
    assert "70.0% fewer FLOPs (3 of 3 seeds)" in told(found["seeds"])


def test_a_method_without_a_best_rate_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    a_study(tmp_path)
    shutil.rmtree(tmp_path / "g0-0.002")
    (line,) = judged(tmp_path).refused
    assert line == "grow: rule 'whole': none of its rates is the best, since its rates have no seed in common"


def test_without_a_sweep_of_the_baseline_there_is_no_result(tmp_path: Path) -> None:
    for seed in FRESH:
        a_pair(tmp_path, seed, 2e-3)
    assert any("was not swept" in line for line in judged(tmp_path).refused)


def test_a_method_with_more_settings_is_refused(tmp_path: Path) -> None:
    a_study(tmp_path)
    for lr in (5e-4, 8e-3):
        branched(tmp_path / f"more-{lr}", "grow", [3.9, 3.4, 3.2], WHOLE, seed=0, lr=lr)
    assert any("5 settings, the baseline at 3" in line for line in judged(tmp_path).refused)


def test_the_path_of_a_method_is_one_name(tmp_path: Path) -> None:
    (path,) = judged(a_study(tmp_path)).accepted
    assert path.parent.name == boards.FOLDER and path.stem.startswith("1-grow")
