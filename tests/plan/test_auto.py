"""Stages whose end a run decides: the plan before, between and after the decisions, and what cannot be planned."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from mlrun.cli import command, points
from mlrun.config.load import Config, load
from mlrun.config.settings import Schedule
from mlrun.errors import UserError
from mlrun.plan import schedule
from mlrun.plan.auto import Decision
from mlrun.plan.make import make_plan
from mlrun.plan.record import as_dict
from mlrun.plan.stages import Plan
from mlrun.plan.table import show
from mlrun.train.optimizers.adamw import AdamW

AUTO = ["budget=1000 steps", "optimizer.schedule.shape=wsd", "method=auto"]
PROBES = "cycle.auto.probe=[{source:random},{source:copy},{source:copy,place:below}]"
TWO = "cycle.stages=[{level:3,length:auto},{level:2,length:auto},{level:1,length:rest}]"
HALVES = ["coarsening=depth_only", "growth=decoalesce"]  # 4, 2 and 1 layers

OPTIMIZER = AdamW(lr=1.0, schedule=Schedule(shape="wsd"))


@cache
def config(*overrides: str) -> Config:
    (point,) = points.of(command.read([*AUTO, *overrides]))
    return load(point.settings)


def planned(*overrides: str, decisions: Any = ()) -> Plan:
    return make_plan(config(*overrides), decisions=decisions)


def problems(*overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        planned(*overrides)
    return caught.value.problems


def test_before_the_decision_the_stage_is_planned_to_its_latest_end() -> None:
    """Decay (20% of the run) and mixing time (20% of the budget's steps) fit after it, and a step later they do not."""
    plan = planned()
    coarse, fine = plan.stages
    assert coarse.open is not None and fine.open is None
    decay = round(0.2 * plan.steps)
    assert fine.steps - decay >= 200
    later = planned(decisions=[Decision(coarse.steps + 1)])
    assert later.stages[1].steps - round(0.2 * later.steps) < 200
    assert 0 <= plan.budget_flops - plan.total.flops < plan.batch * plan.level(1).flops.total


def test_the_earliest_end_is_the_fourth_look_after_the_warm_up() -> None:
    """A look every 5% of the budget's steps; the warm-up is 5% of the longest span."""
    plan = planned()
    (coarse, _), warm = plan.stages, round(0.05 * plan.steps)
    assert coarse.open is not None
    assert (coarse.open.begin, coarse.open.earliest) == (warm, (-(-warm // 50) + 3) * 50)
    assert [coarse.watched(step) for step in (warm - 1, warm, coarse.end)] == [False, True, True]
    assert coarse.open.rest == planned(decisions=[Decision(coarse.open.earliest)]).stages[1].steps


@pytest.mark.parametrize("steps", [200, 333, 400])
def test_the_rest_follows_from_the_decision_and_fills_the_budget(steps: int) -> None:
    plan = planned(decisions=[Decision(steps)])
    coarse, fine = plan.stages
    assert (coarse.steps, coarse.open, fine.first) == (steps, None, steps)
    assert 0 <= plan.budget_flops - plan.total.flops < plan.batch * plan.level(1).flops.total
    fixed = planned(f"cycle.stages=[{{level:2,length:{steps} steps}},{{level:1,length:rest}}]", "cycle.auto=null")
    assert plan.stages == fixed.stages


@pytest.mark.parametrize("decay", ["20%", "100 steps"])
@pytest.mark.parametrize("warmup", ["20%", "50 steps"])
@pytest.mark.parametrize("probing", [[], [PROBES]])
def test_the_rate_up_to_a_decision_does_not_depend_on_it(decay: str, warmup: str, probing: list[str]) -> None:
    given = [f"optimizer.schedule.decay={decay}", f"optimizer.schedule.warmup={warmup}", *probing]
    optimizer = AdamW(lr=1.0, schedule=Schedule(shape="wsd", warmup=warmup, decay=decay))
    first = planned(*given)
    assert first.stages[0].open is not None

    def rates(plan: Plan, steps: range) -> list[float]:
        return [schedule.rate(plan, optimizer, "continue", plan.stages[0], step) for step in steps]

    for end in range(first.stages[0].open.earliest, first.stages[0].end + 1, 200):
        plan = planned(*given, decisions=[Decision(end)])
        assert rates(plan, range(end)) == rates(first, range(end))
        last = plan.stages[-1]
        falling = [schedule.rate(plan, optimizer, "continue", last, step) for step in range(last.first, last.end)]
        assert falling[: 200 - 1] == [1.0] * 199, "the mixing time is at the full rate"
        assert falling[-1] == pytest.approx(0.1)


def test_probes_are_charged_and_the_rest_shrinks_by_them() -> None:
    """Each is 1% of the budget's steps at level 1: three of 10 steps, one of which is the grown model's own."""
    plain, plan = planned(decisions=[Decision(300)]), planned(PROBES, decisions=[Decision(300)])
    assert [(s.level, s.first, s.steps, s.probe, s.start) for s in plan.stages[1:4]] == [
        (1, 300, 10, 0, 300),
        (1, 310, 10, 1, 300),
        (1, 320, 10, 2, 300),
    ]
    assert plan.stages[-1].steps == plain.stages[-1].steps - 30
    step = {level: plan.batch * plan.level(level).flops.total for level in (1, 2)}
    counted = 300 * step[2] + (30 + plan.stages[-1].steps) * step[1]
    assert plan.total.flops == plan.spent(plan.steps).flops == counted
    told = as_dict(plan)
    assert [(s.get("probe"), s.get("kept")) for s in told["stages"]] == [
        (None, None),
        ("source=random", None),
        ("source=copy", None),
        ("source=copy place=below", None),
        (None, None),
    ]
    assert sum(s["flops"] for s in told["stages"]) == told["totals"]["flops"] == counted


def test_probes_read_the_same_batches_and_the_stage_after_them_what_follows() -> None:
    plan = planned(PROBES, decisions=[Decision(300, kept=1)])
    assert [[s.place(s.first), s.place(s.end)] for s in plan.stages] == [
        [0, 300],
        *([[300, 310]] * 3),
        [310, 310 + plan.stages[-1].steps],
    ]
    for s in plan.stages:
        assert (s.begins, s.cursor(s.end)) == (plan.batch * s.place(s.first), plan.batch * s.place(s.end))
    assert plan.stages[-1].start == plan.stages[2].end == 320
    assert [plan.kept(s) for s in plan.stages[1:4]] == [False, True, False]
    assert [plan.began(s) for s in plan.stages] == [0, 300, 300, 300, 300]


def test_which_probe_is_kept_changes_no_cost() -> None:
    plans = [planned(PROBES, decisions=[Decision(300, kept)]) for kept in (None, 0, 2)]
    assert len({plan.total for plan in plans}) == 1
    assert {tuple(replace(s, start=None) for s in plan.stages) for plan in plans} == {
        tuple(replace(s, start=None) for s in plans[0].stages)
    }


def test_a_decay_after_probes_is_that_of_the_steps_that_led_to_the_model() -> None:
    """As in a run that grew at the same time by the one that was kept, and had as many steps."""
    plan = planned(PROBES, "optimizer.schedule.warmup=50 steps", decisions=[Decision(300, 0)])
    last = plan.stages[-1]
    rows = f"cycle.stages=[{{level:2,length:300 steps}},{{level:1,length:{10 + last.steps} steps}}]"
    fixed = planned(rows, "cycle.auto=null", "optimizer.schedule.warmup=50 steps")
    optimizer = AdamW(lr=1.0, schedule=Schedule(shape="wsd", warmup="50 steps"))

    def rates(of: Plan, stage: Any) -> list[float]:
        return [schedule.rate(of, optimizer, "continue", stage, step) for step in range(stage.first, stage.end)]

    assert rates(plan, plan.stages[1]) + rates(plan, last) == rates(fixed, fixed.stages[1])


def test_several_levels_are_decided_one_after_the_other() -> None:
    plan = planned(*HALVES, TWO)
    assert [stage.open is None for stage in plan.stages] == [False, True, True]
    assert plan.stages[1].steps == 200, "a level that is still to come has the mixing time"
    found = planned(*HALVES, TWO, decisions=[Decision(250)])
    assert [stage.open is None for stage in found.stages] == [True, False, True]
    middle = found.stages[1]
    assert middle.open is not None and middle.steps > 200
    assert middle.open.begin == 250 + 200, "what was grown into has its mixing time before its losses count"
    last = planned(*HALVES, TWO, decisions=[Decision(250), Decision(300)])
    assert [stage.steps for stage in last.stages[:2]] == [250, 300] and all(s.open is None for s in last.stages)


def test_each_growth_of_several_levels_has_its_probes() -> None:
    probe = "cycle.auto.probe=[{_target_:mlrun.multilevel.growth.fresh.Fresh},{}]"
    plan = planned(*HALVES, TWO, probe, decisions=[Decision(250, 1), Decision(300, 0)])
    assert [(s.level, s.probe) for s in plan.stages] == [
        (3, None),
        (2, 0),
        (2, 1),
        (2, None),
        (1, 0),
        (1, 1),
        (1, None),
    ]
    assert plan.probes == ("Fresh", "as it is")
    assert [s.start for s in plan.stages] == [
        None, 250, 250, plan.stages[2].end, plan.stages[3].end, plan.stages[3].end, plan.stages[4].end
    ]  # fmt: skip
    assert [s.first for s in plan.stages[1:]] == [s.end for s in plan.stages[:-1]]


def test_a_branch_fits_whenever_the_run_grows() -> None:
    """A point that could not be reached after the latest growth is refused before the run."""
    (line,) = problems("cycle.branches=[60%]")
    assert "cycle.branches.0=60%: allowed: " in line
    first = planned("cycle.branches=[95%]").stages[0]
    assert first.open is not None
    for end in range(first.open.earliest, first.end + 1, 300):
        plan = planned("cycle.branches=[95%]", PROBES, decisions=[Decision(end, 0)])
        branch = plan.stages[-1]
        left = 0.95 * plan.budget_flops - plan.own(branch, branch.end).flops
        assert branch.ending == 0.95 and 0 <= left < plan.batch * plan.level(1).flops.total, "probes are charged"
        last, fork = plan.trunk[-1], branch.fork or 0
        assert branch.cursor(branch.first) == last.cursor(fork) == plan.batch * branch.place(branch.first)
        falling = [schedule.rate(plan, OPTIMIZER, "continue", branch, s) for s in range(branch.first, branch.end)]
        before = schedule.rate(plan, OPTIMIZER, "continue", last, fork - 1)
        assert before == 1 and falling[-1] == pytest.approx(0.1) and falling == sorted(falling, reverse=True)


def test_endings_if_possible_are_sorted_out_once_the_growth_is_known() -> None:
    """An early growth leaves room for more of them than the latest one, by which they are judged before it."""
    given = "cycle.branches=[50% if possible,65% if possible,95%]"
    first = planned(given)
    assert [s.ending for s in first.stages if s.fork is not None] == [0.95]
    assert [(p.point, p.why.startswith("if the run grows at its latest: possible:")) for p in first.lacking] == [
        ("50%", True),
        ("65%", True),
    ]
    early, late = (planned(given, decisions=[Decision(end)]) for end in (300, first.stages[0].steps))
    assert [s.ending for s in early.stages if s.fork is not None] == [0.5, 0.65, 0.95] and early.lacking == ()
    assert [p.point for p in late.lacking] == ["50%", "65%"]
    assert all(p.why.startswith("possible:") for p in late.lacking)


def test_endings_if_possible_go_with_several_decisions() -> None:
    given = [*HALVES, TWO, "cycle.branches=[95% if possible]"]
    assert planned(*given).stages[0].open is not None
    last = planned(*given, decisions=[Decision(250), Decision(300)])
    assert [s.ending for s in last.stages if s.fork is not None] == [0.95] and last.lacking == ()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["optimizer.schedule.shape=cosine"], "optimizer.schedule.shape=cosine: allowed: wsd"),
        (["cycle.lr_policy=restart"], "cycle.lr_policy=restart: allowed: continue"),
        (["cycle.auto=null"], "cycle.auto=null: allowed: mixing, early"),
        (["cycle.stages=[{level:1,length:rest}]"], "cycle.auto=given: allowed: null"),
        (["cycle.stages=[{level:1,length:auto}]"], "cycle.stages.0.length=auto: allowed: a length where no finer"),
        (["cycle.stages=[{level:2,length:auto},{level:1,length:50%}]"], "cycle.stages.1.length=50%: allowed: rest"),
        (["cycle.auto.mixing=often"], "cycle.auto.mixing=often: allowed: 5%"),
        (["cycle.auto.mixing=90%"], "cycle.auto.mixing=90%: allowed: a length that every level has room for"),
        (["cycle.auto.early=-1"], "cycle.auto.early=-1.0: allowed: a finite number of at least 0"),
        (["cycle.auto.probe=[{source:copy}]"], "cycle.auto.probe=['source=copy']: allowed: [], or two or more"),
        (["cycle.auto.probe=[{source:copy},{source:copy}]"], "allowed: [], or two or more different growths"),
        (["cycle.auto.probe=[{source:copy},{sauce:random}]"], "cycle.auto.probe.1.sauce=random: allowed: source"),
        (["cycle.auto.probe=[{source:copy},{source:none}]"], "cycle.auto.probe.1: growth.source=none: allowed: random"),
        (
            [
                "cycle.auto.probe=[{},{_target_:mlrun.multilevel.growth.inherit.Inherit}]",
                "cycle.optimizer_policy=reset",
            ],
            "cycle.auto.probe.1=Inherit: allowed: a growth that costs nothing and trains on the model's own loss",
        ),
        (["cycle.auto.probe_length=0%"], "cycle.auto.probe_length=0%: allowed: a length above 0"),
        ([*HALVES, TWO, "cycle.branches=[95%]"], "cycle.branches=['95%']: allowed: points such as `95% if possible`"),
        (["cycle.stages.0.batch=8"], "cycle.stages.0.batch=8: allowed: null; under a length auto"),
        (["cycle.stages.1.sequence=32"], "cycle.stages.1.sequence=32: allowed: null; under a length auto"),
        (["cycle.layer_dropout=0.2"], "cycle.layer_dropout=0.2: allowed: 0; under a length auto"),
    ],
)
def test_what_cannot_be_decided_is_refused_in_one_line(overrides: list[str], told: str) -> None:
    (line,) = problems(*overrides)
    assert told in line


def test_the_plan_for_people_says_what_is_decided_later_and_within_which_bounds() -> None:
    plan, stream = planned(PROBES), io.StringIO()
    show(as_dict(plan), None, stream)
    shown = stream.getvalue()
    bounds = plan.stages[0].open
    assert bounds is not None
    steps = f"step {bounds.earliest} and {plan.stages[0].end}, and the last stage has {plan.stages[-1].steps} to"
    assert f"stage 1 ends between {steps} {bounds.rest} steps, as the run decides on its way" in shown
    assert f"up to {plan.stages[0].steps}" in shown and "probe: source=copy place=below" in shown
    decided = io.StringIO()
    show(as_dict(planned(PROBES, decisions=[Decision(300, 1)])), None, decided)
    assert "decides on its way" not in decided.getvalue()
    assert "probe: source=copy, kept" in decided.getvalue() and "probe: source=random, not kept" in decided.getvalue()


@pytest.mark.parametrize(("steps", "kept"), [(0, None), ("3", None), (3, "0")])
def test_a_decision_that_no_run_makes_is_refused(steps: Any, kept: Any) -> None:
    with pytest.raises(ValueError, match="no decision"):
        Decision(steps, kept)
