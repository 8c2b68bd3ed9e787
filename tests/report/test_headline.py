"""The headline: the smallest annealed budget that reaches L*, by independent arithmetic; and who has none."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_runs as fake
import pytest
from test_endings import BUDGET, GROW, branched, ending, made, rows

from mlrun.report import annealed_figure, build, charts, figure, smaller, tables
from mlrun.report.compare import compare
from mlrun.report.endings import DIVERGED, FAILED, NOT_REACHED, Ending, cost_at
from mlrun.report.headline import AT_LEAST, BRACKETED, NOT_BRACKETED, headline, reach
from mlrun.report.read import find, read_all
from mlrun.report.sentences import sentences
from mlrun.report.smaller import Alone, One
from mlrun.report.stats import spread

# A cycle whose trunk costs what the baseline's does.
WHOLE = ((2, 0), (1, 1000))
BASE = [ending(0.25, 4.0), ending(0.5, 3.5), ending(1.0, 3.0)]


def only(endings: Sequence[Ending], baseline: Sequence[Ending] = BASE, **given: Any) -> Any:
    """Return the headline of endings against L* = 3; the baseline's whole budget is 100 FLOPs."""
    return headline(endings, baseline, 3.0, given.get("source"), given.get("timed", True))


# One run


def test_the_cost_is_read_on_a_line_over_its_logarithm_between_the_endings_around_l_star() -> None:
    """By hand: 3.2 at 40 and 2.8 at 60 put 3.0 half way in the logarithm, at the root of 40 * 60 = 48.98979..."""
    found = only([ending(0.2, 4.0), ending(0.4, 3.2), ending(0.6, 2.8), ending(1.0, 2.0)])
    assert (found.kind, found.cost["flops"], found.baseline_cost["flops"]) == (BRACKETED, pytest.approx(48.989795), 100)
    assert found.saved["flops"] == pytest.approx(0.51010205)
    assert [found.cost[axis] for axis in ("flops_body", "seconds")] == pytest.approx([24.4948974, 4.8989795])
    uneven = only([ending(0.4, 3.1), ending(0.6, 2.8)])
    assert uneven.cost["flops"] == pytest.approx(math.exp(math.log(40) + (0.1 / 0.3) * math.log(60 / 40)))


def test_every_axis_has_a_cost_of_its_own() -> None:
    one = Ending(0.5, fake_point(loss=3.5, tokens=10.0, flops=20.0, body=30.0, seconds=40.0))
    two = Ending(1.0, fake_point(loss=2.5, tokens=90.0, flops=80.0, body=67.5, seconds=160.0))
    base = Ending(1.0, fake_point(loss=3.0, tokens=60.0, flops=80.0, body=90.0, seconds=320.0))
    found = headline([one, two], [base], 3.0, None, True)
    assert {axis: round(cost, 9) for axis, cost in found.cost.items()} == {
        "flops": 40.0,
        "flops_body": 45.0,
        "seconds": 80.0,
        "tokens": 30.0,
    }
    assert {axis: round(saved, 9) for axis, saved in found.saved.items()} == {
        "flops": 0.5,
        "flops_body": 0.5,
        "seconds": 0.75,
        "tokens": 0.5,
    }


def fake_point(loss: float, tokens: float, flops: float, body: float, seconds: float) -> Any:
    return ending(1.0, loss).point._replace(tokens=tokens, flops=flops, flops_body=body, seconds=seconds)


def test_a_cheapest_ending_that_is_there_already_is_a_bound_and_not_extrapolated() -> None:
    found = only([ending(0.4, 2.9), ending(0.6, 2.5)])
    assert (found.kind, found.cost["flops"], found.saved["flops"]) == (AT_LEAST, 40.0, pytest.approx(0.6))
    assert only([ending(0.4, 3.0), ending(0.6, 2.5)]).kind == AT_LEAST, "at L* itself"


def test_an_ending_that_is_above_l_star_again_moves_the_headline_behind_it() -> None:
    uneven = only([ending(0.2, 3.4), ending(0.4, 2.9), ending(0.6, 3.2), ending(0.8, 2.8)])
    assert (uneven.kind, uneven.cost["flops"]) == (BRACKETED, pytest.approx((60 * 80) ** 0.5))
    assert only([ending(0.2, 2.9), ending(0.4, 2.8), ending(0.6, 3.01)]).kind == NOT_REACHED
    assert only([ending(0.2, math.nan), ending(0.4, 2.9), ending(0.6, 2.8)]).kind == AT_LEAST, "no line from nothing"
    assert only([ending(0.2, 3.2), ending(0.4, math.nan), ending(0.6, 2.9)]).cost["flops"] == 60.0
    assert only([ending(0.2, 2.9), ending(0.4, math.nan)]).kind == DIVERGED


def test_what_no_ending_reaches_has_no_number() -> None:
    found = only([ending(0.4, 3.3), ending(1.0, 3.02)])
    assert (found.kind, set(found.cost.values()), set(found.saved.values())) == (NOT_REACHED, {None}, {None})


def test_one_ending_brackets_nothing() -> None:
    assert (only([ending(1.0, 2.5)]).kind, only([ending(1.0, 2.5)]).saved["flops"]) == (NOT_BRACKETED, None)
    assert only([ending(1.0, 3.5)]).kind == NOT_REACHED


def test_the_baseline_is_priced_by_the_same_rule() -> None:
    """One whose 80% ending is at L* too has not needed 100%; one whose cheapest is there has no price."""
    mine = [ending(0.4, 3.2), ending(0.6, 2.8)]
    early = only(mine, [ending(0.4, 3.4), ending(0.8, 2.6), ending(1.0, 3.0)])
    assert early.baseline_cost["flops"] == pytest.approx((40 * 80) ** 0.5)
    assert only(mine, [ending(0.5, 2.9), ending(1.0, 3.0)]).kind == NOT_BRACKETED
    assert only(mine, [ending(1.0, 3.0)]).saved["flops"] == pytest.approx(0.51010205), "its end is enough"


def test_a_baseline_whose_curve_stays_at_l_star_early_has_not_needed_its_endings(tmp_path: Path) -> None:
    """One that overfits ends above what it had: its whole budget is no price of L*."""
    mine = [ending(0.4, 3.2), ending(0.6, 2.8)]
    end, told = [ending(1.0, 3.0)], []
    for crossed in (None, 96.0, 94.0):
        told.append(headline(mine, end, 3.0, None, True, crossed).kind)
    assert told == [BRACKETED, BRACKETED, NOT_BRACKETED]
    assert headline(mine, [ending(0.4, 3.4), ending(0.8, 2.6), *end], 3.0, None, True, 60.0).kind == BRACKETED
    row = seeds(tmp_path, [[3.2, 2.8, 2.5]])
    lines = [json.loads(line) for line in (tmp_path / "a0/log.jsonl").read_text().splitlines()]
    curve = [line for line in lines if line["kind"] == "val" and "branch" not in line]
    for line in curve[1:-1]:
        line["loss"] = 2.9
    (tmp_path / "a0/log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert (row.headline.kinds, rows(tmp_path).headline.kinds) == ((BRACKETED,), (NOT_BRACKETED,))
    (sentence,) = sentences(made(tmp_path).groups[0])
    assert "at the first crossing of its curve, un-annealed (no two of its endings" in sentence


def test_the_baseline_against_itself_saves_nothing() -> None:
    found = only(BASE)
    assert set(found.saved.values()) == {0.0} and reach(BASE, 3.0) == BRACKETED


def test_a_source_is_charged_before_the_logarithm_and_shown_without() -> None:
    source = {"name": "small", "flops": 10.0, "flops_body": None, "seconds": 1.0}
    found = only([ending(0.4, 3.2), ending(0.6, 2.8)], source=source)
    assert found.cost["flops"] == pytest.approx((50 * 70) ** 0.5)
    assert found.saved["flops"] == pytest.approx(1 - 3500**0.5 / 100)
    assert found.source_free["flops"] == pytest.approx(1 - 2400**0.5 / 100)
    assert found.saved["flops"] < found.source_free["flops"] - 0.1, "no less than the source itself"
    assert [found.saved[axis] for axis in ("flops_body", "tokens")] == [None, None], "nobody knows what it cost"
    assert [found.source_free[axis] for axis in ("flops_body", "tokens")] == [None, None]


def test_seconds_that_may_not_be_compared_have_no_saving() -> None:
    found = only([ending(0.4, 3.2), ending(0.6, 2.8)], timed=False)
    assert (found.saved["seconds"], found.saved["flops"] is None) == (None, False)


def test_a_method_with_other_endings_than_its_baseline_is_read_by_its_own() -> None:
    many = [ending(share / 20, 5.0 - share / 10 * 2) for share in range(4, 21)]
    assert only(many, [ending(1.0, 3.0)]).cost["flops"] == pytest.approx(50.0)
    assert only(many).saved == only(many, [ending(0.7, 3.4), ending(1.0, 3.0)]).saved


# Seeds


def seeds(folder: Path, losses: Sequence[Sequence[float | None]], budgets: Any = (0.4, 0.6), **given: Any) -> Any:
    """Write a baseline that ends at 3 for each seed, and a method with these losses; return the method's row."""
    for seed, own in enumerate(losses):
        branched(folder / f"a{seed}", "scratch", [4.0, 3.5, 3.0], seed=seed)
        branched(folder / f"b{seed}", "grow", own, WHOLE, budgets[: len(own) - 1], seed=seed, **given)
    return rows(folder)


def test_bracketed_seeds_have_a_t_interval(tmp_path: Path) -> None:
    row = seeds(tmp_path, [[3.2, 2.8, 2.5], [3.1, 2.8, 2.5], [3.3, 2.9, 2.5]])
    costs = [40 * 1.5 ** (above / (above + below)) for above, below in ((0.2, 0.2), (0.1, 0.2), (0.3, 0.1))]
    saved, found = [1 - cost / 100 for cost in costs], row.headline.saved("flops")
    assert found.values == pytest.approx(saved)
    assert found.low == pytest.approx(statistics.mean(saved) - 4.302653 * statistics.stdev(saved) / 3**0.5, abs=1e-6)
    assert (row.annealed, row.claim, row.headline.bound) == (True, found, False)
    (told,) = sentences(made(tmp_path).groups[0])
    assert f"grow reaches the baseline's loss with {100 * found.mean:.1f}% fewer FLOPs (95% interval " in told
    assert "over 3 seeds), annealed; as the only method compared this stands at 5% (p " in told
    assert "the baseline was not tuned." in told


def test_a_mean_with_a_bound_in_it_is_a_bound_without_interval(tmp_path: Path) -> None:
    row = seeds(tmp_path, [[2.9, 2.8, 2.5], [3.2, 2.8, 2.5], [2.95, 2.8, 2.5]])
    found, mean = row.headline.saved("flops"), (0.6 + 0.51010205 + 0.6) / 3
    assert (found.mean, found.sd, found.low, found.p) == (pytest.approx(mean), None, None, 0.25)
    cell = tables.headline(row.headline, found)
    assert cell == f"\N{GREATER-THAN OR EQUAL TO}{100 * mean:.1f}%\n(51.0% to \N{GREATER-THAN OR EQUAL TO}60.0%)"
    report = made(tmp_path)
    assert report.groups[0].claims == {"grow": 0.25}, "by its sign alone: half of a half of a half, twice"
    text = build.render(report)
    assert (
        f"\N{GREATER-THAN OR EQUAL TO}{100 * mean:.1f}%" in text
        and "the luck of the seeds: none. Each was" in " ".join(text.split())
    )
    assert f"at least {100 * mean:.1f}% fewer FLOPs (3 seeds; a bound, since in 2 of them" in " ".join(text.split())


@pytest.mark.parametrize(
    ("odd", "kind", "told"),
    [
        ([3.4, 3.3, 3.1], NOT_REACHED, "not reached 1/3"),
        ([2.5], NOT_BRACKETED, "not bracketed 1/3"),
    ],
)
def test_no_mean_is_made_of_the_seeds_that_have_a_number(tmp_path: Path, odd: Any, kind: str, told: str) -> None:
    row = seeds(tmp_path, [[3.2, 2.8, 2.5], odd, [2.9, 2.8, 2.5]])
    assert row.headline.kinds == (BRACKETED, kind, AT_LEAST)
    assert (row.headline.saved("flops").mean, row.headline.saved("flops").reached) == (None, 2)
    cell = tables.headline(row.headline, row.headline.saved("flops"))
    assert cell == f"{told}\n(51.0%, \N{GREATER-THAN OR EQUAL TO}60.0%)"
    (sentence,) = sentences(made(tmp_path).groups[0])
    only = "with a saving that endings tell in 2 of 3 seeds" if kind == NOT_BRACKETED else "in 2 of 3 seeds only"
    assert f"baseline's loss {only} (51.0% fewer FLOPs, at least 60.0% fewer FLOPs), annealed" in sentence


def test_a_seed_that_failed_is_in_no_mean(tmp_path: Path) -> None:
    seeds(tmp_path, [[3.2, 2.8, 2.5], [3.1, 2.8, 2.5]])
    plan = fake.plan(WHOLE)
    fake.write(tmp_path / "c", fake.config("grow", seed=2), plan, fake.straight(plan, [5.0, 4.0]), "failed")
    row = rows(tmp_path)
    assert (row.headline.kinds, row.headline.saved("flops").mean) == ((BRACKETED, BRACKETED, FAILED), None)


def test_a_method_that_is_not_reached_says_by_how_many_nats(tmp_path: Path) -> None:
    row = seeds(tmp_path, [[3.4, 3.3, 3.1], [3.4, 3.3, 3.2]])
    assert (row.headline.kinds, row.claim.mean) == ((NOT_REACHED, NOT_REACHED), None)
    (told,) = sentences(made(tmp_path).groups[0])
    assert told == "grow does not reach the baseline's loss: it ends 0.1500 nats above it (2 seeds)."


@pytest.mark.parametrize("last", [2.9, 3.0, 3.1])
def test_the_headline_and_the_first_crossing_agree_on_who_reaches(tmp_path: Path, last: float) -> None:
    row = seeds(tmp_path, [[3.2, 2.9, last]])
    assert (row.spread("flops").reached, row.headline.kinds != (NOT_REACHED,)) == (
        (1, True) if last <= 3 else (0, False)
    )


def test_without_endings_the_first_crossing_is_the_headline_and_says_so(tmp_path: Path) -> None:
    branched(tmp_path / "a", "scratch", [3.0], budgets=())
    branched(tmp_path / "b", "grow", [2.9], WHOLE, budgets=())
    (group,) = (found := made(tmp_path)).groups
    (row,) = group.rows
    assert (row.annealed, row.headline.kinds, row.claim) == (False, (NOT_BRACKETED,), row.spread("flops"))
    assert not tables.annealed(group).rows
    (told,) = sentences(group)
    assert "fewer FLOPs (one seed), at the first crossing of its curve, un-annealed; the baseline was not tuned" in told
    assert "Saved at the first crossing of the curve, un-annealed:" in " ".join(build.render(found).split())


def test_a_source_of_unknown_cost_has_no_headline(tmp_path: Path) -> None:
    source = {"name": "small", "flops": None, "flops_body": None, "seconds": None}
    row = seeds(tmp_path, [[3.2, 2.8, 2.5]], source=source)
    assert (row.claim.mean, row.headline.source_free("flops").mean) == (None, None)
    found = made(tmp_path)
    assert sentences(found.groups[0])[0].endswith("no saving can be told, since what its source cost is not known.")
    (cells,) = tables.annealed(found.groups[0]).rows
    assert cells[3] == "n/a: source not charged"


def test_losses_choose_the_rate_and_not_the_headline(tmp_path: Path) -> None:
    branched(tmp_path / "a", "scratch", [4.0, 3.5, 3.0])
    for lr, losses in ((1e-3, [2.9, 2.8, 2.7]), (2e-3, [3.2, 2.8, 2.5])):
        branched(tmp_path / f"b{lr}", "grow", losses, WHOLE, (0.4, 0.6), lr=lr)
    (group,) = compare(read_all(find([tmp_path])))
    saved = {row.lr: (row.best, row.headline.saved("flops").mean) for row in group.rows}
    assert saved == {1e-3: (False, pytest.approx(0.6)), 2e-3: (True, pytest.approx(0.51010205))}


def test_an_ending_that_is_lacking_is_told_with_its_reason(tmp_path: Path) -> None:
    seeds(tmp_path, [[3.2, 2.8, 2.5]])
    for name in ("a0", "b0"):
        plan = json.loads((tmp_path / name / "plan.json").read_text())
        plan["lacking"] = [{"point": "35%", "branch": 0.35, "why": "possible: 40% to 99%"}]
        (tmp_path / name / "plan.json").write_text(json.dumps(plan))
    assert "Group 1: no ending at 35% (possible: 40% to 99%): the baseline, grow." in made(tmp_path).notes


def test_endings_give_no_further_freedom(tmp_path: Path) -> None:
    """Each is in the report and none is chosen: a method with more of them was tried at no more settings."""
    seeds(tmp_path, [[3.2, 2.8, 2.5]])
    assert not made(tmp_path).groups[0].freer


# What is written


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> build.Report:
    folder = tmp_path_factory.mktemp("headline")
    seeds(folder / "runs", [[3.2, 2.8, 2.5], [3.1, 2.8, 2.5], [3.3, 2.9, 2.5]])
    for seed in range(3):
        branched(folder / f"runs/c{seed}", "2level", [3.6, 3.4, 3.1], GROW, (0.4, 0.6), seed=seed)
    return build.build([folder / "runs"], folder / "out")


def test_all_files_have_the_headline_and_agree(built: build.Report) -> None:
    out = built.files[0].parent
    (group,) = json.loads((out / "report.json").read_text())["groups"]
    grow, other = group["methods"]
    line, last = csv.DictReader((out / "savings.csv").open())
    mean = grow["annealed"]["saving"]["flops"]["mean"]
    assert (grow["method"], grow["headline"], line["headline"]) == ("grow", "annealed", "annealed")
    assert (float(line["annealed_flops"]), line["annealed_at_least"]) == (mean, "False")
    assert mean == statistics.mean(seed["annealed"]["saved"]["flops"] for seed in grow["seeds"])
    assert float(line["saving_flops"]) == grow["saving_at_equal_loss"]["flops"]["mean"] != mean
    assert (other["annealed"]["kinds"], last["annealed_flops"]) == ([NOT_REACHED] * 3, "")
    text = (out / "report.md").read_text()
    assert [f"- {sentence}" for sentence in group["summary"]] == text.splitlines()[2:4]
    assert f"| {100 * mean:.1f}%<br>± " in text and "| first crossing |" in text
    assert text.index("annealed.png") < text.index("loss.png")
    assert built.figure is not None and built.figure.name == "annealed.png"


def test_the_terminal_has_the_headline_first_its_sentences_last_and_110_columns(built: build.Report) -> None:
    lines = build.render(built).splitlines()
    assert max(len(line) for line in lines if not line.startswith("/")) <= 110
    said = [line for line in lines if line.startswith("grow reaches the baseline's loss with 5")]
    assert len(said) == 1 and lines.index(said[0]) > max(n for n, line in enumerate(lines) if line.endswith(".json"))
    headers = [number for number, line in enumerate(lines) if "FLOPs saved" in line]
    assert "tokens saved" in lines[headers[0]] and "speed-up" in lines[headers[1]]


def test_the_figure_draws_both_sides_and_the_saving_at_l_star(built: build.Report) -> None:
    (group,) = built.groups
    base, *methods = annealed_figure.sides(group)
    assert base.losses == pytest.approx([4.0, 3.5, 3.0]) and base.deviations == pytest.approx([0.0] * 3, abs=1e-9)
    assert base.flops == pytest.approx([0.25 * BUDGET, 0.5 * BUDGET, BUDGET])
    assert [side.losses for side in methods] == [pytest.approx([3.2, 17 / 6, 2.5]), pytest.approx([3.6, 3.4, 3.1])]
    ((side, start, end, said),) = annealed_figure.arrows([base, *methods])
    found = group.rows[0].headline
    assert (side, start) == (methods[0], pytest.approx(BUDGET))
    assert 1 - end / start == pytest.approx(found.saved("flops").mean)
    assert said == f"saves {100 * found.saved('flops').mean:.1f}%"


def legend_fits(picture: Any, height: float) -> None:
    """Check that all names are inside the picture, and that the panel is as high as with a few of them."""
    picture.draw_without_rendering()
    (shown,), (panel,) = picture.legends, picture.axes
    box = shown.get_window_extent()
    assert picture.bbox.x0 <= box.x0 and box.x1 <= picture.bbox.x1
    assert panel.get_window_extent().height > 0.6 * picture.dpi * height


@pytest.mark.parametrize("name", ["grow", "quarter_depth lr_policy=continue depth=4"])
def test_the_legend_stays_inside_the_figure_and_leaves_the_panel_its_height(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    branched(tmp_path / "a", "scratch", [4.0, 3.5, 3.0])
    for k in range(7):
        branched(tmp_path / f"{k}", f"{name}{k}", [3.2, 3.0, 2.5], GROW)
    pictures: list[Any] = []
    monkeypatch.setattr(figure, "written", lambda picture, *_: pictures.append(picture) or [])
    annealed_figure.draw(made(tmp_path).groups[0], tmp_path, "annealed")
    legend_fits(pictures[0], annealed_figure.HEIGHT)


def test_a_smaller_model_alone_is_a_line_of_its_endings_in_both_figures(built: build.Report) -> None:
    (group,) = built.groups
    assert annealed_figure.alone(group) == []
    run = group.rows[0].pairs[0].run
    assert run.final is not None
    told = Alone(smaller.size(run), (run.seed,), spread([0.5]), False)
    with_smaller = replace(group, controls={run.seed: (run,)}, smaller=told)
    (side,) = annealed_figure.alone(with_smaller)
    ends = [ending.point for ending in run.annealed]
    assert len(ends) > 1 and side.flops == tuple(point.flops for point in ends)
    assert side.losses == tuple(point.loss for point in ends)
    drawn = charts.charts(with_smaller)["annealed"]["sides"]
    assert [one["points"] for one in drawn if one["name"] == side.name] == [
        [[point.flops, point.loss, 0.0] for point in ends]
    ]
    assert len(drawn) == len(annealed_figure.sides(group)) + 1


def test_the_labels_of_ticks_have_room_and_the_budget_keeps_its_own() -> None:
    assert annealed_figure.ticked(0.09, 1.12) == [0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0]
    assert annealed_figure.ticked(0.01, 1.1)[-3:] == [0.4, 0.65, 1.0]
    assert annealed_figure.ticked(0.6, 1.1) == [0.65, 0.8, 1.0]


def test_a_smaller_model_reaches_l_star_by_the_rule_of_the_headline(built: build.Report) -> None:
    (group,) = built.groups
    run = group.rows[0].pairs[0].run
    first, second, last = (ending.point for ending in run.annealed)
    assert first.loss > 3.0 > second.loss > last.loss and second.flops < last.flops
    found = smaller.alone({0: [run]}, smaller.levels(group.baselines))
    wanted = headline(run.annealed, group.baselines[0].annealed, 3.0, None, True).saved["flops"]
    assert found is not None and wanted is not None
    assert found == Alone(smaller.size(run), (0,), spread([wanted]), False) and 1 - second.flops / BUDGET < wanted
    assert smaller.alone({}, group.baselines) is None


def a_size(parameters: int, *saved: float | None, bound: bool = False) -> list[One]:
    return [One(parameters, seed, value, bound) for seed, value in enumerate(saved)]


def test_over_seeds_a_smaller_model_is_known_by_the_mean_as_a_method_is() -> None:
    found = smaller.best(a_size(10, 0.315, 0.182, 0.456))
    assert found == Alone(10, (0, 1, 2), spread([0.315, 0.182, 0.456]), False)
    found = smaller.best([*a_size(10, 0.3, 0.2), One(10, 1, 0.4, True)])
    assert found is not None and found.bound and found.saved.values == (0.3, 0.4)
    assert found.saved.mean == pytest.approx(0.35) and found.saved.low is None


def test_it_is_one_size_for_all_seeds() -> None:
    sizes = [*a_size(10, 0.5, None, 0.5), *a_size(20, 0.1, 0.3, -0.1), *a_size(30, 0.2, 0.2, 0.2)]
    found = smaller.best(sizes)
    assert found is not None and (found.parameters, found.saved.reached) == (30, 3)
    found = smaller.best(a_size(10, 0.5, None, 0.5))
    assert found is not None and found.saved.mean is None and found.saved.reached == 2
    assert smaller.best(a_size(10, 0.1, -0.3)) is None and smaller.best(a_size(10, None)) is None


def test_a_smaller_model_that_was_given_as_many_flops_saves_what_lies_between_its_endings() -> None:
    assert cost_at([(3.5, 50.0), (2.5, 100.0)], 3.0) == pytest.approx(math.sqrt(5000))
    assert cost_at([(2.5, 50.0), (2.4, 100.0)], 3.0) == 50.0
    assert cost_at([(2.5, 50.0), (3.1, 100.0)], 3.0) is None
    assert cost_at([(math.nan, 50.0), (2.5, 100.0)], 3.0) == cost_at([(None, 50.0), (2.5, 100.0)], 3.0) == 100.0
    assert cost_at([(2.5, 50.0)], None) is None and cost_at([], 3.0) is None


def test_no_figure_where_no_method_has_endings(tmp_path: Path) -> None:
    branched(tmp_path / "a", "scratch", [3.0], budgets=())
    branched(tmp_path / "b", "grow", [2.9], GROW, budgets=())
    (group,) = compare(read_all(find([tmp_path])))
    assert annealed_figure.draw(group, tmp_path, "annealed") == []


def test_a_recorded_run_has_the_headline_that_its_log_says(tmp_path: Path) -> None:
    """From the lines of two logs that real runs wrote; L* is set between the two endings of the method."""
    ends = {name: logged(fake.RECORDED / f"{name}-branch" / "log.jsonl") for name in ("scratch", "grow")}
    (half, above), (whole, below) = ends["grow"]
    target = (above + 2 * below) / 3
    for name in ends:
        settings, plan, log, _ = fake.recorded(f"{name}-branch")
        for record in log:
            if name == "scratch" and record.get("kind") == "val" and record["flops"] == ends["scratch"][1][0]:
                record["loss"] = target
            elif name == "scratch" and record.get("kind") == "val" and "branch" not in record:
                record["loss"] = max(record["loss"], target + 0.01)  # its curve comes to L* at its end
        fake.write(tmp_path / name, settings, plan, [r for r in log if r["kind"] != "start"])
    expected = 1 - math.exp(math.log(half) + 2 / 3 * (math.log(whole) - math.log(half))) / ends["scratch"][1][0]
    found = rows(tmp_path).headline
    assert found.kinds == (BRACKETED,) and above > target > below
    assert found.saved("flops").values == (pytest.approx(expected),)


def logged(path: Path) -> list[tuple[float, float]]:
    """Return (own FLOPs, loss) of the branch and of the end, as the log has them."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    branch = next(r for r in records if r["kind"] == "val" and "branch" in r)
    end = [r for r in records if r["kind"] == "val" and "branch" not in r][-1]
    return [(branch["own_flops"], branch["loss"]), (end["flops"], end["loss"])]


def test_the_figure_has_room_for_the_deviations_over_seeds() -> None:
    side = annealed_figure.Side("a", figure.BASELINE, None, (1.0, 2.0), (4.0, 3.9), (0.0, 0.2))
    assert annealed_figure.reach([side]) == (pytest.approx(3.7), pytest.approx(4.1))
    flat = replace(side, losses=(4.0, 4.0), deviations=(0.0, 0.0))
    assert annealed_figure.reach([flat]) == (4.0, pytest.approx(4.0 + figure.LEAST))


def test_bounds_below_0_have_no_p_value() -> None:
    """They may be of a saving or of a loss."""
    assert spread([0.5, 0.6], bound=True).p == 0.5
    assert spread([0.5, -0.1], bound=True).p is None and spread([0.5], bound=True).p is None
