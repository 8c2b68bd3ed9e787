"""A branch is the end of a shorter run, and leaves the run that it forks from as it was."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy
from kills import die, same_end

from mlrun.cli import command, points, tasks
from mlrun.config.load import conf_dir, load
from mlrun.config.settings import Cycle, Row, Schedule
from mlrun.errors import UserError
from mlrun.plan import schedule
from mlrun.plan.make import make_plan
from mlrun.plan.record import as_dict
from mlrun.plan.stages import Plan, Spent
from mlrun.plan.table import show
from mlrun.train.checkpoint import layout, tensor_files
from mlrun.train.checkpoint.store import Checkpoints
from mlrun.train.optimizers.adamw import AdamW

WSD = "optimizer.schedule.shape=wsd"
POLICIES = ("restart", "continue", "rewarm")


def planned(*overrides: str) -> Plan:
    (point,) = points.of(command.read(["budget=1000 steps", WSD, *overrides]))
    return make_plan(load(point.settings))


def problems(*overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        planned(*overrides)
    return caught.value.problems


# The plan


def test_a_branch_ends_at_its_share_of_the_budget_after_a_decay_of_its_own() -> None:
    plan = planned("cycle=scratch", "cycle.branches=[75%,50%]")
    assert [(s.first, s.steps, s.fork, s.ending) for s in plan.stages] == [
        (0, 1000, None, None),
        (1000, 100, 400, 0.5),
        (1100, 150, 600, 0.75),
    ]
    flops, rows = plan.budget_flops, plan.batch
    assert plan.own(plan.stages[1], 1100) == Spent(
        500, 500 * rows, 500 * rows * 128, flops // 2, plan.spent(500).flops_body
    )
    assert plan.own(plan.stages[2], 1250).flops == flops * 3 // 4


def test_a_cycles_own_decay_is_that_of_its_schedule_and_endings() -> None:
    own, other = planned("cycle=scratch", "cycle.branches=[50%]", "cycle.decay=10%"), AdamW(lr=1.0)
    plain = planned("cycle=scratch", "cycle.branches=[50%]", "optimizer.schedule.decay=10%")
    assert own.stages == plain.stages and own.stages[1].fork == 450
    (point,) = points.of(command.read([WSD, "budget=1000 steps", "cycle=scratch", "cycle.decay=10%"]))
    config = load(point.settings)
    assert config.optimizer.schedule == replace(other.schedule, shape="wsd", decay="10%")
    assert config.resolved["optimizer"]["schedule"]["decay"] == "20%"  # what a report compares with the baseline's
    assert problems("cycle.decay=0.1") == [
        "cycle.decay=0.1: allowed: 5%, 1500 steps, 20M tokens, 64k samples, 3e18 flops; write a number with its unit"
    ]
    (line,) = problems("cycle.decay=10%", "optimizer.schedule.shape=cosine")
    assert line.startswith("optimizer.schedule.shape=cosine: allowed: wsd; no other schedule has a decay")


def test_all_that_is_spent_is_charged_and_no_branch_counts_as_the_cycles_own() -> None:
    plain, plan = planned("cycle=scratch"), planned("cycle=scratch", "cycle.branches=[50%,75%]")
    assert plan.total.flops == plain.total.flops * 5 // 4 == sum(plan.stage_cost(s).flops for s in plan.stages)
    assert as_dict(plan)["totals"]["share"] == 1.25
    assert [("branch" in stage, stage.get("fork")) for stage in as_dict(plan)["stages"]] == [
        (False, None),
        (True, 400),
        (True, 600),
    ]
    assert as_dict(plan)["stages"][0] == as_dict(plain)["stages"][0]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("cycle", ["2level", "grow", "3level"])
def test_a_cycle_ends_at_the_flops_of_the_baseline_less_than_a_step_short(cycle: str, policy: str) -> None:
    short = "cycle.lengths.coarse=30%"
    plan = planned(f"cycle={cycle}", f"cycle.lr_policy={policy}", short, "cycle.branches=[60%,80%]")
    for branch in plan.stages[len(plan.trunk) :]:
        assert branch.ending is not None
        left = branch.ending * plan.budget_flops - plan.own(branch, branch.end).flops
        assert 0 <= left < plan.batch * plan.level(1).flops.total


@pytest.mark.parametrize("text", ["50%", "500 steps", "8000 samples", "1024k tokens"])
def test_a_point_may_come_in_any_unit(text: str) -> None:
    branch = planned("cycle=scratch", f"cycle.branches=[{text}]").stages[1]
    assert (branch.fork, branch.end - branch.first, branch.ending) == (400, 100, 0.5)


def test_a_point_in_flops_is_that_cost() -> None:
    half = planned("cycle=scratch").budget_flops // 2
    assert planned("cycle=scratch", f"cycle.branches=[{half} flops]").stages[1].fork == 400


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("decay", ["20%", "40 steps", "100k tokens"])
def test_the_rates_are_those_of_a_run_with_that_budget(policy: str, decay: str) -> None:
    """With stages and a warm-up of a fixed length, which a shorter run would have too."""
    rows = "cycle.stages=[{level:1,length:'50 steps'},{level:2,length:'300 steps'},{level:1,length:rest}]"
    common = [
        rows,
        f"cycle.lr_policy={policy}",
        f"optimizer.schedule.decay='{decay}'",
        "optimizer.schedule.warmup=20 steps",
    ]
    plan, shorter = planned(*common, "cycle.branches=[50%]"), planned(*common, "budget=500 steps")
    plain, branch = planned(*common), plan.stages[-1]
    optimizer = AdamW(lr=0.1, schedule=Schedule(shape="wsd", warmup="20 steps", decay=decay))

    def rates(of: Plan, stage: Any) -> list[float]:
        return [schedule.rate(of, optimizer, policy, stage, step) for step in range(stage.first, stage.end)]

    assert branch.fork is not None
    last, end = shorter.stages[-1], branch.fork + branch.steps
    assert end == last.end
    whole = rates(shorter, last)
    assert rates(plan, branch) == whole[branch.fork - last.first :]
    assert rates(plan, plan.trunk[-1])[: branch.fork - last.first] == whole[: branch.fork - last.first]
    assert [rates(plan, s) for s in plan.trunk] == [rates(plain, s) for s in plain.stages]


@pytest.mark.parametrize("cycle", ["scratch", "2level", "grow"])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_range_that_a_refusal_names_is_the_range_that_works(cycle: str, policy: str) -> None:
    common = [f"cycle={cycle}", f"cycle.lr_policy={policy}"]
    lines = problems(*common, "cycle.branches=[1%,100%]")
    assert [line.partition(":")[0] for line in lines] == ["cycle.branches.0=1%", "cycle.branches.1=100%"]
    found = re.search(r"allowed: (\S+)% to (\S+)% of the budget's FLOPs; .* stable rate", lines[0])
    assert found is not None
    low, high = float(found[1]), float(found[2])
    plan = planned(*common, f"cycle.branches=[{low}%,{high}%]")
    optimizer = AdamW(lr=1.0, schedule=Schedule(shape="wsd"))
    for branch in plan.stages[len(plan.trunk) :]:
        rates = [schedule.rate(plan, optimizer, policy, branch, step) for step in range(branch.first, branch.end)]
        assert rates[0] == 1.0 and rates[-1] == pytest.approx(0.1)
    assert len(problems(*common, f"cycle.branches=[{low - 0.2:.1f}%,{high + 0.2:.1f}%]")) == 2


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["cycle.branches=[50%]", "optimizer.schedule.shape=cosine"], "optimizer.schedule.shape=cosine: allowed: wsd"),
        (["cycle.branches=[half]"], "cycle.branches.0=half: allowed: 5%"),
        (["cycle.branches=[rest]"], "cycle.branches.0=rest: allowed: 5%"),
        (["cycle.branches=[50%,500 steps]"], "a step or more apart"),
        (["cycle.branches=[50%]", "optimizer.schedule.decay=0%"], "none: no stable phase that a decay ends"),
        (["cycle.branches=[50%]", "method=inheritance", "cycle=grow"], "a last stage with the model's own loss"),
    ],
)
def test_what_cannot_branch_is_refused_in_one_line(overrides: list[str], told: str) -> None:
    (line,) = problems("cycle=scratch", *overrides)
    assert told in line


def test_the_plan_for_people_shows_what_every_branch_costs() -> None:
    stream = io.StringIO()
    show(as_dict(planned("cycle=scratch", "cycle.branches=[50%,75%]")), None, stream)
    lines = stream.getvalue().splitlines()
    assert "100.0% and for 2 more endings 25.0% of a budget" in lines[0]
    (line,) = [line for line in lines if "fork at step 600, ends at 75%" in line]
    assert line.split()[-4:] == ["15.0%", "n/a", "n/a", "1"]  # time, memory: nothing was measured


# Points that may be left out


def test_a_point_if_possible_is_left_out_with_a_reason_and_any_other_refused() -> None:
    points = "cycle.branches=[10% if possible,{},80% if possible]"
    plan, plain = planned("cycle=grow", points.format("70%")), planned("cycle=grow", "cycle.branches=[70%,80%]")
    assert plan.stages == plain.stages
    ((point, share, why),) = [(found.point, found.ending, found.why) for found in plan.lacking]
    begins = plan.spent(plan.stages[0].end, 0).flops / plan.budget_flops
    assert (point, share) == ("10%", 0.1) and f"the last stage begins at {begins:.1%}" in why
    low, high = (float(edge) for edge in re.findall(r"([\d.]+)% (?:to|of)", why))
    assert 100 * begins < low < high < 100
    planned("cycle=grow", f"cycle.branches=[{low}%,{high}%]")
    (line,) = problems("cycle=grow", points.format(f"{low - 1:.1f}%"))
    assert (
        line.startswith(f"cycle.branches.1={low - 1:.1f}%: allowed: ")
        and why.split("; ")[0].removeprefix("possible: ") in line
    )


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["optimizer.schedule.shape=cosine"], "optimizer.schedule.shape=wsd, a stable rate to leave"),
        (["optimizer.schedule.decay=0%"], "none: no stable phase that a decay ends"),
        (["method=inheritance", "cycle=grow"], "a last stage with the model's own loss"),
    ],
)
def test_a_cycle_without_any_branch_lacks_them_all_and_says_why(overrides: list[str], told: str) -> None:
    plan = planned("cycle=scratch", *overrides, "cycle.branches=[50% if possible,700 steps if possible]")
    assert plan.stages == planned("cycle=scratch", *overrides).stages
    assert [(found.point, found.ending) for found in plan.lacking] == [("50%", 0.5), ("700 steps", 0.7)]
    assert all(told in found.why for found in plan.lacking)
    problems("cycle=scratch", *overrides, "cycle.branches=[50% if possible,70%]")


def test_of_two_points_at_one_step_the_one_that_must_be_stays() -> None:
    plan = planned("cycle=scratch", "cycle.branches=[50% if possible,500 steps,8000 samples if possible]")
    assert [branch.ending for branch in plan.stages[1:]] == [0.5]
    assert [(found.point, found.why) for found in plan.lacking] == [
        ("50%", "another point is the same step"),
        ("8000 samples", "another point is the same step"),
    ]


def test_an_end_at_the_whole_budget_is_no_branch() -> None:
    (found,) = planned("cycle=scratch", "cycle.branches=[100% if possible]").lacking
    assert (found.point, "to 99.9% of the budget" in found.why) == ("100%", True)


@pytest.mark.parametrize("text", ["half if possible", "if possible", "50% if", "50% if possible if possible"])
def test_what_is_no_length_is_refused_with_and_without_if_possible(text: str) -> None:
    (line,) = problems("cycle=scratch", f"cycle.branches=[{text}]")
    assert line.startswith("cycle.branches.0=") and "allowed: 5%" in line


def test_the_plan_says_which_endings_it_lacks() -> None:
    stream = io.StringIO()
    plan = as_dict(planned("cycle=grow", "cycle.branches=[10% if possible,80% if possible]"))
    show(plan, None, stream)
    (ending,) = plan["lacking"]
    assert f"  no ending at 10%: {ending['why']}" in stream.getvalue().splitlines()
    assert "lacking" not in as_dict(planned("cycle=grow", "cycle.branches=[80% if possible]"))


# A grid about rates alone names no saving, and has no endings.
GRIDS = [f.stem for f in (conf_dir() / "experiment").glob("*.yaml") if "sweeper:" in f.read_text()]
GRIDS.remove("transfer")


@pytest.mark.parametrize("grid", sorted(GRIDS))
def test_every_point_of_a_grid_has_each_ending_or_says_why_not(grid: str) -> None:
    for point in points.of(command.read(["-m", "scale=tiny", f"experiment={grid}", "optimizer.lr=4e-3"])):
        plan = make_plan(load(point.settings))
        found = {*(stage.ending for stage in plan.stages if stage.fork), *(lack.ending for lack in plan.lacking)}
        assert found == {0.35, 0.5, 0.65, 0.8}
        assert any(stage.fork for stage in plan.stages), "some ending brackets the headline"


# The run


def val(folder: Path) -> list[dict[str, Any]]:
    """Return the records of the branches' evaluations."""
    return [r for r in toy.records(folder) if r["kind"] == "val" and "branch" in r]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("branched") / "run"
    toy.run(folder, toy.make(**toy.BRANCHED))
    return folder


def test_the_trunk_is_that_of_a_run_without_branches(tmp_path: Path, whole: Path) -> None:
    plain = replace(toy.BRANCHED["cycle"], branches=[])
    toy.run(tmp_path, toy.make(**toy.BRANCHED | {"cycle": plain}))
    assert [r for r in toy.records(whole) if "branch" not in r] == toy.records(tmp_path)
    for name in ("model.safetensors", "ema.safetensors"):
        assert (whole / "model" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    best = [tensor_files.read(folder / "checkpoints" / layout.BEST)[1] for folder in (whole, tmp_path)]
    assert best[0]["val_loss"] == best[1]["val_loss"]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, tmp_path)]
    assert summaries[0]["val_loss"] == summaries[1]["val_loss"]


@pytest.mark.parametrize("growing", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_branch_ends_bitwise_where_a_run_with_that_budget_ends(tmp_path: Path, growing: bool, policy: str) -> None:
    """Given stages and a warm-up of a fixed length: weights, moments, average, data and rates are then the same."""
    stages = [Row(2, "8 steps"), Row(1, "rest")] if growing else [Row(1, "rest")]
    optimizer = AdamW(lr=1e-2, ema=0.9, schedule=Schedule(shape="wsd", warmup="2 steps", decay="20%"))

    def run(name: str, budget: str, *branches: str) -> dict[str, Any]:
        cycle = Cycle(name=name, stages=stages, lr_policy=policy, branches=list(branches))
        return toy.run(tmp_path / name, toy.make(budget=budget, cycle=cycle, optimizer=optimizer))

    run("long", "24 steps", "50%", "75%")
    for branch, budget in zip(val(tmp_path / "long"), ("12 steps", "18 steps"), strict=True):
        shorter = run(budget, budget)
        last = [r for r in toy.records(tmp_path / budget) if r["kind"] == "val"][-1]
        assert (
            (branch["loss"], branch["ema_loss"])
            == (last["loss"], last["ema_loss"])
            == (shorter["val_loss"], last["ema_loss"])
        )
        own = {name: branch[f"own_{name}"] for name in ("step", "tokens", "flops", "flops_body")}
        assert own == {name: last[name] for name in own}


def test_the_ledger_charges_every_branch_once(whole: Path) -> None:
    plan = make_plan(toy.make(**toy.BRANCHED))
    summary = json.loads((whole / "summary.json").read_text())
    stages = summary["ledger"]["stages"]
    assert [s.get("branch") for s in stages] == [None, None, None, 0.62, 0.71]
    assert [s["steps"] for s in stages] == [4, 8, 10, 3, 3]
    total = summary["ledger"]["total"]
    assert total["flops"] == sum(s["flops"] for s in stages) == plan.spent(22).flops + 6 * 8 * plan.level(1).flops.total
    assert sum(s["seconds"] for s in stages) == pytest.approx(summary["ledger"]["seconds"]["training"], rel=1e-6)
    last = toy.records(whole)[-1]
    assert (last["flops"], last["step"]) == (total["flops"], 28)
    assert f"({total['share']:.1%} of the budget, branches included)" in tasks.outcome(summary, whole)


def test_an_endings_seconds_are_those_up_to_the_fork_and_of_its_decay(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    at = {(r["kind"], r["step"]): r["seconds"] for r in lines if r["kind"] in ("train", "stage")}
    own = [r["own_seconds"] for r in lines if "own_seconds" in r]
    for seconds, fork, begin in zip(own, (15, 17), (22, 25), strict=True):
        least = at["train", fork] + at["train", begin + 3] - at["stage", begin]
        assert least - 1e-6 <= seconds <= at["train", fork + 1] + at["stage", begin + 3] - at["stage", begin] + 1e-6


def test_branches_and_trunk_read_the_same_samples_after_the_fork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = toy.samples_read(monkeypatch)
    toy.run(tmp_path, toy.make(**toy.BRANCHED))
    steps = [*range(22), 15, 16, 17, 17, 18, 19]
    assert read == [8 * step + row for step in steps for row in range(8)]


def same_branches(whole: Path, killed: Path) -> None:
    same_end(whole, killed)
    assert not list((killed / "checkpoints").glob("fork-*")), "no branch will start from it any more"


@pytest.mark.parametrize("every", ["1 step", "100 steps"])
@pytest.mark.parametrize("at", [15, 16, 17, 18, 22, 23, 24, 25, 26, 27, 28])
def test_a_run_killed_around_a_fork_or_in_a_branch_goes_on_bitwise(
    tmp_path: Path, whole: Path, at: int, every: str
) -> None:
    config = toy.make(**toy.BRANCHED, checkpoint=toy.Checkpoint(every=every))
    die(tmp_path, config, at)
    toy.run(tmp_path, config)
    same_branches(whole, tmp_path)


@pytest.mark.parametrize("name", ["save_fork", "load_fork"])
@pytest.mark.parametrize("before", [True, False])
def test_a_run_killed_at_the_fork_itself_goes_on_bitwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path, name: str, before: bool
) -> None:
    real = getattr(Checkpoints, name)

    def die(*args: Any) -> None:
        if not before:
            real(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, name, die)
        with pytest.raises(KeyboardInterrupt):
            toy.run(tmp_path, toy.make(**toy.BRANCHED))
    toy.run(tmp_path, toy.make(**toy.BRANCHED))
    same_branches(whole, tmp_path)


@pytest.mark.parametrize("damage", [None, b"x"])
def test_a_fork_that_is_lost_is_told_in_one_line(tmp_path: Path, damage: bytes | None) -> None:
    die(tmp_path, toy.make(**toy.BRANCHED), 23)
    fork = tmp_path / "checkpoints" / "fork-15.safetensors"
    fork.unlink() if damage is None else fork.write_bytes(damage)
    with pytest.raises(UserError, match=r"fork-15.safetensors: cannot be read.*a branch starts from it") as caught:
        toy.run(tmp_path, toy.make(**toy.BRANCHED))
    assert len(caught.value.problems) == 1
