"""No flattering number can be got out of the report: each test is a way in which one was, or could be."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import fake_runs as fake
import pytest
import toy
from test_endings import branched
from test_report import made, straight

from mlrun.interop.told import SMALLER, _saving
from mlrun.report import annealed_figure, build, pairing
from mlrun.report.compare import Group, Row, compare, neighbours
from mlrun.report.curves import Point, read_every
from mlrun.report.notes import _untimed
from mlrun.report.read import find, read, read_all
from mlrun.report.sentences import sentences
from mlrun.report.stats import holm, t_inside, t_quantile
from mlrun.units import human

HALF = ((1, fake.BUDGET // 2),)
LATE = ((2, 400), (1, 640))


def group(folder: Path) -> Group:
    (found,) = compare(read_all(find([folder])))
    return found


def rows(folder: Path) -> dict[str, Row]:
    return {row.method: row for row in group(folder).rows}


def told(folder: Path, text: str) -> list[str]:
    return [note for note in made(folder).notes if text in note]


def change(path: Path, changes: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# 1. Weights that come from elsewhere


def source(flops: float | None, seconds: float | None = 5.0, **more: Any) -> dict[str, Any]:
    parts = [{"id": "x", "name": "A", "flops": flops, "seconds": seconds, "machine": None}]
    return {"name": "runs/A/model", "flops": flops, "flops_body": flops, "seconds": seconds, "parts": parts, **more}


def test_a_source_of_unknown_cost_saves_nothing_and_shows_in_the_name(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    straight(tmp_path / "b", "2level", [3.2, 2.5, 2], fake.TWO, init="runs/A/model")
    straight(tmp_path / "c", "grow", [3.2, 2.5, 2], LATE, init="runs/A/model", source=source(None, None))
    found = rows(tmp_path)
    assert set(found) == {"2level init=A", "grow init=A"}
    for row in found.values():
        assert [row.spread(axis).mean for axis in ("flops", "flops_body", "seconds", "seconds_all")] == [None] * 4
        assert row.source_free("flops").mean is None  # type: ignore[union-attr]
    assert build.tables.savings(group(tmp_path)).markdown().count("| n/a: source not charged |") >= 2


def test_a_known_cost_is_charged_and_the_axes_that_are_unknown_say_so(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    straight(tmp_path / "b", "grow", [5, 3, 2], LATE, init="x", source=source(0.1 * fake.spent(fake.SCRATCH, 1), None))
    row = rows(tmp_path)["grow init=A"]
    free = 1 - fake.spent(LATE, 0.5) / fake.spent(fake.SCRATCH, 1)
    assert row.spread("flops").mean == pytest.approx(free - 0.1)
    assert row.source_free("flops").mean == pytest.approx(free)  # type: ignore[union-attr]
    assert row.spread("seconds").mean is None and row.uncharged("seconds")


def each(folder: Path, recipes: dict[int, str | None]) -> None:
    """Write baselines of three seeds, and a method whose seeds start from a model each, of this recipe and cost."""
    for seed, recipe in recipes.items():
        straight(folder / f"a{seed}", "scratch", [5, 4, 3], seed=seed)
        cost = (0.1 + 0.1 * seed) * fake.spent(fake.SCRATCH, 1)
        given = source(cost) | {"name": f"runs/A{seed}/model"}
        given["parts"][0] |= {"id": f"x{seed}", "name": f"A{seed}", "recipe": recipe}
        straight(folder / f"b{seed}", "grow", [5, 3, 2], LATE, seed=seed, init=f"runs/A{seed}/model", source=given)


def test_seeds_that_start_from_a_model_each_are_one_row_each_charged_its_own(tmp_path: Path) -> None:
    each(tmp_path, dict.fromkeys(range(3), "same"))
    row = rows(tmp_path)["grow init=A0 and 2 more"]
    free = 1 - fake.spent(LATE, 0.5) / fake.spent(fake.SCRATCH, 1)
    assert [pair.run.seed for pair in row.pairs] == [0, 1, 2]
    assert [pair.saved["flops"] for pair in row.pairs] == pytest.approx([free - 0.1, free - 0.2, free - 0.3])
    assert row.source_free("flops").mean == pytest.approx(free)  # type: ignore[union-attr]


@pytest.mark.parametrize("recipes", [{0: "one", 1: "two"}, {0: None, 1: None}])
def test_models_of_other_making_or_of_none_that_is_known_are_rows_of_their_own(
    recipes: dict[int, str | None], tmp_path: Path
) -> None:
    each(tmp_path, recipes)
    assert {"grow init=A0", "grow init=A1"} <= {name[: len("grow init=A0")] for name in rows(tmp_path)}


def test_a_one_stage_run_from_given_weights_is_no_baseline(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [3, 2, 1], init="runs/A/model")
    assert not group(tmp_path).baselines
    straight(tmp_path / "b", "scratch", [5, 4, 3])
    assert [run.folder.name for run in group(tmp_path).baselines.values()] == ["b"]
    assert set(rows(tmp_path)) == {"scratch init=A"}


def test_a_declared_cost_is_called_that(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    straight(tmp_path / "b", "grow", [5, 3, 2], LATE, init="x", source=source(1.0, None, declared=True))
    assert told(tmp_path, "charged with 1 FLOPs, some of it declared")


@pytest.mark.parametrize("seen", ["same", "other", "unknown", "nameless"])
def test_a_source_that_may_have_read_the_held_out_samples_is_told(seen: str, tmp_path: Path) -> None:
    """Nameless: neither side says what it read and held out, which is no sign that it was the same."""
    names = {"train": "t", "held_out": "h"} if seen != "nameless" else {}
    read = {"data": {"identity": {"tokenizer": "k", "preprocessing": "p", **names}}}
    straight(tmp_path / "a", "scratch", [5, 4, 3], plan=read)
    given = source(1.0)
    if seen != "unknown":
        given["parts"][0]["data"] = names | ({"train": "u"} if seen == "other" else {})
    straight(tmp_path / "b", "grow", [5, 3, 2], LATE, init="x", source=given, plan=read)
    note = "grow init=A starts from A, trained on other data, or on what nobody knows"
    assert (told(tmp_path, note) != []) is (seen != "same")


def test_seconds_of_a_source_from_another_machine_are_not_added(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    given = source(1.0)
    given["parts"][0]["machine"] = "another"
    straight(tmp_path / "b", "grow", [5, 3, 2], LATE, init="x", source=given)
    assert not rows(tmp_path)["grow init=A"].timed and told(tmp_path, "weights from another machine")


# 2. Data


def test_the_same_file_name_is_not_the_same_data(tmp_path: Path) -> None:
    here = {"_target_": "mlrun.data.text.files.Files", "files": ["corpus.txt"]}
    identity = {**fake.IDENTITY, "train": "other"}
    straight(tmp_path / "a", "scratch", [5, 4, 3], data=here)
    straight(tmp_path / "b", "2level", [5, 3, 2], fake.TWO, data=here, plan={"data": {"identity": identity}})
    assert not any(row.pairs for g in compare(read_all(find([tmp_path]))) for row in g.rows)
    assert told(tmp_path, "differs in data (train)")


def test_another_file_name_is_the_same_data_if_its_content_is(tmp_path: Path) -> None:
    for name, folder, stages in (("scratch", "a", fake.SCRATCH), ("2level", "b", fake.TWO)):
        data = {"_target_": "mlrun.data.text.files.Files", "files": [f"{folder}/corpus.txt"]}
        straight(tmp_path / folder, name, [5, 3.5, 3], stages, data=data)
    assert len(rows(tmp_path)["2level"].pairs) == 1


def test_runs_without_digests_are_matched_by_what_there_is_and_that_is_said(tmp_path: Path) -> None:
    for content, pairs in (("x", 1), ("y", 0)):
        straight(tmp_path / content / "a", "scratch", [5, 4, 3], plan={"data": {"content": "x"}})
        straight(tmp_path / content / "b", "2level", [5, 3, 2], fake.TWO, plan={"data": {"content": content}})
        groups = compare(read_all(find([tmp_path / content])))
        assert sum(len(row.pairs) for g in groups for row in g.rows) == pairs
    assert told(tmp_path / "x", "no digests of the data")


def test_a_content_hash_covers_where_the_tokenizer_lies(tmp_path: Path) -> None:
    known = {"data": {"content": "x"}}
    straight(tmp_path / "a", "scratch", [5, 4, 3], plan=known)
    straight(tmp_path / "b", "2level", [5, 3, 2], fake.TWO, plan=known, data={"tokenizer": "a/tokenizer.json"})
    assert len(rows(tmp_path)["2level"].pairs) == 1


def test_copies_across_the_held_out_split_are_reported(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3], plan={"data": {"copies": 3, "held_out_documents": 40}})
    assert told(tmp_path, "3 of 40 held-out documents are in the training part too")


# 3. Baselines


@pytest.mark.parametrize(
    ("stages", "changes", "name"),
    [
        (HALF, {}, "scratch stops at 50%"),
        (((1, 500), (1, 500)), {}, "scratch levels 1-1"),
        (fake.TWO, {}, "scratch levels 1-2-1"),
        (fake.SCRATCH, {"init": "runs/A/model"}, "scratch init=A"),
        (fake.SCRATCH, {"summary": {"skipped_steps": 4}}, "scratch 4 steps skipped"),
        (fake.SCRATCH, {"cycle": {"a_key_of_tomorrow": 2}}, "scratch a_key_of_tomorrow=2"),
    ],
)
def test_what_is_no_plain_run_of_the_whole_budget_is_a_method(
    tmp_path: Path, stages: Any, changes: dict[str, Any], name: str
) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    straight(tmp_path / "b", "scratch", [5, 3, 2], stages, **changes)
    assert [run.folder.name for run in group(tmp_path).baselines.values()] == ["a"]
    assert set(rows(tmp_path)) == {name}


@pytest.mark.parametrize(
    "changes", [{"cycle": {"branches": ["50%"]}}, {"coarsening": {"width": 4}}, {"cycle": {"lr_policy": "continue"}}]
)
def test_what_has_no_effect_on_a_plain_run_leaves_it_a_baseline(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert pairing.baseline(read(straight(tmp_path / "a", "scratch", [5, 4, 3], **changes)))


# 4. Who was tuned


def swept(folder: Path, rates: Mapping[int, Sequence[float]]) -> Path:
    """Write baselines at these rates by seed, the second the best, and one method run per seed."""
    for seed, values in rates.items():
        for i, lr in enumerate(values):
            straight(folder / f"a{seed}-{lr}", "scratch", [5, 4, 3 if i == min(1, len(values) - 1) else 3.2],
                     seed=seed, lr=lr)  # fmt: skip
        straight(folder / f"b{seed}", "2level", [5, 3, 2.5], fake.TWO, seed=seed)
    return folder


def test_best_of_n_is_the_least_n_of_the_paired_seeds(tmp_path: Path) -> None:
    swept(tmp_path, {0: (5e-4, 1e-3, 2e-3, 4e-3), 1: (1e-3,)})
    found = group(tmp_path)
    assert (found.tried, found.tuned) == (1, False)
    assert "not swept" in build.render(made(tmp_path))
    assert told(tmp_path, "4 for seed 0, 1 for seed 1")


def test_rates_far_apart_are_no_sweep(tmp_path: Path) -> None:
    swept(tmp_path / "far", {0: (1e-4, 1e-3, 1e-2)})
    assert (group(tmp_path / "far").tried, group(tmp_path / "far").tuned) == (1, False)
    assert told(tmp_path / "far", "no other rate within a factor 4")
    swept(tmp_path / "near", {0: (1e-9, 5e-4, 1e-3, 4e-3)})
    assert group(tmp_path / "near").tried == 3
    assert neighbours([1, 2, 9, 36, 145], 9) == [9, 36]


def test_rates_that_are_nearly_the_same_are_one_try(tmp_path: Path) -> None:
    assert neighbours([1, 2, 2.001, 2.05, 2.2, 4], 2.001) == [1, 2.001, 2.2, 4]
    for i, loss in enumerate((3.1, 3, 3.1)):
        straight(tmp_path / f"a{i}", "scratch", [5, 4, loss], lr=1e-3 + i * 1e-8)
    straight(tmp_path / "b", "2level", [5, 3, 2.9], fake.TWO)
    found = group(tmp_path)
    assert found.tried == 1 and not found.tuned and not found.edge
    assert told(tmp_path, "baseline not tuned") and "the baseline was not tuned" in sentences(found)[0]


def test_a_best_rate_with_no_other_beyond_it_but_its_like_is_at_the_edge(tmp_path: Path) -> None:
    for lr, loss in ((1e-3, 3.1), (2e-3, 3), (2.00001e-3, 3.1)):
        straight(tmp_path / f"a{lr}", "scratch", [5, 4, loss], lr=lr)
    straight(tmp_path / "b", "2level", [5, 3, 2.9], fake.TWO, lr=2e-3)
    assert group(tmp_path).edge


@pytest.mark.parametrize("key", ["lr", "alpha", "warmup", "batch", "coarsening"])
def test_a_method_with_more_settings_than_its_baseline_is_said_whatever_the_key(tmp_path: Path, key: str) -> None:
    for lr in (1e-3, 2e-3):
        straight(tmp_path / f"a{lr}", "scratch", [5, 4, 3], lr=lr)
    for i in range(3):
        changes: dict[str, Any] = {
            "lr": {"lr": (1e-3, 2e-3, 4e-3)[i]},
            "alpha": {"cycle": {"alpha": 0.1 * i}},
            "warmup": {"optimizer": {"schedule": {"warmup": f"{i + 1} steps"}}},
            "batch": {"batch": (4, 8, 16)[i]},
            "coarsening": {"coarsening": {"width": i + 1}},
        }[key]
        straight(tmp_path / f"b{i}", "2level", [5, 3, 2.9], fake.TWO, **changes)
    (note,) = told(tmp_path, "had more to choose from")
    name = "width" if key == "coarsening" else key
    assert f"2level was tried at 3 settings ({name}), the baseline at 2" in note
    assert not compare(read_all(find([tmp_path])))[0].tuned


# 5. Survivors


def test_a_rate_at_which_seeds_failed_is_never_the_best(tmp_path: Path) -> None:
    for seed in range(3):
        straight(tmp_path / f"a{seed}", "scratch", [5, 4, 3], seed=seed)
        straight(tmp_path / f"b{seed}", "2level", [5, 3, 2.8], fake.TWO, seed=seed)
        status = "failed" if seed else "finished"
        straight(tmp_path / f"c{seed}", "2level", [5, 2.5, 2.0], fake.TWO, seed=seed, lr=2e-3, status=status)
    good, lucky = sorted(group(tmp_path).rows, key=lambda row: row.lr)
    assert (good.best, lucky.best) == (True, False)
    assert (lucky.spread("flops").mean, lucky.spread("flops").reached, lucky.spread("flops").count) == (None, 1, 3)
    text = build.render(made(tmp_path))
    assert "failed 2/3" in text and "unfinished" not in text


def test_a_run_that_failed_before_it_said_what_it_read_is_no_stranger(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    straight(tmp_path / "b", "2level", [5, 3, 2], fake.TWO)
    straight(tmp_path / "c", "2level", [5, 3, 2], fake.TWO, lr=9, status="failed", plan={"data": {}})
    assert {row.lr: len(row.failed) for row in group(tmp_path).rows} == {1e-3: 0, 9: 1}


def test_rates_are_compared_over_the_same_seeds(tmp_path: Path) -> None:
    for seed in range(2):
        straight(tmp_path / f"a{seed}", "scratch", [5, 4, 3 - seed], seed=seed)
        straight(tmp_path / f"b{seed}", "2level", [5, 3, 2.8 - seed], fake.TWO, seed=seed)
    straight(tmp_path / "c", "2level", [5, 3, 1.9], fake.TWO, seed=1, lr=2e-3)
    assert {row.lr: row.best for row in group(tmp_path).rows} == {1e-3: True, 2e-3: False}
    assert told(tmp_path, "one seed; differences between runs of one seed may be chance (2level at rate 0.002)")


def test_a_baseline_rate_that_failed_was_tried(tmp_path: Path) -> None:
    for lr, status in ((1e-3, "finished"), (2e-3, "finished"), (4e-3, "failed")):
        straight(tmp_path / f"a{lr}", "scratch", [5, 4, 3 - 100 * lr], lr=lr, status=status)
    straight(tmp_path / "b", "2level", [5, 3, 2], fake.TWO)
    found = group(tmp_path)
    assert (found.tried, found.edge, found.baselines[0].lr) == (3, False, 2e-3)
    assert "failed 1/1" in build.render(made(tmp_path))


def test_seeds_that_only_one_side_ran_at_are_told_with_their_losses(tmp_path: Path) -> None:
    """Six seeds of a method and baselines where three of them were lucky; or the other way round."""
    for seed in range(6):
        straight(tmp_path / f"m{seed}", "2level", [3.2, 2.5, 2 if seed < 3 else 4], fake.TWO, seed=seed)
        if seed < 3:
            straight(tmp_path / f"s{seed}", "scratch", [5, 4, 3], seed=seed)
    (note,) = told(tmp_path, "without a baseline")
    assert "(3, 4, 5), in no saving: there it ends at 4.0000, where compared at 2.0000." in note
    assert sentences(group(tmp_path))[0].endswith("; left out: 3 seeds of it without a baseline.")
    straight(tmp_path / "s9", "scratch", [5, 4, 1], seed=9)
    (note,) = told(tmp_path, "lacks seeds")
    assert "(9), in no saving: L* there is 1.0000, where compared 3.0000." in note
    (tmp_path / "s9").rename(tmp_path.parent / f"{tmp_path.name}-s9")
    for seed in (3, 4, 5):
        straight(tmp_path / f"s{seed}", "scratch", [5, 4, 3], seed=seed)
    assert told(tmp_path, "in no saving") == []


def test_a_copy_is_no_second_seed(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    straight(tmp_path / "b", "scratch", [5, 4, 3], seed=1)
    assert told(tmp_path, "have other seeds and the same losses")
    straight(tmp_path / "c", "scratch", [5, 4, 3], seed=2, lr=2e-3)
    assert len(told(tmp_path, "have other seeds and the same losses")) == 2, "another rate has other losses too"


# 6. How sure


@pytest.mark.parametrize(("freedom", "t"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622)])
def test_the_t_interval_has_the_textbook_width(freedom: int, t: float) -> None:
    assert t_quantile(0.95, freedom) == pytest.approx(t, abs=1e-4)
    assert t_inside(t, freedom) == pytest.approx(0.95, abs=1e-5)


def test_holm_multiplies_by_how_many_are_left() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.9}) == pytest.approx(
        {"a": 0.04, "c": 0.09, "b": 0.09, "d": 0.9}
    )


def test_a_factor_on_the_rate_is_another_rate(tmp_path: Path) -> None:
    plan = fake.plan(fake.SCRATCH)
    plan["stages"][0]["lr_scale"] = 2.0
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    straight(tmp_path / "b", "scratch", [5, 4, 2.9], plan=plan)
    assert group(tmp_path).rates == (1e-3, 2e-3) and not group(tmp_path).rows


def test_of_many_methods_one_that_wins_by_chance_is_no_claim(tmp_path: Path) -> None:
    for seed in range(3):
        straight(tmp_path / f"a{seed}", "scratch", [5, 4, 3], seed=seed)
        for i in range(14):
            # One of 14 looks sure alone (p 0.02), one is (p 0.0001).
            low = {0: (2.9, 2.88, 2.94)[seed], 1: (2.5, 2.501, 2.499)[seed]}.get(i, 3.1)
            straight(tmp_path / f"b{i}-{seed}", f"m{i}", [5, 4, low], ((2, 0), (1, 1000)), seed=seed)
    best = rows(tmp_path)
    assert best["m0"].spread("flops").p < 0.05  # type: ignore[operator]
    (note,) = told(tmp_path, "methods were compared")
    assert "14 methods" in note and "m1 (p" in note and "m0" not in note


def test_the_standard_error_of_the_held_out_set_is_beside(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    straight(tmp_path / "b", "2level", [5, 3, 2], fake.TWO)
    assert told(tmp_path, "over its 16 samples: n/a (not logged)")
    lines = (tmp_path / "a" / "log.jsonl").read_text().splitlines()
    (tmp_path / "a" / "log.jsonl").write_text(
        "".join(json.dumps(json.loads(line) | {"standard_error": 0.009}) + "\n" for line in lines)
    )
    assert told(tmp_path, "over its 16 samples: 0.0090 nats")


# 8. Logs that were cut or edited


def cut(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return lines[:-1]


def cheaper(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*lines[:-1], lines[-1] | {"flops": lines[-1]["flops"] * 0.9}]


def better(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*lines[:-1], lines[-1] | {"loss": 2.0}]


def without_a_rise(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return lines[:-3] + lines[-2:]


def swapped(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*lines[:-2], lines[-2] | {"seconds": 0.1}, lines[-1]]


@pytest.mark.parametrize(
    ("edit", "why"),
    [(cut, "at step 800, plan.json at step 1000"), (cheaper, "FLOPs, plan.json has"), (better, "summary.json says 3"),
     (without_a_rise, "lacks evaluations"), (swapped, "not in order")],
)  # fmt: skip
def test_a_log_that_was_cut_or_edited_is_one_line_and_in_no_mean(tmp_path: Path, edit: Any, why: str) -> None:
    folder = straight(tmp_path / "a", "scratch", [5, 4.5, 4, 3.5, 3.2, 3])
    straight(tmp_path / "b", "2level", [5, 3, 2], fake.TWO)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in edit(log)))
    (note,) = told(tmp_path, "says that it is finished, but")
    assert why in note and "in no mean" in note
    assert not group(tmp_path).baselines


@pytest.mark.parametrize(
    ("edit", "why"),
    [({"own_flops": 0.4}, "FLOPs for the ending at 50%, plan.json has others"),
     ({"own_step": 0.9}, "for the ending at")],
)  # fmt: skip
def test_an_ending_costs_what_its_fork_and_its_decay_cost(tmp_path: Path, edit: dict[str, float], why: str) -> None:
    branched(tmp_path / "a", "scratch", [4.0, 3.5, 3.0])
    folder = branched(tmp_path / "b", "grow", [3.5, 3.1, 2.9], ((2, 400), (1, 640)))
    assert group(tmp_path).rows[0].pairs
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    (at,) = [i for i, line in enumerate(log) if line.get("branch") == 0.5]
    log[at] |= {key: share * log[at][key] for key, share in edit.items()}
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    (note,) = told(tmp_path, "says that it is finished, but")
    assert why in note and not group(tmp_path).rows[0].pairs


@pytest.mark.parametrize("key", ["seed", "optimizer.lr", "optimizer.weight_decay"])
def test_settings_that_are_not_those_of_the_command_were_edited_afterwards(tmp_path: Path, key: str) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    words = [f"{key}=0.7", "seed=9", "seed=0", "optimizer.lr=1e-3", "batch=${x}", "eval.every=3%"]
    given = {**fake.MACHINE, "overrides": words[1:]}
    straight(tmp_path / "b", "2level", [5, 3, 2], fake.TWO, starts=(given,))
    assert told(tmp_path, "its command") == []
    given["overrides"] = [*words[1:], words[0]]
    straight(tmp_path / "c", "grow", [5, 3, 2], fake.GROW, starts=(given,))
    (note,) = told(tmp_path, "its command")
    assert f"config.yaml has {key}=" in note and f"its command {key}=0.7" in note and "in no mean" in note


@pytest.mark.parametrize("name", ["scratch", "scratch-branch", "2level", "2level-branch", "grow", "grow-branch"])
def test_the_log_of_a_real_run_is_whole(name: str) -> None:
    assert (read(fake.RECORDED / name).finished, read(fake.RECORDED / name).fault) == (True, None)


def test_the_recorded_runs_have_the_records_that_a_run_writes_today(tmp_path: Path) -> None:
    toy.run(tmp_path / "a", toy.make())
    fresh = toy.records(tmp_path / "a")
    for kind in {record["kind"] for record in fresh}:
        kept, now = (set.intersection(*(set(r) for r in log if r["kind"] == kind)) for log in
                     (fake.recorded("2level")[2], fresh))  # fmt: skip
        assert now - {"standard_error"} <= kept, kind


# 9. A better baseline elsewhere


def test_a_better_from_scratch_run_with_another_warm_up_is_noted(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    straight(tmp_path / "b", "2level", [5, 3, 2.95], fake.TWO)
    straight(tmp_path / "c", "scratch", [5, 4, 2.91], optimizer={"schedule": {"warmup": "20%"}})
    straight(tmp_path / "d", "scratch", [5, 4, 2.0], model={**fake.MODEL, "layer": 8})
    (note,) = told(tmp_path, "ends 0.0900 nats lower")
    assert f"{tmp_path / 'c'} with warmup=20% instead of 1 steps" in note
    last = ", and another run from scratch (warmup=20% instead of 1 steps) ends 0.0900 nats lower"
    whole = f"the baseline was not tuned{last}; that lower loss it does not reach (one seed)."
    assert [line for line in build._told(made(tmp_path)) if line.endswith(whole)]


# 10. What else moves a number


def test_how_many_samples_an_evaluation_takes_at_once_is_no_setting(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3], eval={"batch": 8})
    straight(tmp_path / "b", "2level", [5, 3, 2], fake.TWO)
    assert len(rows(tmp_path)["2level"].pairs) == 1


def test_precision_is_matched(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3], hardware={"precision": "bf16"})
    straight(tmp_path / "b", "2level", [5, 3, 2], fake.TWO)
    assert told(tmp_path, "differs in precision")


@pytest.mark.parametrize("names", [("b", "c"), ("c", "b")])
def test_of_repeats_the_least_flattering_counts_whatever_the_folders_are_called(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    for name, low in zip(names, (2.5, 2.9), strict=True):
        straight(tmp_path / name, "2level", [5, 3, low], fake.TWO)
        straight(tmp_path / f"a{name}", "scratch", [5, 4, 3.5 - 0.1 * (low == 2.9)])
    found = group(tmp_path)
    (pair,) = found.rows[0].pairs
    assert (pair.run.folder.name, pair.baseline.folder.name) == (names[1], f"a{names[1]}")


def test_a_different_cadence_is_read_at_the_wider_one(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3, 3.05, 3], eval={"every": "25%"})
    falling = [5 - 0.1 * i for i in range(17)] + [3.4, 3.4, 3.4, 3.2]
    straight(tmp_path / "b", "2level", [*falling, 2.5], ((2, 0), (1, 1000)), eval={"every": "5%"})
    (pair,) = rows(tmp_path)["2level"].pairs
    assert pair.read_every == 250
    assert told(tmp_path, "read every 250 steps")


def test_reading_at_a_wider_distance_keeps_the_ends_of_stages_and_lies_on_the_line() -> None:
    def point(stage: int, level: int, step: int, loss: float) -> Point:
        return Point(stage, level, step, step, step, step, step, loss)

    fine = [point(0, 2, 3, 9), point(0, 2, 7, 8), point(1, 1, 7, 7), *(point(1, 1, s, 20 - s) for s in (8, 12, 16, 17))]
    found = read_every(fine, 5)
    assert [(p.stage, p.step, p.loss) for p in found] == [
        (0, 3, 9), (0, 5, 8.5), (0, 7, 8), (1, 7, 7), (1, 10, 10), (1, 15, 5), (1, 17, 3)
    ]  # fmt: skip
    assert read_every(found, 5) == found


def test_tokens_stand_in_the_table(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    straight(tmp_path / "b", "2level", [5, 3, 2], fake.TWO)
    assert rows(tmp_path)["2level"].tokens == pytest.approx(1.11)
    assert "\N{MULTIPLICATION SIGN}1.11" in build.render(made(tmp_path))
    assert told(tmp_path, "the baseline never saw")


# 11. Names


def test_a_name_labels_and_neither_hides_nor_merges(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    for i, alpha in enumerate((0.5, 0.7)):
        folder = straight(tmp_path / f"b{i}", "2level", [5, 3, 2], fake.TWO, cycle={"alpha": alpha})
        text = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(text.replace("\nname: 2level\n", "\nname: scratch | best\n"))
    assert set(rows(tmp_path)) == {"scratch / best (2level) alpha=0.5", "scratch / best (2level) alpha=0.7"}
    assert "scratch / best (2level)" in build.tables.runs(list(group(tmp_path).runs)).markdown()


def test_a_name_is_printable_and_one_line() -> None:
    assert pairing.plainly("a\n\x1b[2J|b\t c") == "a [2J/b c"


def test_runs_of_one_method_with_names_of_their_own_stay_one_method(tmp_path: Path) -> None:
    for seed in range(2):
        straight(tmp_path / f"a{seed}", "scratch", [5, 4, 3], seed=seed)
        folder = straight(tmp_path / f"b{seed}", "2level", [5, 3, 2], fake.TWO, seed=seed)
        text = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(text.replace("\nname: 2level\n", f"\nname: mine-{seed}\n"))
    assert [len(row.pairs) for row in rows(tmp_path).values()] == [2]
    assert set(rows(tmp_path)) == {"2level"}


# Repeats, survivors, certainty and words


def test_a_repeat_that_comes_to_its_end_hides_no_failure(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    straight(tmp_path / "b", "2level", [5, 3, None], fake.TWO, status="failed")
    straight(tmp_path / "c", "2level", [5, 3, 2], fake.TWO)
    (row,) = rows(tmp_path).values()
    assert ([run.folder.name for run in row.failed], row.pairs, row.best) == (["b"], (), False)
    (sentence,) = sentences(group(tmp_path))
    assert sentence == "2level: no saving can be told, since runs failed or diverged: 1 of one seed at rate 0.001."
    straight(tmp_path / "d", "scratch", [5, 4, None])
    assert group(tmp_path).sweep[1e-3].mean == 3, "of the baseline's the best counts"


def test_a_method_without_a_best_rate_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    for seed in range(3):
        straight(tmp_path / f"a{seed}", "scratch", [5, 4, 3], seed=seed)
        straight(tmp_path / f"b{seed}", "2level", [5, 3, None if seed == 2 else 2], fake.TWO, seed=seed)
    said = "2level: no saving can be told, since runs failed or diverged: 1 of 3 seeds at rate 0.001."
    assert sentences(group(tmp_path)) == [said]
    (tmp_path / "report").mkdir()
    build.write.write(tmp_path / "report", "report.json", build.write.as_dict([group(tmp_path)], [], []))
    run = read(tmp_path / "b0")
    assert run.summary is not None and _saving(run.folder, run.config, run.summary) == said, "on its model card"
    for seed in range(2):
        straight(tmp_path / f"c{seed}", "grow", [5, 3, 2], fake.GROW, seed=seed, lr=1e-3 * (1 + seed))
    assert "grow: no saving can be told, since its rates have no seed in common." in sentences(group(tmp_path))
    assert told(tmp_path, "edge of those tried") == [], "where no rate is the best, none is the best at an edge"


@pytest.mark.parametrize(
    ("seeds", "stands"), [(3, ""), (6, "; as the only method compared this stands at 5% (p 0.031)")]
)
def test_what_is_the_same_for_every_seed_claims_by_its_sign_alone(tmp_path: Path, seeds: int, stands: str) -> None:
    """A cycle that is below L* as it comes to level 1 has the cost that its plan says there, whatever the seed."""
    for seed in range(seeds):
        straight(tmp_path / f"a{seed}", "scratch", [5, 4, 3 + 0.1 * seed], seed=seed)
        straight(tmp_path / f"b{seed}", "2level", [2.9 - 0.1 * seed, 2.5, 2], fake.TWO, seed=seed)
    (row,) = rows(tmp_path).values()
    found = row.spread("flops")
    assert found.mean is not None and found.mean > 0.2 and found.values[0] == found.values[2]
    by_hand = {3: 0.25, 6: 0.03125}[seeds]  # of 2**n draws of signs two are all alike
    assert (found.low, found.p, group(tmp_path).claims) == (None, by_hand, {"2level": by_hand})
    (told,) = sentences(group(tmp_path))
    assert f"fewer FLOPs ({seeds} seeds), at the first crossing" in told and stands in told
    assert bool(stands) == ("stand" in told)


def test_the_sentence_says_that_a_baseline_stands_at_the_edge_of_its_sweep(tmp_path: Path) -> None:
    for lr in (1e-3, 2e-3):
        straight(tmp_path / f"a{lr}", "scratch", [5, 4, 4 - 500 * lr], lr=lr)
    straight(tmp_path / "b", "2level", [5, 3, 2], fake.TWO)
    assert sentences(group(tmp_path))[0].endswith("the baseline is the best of 2 rates, at the edge of its sweep.")


# A baseline that a smaller model beats


def small(
    folder: Path, losses: Sequence[float], share: float = 0.2, seed: int = 0, parameters: int = 5, **changes: Any
) -> Path:
    """Write a from-scratch run of a model of one layer, at a share of the FLOPs and one in so many parameters."""
    planned = fake.plan(fake.SCRATCH)
    level = planned["levels"][0]
    level["parameters"] //= parameters
    level["flops_per_sample"] = level["flops_per_sample"] * share
    level["update_flops"] = level.get("update_flops", 0) * share
    for node in (planned["budget"], *planned["stages"]):
        node["flops"] = int(node["flops"] * share)
    made_run = straight(folder, "scratch", losses, plan=planned, seed=seed, **{"model": {"layer": 1}, **changes})
    lines = [json.loads(line) for line in (made_run / "log.jsonl").read_text().splitlines()]
    cheaper = [{**line, "flops": int(line["flops"] * share)} for line in lines]
    (made_run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in cheaper))
    return made_run


def test_a_smaller_model_that_does_as_well_is_told_beside_every_saving(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    straight(tmp_path / "b", "2level", [3.2, 2.5, 2], fake.TWO)
    assert SMALLER not in build.render(made(tmp_path))
    assert told(tmp_path, "no smaller model was trained alone (method=alone)")
    small(tmp_path / "c", [4, 3.5, 3])
    assert not told(tmp_path, "no smaller model") and not told(tmp_path, "smaller models alone had fewer FLOPs")
    first, second = build._told(made(tmp_path))
    assert first.startswith("Group 1: 2level reaches the baseline's loss with")
    assert second.startswith(f"Group 1: {SMALLER}(") and "with at least 80.0% fewer FLOPs (one seed)" in second
    small(tmp_path / "d", [4, 3.5, 2.9], share=0.1)
    assert "with at least 90.0% fewer FLOPs" in build._told(made(tmp_path))[1]


@pytest.mark.parametrize(
    ("share", "ends", "given", "passed"),
    [(1.0, 2.5, True, True), (1.0, 1.9, True, False), (0.5, 2.5, True, False), (1.0, 2.5, False, False)],
)
def test_growth_that_ends_below_every_smaller_model_is_no_price_of_size(
    tmp_path: Path, share: float, ends: float, given: bool, passed: bool
) -> None:
    for seed in range(2):
        straight(tmp_path / f"a{seed}", "scratch", [5, 4, 3], seed=seed)
        straight(tmp_path / f"b{seed}", "2level", [3.2, 2.5, 2], fake.TWO, seed=seed)
        small(tmp_path / f"c{seed}", [4, 2.9, ends], share, seed)
        small(tmp_path / f"d{seed}", [4, 3, 2.4 if ends > 2 else ends], 0.4, seed)
        small(tmp_path / f"e{seed}", [4, 3.9, 3.8], 1.0 if given else 0.4, seed, 10, model={"layer": 1, "ffn": 8})
    second = build._told(made(tmp_path))[1]
    assert (": but 2level ends 0.4000 nats below the lowest smaller one with as many FLOPs." in second) is passed
    assert second.endswith("the model is too large for this budget, cycle or none.") is not passed


def test_a_method_that_grows_from_a_size_that_none_alone_has_is_told(tmp_path: Path) -> None:
    """One layer alone may be too small where three would do, and these are what the method saves by."""
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    straight(tmp_path / "b", "2level", [3.2, 2.5, 2], fake.TWO)
    coarse = json.loads((tmp_path / "b/plan.json").read_text())["levels"][1]["parameters"]
    small(tmp_path / "c", [4, 3.5, 3.1], share=1.0, parameters=7)
    (note,) = told(tmp_path, "no smaller model alone has the size that these grow from")
    assert note.endswith(f": 2level ({human(coarse)} parameters).")
    small(tmp_path / "d", [4, 3.5, 3.1], share=1.0, model={"layer": 3})
    planned = json.loads((tmp_path / "d/plan.json").read_text())
    planned["levels"][0]["parameters"] = coarse
    (tmp_path / "d/plan.json").write_text(json.dumps(planned))
    assert not told(tmp_path, "no smaller model alone has the size")


def test_the_figure_draws_the_smaller_run_that_the_sentence_speaks_of(tmp_path: Path) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    straight(tmp_path / "b", "2level", [3.2, 2.5, 2], fake.TWO)
    small(tmp_path / "c", [4, 3.5, 3], share=0.2)
    small(tmp_path / "d", [4, 3.5, 2.5], share=0.9)  # ends lower, and saves less
    (side,) = annealed_figure.alone(group_of(tmp_path, "2level"))
    assert side.losses == (3.0,)


def test_the_figure_draws_smaller_runs_that_were_trained_alike(tmp_path: Path) -> None:
    """At one seed another way to train saves more; drawn with the others of its size it would be nobody's curve."""
    for seed in (0, 1):
        straight(tmp_path / f"a{seed}", "scratch", [5, 4, 3], seed=seed)
        straight(tmp_path / f"b{seed}", "2level", [3.2, 2.5, 2], fake.TWO, seed=seed)
        small(tmp_path / f"c{seed}", [4, 3.5, 2.9], 0.3, seed)
    small(tmp_path / "d", [4, 3.5, 2.0], 0.1, 0, optimizer={"weight_decay": 0.3})
    (side,) = annealed_figure.alone(group_of(tmp_path, "2level"))
    assert side.losses == (pytest.approx(2.9),)


def test_a_smaller_model_is_told_of_over_the_seeds_as_a_method_is(tmp_path: Path) -> None:
    for seed in range(3):
        straight(tmp_path / f"a{seed}", "scratch", [5, 4, 3], seed=seed)
        straight(tmp_path / f"b{seed}", "2level", [3.2, 2.5, 2], fake.TWO, seed=seed)
    for seed, share in ((0, 0.5), (1, 0.2)):
        small(tmp_path / f"c{seed}", [4, 3.5, 3], share, seed)
    second = build._told(made(tmp_path))[1]
    assert "with at least 65.0% fewer FLOPs (2 seeds); left out: one seed of the baseline without it: the" in second
    small(tmp_path / "c2", [4, 3.5, 3.1], 0.2, 2)
    second = build._told(made(tmp_path))[1]
    assert "in 2 of 3 seeds only (at least 50.0% fewer FLOPs, at least 80.0% fewer FLOPs): the" in second


@pytest.mark.parametrize("how", ["worse", "other data", "dearer", "other seed"])
def test_a_smaller_model_is_only_told_of_where_it_may_be_compared(tmp_path: Path, how: str) -> None:
    straight(tmp_path / "a", "scratch", [5, 4, 3])
    straight(tmp_path / "b", "2level", [3.2, 2.5, 2], fake.TWO)
    share = 1.1 if how == "dearer" else 0.2
    run = small(tmp_path / "c", [4, 3.5, 3.1 if how == "worse" else 3], share, how == "other seed")
    if how == "other data":
        planned = json.loads((run / "plan.json").read_text())
        planned["data"]["identity"]["held_out"] = "other"
        (run / "plan.json").write_text(json.dumps(planned))
    assert SMALLER not in build.render(made(tmp_path))
    short = f"0.1000 nats above L* with {share:.0%}"
    assert bool(told(tmp_path, short)) is (how == "worse")
    assert bool(told(tmp_path, "no smaller model was trained alone")) is (how in ("other data", "other seed"))


def test_a_smaller_model_that_ends_lower_with_as_many_flops_and_no_cheaper_ending_is_told(tmp_path: Path) -> None:
    for seed in range(2):
        straight(tmp_path / f"a{seed}", "scratch", [5, 4, 3], seed=seed)
        straight(tmp_path / f"b{seed}", "2level", [3.2, 2.95, 2.9], fake.TWO, seed=seed)
        small(tmp_path / f"c{seed}", [4, 3.5, 2.7 + 0.1 * seed], 1.0, seed)
    _, second = sentences(group_of(tmp_path, "2level"))
    ends = ", from scratch, ends 0.2500 nats below the baseline for no more FLOPs (in 2 of 2 seeds): "
    assert second.startswith(SMALLER)
    assert second.endswith(f"{ends}the model is too large for this budget, cycle or none.")
    small(tmp_path / "d0", [4, 3.5, 2.6], 1.02, 0, 10, model={"layer": 1, "ffn": 8})
    assert "ends 0.2500 nats" in sentences(group_of(tmp_path, "2level"))[1], "dearer is no comparison"
    small(tmp_path / "e1", [4, 3.5, 2.6], 1.0, 1, 10, model={"layer": 1, "ffn": 4})
    told = sentences(group_of(tmp_path, "2level"))[1]
    assert re.search(r"\(\S+, \S+ parameters, at each seed the best of 2 sizes\), .* ends 0.3500 nats", told)


def group_of(folder: Path, method: str) -> Group:
    return next(g for g in compare(read_all(find([folder]))) if method in {row.method for row in g.rows})


def test_a_smaller_model_at_fewer_rates_is_told(tmp_path: Path) -> None:
    for lr in (1e-3, 2e-3, 4e-3):
        straight(tmp_path / f"a{lr}", "scratch", [5, 4, 3], lr=lr)
    straight(tmp_path / "b", "2level", [3.2, 2.5, 2], fake.TWO)
    small(tmp_path / "c", [4, 3.5, 3], lr=1e-3)
    (note,) = told(tmp_path, "smaller models alone were tried at fewer rates than the 3 of whole ones")
    assert note.endswith("parameters at 1.")
    for lr in (2e-3, 4e-3):
        small(tmp_path / f"d{lr}", [4, 3.5, 3], lr=lr)
    assert not told(tmp_path, "smaller models alone were tried")


def test_of_a_smaller_model_above_l_star_it_is_told_what_it_was_given(tmp_path: Path) -> None:
    for seed in range(2):
        straight(tmp_path / f"a{seed}", "scratch", [5, 4, 3], seed=seed)
        straight(tmp_path / f"b{seed}", "2level", [3.2, 2.5, 2], fake.TWO, seed=seed)
        small(tmp_path / f"c{seed}", [4, 3.5, 3.1 + seed / 5], 0.2 + seed / 5, seed)
    (line,) = told(tmp_path, "smaller models alone had fewer FLOPs")
    assert "0.2000 nats above L* with 30%" in line and line.count("parameters") == 1
    small(tmp_path / "d", [4, 3.5, 3.1], share=0.99)
    assert not told(tmp_path, "smaller models alone had fewer FLOPs")


def test_reasons_why_times_are_not_compared_are_counted(tmp_path: Path) -> None:
    for many, said in ((2, "and 1 more such reason."), (3, "and 2 more such reasons.")):
        pairs = [SimpleNamespace(untimed=f"why {k}") for k in range(many)]
        assert next(_untimed(cast(Group, SimpleNamespace(rows=[SimpleNamespace(pairs=pairs)])), "1")).endswith(said)
