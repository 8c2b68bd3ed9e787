"""Claims about the report: the maths of equal loss, who is compared with whom, and what a reader is told."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_runs as fake
import pytest

from mlrun.errors import UserError
from mlrun.report import build, figure, pairing
from mlrun.report.compare import compare
from mlrun.report.curves import Point, crossing, saving, speedup, thin, unrest
from mlrun.report.notes import _untimed, notes
from mlrun.report.read import find, read, read_all
from mlrun.report.stats import spread
from mlrun.train.checkpoint.store import ALONE
from mlrun.train.lock import claimed


def curve(*losses: float, stage: int = 0, level: int = 1, start: float = 0.0) -> list[Point]:
    """Return evaluations one FLOP, two body FLOPs and ten seconds apart."""
    at = [start + i for i in range(len(losses))]
    return [Point(stage, level, int(x), x, x, 2 * x, 10 * x, loss) for x, loss in zip(at, losses, strict=True)]


# The maths of equal loss


def test_crossing_lies_on_the_line_between_two_evaluations() -> None:
    points = curve(5.0, 4.0, 3.0)
    assert crossing(points, 3.25, "flops") == pytest.approx(1.75)
    assert crossing(points, 3.25, "flops_body") == pytest.approx(3.5)
    assert crossing(points, 3.25, "seconds") == pytest.approx(17.5)


def test_crossing_exactly_at_an_evaluation() -> None:
    assert crossing(curve(5.0, 4.0, 3.0), 4.0, "flops") == 1.0
    assert crossing(curve(5.0, 4.0, 3.0), 3.0, "flops") == 2.0


def test_a_dip_that_rises_again_is_no_crossing() -> None:
    assert crossing(curve(5.0, 3.0, 4.0, 3.0, 2.9), 3.5, "flops") == pytest.approx(2.5)
    assert crossing(curve(5.0, 3.0, 4.0), 3.5, "flops") is None


def test_not_reached_is_none() -> None:
    assert crossing(curve(5.0, 4.0), 3.9, "flops") is None
    assert crossing([], 3.9, "flops") is None
    assert crossing(curve(3.0, level=2), 3.9, "flops") is None


def test_a_curve_that_starts_below_costs_what_its_first_evaluation_cost() -> None:
    assert crossing(curve(3.0, 2.0, start=7.0), 3.5, "flops") == 7.0


def test_a_loss_that_is_not_finite_is_above_everything() -> None:
    assert crossing(curve(5.0, 3.0, math.nan), 3.5, "flops") is None
    assert crossing(curve(5.0, math.nan, 3.0), 3.5, "flops") == 2.0


def test_no_line_is_drawn_across_a_coarser_level() -> None:
    points = curve(5.0, 4.0) + curve(3.0, 2.5, stage=1, level=2, start=1.0) + curve(3.4, 3.0, stage=2, start=2.0)
    assert crossing(points, 3.5, "flops") == 2.0
    assert crossing(points, 3.2, "flops") == pytest.approx(2.5)


def test_saving_and_speedup_are_two_views_of_one_number() -> None:
    assert saving(75.0, 100.0) == 0.25
    assert saving(None, 100.0) is None
    assert saving(1.0, 0.0) is None
    faster = speedup(0.25)
    assert faster is not None
    assert 1 - 1 / (1 + faster) == pytest.approx(0.25)


def test_thinning_keeps_both_ends() -> None:
    assert thin(range(10), 20) == list(range(10))
    few = thin(range(100_000), 2000)
    assert len(few) == 2000
    assert (few[0], few[-1]) == (0, 99_999)


def test_unrest_is_the_largest_rise_near_the_end() -> None:
    assert unrest(curve(9.0, 5.0, 4.0, 3.0)) == 0.0
    assert unrest(curve(1.0, 9.0, 5.0, 4.0, 3.0, 3.25)) == pytest.approx(0.25), "an early rise is no noise of the end"
    assert unrest(curve(3.0, math.nan)) == 0.0
    assert unrest([]) == 0.0


# Seeds


def test_spread_over_seeds() -> None:
    found = spread([0.1, 0.2, 0.3])
    assert found.mean == pytest.approx(0.2)
    assert found.sd == pytest.approx(0.1)
    assert found.low is not None and found.high is not None
    assert (found.low, found.high) == pytest.approx(
        (0.2 - 4.3027 * 0.1 / 3**0.5, 0.2 + 4.3027 * 0.1 / 3**0.5), abs=1e-5
    )
    assert found.p == pytest.approx(0.0742, abs=1e-4)


def test_few_seeds_claim_no_interval() -> None:
    one, two = spread([0.1]), spread([0.1, 0.2])
    assert (one.sd, one.low, one.p) == (None, None, None)
    assert two.low == pytest.approx(0.15 - 12.7062 * 0.05, abs=1e-4), "and two a very wide one"
    assert spread([]).mean is None


def test_a_seed_that_did_not_reach_is_not_averaged_away() -> None:
    found = spread([0.1, None, 0.3])
    assert (found.mean, found.reached, found.count) == (None, 2, 3)


# Who is compared with whom


def straight(
    folder: Path, name: str, losses: Sequence[float | None], stages: Any = fake.SCRATCH, **changes: Any
) -> Path:
    """Write a run whose evaluations in its last stage are these, evenly apart; the budget takes 100 seconds."""
    status, extra = changes.pop("status", "finished"), changes.pop("summary", {})
    source, starts = changes.pop("source", None), changes.pop("starts", (fake.MACHINE,))
    plan = fake.plan(stages, source) | changes.pop("plan", {})
    log = fake.straight(plan, losses, changes.pop("slow", 1.0))
    return fake.write(folder, fake.config(name, **changes), plan, log, status, starts, **extra)


def made(folder: Path) -> build.Report:
    """Return the report of a folder without writing it: figures take most of the time."""
    groups = tuple(compare(read_all(find([folder]))))
    return build.Report(groups, tuple(notes(groups)), ())


def only_row(folder: Path) -> Any:
    ((row,),) = [group.rows for group in compare(read_all(find([folder])))]
    return row


def test_a_cycle_is_paired_with_the_baseline_of_its_seed(tmp_path: Path) -> None:
    straight(tmp_path / "a0", "scratch", [5, 4, 3], seed=0)
    straight(tmp_path / "a1", "scratch", [5, 4, 2], seed=1)
    straight(tmp_path / "b0", "2level", [5, 3, 2], fake.TWO, seed=0)
    straight(tmp_path / "b1", "2level", [5, 2, 1], fake.TWO, seed=1)
    row = only_row(tmp_path)
    assert [pair.baseline.folder.name for pair in row.pairs] == ["a0", "a1"]
    assert [pair.target for pair in row.pairs] == [3, 2]
    assert row.spread("flops").values == pytest.approx(
        [1 - fake.spent(fake.TWO, 0.5) / fake.spent(fake.SCRATCH, 1)] * 2
    )
    assert row.gap.mean == pytest.approx(-1.0)


def test_the_baseline_is_taken_at_its_own_best_rate(tmp_path: Path) -> None:
    for lr, last in ((1e-3, 3.2), (2e-3, 3.0), (4e-3, 3.1)):
        straight(tmp_path / f"a{lr}", "scratch", [5, 4, last], lr=lr)
    straight(tmp_path / "b", "2level", [5, 3.5, 3.05], fake.TWO, lr=1e-3)
    (group,) = compare(read_all(find([tmp_path])))
    assert [run.lr for run in group.baselines.values()] == [2e-3]
    assert (len(group.rates), group.tuned, group.edge) == (3, True, False)
    assert group.rows[0].spread("flops").values == (None,), "reached only against an untuned baseline"
    text = build.render(made(tmp_path))
    assert "rate 0.002 (best of 3)" in " ".join(text.split())
    assert "not reached" in text
    assert "+0.0500" in text


def test_a_sweep_of_the_baseline_alone_shows_every_rate(tmp_path: Path) -> None:
    for lr, last in ((1e-3, (3.2, 3.0)), (2e-3, (3.0, 3.1)), (4e-3, (3.5, 3.7))):
        for seed in (0, 1):
            straight(tmp_path / f"{lr}-{seed}", "scratch", [5, 4, last[seed]], lr=lr, seed=seed)
    straight(tmp_path / "again", "scratch", [5, 4, 3.5], lr=4e-3, seed=0)
    found = made(tmp_path)
    text = [" ".join(line.split()) for line in build.render(found).splitlines()]
    assert {"0.001 2 3.1000 ± 0.1414 1", "0.002 2 3.0500 ± 0.0707 1", "0.004 2 3.6000 ± 0.1414 0"} <= set(text)
    swept = found.as_dict()["groups"][0]["baseline"]["loss_by_lr"]
    assert [(lr, loss["count"]) for lr, loss in swept.items()] == [("0.001", 2), ("0.002", 2), ("0.004", 2)]


@pytest.mark.parametrize("baseline", [False, True])
def test_a_grid_without_baselines_still_shows_its_losses(tmp_path: Path, baseline: bool) -> None:
    for lr, last in ((1e-3, (2.2, 2.4)), (2e-3, (2.0, 2.2))):
        for seed in (0, 1):
            straight(tmp_path / f"{lr}-{seed}", "2level", [5, 3, last[seed]], fake.TWO, lr=lr, seed=seed)
    if baseline:  # of another seed
        straight(tmp_path / "a", "scratch", [5, 4, 3], seed=7)
    found = made(tmp_path)
    rows = {row.lr: row for row in found.groups[0].rows}
    assert [(row.best, row.pairs, row.loss.mean) for row in rows.values()] == [
        (False, (), pytest.approx(2.3)),
        (True, (), pytest.approx(2.1)),
    ]
    text = [" ".join(line.split()) for line in build.render(found).splitlines()]
    assert "2level * 0.002 2 no baseline loss 2.1000 ± 0.1414" in text
    (note,) = [note for note in found.notes if "no matched baseline" in note]
    assert "4 runs, such as" in note


def test_an_untuned_baseline_is_no_matched_comparison(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    straight(tmp_path / "b", "2level", [5, 3, 2], fake.TWO)
    found = made(tmp_path)
    assert any("baseline not tuned" in note for note in found.notes)
    assert any("one seed" in note for note in found.notes)
    assert not found.groups[0].tuned


def test_a_baseline_at_the_edge_of_its_sweep_is_noted(tmp_path: Path) -> None:
    for lr, last in ((1e-3, 3.2), (2e-3, 3.0)):
        straight(tmp_path / f"a{lr}", "scratch", [5, 4, last], lr=lr)
    straight(tmp_path / "b", "2level", [5, 3, 2], fake.TWO)
    assert any("edge of its sweep" in note for note in made(tmp_path).notes)


def test_methods_whose_best_rate_is_at_the_edge_are_noted(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    for lr, inner, outer in ((1e-3, 2.2, 2.2), (2e-3, 2.0, 2.1), (4e-3, 2.1, 2.0)):
        straight(tmp_path / f"b{lr}", "2level", [5, 3, inner], fake.TWO, lr=lr)
        straight(tmp_path / f"c{lr}", "3level", [5, 3, outer], fake.TWO, lr=lr)
    (note,) = (note for note in made(tmp_path).notes if "edge of those tried" in note)
    assert "3level" in note and "2level" not in note


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"plan": {"budget": {"steps": 999, "tokens": 1, "flops": 2}}}, "budget"),
        ({"batch": 64}, "batch"),
        ({"model": {**fake.MODEL, "layer": 8}}, "model (layer)"),
        ({"model": {**fake.MODEL, "parametrization": "completep"}}, "model (parametrization)"),
        ({"plan": {"data": {"identity": {**fake.IDENTITY, "held_out": "x"}}}}, "data (held_out)"),
        ({"optimizer": {"weight_decay": 0.2}}, "optimizer (weight_decay)"),
        ({"optimizer": {"_target_": "m.Muon", "lr": 1e-3}}, "optimizer (Muon, not AdamW)"),
        ({"hardware": {"precision": "bf16"}}, "precision"),
        ({"a_key_of_tomorrow": 1}, "a_key_of_tomorrow"),
    ],
)
def test_runs_that_differ_in_what_must_match_are_not_compared(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    straight(tmp_path / "b", "2level", [5, 3, 2], fake.TWO, **changes)
    found = made(tmp_path)
    assert not any(row.pairs for group in found.groups for row in group.rows)
    (note,) = [note for note in found.notes if "no matched baseline" in note]
    assert f"differs in {named})" in note


def test_what_may_differ_does_not_part_runs(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3], eval={"every": "1%", "batch": 32}, run="elsewhere")
    # The model as newer runs name it.
    model = {**fake.MODEL, "parametrization": "standard", "base": None}
    others = {"lr": 3e-3, "logger": {"x": 1}, "cache": "/elsewhere", "model": model}
    straight(tmp_path / "b", "2level", [5, 3, 2], fake.TWO, **others)
    assert len(only_row(tmp_path).pairs) == 1


def test_a_gap_smaller_than_the_noise_of_its_curves_is_noted(tmp_path: Path) -> None:
    start = [5, 4.6, 4.2, 3.8, 3.5, 3.3]
    smooth, noisy = [*start, 3.2, 3.1, 3.0], [*start, 2.9, 3.2, 3.0]
    for name, losses in (("smooth", smooth), ("noisy", noisy)):
        straight(tmp_path / name / "a", "scratch", losses)
        straight(tmp_path / name / "b", "2level", [*start, 3.1, 3.0, 2.9], fake.TWO)
    told = {name: any("may be noise" in note for note in made(tmp_path / name).notes) for name in ("smooth", "noisy")}
    assert told == {"smooth": False, "noisy": True}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"starts": [{**fake.MACHINE, "host": "two"}]}, "then two"),
        ({"starts": [fake.MACHINE, {**fake.MACHINE, "processor": "Other"}]}, "went on elsewhere (processor"),
        ({"starts": [{**fake.MACHINE, "commit": "abc"}]}, "then abc"),
        ({"starts": []}, "does not say which machine"),
        ({"hardware": {"micro_batch": 2}}, "hardware.micro_batch None, then 2"),
        ({"slow": 1.2}, "differ in speed at level 1 by 20%"),
    ],
)
def test_seconds_are_compared_only_where_they_may_be(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    straight(tmp_path / "b", "2level", [5, 3, 2], fake.TWO, **changes)
    found = made(tmp_path)
    ((row,),) = (group.rows for group in found.groups)
    assert row.spread("flops").mean is not None
    assert (row.spread("seconds").mean, row.timed) == (None, False)
    assert " n/a " in build.render(found)
    assert any("times are n/a" in note and why in note for note in found.notes)


def test_a_run_that_shared_its_machine_for_a_while_has_no_time(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3.5, 3.2, 3])
    straight(tmp_path / "b", "2level", [5, 3, 2, 2, 2], fake.TWO)
    log = (tmp_path / "b" / "log.jsonl").read_text().splitlines()
    *before, last = map(json.loads, log)
    last["seconds"] += 0.2 * last["seconds"]
    (tmp_path / "b" / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*before, last]))
    assert any("changed by" in note for note in made(tmp_path).notes)


def test_all_seconds_charge_what_is_not_training(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    straight(tmp_path / "b", "2level", [5, 3, 2], fake.TWO)
    row = only_row(tmp_path)
    trained = fake.spent(fake.TWO, 0.5, "seconds")
    assert row.spread("seconds").mean == pytest.approx(1 - trained / 100)
    assert row.spread("seconds_all").mean == pytest.approx(1 - (trained + 14) / (100 + 14))


def test_a_declared_source_is_charged_and_shown_without(tmp_path: Path) -> None:
    base = fake.plan(fake.SCRATCH)["totals"]
    source = {"name": "small", "flops": 0.1 * base["flops"], "flops_body": 0.1 * base["flops_body"], "seconds": 5}
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    straight(tmp_path / "b", "ligo", [5, 3, 2], ((2, 0), (1, 1000)), source=source)
    row = only_row(tmp_path)
    assert row.spread("flops").mean == pytest.approx(0.4)
    assert row.source_free("flops").mean == pytest.approx(0.5)
    assert "source free" in build.render(made(tmp_path))


def test_each_rate_of_a_cycle_is_a_row_and_the_best_is_marked(tmp_path: Path) -> None:
    fake.sweep(tmp_path, seeds=(0,))
    (group,) = compare(read_all(find([tmp_path])))
    assert [(r.method, r.lr, r.best) for r in group.rows if r.method == "2level"] == [
        ("2level", 1e-3, False),
        ("2level", 2e-3, True),
    ]


def test_the_same_run_twice_is_no_second_seed(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    for name in ("b1", "b2"):
        straight(tmp_path / name, "2level", [5, 3, 2], fake.TWO)
    assert [pair.run.folder.name for pair in only_row(tmp_path).pairs] == ["b2"]


def test_methods_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    sections = [
        {"coarsening": {**fake.config("2level")["coarsening"], "width": w, "depth": d}, "seed": s}
        for w, d, s in ((2, 2, 0), (4, 2, 0), (4, 1, 1))
    ]
    runs = [read(straight(tmp_path / f"{i}", "2level", [5, 3], fake.TWO, **c)) for i, c in enumerate(sections)]
    named = pairing.labels({f"{i}": [run] for i, run in enumerate(runs)})
    assert list(named.values()) == ["2level depth=2 width=2", "2level depth=2 width=4", "2level depth=1 width=4"]
    assert pairing.labels({"": [runs[0]]}) == {"": "2level"}


def test_layer_dropout_and_a_stages_own_samples_make_a_method_and_a_neutral_value_none(tmp_path: Path) -> None:
    plain = fake.recorded("scratch")[0]
    row = {"level": 1, "length": "rest", "alpha": None}
    neutral = {"layer_dropout": 0.0, "stages": [row | {"batch": plain["batch"], "sequence": None}]}
    cycles = [
        {},
        neutral,
        {"layer_dropout": 0.5},
        {"stages": [row | {"batch": 99}]},
        {"stages": [row | {"sequence": 8}]},
        {"decay": "10%"},
        {"decay": None},
    ]
    runs = [read(straight(tmp_path / f"{i}", "scratch", [5, 3], cycle=cycle)) for i, cycle in enumerate(cycles)]
    assert [pairing.baseline(run) for run in runs] == [True, True, False, False, False, False, True]
    assert pairing.family(runs[0]) == pairing.family(runs[1]) == pairing.family(runs[-1])
    names = [pairing.called([run]) for run in runs]
    own = ["layer_dropout=0.5", "batch=99", "sequence=8", "decay=10%"]
    assert names == ["scratch", "scratch", *(f"scratch {each}" for each in own), "scratch"]
    two = {
        "layer_dropout": 0.0,
        "stages": [{**r, "batch": None} for r in fake.recorded("2level")[0]["cycle"]["stages"]],
    }
    old, new = (
        read(straight(tmp_path / f"b{i}", "2level", [5, 3], fake.TWO, cycle=c)) for i, c in enumerate(({}, two))
    )
    assert pairing.family(old) == pairing.family(new)


def test_more_steps_for_the_same_flops_are_no_early_stop_and_fewer_flops_are(tmp_path: Path) -> None:
    longer = fake.plan([(1, fake.BUDGET + 20)])
    (stage,) = longer["stages"]
    found = {}
    for name, flops in {"whole": longer["budget"]["flops"] - 1, "half": longer["budget"]["flops"] // 2}.items():
        planned = {"stages": [stage | {"flops": flops}], "budget": longer["budget"]}
        folder = straight(tmp_path / name, "scratch", [5, 3], plan=planned, cycle={"layer_dropout": 0.5})
        found[name] = pairing.unplain(read(folder))
    assert found["whole"] == ["layer_dropout=0.5"] and found["half"][0].startswith("stops at 1")


def test_stages_called_as_the_baseline_are_told_by_what_they_have_of_their_own(tmp_path: Path) -> None:
    planned = fake.plan([(1, 50), (1, fake.BUDGET - 50)])
    planned["stages"][0] |= {"batch": 99, "sequence": planned["sequence"]}
    run = read(straight(tmp_path / "a", "scratch", [5, 3], [(1, 50), (1, fake.BUDGET - 50)], plan=planned))
    assert pairing.called([run]) == f"scratch levels 1-1 batches 99-{planned['batch']}"


def test_a_ratio_of_the_width_is_called_that_and_not_what_follows_it(tmp_path: Path) -> None:
    for width in (2, 4):
        ratios = {"width": width, "ffn": width, "head": width}
        straight(tmp_path / f"b{width}", "2level", [5, 4, 3], fake.TWO, coarsening=ratios)
    (group,) = compare(read_all(find([tmp_path])))
    assert {row.method for row in group.rows} == {"2level width=2", "2level width=4"}


# Runs that are not whole


def test_unfinished_runs_are_labelled_and_in_no_mean(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    straight(tmp_path / "b", "2level", [5, 3, 2], fake.TWO)
    running = straight(tmp_path / "c", "2level", [5, 1, 1], fake.TWO, seed=0, status=None, lr=2e-3)
    stale = straight(tmp_path / "d", "2level", [5, 1, 1], fake.TWO, seed=1, status=None)
    os.utime(stale / "log.jsonl", (time.time() - 7200,) * 2)
    straight(tmp_path / "e", "scratch", [5, 1, 1], status="interrupted", lr=2e-3)
    with claimed(running, ALONE):  # as a process that trains it does
        assert (read(running).status, read(stale).status) == ("running", "unfinished")
        found = made(tmp_path)
        (group,) = found.groups
        assert group.rates == (1e-3,), "an interrupted baseline has no final loss"
        assert {row.lr: len(row.pairs) for row in group.rows} == {1e-3: 1, 2e-3: 0}
        assert sum("in no mean" in note for note in found.notes) == 3
        assert "running" in build.render(found)


def test_a_half_written_last_line_is_left_out(tmp_path: Path) -> None:
    folder = fake.run(tmp_path / "a", "scratch", fake.SCRATCH)
    whole = read(folder)
    with open(folder / "log.jsonl", "a") as log:
        log.write('{"kind": "val", "stage": 0, "lev')
    assert read(folder) == whole


def test_a_run_that_diverged_reports_it(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    straight(tmp_path / "b", "2level", [5, 3, None], fake.TWO)  # type: ignore[list-item]
    found = made(tmp_path)
    text = build.render(found)
    assert "not reached" in text
    assert "diverged 1/1" in text


def test_running_runs_alone_make_a_report(tmp_path: Path) -> None:
    log = fake.records(fake.TWO)[:200]
    fake.write(tmp_path / "a", fake.config("2level"), fake.plan(fake.TWO), log, None)
    found = build.build([tmp_path], tmp_path / "out")
    assert found.figure is not None
    assert "No finished baseline" in build.render(found)


def test_folders_that_hold_no_run_are_one_line_each_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    with pytest.raises(UserError) as error:
        build.build([tmp_path / "absent", tmp_path / "foreign"], tmp_path / "out")
    absent, foreign = error.value.problems
    assert "no such folder" in absent and str(tmp_path / "absent") in absent
    assert "plan.json" in foreign
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["plan.json", "config.yaml", "summary.json", "log.jsonl"])
def test_a_broken_file_is_one_line_that_names_the_folder(tmp_path: Path, name: str) -> None:
    folder = fake.run(tmp_path / "a", "scratch", fake.SCRATCH)
    (folder / name).write_text("{{\n")
    with pytest.raises(UserError) as error:
        build.build([tmp_path], tmp_path / "out")
    (line,) = error.value.problems
    assert str(folder) in line and "\n" not in line


def test_runs_are_found_below_by_pattern_and_once(tmp_path: Path) -> None:
    for name in ("x/1", "x/2", "y/1"):
        fake.run(tmp_path / name, "scratch", fake.SCRATCH)
    assert len(find([tmp_path, tmp_path / "x"])) == 3
    assert [path.name for path in find([tmp_path / "x" / "*"])] == ["1", "2"]


# What is written


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> build.Report:
    folder = tmp_path_factory.mktemp("sweep")
    return build.build([fake.sweep(folder / "runs")], folder / "out")


def test_all_files_are_written_and_agree(built: build.Report) -> None:
    names = {path.name for path in built.files}
    assert names == {"index.html", "report.md", "savings.csv", "report.json", "loss.png", "loss.pdf"}
    out = built.files[0].parent
    loaded = json.loads((out / "report.json").read_text())
    rows = list(csv.DictReader((out / "savings.csv").open()))
    first = loaded["groups"][0]["methods"][0]
    assert (first["method"], rows[0]["method"]) == ("grow", "grow")
    mean = first["saving_at_equal_loss"]["flops"]["mean"]
    assert float(rows[0]["saving_flops"]) == mean
    assert f"{100 * mean:.1f}% ± " in (out / "report.md").read_text()
    assert loaded == json.loads(json.dumps(built.as_dict(), default=str)) | {"files": loaded["files"]}


def test_the_report_on_a_terminal_fits_in_110_columns(built: build.Report) -> None:
    lines = build.render(built).splitlines()
    paths = {str(path) for path in built.files}
    assert max(len(line) for line in lines if line not in paths) <= 110
    assert any(line.startswith(" 2level *   0.002       3") for line in lines)


def test_receipts_are_shown(built: build.Report) -> None:
    text = (built.files[0].parent / "report.md").read_text()
    assert "| 2level | 2 | coalesce |  | 3 |" in text
    assert "| grow | 2 | decoalesce | 0.5 | 3 |" in text


def test_the_figure_draws_levels_stages_and_savings(built: build.Report) -> None:
    (group,) = built.groups
    curves = figure.chosen(group)
    assert [c.name for c in curves] == ["scratch (baseline)", "grow", "2level"]
    assert len({c.colour for c in curves}) == 3
    assert [c.name for c in figure.saving(curves, "flops")] == ["grow", "2level"]
    low, high = figure.limits(curves, 2)
    assert group.loss.mean is not None
    assert low < group.loss.mean < high < 5.2, "the first steep fall is cut off"
    assert built.figure is not None
    assert built.figure.read_bytes()[:4] == b"\x89PNG"


def curve_of(*points: tuple[int, int, float, float]) -> figure.Curve:
    """Return a curve of one seed with these (stage, level, FLOPs, loss)."""
    seed = [Point(stage, level, int(flops), flops, flops, flops, flops, loss) for stage, level, flops, loss in points]
    return figure.Curve("a", figure.BASELINE, (seed,), None)


def test_the_y_axis_leaves_out_what_jumps_after_a_change_of_level_and_is_never_flat() -> None:
    fall = [(0, 2, 0.0, 9.0), (0, 2, 40.0, 4.2)]
    jump = [(1, 1, 40.0, 8.0), (1, 1, 44.0, 6.0), (1, 1, 60.0, 4.1), (1, 1, 100.0, 4.0)]
    low, high = figure.limits([curve_of(*fall, *jump)], 0)
    assert low < 4.0 and 4.1 < high < 5
    low, high = figure.limits([curve_of((0, 1, 0.0, 9.0), (0, 1, 100.0, 4.0))], 0)
    assert high - low >= figure.LEAST


def test_a_long_legend_leaves_the_panels_their_height(tmp_path: Path) -> None:
    def height(name: str, folder: Path) -> int:
        fake.run(folder / "runs/a", "scratch", fake.SCRATCH)
        for k in range(7):
            fake.run(folder / f"runs/{k}", "2level", fake.TWO, cycle={"name": f"{name}{k}"})
        png = build.build([folder / "runs"], folder / "out").figure
        assert png is not None
        return int.from_bytes(png.read_bytes()[20:24], "big")

    assert height("a_name_that_takes_a_whole_line_of_it_" * 3, tmp_path / "b") > height("m", tmp_path / "a") + 200


@pytest.mark.parametrize(
    ("axis", "largest", "label"),
    [
        ("seconds", 100, "training time (seconds)"),
        ("seconds", 36_000, "training time (hours)"),
        ("tokens", 4.1e6, "tokens (millions)"),
        ("tokens", 3e12, "tokens (billions)"),
        ("flops", 4e15, "training FLOPs ($\\times 10^{15}$)"),
    ],
)
def test_axes_have_readable_units(axis: str, largest: float, label: str) -> None:
    assert figure.unit(axis, largest)[1] == label


def test_reading_many_runs_is_fast(tmp_path: Path) -> None:
    """A thirtieth of the 500 runs that must take less than 20 s takes far less than a second and a half."""
    lines = fake.records(((1, 980),))
    for i in range(30):
        fake.write(tmp_path / f"{i}", fake.config(seed=i), fake.plan(fake.SCRATCH), lines)
    start = time.process_time()
    compare(read_all(find([tmp_path])))
    assert time.process_time() - start < 1.2


def test_the_report_imports_neither_torch_nor_hydra() -> None:
    code = (
        "import sys, mlrun.report.build, mlrun.report.figure, mlrun.log.log, mlrun.log.wandb, mlrun.log.tensorboard;"
        "print([m for m in ('torch', 'hydra', 'omegaconf', 'wandb', 'datasets') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("reasons", "told"),
    [("a", "compared: a."), ("ab", "compared: a, and 1 more such reason."), ("abbc", "a, and 2 more such reasons.")],
)
def test_reasons_for_no_times_are_counted(reasons: str, told: str) -> None:
    row = SimpleNamespace(pairs=[SimpleNamespace(untimed=reason) for reason in reasons], timed=False, method="m")
    (line,) = _untimed(SimpleNamespace(rows=[row]), "all")  # type: ignore[arg-type]
    assert line.endswith(told)
