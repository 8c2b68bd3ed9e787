"""Savings over budgets: a method is one over all of them by what it does, and stands against the best of each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_runs as fake
import pytest
from test_headline import legend_fits
from test_report import straight

from mlrun.report import budgets, budgets_figure, figure, pairing
from mlrun.report.build import build
from mlrun.report.compare import compare
from mlrun.report.read import find, read_all
from mlrun.report.smaller import Alone
from mlrun.report.stats import spread


def run(folder: Path, name: str, steps: int, last: float, **changes: Any) -> None:
    """Write a from-scratch run or a growing one, of a budget of so many steps, that falls evenly to a loss."""
    stages = ((1, steps),) if name == "scratch" else ((2, steps * 2 // 5), (1, steps * 16 // 25))
    budget = {"steps": steps, "tokens": steps * fake.TOKENS, "flops": steps * fake.FLOPS[1]}
    losses = [last + (4 - at) for at in range(5)]
    straight(folder, name, losses, stages, plan={"budget": budget}, budget=f"{steps} steps", **changes)


def found(folder: Path) -> list[budgets.Budgets]:
    return budgets.over_budgets(compare(read_all(find([folder]))))


def two(folder: Path, **changes: Any) -> None:
    """Write a baseline and a method at two budgets; it saves at the smaller one alone."""
    for steps, last in ((500, 2.0), (1000, 3.5)):
        run(folder / f"s{steps}", "scratch", steps, 3.0)
        run(folder / f"g{steps}", "grow", steps, last, **(changes if steps == 1000 else {}))


def test_a_method_stands_at_each_budget_with_what_it_saved_there(tmp_path: Path) -> None:
    two(tmp_path)
    (one,) = found(tmp_path)
    assert one.tokens[1] == pytest.approx(2 * one.tokens[0])
    assert one.tokens[0] == 500 * fake.TOKENS / one.groups[0].runs[0].plan["levels"][0]["parameters"]
    ((name, rows),) = one.methods.items()
    assert name == "grow" and [row is not None and row.spread("flops").reached for row in rows] == [1, 0]
    table = budgets.table(one)
    assert [cell.partition("\n")[0] for cell in table.rows[0]] == ["L*, from scratch", "3.0000", "3.0000"]
    absent = [f"not in group {group.number}" for group in one.groups]
    assert table.rows[1] == (budgets.ALONE, *absent)
    assert table.rows[2][2] == "not reached\n1 seed, un-annealed" and "%" in table.rows[2][1]
    assert "\n" not in table.markdown().splitlines()[2] and table.markdown().splitlines()[2].count("<br>") == 2


def test_methods_that_differ_are_not_joined_whatever_they_are_called(tmp_path: Path) -> None:
    two(tmp_path, cycle={"optimizer_policy": "carry"})
    assert not found(tmp_path)
    run(tmp_path / "again", "grow", 500, 2.0, cycle={"optimizer_policy": "carry"})
    (one,) = found(tmp_path)
    assert list(one.methods) == ["grow"], "the one that ran at a single budget is not there"
    assert [row is not None for row in next(iter(one.methods.values()))] == [True, True]


def test_of_two_groups_of_a_budget_the_better_baseline_counts(tmp_path: Path) -> None:
    two(tmp_path)
    run(tmp_path / "better", "scratch", 1000, 2.5, batch=8)
    run(tmp_path / "method", "grow", 1000, 2.5, batch=8)
    (one,) = found(tmp_path)
    assert one.groups[1].loss.mean == 2.5 and one.groups[1].runs[0].config["batch"] == 8


def test_a_method_that_ran_beside_a_worse_baseline_alone_is_not_called_untried(tmp_path: Path) -> None:
    two(tmp_path)
    run(tmp_path / "third", "scratch", 2000, 2.0)
    run(tmp_path / "better", "scratch", 1000, 2.5, batch=8)
    run(tmp_path / "other", "grow", 1000, 2.5, batch=8, cycle={"optimizer_policy": "carry"})
    run(tmp_path / "again", "grow", 2000, 2.0)
    (one,) = found(tmp_path)
    (cells,) = budgets.table(one).rows[2:]
    assert cells[2] == f"not in group {one.groups[1].number}" and "seed" in cells[1] and "seed" in cells[3]


def test_one_budget_other_data_or_another_optimizer_is_no_course(tmp_path: Path) -> None:
    run(tmp_path / "a", "scratch", 500, 3.0)
    run(tmp_path / "b", "grow", 500, 2.0)
    assert not found(tmp_path)
    for name in ("scratch", "grow"):
        run(tmp_path / f"m-{name}", name, 1000, 2.0, optimizer={"_target_": "m.Muon", "lr": 1e-3})
    assert not found(tmp_path)


def test_a_smaller_model_alone_counts_only_if_every_seed_has_one(tmp_path: Path) -> None:
    two(tmp_path)
    (one,) = found(tmp_path)
    group = one.groups[0]
    assert group.smaller_on_all is None and pairing.baseline(group.baselines[0])
    for saved, seeds, whole in (([0.5], (0,), True), ([None], (0,), False), ([0.5], (), False)):
        told = Alone(10, seeds, spread(saved), False)
        assert (replace(group, smaller=told).smaller_on_all == told) is whole


def test_of_how_many_sizes_a_smaller_model_is_the_best_is_told(tmp_path: Path) -> None:
    two(tmp_path / "runs")
    for name in ("small", "smaller"):
        run(tmp_path / name, "scratch", 100, 0.5)
    first, second = (read_all(find([tmp_path / name]))[0] for name in ("small", "smaller"))
    second.plan["levels"][0]["parameters"] //= 2
    told = Alone(10, (0,), spread([0.5]), False)
    (one,) = found(tmp_path / "runs")
    for controls, cell in (((first,), "50.0%"), ((first, second), "50.0%\nbest of 2 sizes")):
        groups = tuple(replace(group, controls={0: controls}, smaller=told) for group in one.groups)
        assert budgets.table(replace(one, groups=groups)).rows[1][1] == cell


def test_of_a_smaller_model_above_l_star_the_table_says_what_it_was_given(tmp_path: Path) -> None:
    two(tmp_path / "runs")
    run(tmp_path / "small", "scratch", 100, 3.4)
    (one,), (small,) = found(tmp_path / "runs"), read_all(find([tmp_path / "small"]))
    groups = tuple(replace(group, controls={0: (small,)}) for group in one.groups)
    cells = budgets.table(replace(one, groups=groups)).rows[1]
    assert cells[1:] == ("above L*\nwith 20% of the FLOPs", "above L*\nwith 10% of the FLOPs")


def test_of_a_smaller_model_that_ends_lower_for_as_many_flops_the_table_says_that(tmp_path: Path) -> None:
    two(tmp_path / "runs")
    run(tmp_path / "small", "scratch", 500, 0.5)
    (one,), (small,) = found(tmp_path / "runs"), read_all(find([tmp_path / "small"]))
    cells = budgets.table(replace(one, groups=tuple(replace(g, controls={0: (small,)}) for g in one.groups))).rows[1]
    assert cells[1] == "below L*\nwith as many FLOPs"


def test_table_picture_page_and_json_have_it(tmp_path: Path) -> None:
    two(tmp_path / "runs")
    report = build([tmp_path / "runs"], tmp_path / "out")
    assert {"budgets.png", "budgets.pdf"} <= {path.name for path in report.files}
    assert report.figure is not None and report.figure.name == "loss.png"
    text, page = ((tmp_path / "out" / name).read_text() for name in ("report.md", "index.html"))
    assert "](budgets.png)" in text and "FLOPs saved as the budget grows" in text
    assert 'id="budgets"' in page and 'href="#budgets"' in page
    (told,) = json.loads((tmp_path / "out/report.json").read_text())["budgets"]
    assert told["baseline_loss"] == [3.0, 3.0] and told["smaller_alone"] == [None, None]
    assert [one["mean"] is not None for one in told["saved"]["grow"]] == [True, False]


def test_seeds_that_were_stopped_stand_in_the_cell(tmp_path: Path) -> None:
    two(tmp_path)
    run(tmp_path / "s1", "scratch", 500, 3.0, seed=1)
    run(tmp_path / "g1", "grow", 500, 2.5, seed=1, status="interrupted")
    (one,) = found(tmp_path)
    assert budgets.table(one).rows[2][1].endswith("1 seed (+1 unfinished), un-annealed")


@pytest.mark.parametrize("name", ["grow", "quarter_depth lr_policy=continue depth=4"])
def test_the_legend_stays_inside_the_figure_and_leaves_the_panel_its_height(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for i, steps in enumerate((500, 1000)):
        run(tmp_path / f"s{i}", "scratch", steps, 3.0)
        for k in range(6):
            run(tmp_path / f"g{i}{k}", f"{name}{k}", steps, 2.7)
    pictures: list[Any] = []
    monkeypatch.setattr(figure, "written", lambda picture, *_: pictures.append(picture) or [])
    (one,) = found(tmp_path)
    budgets_figure.draw(one, tmp_path, "budgets")
    legend_fits(pictures[0], budgets_figure.HEIGHT)


def test_the_figure_names_the_marks_that_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two(tmp_path)
    pictures: list[Any] = []
    monkeypatch.setattr(figure, "written", lambda picture, *_: pictures.append(picture) or [])
    (one,) = found(tmp_path)
    budgets_figure.draw(one, tmp_path, "budgets")
    (legend,) = pictures[0].legends
    told = [text.get_text() for text in legend.get_texts()]
    assert "L* not reached" in told and "at least" not in told
