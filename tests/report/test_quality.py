"""Saving and quality side by side: means over seeds of what was measured alike, and n/a for what was not."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import fake_runs as fake
import pytest
from test_endings import GROW, branched

from mlrun.errors import UserError
from mlrun.report import quality, tables
from mlrun.report.build import build, render
from mlrun.report.compare import Group, compare
from mlrun.report.read import find, read_all
from mlrun.report.stats import spread


def told(value: float | None, **changes: Any) -> dict[str, Any]:
    return {"metric": "accuracy", "value": value, "stderr": 0.03, "n": 277, "version": 1, "guess": 0.527} | changes


def write(folder: Path, method: list[Any], baseline: list[Any]) -> Path:
    """Write a V-cycle and a baseline for each seed; results go into evaluate.json, None leaves it out."""
    for name, stages, results in (("2level", fake.TWO, method), ("scratch", fake.SCRATCH, baseline)):
        for seed, found in enumerate(results):
            made = fake.run(folder / f"{name}-{seed}", name, stages, seed=seed)
            if found is not None:
                (made / "evaluate.json").write_text(
                    json.dumps({"held_out": told(3.0, metric="loss"), "glue/rte": found})
                )
    return folder


def group(folder: Path) -> Group:
    (found,) = compare(read_all(find([folder])))
    return found


def of(folder: Path) -> list[quality.Quality]:
    found = group(folder)
    return quality.qualities(found, tables.ordered(found))


def test_a_method_stands_beside_its_baseline_and_the_loss(tmp_path: Path) -> None:
    (one,) = of(write(tmp_path, [told(0.6), told(0.7), told(0.8)], [told(0.5), told(0.7), told(0.6)]))
    assert (one.task, one.metric, one.n, one.budget, one.seeds, one.of) == ("glue/rte", "accuracy", 277, None, 3, 3)
    assert one.value.mean == pytest.approx(0.7) and one.baseline.mean == pytest.approx(0.6)
    assert quality.error(one.value) == pytest.approx(0.1 / math.sqrt(3))
    assert one.gap.values == pytest.approx((0.1, 0.0, 0.2))
    assert one.own_stderr == pytest.approx(0.03) and one.guess == 0.527
    found = group(tmp_path)
    (row,) = found.rows
    assert one.loss.mean == row.loss.mean and one.baseline_loss.mean == found.loss.mean


def test_numbers_of_two_versions_or_sizes_are_never_one_mean(tmp_path: Path) -> None:
    method = [told(0.6), told(0.7, version=2), told(0.8, n=100)]
    found = of(write(tmp_path, method, [told(0.5)] * 3))
    assert {(one.version, one.n): (one.value.mean, one.baseline.mean, one.seeds) for one in found} == {
        ("1", 277): (0.6, 0.5, 1),
        ("2", 277): (0.7, None, 1),
        ("1", 100): (0.8, None, 1),
    }
    assert all(quality.error(one.value) is None for one in found)


def test_numbers_of_other_settings_are_not_compared(tmp_path: Path) -> None:
    method = [told(0.6, settings="ten epochs"), told(0.7, settings="one epoch"), told(0.8)]
    found = of(write(tmp_path, method, [told(0.5, settings="one epoch")] * 3))
    assert {one.settings: (one.value.mean, one.baseline.mean) for one in found} == {
        "ten epochs": (0.6, None),
        "one epoch": (0.7, 0.5),
        None: (0.8, None),
    }


def test_what_was_not_measured_is_not_there(tmp_path: Path) -> None:
    (one,) = of(write(tmp_path, [told(0.6), None, told(0.8)], [told(0.5), told(0.9), None]))
    assert (one.seeds, one.of, one.value.mean) == (2, 3, pytest.approx(0.7))
    assert one.baseline.mean is None and one.gap.mean is None
    table = tables.quality(group(tmp_path))
    (row,) = table.rows
    assert row[1] == "glue/rte\naccuracy, n 277\nguessing 0.527" and row[2:4] == ("end", "2/3")
    assert row[7:] == ("n/a", "n/a") and "\N{PLUS-MINUS SIGN}" in row[6]


def test_a_seed_without_a_number_leaves_no_mean(tmp_path: Path) -> None:
    (one,) = of(write(tmp_path, [told(0.6), told(None), told(0.8)], [told(0.5)] * 3))
    assert one.seeds == 3 and one.value.mean is None and one.baseline.mean == 0.5


def test_the_log_tells_of_the_end_and_the_file_of_the_same_end_instead(tmp_path: Path) -> None:
    write(tmp_path, [told(0.6)], [None])
    for name in ("2level-0", "scratch-0"):
        records = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        val = [record for record in records if record["kind"] == "val"]
        val[0]["results"] = {"pairs": told(0.1)}  # of a stage's beginning: never of the end
        val[-1]["results"] = {"glue/rte": told(0.55), "pairs": told(0.75)}
        (tmp_path / name / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = {one.task: (one.value.mean, one.baseline.mean) for one in of(tmp_path)}
    assert found == {"glue/rte": (0.6, 0.55), "pairs": (0.75, 0.75)}


def test_annealed_endings_have_their_own_loss_and_baseline(tmp_path: Path) -> None:
    branched(tmp_path / "a", "scratch", [4.0, 3.5, 3.0])
    branched(tmp_path / "b", "grow", [4.5, 3.0, 2.9], GROW)
    for name, at, value in (("a", 0.5, 0.6), ("b", 0.5, 0.7), ("b", 0.25, 0.65)):
        path = tmp_path / name / "log.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for record in records:
            if record.get("branch") == at:
                record["results"] = {"pairs": told(value)}
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = [
        (one.budget, one.loss.mean, one.baseline_loss.mean, one.value.mean, one.baseline.mean) for one in of(tmp_path)
    ]
    assert found == [(0.25, 4.5, 4.0, 0.65, None), (0.5, 3.0, 3.5, 0.7, 0.6)]
    assert [row[2] for row in tables.quality(group(tmp_path)).rows] == ["25%", "50%"]


def test_all_files_have_it_and_none_without_it(tmp_path: Path) -> None:
    write(tmp_path / "runs", [told(0.6), told(0.8)], [told(0.5), told(0.7)])
    report = build([tmp_path / "runs"], tmp_path / "out")
    assert "Saving and quality" in render(report)
    for name in ("report.md", "index.html"):
        assert "glue/rte" in (tmp_path / "out" / name).read_text()
    (line,) = csv.DictReader((tmp_path / "out" / "quality.csv").open())
    assert float(line["value"]) == pytest.approx(0.7) and float(line["difference"]) == pytest.approx(0.1)
    assert line["budget"] == "" and float(line["value_stderr"]) == pytest.approx(0.1)
    (listed,) = json.loads((tmp_path / "out" / "report.json").read_text())["groups"][0]["quality"]
    assert listed["task"] == "glue/rte" and listed["baseline"] == pytest.approx(0.6)
    write(tmp_path / "bare", [None], [None])
    bare = build([tmp_path / "bare"], tmp_path / "none")
    assert "Saving and quality" not in render(bare) and not (tmp_path / "none" / "quality.csv").exists()


def test_results_that_cannot_be_read_are_a_line(tmp_path: Path) -> None:
    write(tmp_path, [told(0.6)], [{"metric": "accuracy"}])
    with pytest.raises(UserError, match="leave it out or restore it"):
        group(tmp_path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.6, 0.7, 0.8], "0.700\n± 0.058"),
        ([0.36, 0.36, 0.36], "0.3600\n± 0.0000"),
        ([0.1, 0.1, 0.1], "0.1000\n± 0.0000"),
        ([12345.678], "12346"),
        ([0.0], "0.000"),
    ],
)
def test_a_mean_has_as_many_digits_as_its_error(values: list[float], said: str) -> None:
    assert tables._with_error(spread(values)) == said
