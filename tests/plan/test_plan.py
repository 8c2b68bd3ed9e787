"""The plan: lengths become steps, costs add up, and what cannot work is refused."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mlrun.cli import command, points
from mlrun.config.load import load
from mlrun.errors import UserError
from mlrun.plan import table
from mlrun.plan.make import make_plan
from mlrun.plan.record import as_dict
from mlrun.plan.stages import Plan, Spent


def planned(*overrides: str, sources: bool = True) -> Plan:
    """Return the plan of a command line."""
    (point,) = points.of(command.read(overrides))
    return make_plan(load(point.settings), sources)


def problems(*overrides: str) -> list[str]:
    """Return what is wrong with a command line."""
    with pytest.raises(UserError) as caught:
        planned(*overrides)
    return caught.value.problems


def rows(*stages: str) -> str:
    """Return the override for a cycle of `level:length[:alpha]` stages."""
    parts = (stage.split(":") for stage in stages)
    texts = (f"{{level:{p[0]},length:'{p[1]}'" + (f",alpha:{p[2]}" if len(p) > 2 else "") + "}" for p in parts)
    return f"cycle.stages=[{','.join(texts)}]"


@pytest.mark.parametrize(
    ("overrides", "cost"),
    [
        (["model=bert_base"], 0.14),
        (["model=bert_large"], 0.13),
        (["model=gpt_base", "data.sequence=1024"], 0.24),
        (["model=deit_b", "data=imagenet"], 0.13),
    ],
)
def test_a_step_at_level_2_costs_what_the_paper_says(overrides: list[str], cost: float) -> None:
    plan = planned(*overrides, sources=False)
    assert plan.level(2).flops.total / plan.level(1).flops.total == pytest.approx(cost, abs=0.01)


def test_bert_large_has_an_experiment_of_two_levels_and_one_of_three() -> None:
    two, three = (planned(f"experiment={name}", sources=False) for name in ("bert_large_2level", "bert_large"))
    assert [stage.level for stage in two.stages] == [1, 2, 1]
    assert [stage.level for stage in three.stages] == [1, 2, 3, 2, 1]
    assert {stage.alpha for stage in (*two.stages, *three.stages)} == {None, 0.5}
    assert two.stages[1].steps == three.stages[2].steps == 150_000
    assert two.levels == (three.levels[0], replace(three.levels[1], resize=None, inexact=()))


def test_without_the_head_gpt_base_costs_as_little_as_bert() -> None:
    plan = planned("model=gpt_base", "data.sequence=1024")
    assert plan.level(2).flops.body / plan.level(1).flops.body == pytest.approx(0.14, abs=0.01)


def test_percent_is_of_the_budgets_steps_and_rest_is_what_the_flops_leave() -> None:
    plan = planned("budget=1000 steps", rows("1:5%", "2:50%", "1:rest"))
    fine, coarse = (level.flops.total for level in plan.levels)
    assert [stage.steps for stage in plan.stages] == [50, 500, (950 * fine - 500 * coarse) // fine]
    spent = plan.spent(plan.steps).flops
    assert plan.budget_flops - fine * plan.batch < spent <= plan.budget_flops


def test_a_baseline_spends_the_budget_exactly() -> None:
    plan = planned("cycle=scratch", "budget=1000 steps")
    assert plan.spent(plan.steps).flops == plan.budget_flops
    assert as_dict(plan)["totals"]["share"] == 1.0


@pytest.mark.parametrize("unit", ["tokens", "samples", "flops", "steps"])
def test_a_budget_may_come_in_any_unit(unit: str) -> None:
    plan = planned("budget=1000 steps")
    spent = {"steps": 1000, "samples": 16_000, "tokens": 16_000 * 128, "flops": plan.budget_flops}
    assert planned(f"budget={spent[unit]} {unit}").budget_steps == 1000


@hypothesis_settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=4, max_size=4).filter(any))
def test_costs_of_stages_add_up_to_the_whole(lengths: list[int]) -> None:
    stages = rows(*(f"{level}:{n} steps" for level, n in zip((1, 2, 2, 1), lengths, strict=True)))
    plan = planned("budget=1000 steps", stages)
    costs = [plan.stage_cost(stage) for stage in plan.stages]
    whole = plan.spent(plan.steps)
    assert Spent(*(sum(getattr(c, f) for c in costs) for f in Spent.__dataclass_fields__)) == whole
    expected = plan.batch * sum(plan.level(s.level).flops.total * s.steps for s in plan.stages)
    assert whole.flops == expected and whole.samples == plan.batch * sum(lengths)
    assert [plan.spent(s.first).step for s in plan.stages] == [sum(lengths[:i]) for i in range(4)]


def test_samples_are_counted_through_all_stages_so_that_none_is_read_twice() -> None:
    plan = planned("cycle=3level")
    assert [plan.spent(s.first).samples for s in plan.stages] == [s.first * plan.batch for s in plan.stages]
    assert all(a.end == b.first for a, b in zip(plan.stages, plan.stages[1:], strict=False))


def test_the_v_goes_down_and_up_and_blends_with_what_it_kept() -> None:
    found = [(s.level, s.transfer, s.alpha) for s in planned("cycle=3level", "cycle.alpha=0.25").stages]
    assert found == [
        (1, None, None),
        (2, "coalesce", None),
        (3, "coalesce", None),
        (2, "decoalesce", 0.25),
        (1, "decoalesce", 0.25),
    ]


def test_growth_has_nothing_to_blend_with() -> None:
    assert [(s.transfer, s.alpha) for s in planned("cycle=grow").stages] == [
        (None, None),
        ("decoalesce", 1.0),
    ]


def test_a_stage_may_have_an_alpha_of_its_own_and_a_level_its_rate() -> None:
    plan = planned(rows("1:5%", "2:9%", "1:5%:0.1", "2:9%", "1:5%"), "cycle.lr_scale=[1.0,3.0]")
    assert [s.alpha for s in plan.stages] == [None, None, 0.1, None, 0.5]
    assert [s.lr_scale for s in plan.stages] == [1.0, 3.0, 1.0, 3.0, 1.0]


def test_lengths_are_swept_by_name() -> None:
    assert planned("cycle.lengths.coarse=25%", "budget=1000 steps").stages[1].steps == 250


@pytest.mark.parametrize(
    ("overrides", "exact"),
    [
        (["coarsening=width_only"], True),
        (["coarsening=paper"], False),
        (["coarsening=depth_only"], False),
        (["coarsening=depth_only", "coarsening.depth_scale=identity"], True),
        (["coarsening=depth_only", "coarsening.depth_scale=identity", "model=bert_tiny"], False),
        (["coarsening=shallow", "growth=fresh"], False),
        (["coarsening=shallow", "growth=fresh", "growth.silent=true"], True),
        (["coarsening=shallow", "growth=fresh", "growth.silent=true", "model=bert_tiny"], False),
    ],
)
def test_the_plan_says_which_transfers_keep_the_function_and_why_not(overrides: list[str], exact: bool) -> None:
    level = as_dict(planned(*overrides))["levels"][0]
    assert level["exact"] is exact and (level["inexact_because"] == []) is exact


def test_the_state_is_weights_gradients_and_two_moments_in_float32() -> None:
    level: dict[str, Any] = as_dict(planned("model=bert_large", "cycle=3level"))["levels"][0]
    assert level["parameters"] == 335_174_458 and level["state_bytes"] == 16 * 335_174_458


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (rows("1:5%", "3:5%", "2:5%", "1:5%"), "cycle.stages.1.level=3: allowed: 1 to 2"),
        (rows("1:5%", "2:5%"), "a last stage at level 1"),
        (rows("0:5%", "1:5%"), "cycle.stages.0.level=0"),
        (rows("1:rest", "2:rest", "1:5%"), "rest twice"),
        (rows("1:0%", "2:0%", "1:0%"), "at least one step"),
        (rows("1:60%", "2:50%", "1:60%"), "at most 100%"),
        (rows("1:120%", "1:rest"), "at most 100%"),
        (rows("1:5%:0.5", "2:5%", "1:5%"), "cycle.stages.0.alpha=0.5"),
        (rows("2:5%", "1:5%:0.5"), "nothing to blend with"),
        ("cycle.lr_scale=[1.0]", "2 positive numbers"),
        ("cycle.stages=[]", "at least one row"),
        ("budget=1 tokens", "at least one step"),
        ("cycle.noise=-1", "cycle.noise"),
        ("hardware.micro_batch=3", "a divisor of 16"),
        ("hardware.workers=-1", "auto, or an integer of at least 0"),
        ("hardware.workers=many", "auto, or an integer of at least 0"),
        ("cycle.layer_dropout=1", "cycle.layer_dropout=1.0: allowed: a number of at least 0 and under 1"),
        ("cycle.stages=[{level:1,length:rest,batch:0}]", "cycle.stages.0.batch=0"),
        ("cycle.stages=[{level:1,length:rest,sequence:48}]", "allowed: null, 4, 8, 16, 32, 64, 128; these are whole"),
        (
            "cycle.stages=[{level:1,length:rest,sequence:32,batch:6}]",
            "cycle.stages.0.batch=6: allowed: a multiple of 4",
        ),
    ],
)
def test_cycles_that_cannot_run_are_refused_in_one_line(override: str, told: str) -> None:
    (line,) = problems(override)
    assert told in line


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["hardware.compile=true"], "hardware.compile=true: allowed: false"),
        (["cycle.stages=[{level:1,length:'1e12 flops'},{level:1,length:rest}]"], "cycle.stages.0.length=1e12 flops"),
        (["method=inheritance"], "Inherit changes what stage 2 trains"),
        (["method=mslt"], "MSLT changes what stage 2 trains"),
        (["model.layer=1", "cycle=scratch"], "the first block is never left out"),
    ],
)
def test_what_cannot_go_with_layer_dropout_is_refused_in_one_line(overrides: list[str], told: str) -> None:
    (line,) = problems("cycle.layer_dropout=0.5", *overrides)
    assert told in line


def test_a_stages_batch_must_hold_whole_micro_batches_and_pictures_have_one_length() -> None:
    (line,) = problems("hardware.micro_batch=8", "cycle.stages=[{level:1,length:rest,batch:12}]")
    assert line.startswith("cycle.stages.0.batch=12: allowed: a multiple of hardware.micro_batch=8")
    (line,) = problems("model=deit_digits", "data=digits", "cycle.stages=[{level:1,length:rest,sequence:1}]")
    assert line.startswith("cycle.stages.0.sequence=1: allowed: null; this data has")


SHORT = "cycle.stages=[{level:2,length:25%,sequence:32,batch:64},{level:1,length:25%,batch:8},{level:1,length:rest}]"


def test_a_stage_may_have_a_batch_and_a_sequence_of_its_own() -> None:
    plan = planned("budget=1000 steps", SHORT)
    short, small, rest = plan.stages
    assert [stage.samples.tokens * stage.samples.batch for stage in plan.stages] == [2048, 1024, 2048]
    assert [stage.steps for stage in (short, small)] == [250, 500], "% is of the budget's tokens"
    model, step = plan.level(2).model, plan.level(1).flops.total
    assert short.flops(1).total == 64 * model.flops(32, 32).total
    assert small.flops(1).total == 8 * step
    left = plan.budget_flops - plan.spent(small.end).flops
    assert rest.steps == left // (16 * step) and 0 <= plan.budget_flops - plan.total.flops < 16 * step
    assert plan.total.tokens == 2048 * 250 + 1024 * 500 + 2048 * rest.steps


def test_one_cursor_runs_through_stages_of_any_batch_and_sequence() -> None:
    plan = planned("budget=1000 steps", SHORT)
    assert [(s.cursor(s.first), s.cursor(s.end)) for s in plan.stages[:2]] == [(0, 4000), (4000, 8000)]
    assert plan.stages[2].begins == 8000


def test_lengths_of_a_stage_count_its_own_steps() -> None:
    stages = "cycle.stages=[{{level:1,length:'{}',sequence:64,batch:64}},{{level:1,length:rest}}]"
    flops = 64 * planned().level(1).model.flops(64, 64).total
    for length in ("50 steps", "3200 samples", f"{3200 * 64} tokens", f"{50 * flops} flops"):
        assert planned("budget=1000 steps", stages.format(length)).stages[0].steps == 50, length


@pytest.mark.parametrize(("model", "targets"), [("bert_tiny", 10), ("t5_tiny", None)])
def test_predictions_of_a_shorter_sample_are_its_own(model: str, targets: int | None) -> None:
    data = load(points.of(command.read([f"model={model}"]))[0].settings)
    allowed = sorted(data.data.sequences(data.model))
    assert len(allowed) > 1 and max(allowed) == data.data.sequence
    sequence = 64 if targets is not None else allowed[-2]
    batch = 16 * data.data.sequences(data.model)[sequence]
    stage = f"cycle.stages=[{{level:1,length:50%,sequence:{sequence},batch:{batch}}},{{level:1,length:rest}}]"
    (first, last, *_) = planned(f"model={model}", stage).stages
    assert first.cursor(first.end) == 16 * first.steps
    assert first.samples.targets == (targets or replace(data.data, sequence=sequence).targets(data.model))
    assert first.samples.targets < last.samples.targets


def test_endings_fork_from_a_last_stage_of_any_batch_and_sequence() -> None:
    rows = "cycle.stages=[{level:1,length:25%},{level:1,length:rest,sequence:64,batch:64}]"
    plan = planned("budget=1000 steps", "optimizer.schedule.shape=wsd", "cycle.branches=[70%]", rows)
    last, branch = plan.stages[-2:]
    assert branch.fork is not None and branch.begins == last.cursor(branch.fork)
    left = 0.7 * plan.budget_flops - plan.own(branch, branch.end).flops
    assert 0 <= left < 64 * branch.step_flops[0].total


def test_the_table_has_columns_for_what_stages_have_of_their_own() -> None:
    def headers(*overrides: str) -> list[str]:
        return [str(column.header) for column in table.stages(as_dict(planned(*overrides)), None).columns]

    assert {"batch", "sequence"} <= set(headers(SHORT))
    assert not {"batch", "sequence"} & set(headers())
    assert "sequence" not in headers("cycle.stages=[{level:1,length:rest,batch:8}]")


def test_on_a_narrow_terminal_no_number_of_the_plan_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def shown(columns: int) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        table.show(as_dict(planned("cycle=3level")), None, out := Terminal())
        return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())

    narrow, wide = shown(80), shown(200)
    assert max(map(len, narrow.splitlines())) <= 80 and "\N{HORIZONTAL ELLIPSIS}" not in narrow
    assert sorted(narrow.split()) == sorted(wide.split())


def test_all_problems_are_told_at_once() -> None:
    lines = problems("batch=0", "cycle.alpha=1.5", "optimizer.lr=0", "budget=100", "model.layer=0")
    keys = [line.partition("=")[0] for line in lines]
    assert sorted(keys) == ["batch", "budget", "cycle.alpha", "model.layer", "optimizer.lr"]


def test_a_plan_needs_no_data_but_a_run_does(tmp_path: Path) -> None:
    absent = ["data=text", f"data.files=[{tmp_path}/none.txt]"]
    assert planned(*absent, sources=False).steps > 0
    (line,) = problems(*absent)
    assert line.startswith("data.files=")
