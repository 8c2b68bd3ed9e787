"""Tricks next to those of test_truth: the same faults by other keys, other files and other ways to end a run."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_runs as fake
import pytest
import yaml
from test_endings import branched
from test_leaderboard import FRESH, a_study, at, judged, result  # noqa: F401  (a fixture)
from test_report import straight
from test_truth import group, group_of, rows, source, told

from mlrun.models.base import IN_TRAINING
from mlrun.report import build, charts, elsewhere, figure, pairing
from mlrun.report.compare import compare
from mlrun.report.leaderboard import rules, schema
from mlrun.report.notes import notes
from mlrun.report.page import index
from mlrun.report.read import find, read, read_all
from mlrun.report.sentences import sentences

RATES = (1e-3, 2e-3, 4e-3)


def tuned(folder: Path) -> None:
    """Write a baseline at three rates, the middle one the best."""
    for lr in RATES:
        straight(folder / f"a{lr}", "scratch", [5, 4, 3.1 if lr != 2e-3 else 3], lr=lr)


# The data


@pytest.mark.parametrize("part", sorted(fake.IDENTITY))
def test_data_that_differs_in_one_part_is_other_data(tmp_path: Path, part: str) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    identity = {**fake.IDENTITY, part: "other"}
    straight(tmp_path / "b", "2level", [5, 3, 2], fake.TWO, plan={"data": {"identity": identity}})
    assert told(tmp_path, f"differs in data ({part})")


# Who had more to choose from


@pytest.mark.parametrize("status", ["interrupted", "failed", "pruned", None])
def test_settings_that_were_stopped_before_their_end_were_tried_too(tmp_path: Path, status: str | None) -> None:
    tuned(tmp_path)
    for i in range(4):
        status_i = "finished" if i == 0 else status
        folder = straight(
            tmp_path / f"b{i}", "2level", [5, 3, 2.9], fake.TWO, cycle={"alpha": 0.1 * i}, status=status_i
        )
        if status_i is None:  # killed: its log does not grow any more
            os.utime(folder / "log.jsonl", (0, 0))
    (note,) = told(tmp_path, "had more to choose from")
    assert "2level was tried at 4 settings (alpha), the baseline at 3" in note and not group(tmp_path).tuned


def test_models_to_start_from_are_settings_too(tmp_path: Path) -> None:
    tuned(tmp_path)
    for i in range(4):
        given = source(1.0) | {"name": f"runs/A{i}/model"}
        given["parts"][0] |= {"id": f"x{i}", "recipe": f"recipe {i}"}
        straight(tmp_path / f"b{i}", "grow", [5, 3, 2.9], fake.GROW, init=f"runs/A{i}/model", source=given)
    (note,) = told(tmp_path, "had more to choose from")
    assert "grow was tried at 4 settings (init), the baseline at 3" in note


def test_a_model_for_each_seed_is_one_setting(tmp_path: Path) -> None:
    for known in ("same", None):
        runs = []
        for seed in range(3):
            given = source(1.0) | {"name": f"runs/A{seed}/model"}
            given["parts"][0] |= {"id": f"x{seed}", "recipe": known}
            place = tmp_path / f"{known}-{seed}"
            runs.append(read(straight(place, "grow", [5, 3, 2], fake.GROW, seed=seed, init=place.name, source=given)))
        assert pairing.settings_tried(runs) == 1


def test_rates_far_from_the_best_are_no_settings_of_the_baseline(tmp_path: Path) -> None:
    for lr in (1e-12, 1e-11, 1e-10, 1e-3, 2e-3):
        straight(tmp_path / f"a{lr}", "scratch", [5, 4, 3.1 if lr != 2e-3 else 3], lr=lr)
    for i in range(3):
        straight(tmp_path / f"b{i}", "2level", [5, 3, 2.9], fake.TWO, cycle={"alpha": 0.1 * i})
    (note,) = told(tmp_path, "had more to choose from")
    assert "at 3 settings (alpha), the baseline at 2" in note


# What a method has for itself, and a run from scratch could have as well

WSD = {"optimizer": {"schedule": {"shape": "wsd", "warmup": "5%", "decay": "20%"}}}


def method_with(folder: Path, kind: str) -> Path:
    """Write a method that trains its stages at level 1 with a setting of its own, and saves."""
    changes: dict[str, Any] = {"decay": {"cycle": {"decay": "50%"}}, "layer dropout": {"cycle": {"layer_dropout": 0.5}}}
    found = straight(folder, "mine", [5, 3, 2.9], fake.GROW, **fake.merged(WSD, changes.get(kind, {})))
    plan = json.loads((found / "plan.json").read_text())
    plan["stages"][-1] |= {kind: 2} if kind in ("batch", "sequence") else {}
    (found / "plan.json").write_text(json.dumps(plan))
    return found


@pytest.mark.parametrize(
    ("kind", "with_"),
    [
        ("decay", "decay 50% (the baseline 20%)"),
        ("batch", "batch 2 (the baseline 4)"),
        ("sequence", "sequence 2 (the baseline 16)"),
        ("layer dropout", "layer dropout 0.5 (the baseline 0)"),
    ],
)
def test_a_setting_that_only_a_method_has_is_told_whatever_the_method_is_called(
    tmp_path: Path, kind: str, with_: str
) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3], **WSD)
    method_with(tmp_path / "b", kind)
    (note,) = told(tmp_path, "trains the whole model with")
    assert f"mine trains the whole model with {with_}, as no run from scratch here does" in note


def test_a_setting_that_a_run_from_scratch_of_this_budget_had_too_is_no_methods_own(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3], **WSD)
    method_with(tmp_path / "b", "decay")
    decayed = fake.merged(WSD, {"optimizer": {"schedule": {"decay": "50%"}}})
    straight(tmp_path / "c", "scratch", [5, 4, 3.1], fake.SCRATCH, **decayed)
    assert not told(tmp_path, "trains the whole model with")
    change_budget(tmp_path / "c", 0.5)
    assert told(tmp_path, "trains the whole model with")


def change_budget(folder: Path, share: float) -> None:
    """Make a run say that its budget was a share of what it was."""
    plan = json.loads((folder / "plan.json").read_text())
    plan["budget"] = {key: value * share for key, value in plan["budget"].items()}
    (folder / "plan.json").write_text(json.dumps(plan))


@pytest.mark.parametrize(
    ("schedule", "told_"),
    [
        ({"shape": "constant"}, True),
        ({"shape": "wsd", "decay": "0%"}, True),
        ({"shape": "wsd", "decay": "1 steps"}, True),
        ({"shape": "cosine", "floor": 0.9}, True),
        ({"shape": "cosine", "warmup": "100%"}, True),
        ({"shape": "cosine"}, False),
        ({"shape": "wsd", "decay": "5%"}, False),
    ],
)
def test_a_baseline_whose_rate_stays_high_is_told(tmp_path: Path, schedule: dict[str, Any], told_: bool) -> None:
    own = {"optimizer": {"schedule": {"warmup": "5%", "decay": "20%", "floor": 0.1} | schedule}}
    straight(tmp_path / "a", "scratch", [5, 4, 3], **own)
    straight(tmp_path / "b", "2level", [5, 3, 2.9], fake.TWO, **own)
    assert bool(told(tmp_path, "so L* is not annealed")) == told_


# Code that is not one

OTHER = {**fake.MACHINE, "commit": "b" * 40 + "+"}


@pytest.mark.parametrize("starts", [(OTHER,), (fake.MACHINE, OTHER)], ids=["begun", "went on"])
def test_runs_of_two_commits_are_told(tmp_path: Path, starts: tuple[dict[str, Any], ...]) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    straight(tmp_path / "b", "2level", [5, 3, 2.9], fake.TWO)
    assert not told(tmp_path, "not all of these runs are of one")
    straight(tmp_path / "c", "mine", [5, 3, 2.9], fake.TWO, starts=starts)
    (note,) = told(tmp_path, "not all of these runs are of one")
    assert "of one version of mlrun" in note and f"bbbbbbbbbb+ in {tmp_path / 'c'}" in note


def test_runs_of_two_versions_of_ones_own_code_are_told(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3], plan={"code": {"mine.models": "1" * 64}})
    straight(tmp_path / "b", "2level", [5, 3, 2.9], fake.TWO, plan={"code": {"mine.models": "2" * 64}})
    (note,) = told(tmp_path, "not all of these runs are of one")
    assert "of one version of mine.models" in note and "1111111111 in" in note


# Logs that were cut


def left_out(folder: Path, which: Callable[[dict[str, Any]], bool]) -> str | None:
    """Leave records out of a log, and return what is then wrong with it."""
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    kept = [record for record in log if not which(record)]
    assert len(kept) < len(log)
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in kept))
    return read(folder).fault


def test_a_log_without_an_ending_or_the_begin_of_a_stage_is_no_finished_run(tmp_path: Path) -> None:
    found = branched(tmp_path / "a", "scratch", [4.0, 3.5, 3.0])
    assert left_out(found, lambda r: "branch" in r) == "log.jsonl does not have the endings that plan.json has"
    found = straight(tmp_path / "b", "2level", [5, 3, 2], fake.TWO)
    told_ = left_out(found, lambda r: r["kind"] == "val" and (r["stage"], r["step"]) == (1, 50))
    assert told_ == "log.jsonl in stage 2 is not evaluated from step 50 to step 470"


# Survivors


@pytest.mark.parametrize("status", ["interrupted", "pruned"])
def test_the_sentence_says_which_seeds_have_no_end(tmp_path: Path, status: str) -> None:
    for seed in range(4):
        straight(tmp_path / f"a{seed}", "scratch", [5, 4, 3], seed=seed)
        end = "finished" if seed < 2 else status
        straight(tmp_path / f"b{seed}", "2level", [5, 3, 2 + 0.1 * seed], fake.TWO, seed=seed, status=end)
    assert sentences(group(tmp_path))[0].endswith("left out: 2 seeds of it without an end.")
    header, line = build.write.savings_csv([group(tmp_path)]).splitlines()
    assert dict(zip(header.split(","), line.split(","), strict=True))["unfinished"] == "2"


def test_the_sentence_says_that_the_cost_of_its_source_is_declared(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    straight(tmp_path / "b", "grow", [3.2, 2.5, 2], fake.GROW, init="x", source=source(1.0, None, declared=True))
    assert "; what its source cost is declared (1 FLOPs in all)" in sentences(group(tmp_path))[0]


# Seconds


@pytest.mark.parametrize(
    "change",
    [{"evaluation": {"glue": {"tasks": ["cola"]}}}, {"eval": {"every": "1%"}}, {"checkpoint": {"every": "1%"}},
     {"health": True}, {"cycle": {"branches": ["50%"]}}],
)  # fmt: skip
def test_all_seconds_are_compared_where_both_do_the_same_beside_training(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3], **change)
    straight(tmp_path / "b", "2level", [5, 3.5, 3], fake.TWO)
    row = rows(tmp_path)["2level"]
    assert row.spread("seconds").mean is not None and row.spread("seconds_all").mean is None


# A better baseline elsewhere


def cheaper(share: float) -> dict[str, Any]:
    planned = fake.plan(((1, int(1000 * share)),))
    planned["budget"] = {key: int(share * value) for key, value in planned["budget"].items()}
    return planned


@pytest.mark.parametrize(
    ("change", "how"),
    [({"hardware": {"precision": "bf16"}}, "precision=bf16 instead of fp32"),
     ({"model": {**fake.MODEL, "dropout": 0.3}}, "dropout=0.3"),
     ({"model": {**fake.MODEL, "parametrization": "completep"}}, "parametrization=completep"),
     ({"plan": cheaper(0.9), "budget": "900 steps"}, "budget=900 steps instead of 1000 steps")],
)  # fmt: skip
def test_a_better_from_scratch_run_is_told_however_it_was_trained(tmp_path: Path, change: Any, how: str) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    straight(tmp_path / "b", "2level", [5, 3, 2.95], fake.TWO)
    straight(tmp_path / "c", "scratch", [5, 4, 2.9], **change)
    (note,) = told(tmp_path, "ends 0.1000 nats lower")
    assert f"{tmp_path / 'c'} with {how}" in note


def test_an_ending_of_a_longer_run_counts_and_its_dearer_end_does_not(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3], plan=cheaper(0.6))
    straight(tmp_path / "b", "grow", [5, 3, 2.95], ((2, 0), (1, 600)),
             plan=fake.plan(((2, 0), (1, 600))) | {"budget": cheaper(0.6)["budget"]})  # fmt: skip
    branched(tmp_path / "c", "scratch", [4.0, 3.5, 2.0])
    assert told(tmp_path, "nats lower") == []
    branched(tmp_path / "d", "scratch", [4.0, 2.8, 2.0])
    (note,) = told(tmp_path, "ends 0.2000 nats lower")
    assert "its ending at 50%" in note


@pytest.mark.parametrize(
    ("theirs", "seeds", "said"),
    # By hand: L* is 2.8, of which 2.9 and 2.7 at 25% and 50% are the middle: 1 - 0.25 x sqrt(2) = 64.6%.
    [([4.0, 3.5, 2.8], (0,), "that lower loss it reaches with 64.6% fewer FLOPs (one seed)"),
     ([4.0, 3.5, 2.9], (0,), "that lower loss it reaches with at least 75.0% fewer FLOPs (one seed)"),
     ([4.0, 3.5, 2.1], (0,), "that lower loss it does not reach (one seed)"),
     ([4.0, 3.5, 2.8], (0, 1), "that lower loss it reaches with 64.6% fewer FLOPs (2 seeds)"),
     ([4.0, 3.5, 2.8], (1,), "nats lower.")],
)  # fmt: skip
def test_what_a_method_saves_against_the_better_run_is_told(
    tmp_path: Path, theirs: list[float], seeds: tuple[int, ...], said: str
) -> None:
    better = {"model": {**fake.MODEL, "parametrization": "completep"}}
    for seed in {0, *seeds} if seeds != (1,) else {0}:
        branched(tmp_path / f"a{seed}", "scratch", [4.0, 3.5, 3.0], seed=seed)
        branched(tmp_path / f"b{seed}", "grow", [2.9, 2.7, 2.6], ((2, 0), (1, 1000)), seed=seed)
    for seed in seeds:
        branched(tmp_path / f"c{seed}", "scratch", theirs, seed=seed, **better)
    told_of = group_of(tmp_path, "grow")
    (first,) = [line for line in sentences(told_of) if line.startswith("grow ")]
    assert said in first and (said == "nats lower." or "another run from scratch (parametrization=completep" in first)


def test_a_still_better_run_at_another_seed_hides_none_at_the_same(tmp_path: Path) -> None:
    branched(tmp_path / "a", "scratch", [4.0, 3.5, 3.0])
    branched(tmp_path / "b", "grow", [2.9, 2.7, 2.6], ((2, 0), (1, 1000)))
    branched(tmp_path / "c", "scratch", [4.0, 3.5, 2.8], model={**fake.MODEL, "parametrization": "completep"})
    branched(tmp_path / "d", "scratch", [4.0, 3.5, 2.5], seed=1, model={**fake.MODEL, "dropout": 0.3})
    (first,) = [line for line in sentences(group_of(tmp_path, "grow")) if line.startswith("grow ")]
    assert "at another seed) ends 0.5000 nats lower, one at the same seeds (parametrization=completep" in first
    assert "0.2000 nats lower; that lower loss it reaches with 64.6% fewer FLOPs (one seed)" in first


def test_a_better_run_that_rises_again_counts_where_it_is_lowest(tmp_path: Path) -> None:
    """Its last ending may lie above the very baseline, and would be no lower loss."""
    branched(tmp_path / "a", "scratch", [4.0, 3.5, 3.0])
    branched(tmp_path / "b", "grow", [2.9, 2.7, 2.6], ((2, 0), (1, 1000)))
    branched(tmp_path / "c", "scratch", [3.5, 2.8, 3.1], model={**fake.MODEL, "parametrization": "completep"})
    small = branched(tmp_path / "d", "scratch", [3.2, 2.75, 2.7], model={**fake.MODEL, "layer": 1})
    planned = json.loads((small / "plan.json").read_text())
    planned["levels"][0]["parameters"] //= 2
    (small / "plan.json").write_text(json.dumps(planned))
    first, second, *_ = sentences(group_of(tmp_path, "grow"))
    # By hand: of the middle between 2.9 and 2.7, at 25% and 50%, what it cost at 50%: 1 - 0.25 x sqrt(2) / 0.5 = 29.3%.
    assert "its ending at 50%) ends 0.2000 nats lower; that lower loss it reaches with 29.3% fewer FLOPs" in first
    # 2.8 is 0.4 of 0.45 nats on the way from 25% to 50%: 1 - 0.25 x 2^(8/9) / 0.5 = 7.4%.
    assert "the lower loss of another run from scratch with 7.4% fewer FLOPs (one seed)" in second


def test_what_a_smaller_model_saves_against_the_better_run_is_told(tmp_path: Path) -> None:
    branched(tmp_path / "a", "scratch", [4.0, 3.5, 3.0])
    branched(tmp_path / "b", "grow", [2.9, 2.7, 2.6], ((2, 0), (1, 1000)))
    branched(tmp_path / "c", "scratch", [4.0, 3.5, 2.8], model={**fake.MODEL, "parametrization": "completep"})
    assert "smaller" not in " ".join(sentences(group_of(tmp_path, "grow")))
    for name, parts, losses in (("d", 2, [2.95, 2.9, 2.75]), ("e", 3, [3.2, 2.75, 2.7])):
        small = branched(tmp_path / name, "scratch", losses, model={**fake.MODEL, "layer": 1, "embed": 60 // parts})
        planned = json.loads((small / "plan.json").read_text())
        planned["levels"][0]["parameters"] //= parts
        (small / "plan.json").write_text(json.dumps(planned))
    (line,) = [line for line in sentences(group_of(tmp_path, "grow")) if "smaller model alone" in line]
    # Of one size by hand: 1 - 0.5 x 2^(2/3) = 20.6%; the other one has 53.7%, and less against L*.
    assert "at least 75.0% fewer FLOPs (one seed), and the lower loss of another run from scratch with 20.6%" in line


def test_without_a_method_a_smaller_model_is_told_of_the_largest_alone(tmp_path: Path) -> None:
    """Whoever trains only sizes asks which of them is enough; of each pair of them it would be told twice."""
    branched(tmp_path / "a", "scratch", [4.0, 3.5, 3.0])
    for name, parts, losses in (("b", 2, [2.95, 2.9, 2.75]), ("c", 4, [3.2, 2.8, 2.7])):
        small = branched(tmp_path / name, "scratch", losses, model={**fake.MODEL, "layer": 1, "embed": 60 // parts})
        planned = json.loads((small / "plan.json").read_text())
        planned["levels"][0]["parameters"] //= parts
        (small / "plan.json").write_text(json.dumps(planned))
    groups = compare(read_all(find([tmp_path])))
    assert [group.control for group in groups] == [False, True, True]
    (line,) = [line for group in groups for line in sentences(group)]
    assert re.match(r"A smaller model alone \(\S+ parameters, the best of 2 sizes\), from scratch, ", line)
    assert "at least 75.0% fewer FLOPs (one seed)" in line
    assert line.endswith(": the model is too large for this budget, cycle or none.")
    drawn = charts.charts(groups[0])["annealed"]
    assert drawn is not None and [len(side["points"]) for side in drawn["sides"]] == [3, 3] and not drawn["arrows"]
    assert all(charts.charts(group)["annealed"] is None for group in groups[1:])
    assert "one learning rate was tried" in " ".join(notes(groups))
    top = index.page(groups, notes(groups)).partition('<p class="answer">')[2]
    assert re.match(r"A smaller model alone \(\S+ parameters, .*sizes\), .* at least 75.0% fewer FLOPs<span", top)


@pytest.mark.parametrize(
    ("theirs", "said", "gap"),
    # By hand: their endings cost 31.25, 62.5 and 125%. Of 3.2 and 2.8 the middle is L*: 1 - 0.3125 x sqrt(2) = 55.8%.
    [([3.2, 2.8, 2.5], "the baseline's loss with 55.8% fewer FLOPs (2 seeds), annealed.", -0.2),
     ([4.0, 3.2, 2.8], "the baseline's loss with 11.6% fewer FLOPs (2 seeds), annealed.", 0.2),
     ([4.0, 3.5, 3.1], "for no more FLOPs it ends 0.5000 nats above the baseline (2 seeds).", 0.5)],
)  # fmt: skip
def test_an_optimizer_whose_own_work_makes_the_same_tokens_dearer_is_told_too(
    tmp_path: Path, theirs: list[float], said: str, gap: float
) -> None:
    muon = fake.config("scratch")["optimizer"] | {"_target_": "mlrun.train.optimizers.muon.Muon", "ns_steps": 5}
    for seed in (0, 1):
        branched(tmp_path / f"a{seed}", "scratch", [4.0, 3.5, 3.0], seed=seed)
        branched(tmp_path / f"c{seed}", "scratch", theirs, ((1, 1250),), seed=seed, optimizer=muon)
        path = tmp_path / f"c{seed}/plan.json"
        planned = json.loads(path.read_text())
        # In steps of the baseline's cost, so that there are more of them: the tokens are the same.
        planned["budget"] |= {key: planned["budget"][key] * 5 // 4 for key in ("steps", "flops")}
        path.write_text(json.dumps(planned))
    branched(tmp_path / "b", "grow", [3.6, 3.3, 2.95], ((2, 0), (1, 1000)))
    group = group_of(tmp_path, "grow")
    (line,) = [line for line in sentences(group) if line.startswith("From scratch with")]
    assert line == f"From scratch with optimizer Muon instead of AdamW: {said}"
    (one,) = elsewhere.variants(group)
    assert one.gap.mean == pytest.approx(gap) and one.wins == (said.startswith("the"))


def test_of_other_settings_the_one_that_saves_most_is_told_first_and_not_the_one_that_ends_lowest(
    tmp_path: Path,
) -> None:
    branched(tmp_path / "a", "scratch", [4.0, 3.5, 3.0])
    branched(tmp_path / "b", "grow", [3.6, 3.3, 2.95], ((2, 0), (1, 1000)))
    for place, (warmup, losses) in enumerate(
        (("5%", [4.0, 3.4, 2.7]), ("6%", [3.2, 2.95, 2.9]), ("7%", [4, 3.5, 3.1]))
    ):
        schedule = fake.config("scratch")["optimizer"]["schedule"] | {"warmup": warmup}
        branched(tmp_path / f"c{place}", "scratch", losses, optimizer={"schedule": schedule})
    lines = [line for line in sentences(group_of(tmp_path, "grow")) if line.startswith("From scratch with warmup=")]
    assert [line.split("=")[1].split()[0] for line in lines] == ["6%", "5%", "7%"]


@pytest.mark.parametrize(
    ("theirs", "said"),
    # By hand: L* is 3.0, of which 3.2 and 2.8 at 50% and 100% are the middle: 1 - 0.5 x sqrt(2) = 29.3%.
    [([4.0, 3.2, 2.8], "the baseline's loss with 29.3% fewer FLOPs (2 seeds), annealed."),
     ([4.0, 3.5, 3.1], "for no more FLOPs it ends 0.1000 nats above the baseline (2 seeds)."),
     ([2.9, 2.8, 2.7], "the baseline's loss with at least 75.0% fewer FLOPs (2 seeds), annealed.")],
)  # fmt: skip
@pytest.mark.parametrize("growth", [True, False])
def test_what_from_scratch_does_with_other_settings_is_told(
    tmp_path: Path, theirs: list[float], said: str, growth: bool
) -> None:
    other = {"model": {**fake.MODEL, "parametrization": "completep", "base": {"layer": 1}}}
    for seed in (0, 1):
        branched(tmp_path / f"a{seed}", "scratch", [4.0, 3.5, 3.0], seed=seed)
        branched(tmp_path / f"c{seed}", "scratch", theirs, seed=seed, **other)
    if growth:
        branched(tmp_path / "b", "grow", [3.6, 3.3, 2.95], ((2, 0), (1, 1000)))
    whole = compare(read_all(find([tmp_path])))
    lines = [line for one in whole for line in sentences(one) if line.startswith("From scratch with")]
    of = [line for line in lines if "parametrization=completep instead of " in line]
    assert len(of) == (growth or theirs[-1] < 3.0)
    assert all("base.layer=1 instead of null" in line and line.endswith(f": {said}") for line in of)
    assert growth or len(lines) == 1, "without a method the one that wins alone is named"
    if growth:
        order = [line.split()[0] for line in sentences(group_of(tmp_path, "grow"))]
        assert order.index("From") == 1 if theirs[-1] < 3.0 else order[-1] == "From"
        drawn = (charts.charts(group_of(tmp_path, "grow"))["annealed"] or {})["sides"]
        dashed = [side for side in drawn if side["dashed"]]
        assert len(dashed) == (theirs[-1] < 3.0)
        assert all("from scratch, " in side["name"] and "base.layer=1" in side["name"] for side in dashed)
        assert all([point[1] for point in side["points"]] == theirs for side in dashed)


def test_a_budget_in_another_unit_is_no_other_setting(tmp_path: Path) -> None:
    flops = int(fake.plan(fake.SCRATCH)["budget"]["flops"])
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    straight(tmp_path / "b", "grow", [5, 3, 2.95], ((2, 0), (1, 1000)))
    straight(tmp_path / "c", "scratch", [5, 4, 2.9], budget=f"{flops} flops", model={**fake.MODEL, "dropout": 0.3})
    (note,) = told(tmp_path, "ends 0.1000 nats lower")
    assert note.endswith("with dropout=0.3 instead of 0.0.")


def test_what_acts_in_training_alone_is_known_to_reports() -> None:
    assert set(pairing.IN_TRAINING) == set(IN_TRAINING)


# What a search may choose


def test_a_search_may_not_choose_another_model(tmp_path: Path) -> None:
    space = {"scratch": ["optimizer.lr", "model.dropout"], "2level": ["model.layer", "optimizer.schedule.warmup"]}
    said = {"space": space, "run_seed": 9, "tried": {}, "fresh": {}}
    same = read(straight(tmp_path / "a", "scratch", [5, 4, 3], optimizer={"schedule": {"warmup": "9%"}}))
    other = read(straight(tmp_path / "b", "2level", [5, 3, 2], fake.TWO, model={"dropout": 0.2}))
    assert pairing.differences(replace(same, search=said), replace(other, search=said)) == []
    thin = read(straight(tmp_path / "c", "2level", [5, 3, 2], fake.TWO, model={"layer": 1}))
    assert pairing.differences(replace(same, search=said), replace(thin, search=said)) == ["model"]


# Names


@pytest.mark.parametrize("name", ["_hidden", "$x^$", "a $ b"])
def test_a_name_is_drawn_as_it_is_written(tmp_path: Path, name: str) -> None:
    from matplotlib.figure import Figure

    shown = Figure()
    shown.subplots().plot([1], label=figure.as_written(name))
    (text,) = shown.legend().get_texts()
    shown.canvas.draw()
    assert text.get_text().strip().replace("\\$", "$") == name


# The public table, from files


WRONG: dict[str, tuple[Callable[[Any], None], str]] = {
    "another model": (at("seeds", 0, "baseline", "config", "model", "layer", value=9), "differ in model"),
    "another batch": (at("seeds", 0, "baseline", "config", "batch", value=9), "differ in batch"),
    "another budget": (at("seeds", 0, "baseline", "plan", "budget", "flops", value=9), "differ in budget"),
    "baseline from weights": (at("seeds", 0, "baseline", "config", "init", value="x"), "no plain from-scratch run"),
    "baseline of two levels": (at("seeds", 0, "baseline", "plan", "stages", 0, "level", value=2), "no plain"),
    "source left out": (at("seeds", 0, "run", "config", "init", value="x"), "had cost before is not known"),
    "source declared": (at("seeds", 0, "run", "source", value={"flops": 1, "declared": True}), "is declared"),
    "model of the table": (at("task", "model", value={"_target_": "x"}), "model of its task"),
    "budget of the table": (at("task", "budget", "flops", value=1), "budget of its task"),
    "ending left out": (lambda found: found["seeds"][0]["run"]["endings"].pop(0), "endings are not those of its plan"),
    "cheaper end": (at("seeds", 0, "run", "endings", -1, "flops", value=9), "its plan has"),
    "another end": (at("seeds", 0, "baseline", "endings", -1, "loss", value=9.0), "its last ending at 9"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_whose_runs_do_not_fit_together_is_refused(name: str, result: Any) -> None:  # noqa: F811
    change, said = WRONG[name]
    found = copy.deepcopy(result)
    change(found)
    assert schema.problems(found) == []
    assert any(said in line for line in rules.broken(found)), rules.broken(found)


def test_a_fresh_seed_with_two_models_to_start_from_is_not_fresh(tmp_path: Path) -> None:
    a_study(tmp_path)
    for name in ("x", "y"):
        for seed in FRESH:
            given = source(1.0) | {"name": name}
            folder = tmp_path / f"g{name}{seed}"
            branched(folder, "late", [3.9, 3.2, 2.9], ((2, 0), (1, 1000)), seed=seed)
            settings = yaml.safe_load((folder / "config.yaml").read_text()) | {"init": name}
            (folder / "config.yaml").write_text(yaml.safe_dump(settings))
            planned = json.loads((folder / "plan.json").read_text()) | {"source": given}
            (folder / "plan.json").write_text(json.dumps(planned))
    lines = [line for line in judged(tmp_path).refused if line.startswith("late")]
    assert len(lines) == 2 and all("no seed is left that chose nothing" in line for line in lines)
