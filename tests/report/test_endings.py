"""Matched endings in the report: what the baseline would have paid for an annealed loss, and who says so where."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fake_runs as fake
import pytest

from mlrun.report import build, figure, pairing
from mlrun.report.compare import compare
from mlrun.report.curves import Point
from mlrun.report.endings import BEYOND, DIVERGED, NOT_REACHED, Ending, outside, price
from mlrun.report.notes import ENDINGS, notes
from mlrun.report.read import find, read, read_all

BUDGET = fake.BUDGET * fake.FLOPS[1]
# As dear as the baseline: 105 steps at level 1 cost what the 400 coarse ones do.
GROW = ((2, 400), (1, 895))


def ending(budget: float, loss: float, flops: float | None = None) -> Ending:
    """Return an ending whose costs differ by axis."""
    cost = 100 * budget if flops is None else flops
    return Ending(budget, Point(1, 1, 1, cost, cost, cost / 2, cost / 10, loss))


def branched(
    folder: Path,
    name: str,
    losses: Sequence[float | None],
    stages: Any = fake.SCRATCH,
    budgets: Sequence[float] = (0.25, 0.5),
    source: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Write a run whose endings at the budgets and at the end have these losses; its curve falls evenly to the last.

    An ending's own costs are shares of the trunk's, and of 100 seconds; it forks where the last stage begins.
    """
    plan = fake.plan(stages, source)
    trunk, last = dict(plan["totals"]), losses[-1]
    fork = plan["stages"][-1]["first_step"]
    before = {axis: trunk[axis] - plan["stages"][-1][axis] for axis in fake.AXES}
    assert last is not None
    log = fake.straight(plan, [last + (4 - i) for i in range(5)])
    ended = fake.template("val", "scratch-branch")
    row = next(stage for stage in fake.recorded("scratch-branch")[1]["stages"] if "branch" in stage)
    for budget, loss in zip(budgets, losses[:-1], strict=True):
        decay = {axis: budget * trunk[axis] - before[axis] for axis in fake.AXES}
        decay["steps"] = max(1, round(decay["flops"] / fake.FLOPS[1]))
        decay["samples"] = 4 * decay["steps"]
        number, first = len(plan["stages"]), plan["totals"]["steps"]
        plan["stages"].append(row | decay | {"stage": number, "first_step": first, "fork": fork, "branch": budget})
        plan["totals"] |= {key: plan["totals"][key] + decay[key] for key in decay}
        spent = {axis: plan["totals"][axis] for axis in fake.AXES} | {"seconds": 150.0}
        own = {f"own_{axis}": budget * trunk[axis] for axis in fake.AXES} | {"own_seconds": 100 * budget}
        place = {"stage": number, "level": 1, "step": plan["totals"]["steps"], "branch": budget, "loss": loss}
        log.append(ended | place | spent | own | {"own_step": fork + decay["steps"]})
    starts = changes.pop("starts", (fake.MACHINE,))
    return fake.write(folder, fake.config(name, **changes), plan, log, starts=starts)


def rows(folder: Path) -> Any:
    ((row,),) = [group.rows for group in compare(read_all(find([folder])))]
    return row


# The price of a loss


BASELINE = [ending(0.25, 4.0), ending(0.5, 3.5), ending(1.0, 3.0)]


@pytest.mark.parametrize(
    ("loss", "flops"), [(4.0, 25.0), (3.5, 50.0), (3.0, 100.0), (3.75, 25 * 2**0.5), (3.1, 50 * 2**0.8)]
)
def test_a_price_lies_on_a_line_over_the_logarithm_of_the_cost(loss: float, flops: float) -> None:
    assert price(BASELINE, loss, "flops") == pytest.approx(flops)
    assert price(BASELINE, loss, "seconds") == pytest.approx(flops / 10)
    assert outside(BASELINE, loss) is None


@pytest.mark.parametrize(("loss", "why"), [(4.01, NOT_REACHED), (2.99, BEYOND), (math.nan, DIVERGED)])
def test_nothing_is_extrapolated(loss: float, why: str) -> None:
    assert (price(BASELINE, loss, "flops"), outside(BASELINE, loss)) == (None, why)


def test_a_baseline_that_gets_worse_pays_where_it_stays_good() -> None:
    uneven = [ending(0.25, 3.4), ending(0.5, 3.6), ending(1.0, 3.0)]
    assert price(uneven, 3.5, "flops") == pytest.approx(50 * 2 ** (1 / 6))
    assert outside([ending(0.5, 3.0), ending(1.0, 3.2)], 3.1) == BEYOND
    assert price([ending(0.25, math.nan), ending(0.5, 3.6)], 3.7, "flops") == 50, "no line from a run that diverged"


# Who is matched with whom


def test_endings_are_compared_at_their_budget_and_by_what_the_baseline_would_have_paid(tmp_path: Path) -> None:
    branched(tmp_path / "a", "scratch", [4.0, 3.5, 3.0])
    branched(tmp_path / "b", "grow", [4.5, 3.25, 2.9], GROW)
    worse, better, best = rows(tmp_path).endings
    assert [at.budget for at in (worse, better, best)] == [0.25, 0.5, 1.0]
    assert [at.gap.mean for at in (worse, better, best)] == pytest.approx([0.5, -0.25, -0.1])
    assert (better.baseline_loss.mean, better.loss.mean) == (3.5, 3.25)
    cost = 0.5 * fake.plan(GROW)["totals"]["flops"]
    assert better.saved("flops").mean == pytest.approx(1 - cost / (0.5 * 2**0.5 * BUDGET))
    assert better.saved("seconds").mean == pytest.approx(1 - 50 / (50 * 2**0.5))
    assert [at.saved("flops").values for at in (worse, best)] == [(None,), (None,)]
    assert [at.why() for at in (worse, better, best)] == [{NOT_REACHED: 1}, {}, {BEYOND: 1}]


def test_a_source_is_charged_at_every_ending(tmp_path: Path) -> None:
    source = {"name": "small", "flops": 0.1 * BUDGET, "flops_body": 0.1 * BUDGET, "seconds": 10.0}
    branched(tmp_path / "a", "scratch", [4.0, 3.5, 3.0])
    branched(tmp_path / "b", "ligo", [3.8, 3.5, 3.0], ((2, 0), (1, 1000)), source=source)
    row = rows(tmp_path)
    half, whole = row.endings[1:]
    assert (half.saved("flops").mean, half.source_free("flops").mean) == pytest.approx((1 - 0.6 / 0.5, 0.0))
    assert (whole.saved("seconds").mean, whole.source_free("seconds").mean) == pytest.approx((1 - 110 / 100, 0.0))
    assert "source free" in build.render(made(tmp_path))


def made(folder: Path) -> build.Report:
    """Return the report of a folder without writing it."""
    groups = tuple(compare(read_all(find([folder]))))
    return build.Report(groups, tuple(notes(groups)), ())


def test_seeds_are_paired_and_one_that_has_no_price_is_not_averaged_away(tmp_path: Path) -> None:
    for seed, shift in enumerate((0.0, 0.1, 0.2)):
        branched(tmp_path / f"a{seed}", "scratch", [4.0 + shift, 3.5 + shift, 3.0 + shift], seed=seed)
        better = [3.75 + shift, 3.25 + shift, 3.05 if seed else 3.0]
        branched(tmp_path / f"b{seed}", "grow", better, ((2, 0), (1, 1000)), seed=seed)
    quarter, half, whole = rows(tmp_path).endings
    assert quarter.saved("flops").values == pytest.approx([1 - 2**-0.5] * 3)
    assert (half.saved("flops").sd, half.gap.sd) == pytest.approx((0.0, 0.0), abs=1e-12)
    assert half.loss.sd == pytest.approx(0.1)
    assert half.saved("flops").low is None, "what is the same for all seeds says nothing of how sure it is"
    assert (whole.saved("flops").mean, whole.saved("flops").reached, whole.why()) == (None, 1, {BEYOND: 2})
    text = " ".join(build.render(made(tmp_path)).split())
    assert "29.3%" in text and "(" in text and "2/3" in text


def test_no_ending_has_a_mean_without_the_seeds_that_failed(tmp_path: Path) -> None:
    for seed in range(3):
        branched(tmp_path / f"a{seed}", "scratch", [4.0, 3.5, 3.0], seed=seed)
        if seed < 2:
            branched(tmp_path / f"b{seed}", "grow", [3.75, 3.25, 3.0], ((2, 0), (1, 1000)), seed=seed)
    plan = fake.plan(((2, 0), (1, 1000)))
    fake.write(tmp_path / "b2", fake.config("grow", seed=2), plan, fake.straight(plan, [5.0, 4.0]), "failed")
    for at in rows(tmp_path).endings:
        assert (at.loss.mean, at.gap.mean, at.saved("flops").mean) == (None, None, None)
        assert (at.saved("flops").reached, at.why()) == (2, {"failed": 1})
    lines = list(csv.DictReader((build.write.endings_csv(made(tmp_path).groups) or "").splitlines()))
    assert {line["saving_flops"] for line in lines} == {""} and {line["failed"] for line in lines} == {"1"}


def test_a_rate_and_a_budget_without_a_partner_are_matched_by_price_alone(tmp_path: Path) -> None:
    branched(tmp_path / "a", "scratch", [4.0, 3.5, 3.0])
    branched(tmp_path / "b", "grow", [3.75, 3.2], ((2, 0), (1, 700)), budgets=(0.3,))
    odd, end = rows(tmp_path).endings
    assert (odd.budget, odd.gap.mean, odd.baseline_loss.mean) == (0.3, None, None)
    assert odd.saved("flops").mean == pytest.approx(1 - 0.3 * 0.7 / (0.25 * 2**0.5))
    assert (end.budget, end.gap.mean) == (pytest.approx(0.7), None), "this cycle ends before the budget does"
    assert "diverged" not in build.render(made(tmp_path))


def test_a_budget_that_some_seeds_lack_says_how_many_have_it(tmp_path: Path) -> None:
    for seed, budgets in enumerate(((0.25, 0.5), (0.5,))):
        losses = [4.0, 3.5, 3.0][-1 - len(budgets) :]
        branched(tmp_path / f"a{seed}", "scratch", losses, budgets=budgets, seed=seed)
        branched(tmp_path / f"b{seed}", "grow", losses, ((2, 0), (1, 1000)), budgets=budgets, seed=seed)
    assert [len(at.matches) for at in rows(tmp_path).endings] == [1, 2, 2]
    assert build.render(made(tmp_path)).count("1/2 seeds") == 1


def test_an_ending_that_diverged_says_so(tmp_path: Path) -> None:
    branched(tmp_path / "a", "scratch", [4.0, 3.5, 3.0])
    branched(tmp_path / "b", "grow", [None, 3.2, 3.1], ((2, 0), (1, 1000)))
    first = rows(tmp_path).endings[0]
    assert (first.loss.mean, first.gap.mean, first.why()) == (None, None, {DIVERGED: 1})


def test_seconds_of_different_machines_have_no_price(tmp_path: Path) -> None:
    branched(tmp_path / "a", "scratch", [4.0, 3.5, 3.0], hardware={"device": "cuda"})
    branched(tmp_path / "b", "grow", [3.75, 3.2, 3.1], ((2, 0), (1, 1000)))
    first = rows(tmp_path).endings[0]
    assert (first.saved("seconds").mean, first.saved("flops").mean is None) == (None, False)
    assert "n/a" in build.render(made(tmp_path))


# Branches are no part of the curve


def test_curves_crossings_and_methods_know_nothing_of_branches(tmp_path: Path) -> None:
    for name, budgets in (("with", (0.25, 0.5)), ("without", ())):
        branched(tmp_path / name / "a", "scratch", [2.0, 1.5, 3.0][-1 - len(budgets) :], budgets=budgets)
        branched(tmp_path / name / "b", "grow", [2.0, 1.5, 2.9][-1 - len(budgets) :], GROW, budgets=budgets)
    with_, without = (rows(tmp_path / name) for name in ("with", "without"))
    assert with_.pairs[0].saved == without.pairs[0].saved
    assert with_.pairs[0].run.evaluations == without.pairs[0].run.evaluations
    assert pairing.baseline(with_.pairs[0].baseline) and (with_.gap, with_.loss) == (without.gap, without.loss)


def test_a_method_with_and_without_branches_is_one(tmp_path: Path) -> None:
    branched(tmp_path / "a", "scratch", [4.0, 3.5, 3.0])
    branched(tmp_path / "a-again", "scratch", [3.0], budgets=())
    for name, branches in (("b", ["25%", "50%"]), ("c", [])):
        cycle = {"name": "grow", "branches": branches}
        losses = [3.9, 3.3, 2.9][-1 - len(branches) :]
        branched(tmp_path / name, "grow", losses, GROW, budgets=(0.25, 0.5)[: len(branches)], cycle=cycle)
    row = rows(tmp_path)
    assert (row.method, [p.run.folder.name for p in row.pairs], len(row.endings)) == ("grow", ["b"], 3)
    assert row.pairs[0].baseline.folder.name == "a", "of two equal baselines that with endings"


def test_endings_without_a_partner_are_told(tmp_path: Path) -> None:
    branched(tmp_path / "a", "scratch", [3.0], budgets=())
    branched(tmp_path / "b", "grow", [3.9, 3.3, 2.9], GROW)
    found = made(tmp_path)
    (note,) = [note for note in found.notes if "matched with nothing" in note]
    assert f"{tmp_path / 'a'} has none" in note
    assert not rows(tmp_path).endings and not set(ENDINGS) & set(found.notes)


# What is written


def test_without_branches_no_report_has_a_table_or_figure_of_them(tmp_path: Path) -> None:
    branched(tmp_path / "runs/a", "scratch", [3.0], budgets=())
    branched(tmp_path / "runs/b", "grow", [2.9], GROW, budgets=())
    built = build.build([tmp_path / "runs"], tmp_path / "out")
    assert {path.name for path in built.files} == {
        "index.html",
        "report.md",
        "savings.csv",
        "report.json",
        "loss.png",
        "loss.pdf",
    }
    text = "".join((tmp_path / "out" / name).read_text() for name in ("report.md", "savings.csv", "report.json"))
    said = text.lower() + build.render(built).lower()
    assert not any(word in said for word in ("matched endings", "annealed budget", "annealed ending", "annealed loss"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> build.Report:
    folder = tmp_path_factory.mktemp("endings")
    for seed, shift in enumerate((0.0, 0.02, 0.05)):
        branched(folder / f"runs/a{seed}", "scratch", [4.0 + shift, 3.5 - shift, 3.0], seed=seed)
        branched(folder / f"runs/b{seed}", "a_long_methods_name", [3.7 + shift, 3.2, 2.9], GROW, seed=seed)
    return build.build([folder / "runs"], folder / "out")


def test_all_files_have_the_endings_and_agree(built: build.Report) -> None:
    out = built.files[0].parent
    (group,) = json.loads((out / "report.json").read_text())["groups"]
    quarter = group["methods"][0]["matched_endings"][0]
    lines = list(csv.DictReader((out / "endings.csv").open()))
    assert [float(line["budget"]) for line in lines] == [0.25, 0.5, 1.0]
    assert float(lines[0]["saving_flops"]) == quarter["saving"]["flops"]["mean"]
    assert (lines[2]["saving_flops"], lines[2]["beyond_baseline"], lines[0]["beyond_baseline"]) == ("", "3", "0")
    text, mean = (out / "report.md").read_text(), 100 * quarter["saving"]["flops"]["mean"]
    assert "| a_long_methods_name | 25% | 4.0233<br>± 0.0252 | 3.7233<br>± 0.0252 | \N{MINUS SIGN}0.3000<br>" in text
    assert f"| {mean:.1f}%<br>± " in text and f"| {BEYOND} |" in text
    assert all(f"- {rule}" in text for rule in ENDINGS)
    assert len(group["runs"][0]["endings"]) == 3


def test_the_terminal_has_the_endings_in_110_columns(built: build.Report) -> None:
    lines = build.render(built).splitlines()
    assert max(len(line) for line in lines if not line.startswith("/")) <= 110
    (line,) = [line for line in lines if line.startswith(" a_long_method") and "25%" in line]
    assert "4.0233" in line and "3.7233" in line


def test_the_figure_joins_the_means_of_the_endings(built: build.Report) -> None:
    (group,) = built.groups
    curves = figure.chosen(group)
    assert [len(points) for curve in curves for points in curve.annealed()] == [3] * 6
    high = figure.limits(curves, 0)[1]
    assert high > 4.05, "no ending is cut off"
    drawn: list[Any] = []

    class Panel:
        def plot(self, xs: Any, ys: Any, **style: Any) -> None:
            drawn.append((list(xs), list(ys), style["ls"]))

    figure._endings(Panel(), curves[0], "flops", 1.0)  # type: ignore[arg-type]
    ((xs, ys, stroke),) = drawn
    assert xs == pytest.approx([0.25 * BUDGET, 0.5 * BUDGET, BUDGET])
    assert ys == pytest.approx([4.0 + 0.07 / 3, 3.5 - 0.07 / 3, 3.0]) and stroke != "-"


def test_seeds_share_the_budgets_that_are_drawn(tmp_path: Path) -> None:
    runs = [
        read(branched(tmp_path / "a", "scratch", [4.0, 3.5, 3.0])),
        read(branched(tmp_path / "b", "scratch", [3.5, 3.0], budgets=(0.5,), seed=1)),
    ]
    curve = figure.Curve("scratch", "k", (), None, tuple(run.endings for run in runs))
    assert [[p.flops / BUDGET for p in points] for points in curve.annealed()] == [[0.5, 0.5], [1.0, 1.0]]
