"""Claims about what a W&B user sees without any set-up, read back from the offline files of real starts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fake_runs import RECORDED
from test_log import in_a_process, the_offline_run

from mlrun.log import wandb_layout as layout
from mlrun.log.sink import POSITION, series
from mlrun.report.layers import QUANTITIES

SHOWN = """
import json, sys
from pathlib import Path
import yaml
from mlrun.log import log
from mlrun.log.wandb import WandbLogger
recorded, folder = Path(sys.argv[2]), Path(sys.argv[1])
config = yaml.safe_load((recorded / "config.yaml").read_text())
plan, summary = (json.loads((recorded / f"{name}.json").read_text()) for name in ("plan", "summary"))
with log.start(folder, {"wandb": WandbLogger(x="tokens")}, config, plan) as opened:
    for line in (recorded / "log.jsonl").read_text().splitlines():
        opened.write(json.loads(line))
    opened.finish(summary)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a sweep's run and what W&B has of it; the run is a recorded one with a branch."""
    folder = tmp_path_factory.mktemp("outputs") / "ratios" / "2-cycle=2level,seed=0"
    folder.mkdir(parents=True)
    in_a_process(SHOWN, folder, str(RECORDED / "2level-branch"))
    return folder, the_offline_run(folder)


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the rows of a table that was logged under a name."""
    (path,) = folder.glob(f"wandb/offline-run-*/files/media/table/{name}_*.table.json")
    found = json.loads(path.read_text())
    return [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]


def test_charts_stand_in_sections_and_positions_are_axes_alone(run: tuple[Path, dict[str, Any]]) -> None:
    keys = {key for row in run[1]["history"] for key in row if not key.startswith("_")}
    assert {key for key in keys if "/" not in key} == set(POSITION)
    assert run[1]["hidden"] == set(POSITION)
    assert {key.partition("/")[0] for key in keys if "/" in key} == {
        *("train", "eval", "transfer", "stage", "plan", "ledger")
    }
    assert {"eval/loss", "eval/level2/loss", "eval/branch50/loss", "train/loss", "train/branch50/loss"} <= keys


@pytest.mark.parametrize("place", [{}, {"level": 2}, {"branch": 0.5}])
@pytest.mark.parametrize("kind", ["train", "val", "health", "transfer", "decision", "stage", "micro_batch"])
def test_every_section_is_explained(kind: str, place: dict[str, Any]) -> None:
    """docs/wandb.md has each of them; of a coarser level or a branch that of level 1, of which they are a part."""
    page = (Path(__file__).parents[2] / "docs" / "wandb.md").read_text()
    layers = {quantity: {"blocks.0": 1.0} for quantity in QUANTITIES} if kind == "health" else {}
    record = {"kind": kind, "level": 1, "step": 3, "loss": 1.0, "health_flops": 9, **layers, **place}
    sections = {name.partition("/")[0] for name in series(record) if "/" in name}
    plain = {re.sub(r"_(level|branch)[\d.]+", "", section) for section in sections}
    assert sections and [section for section in plain if f"`{section}/" not in page] == []


def test_everything_is_drawn_over_the_chosen_axis(run: tuple[Path, dict[str, Any]]) -> None:
    axes = {name: axis for name, axis in run[1]["metrics"].items() if name not in POSITION}
    assert axes == {"*": "tokens"}


def test_a_run_of_a_sweep_is_named_by_what_varies_and_grouped(run: tuple[Path, dict[str, Any]]) -> None:
    found = run[1]
    assert (found["name"], found["group"], found["job_type"]) == ("cycle=2level,seed=0", "ratios", "2level")
    assert found["config"]["optimizer"]["schedule"]["shape"] == "wsd"


def test_plan_and_ledger_are_tables(run: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = run
    plan = json.loads((RECORDED / "2level-branch" / "plan.json").read_text())
    summary = json.loads((RECORDED / "2level-branch" / "summary.json").read_text())
    stages = table(folder, "plan/stages")
    assert [row["flops"] for row in stages] == [stage["flops"] for stage in plan["stages"]]
    assert json.loads(stages[0]["sizes"]) == plan["stages"][0]["sizes"]
    assert [row["parameters"] for row in table(folder, "plan/levels")] == [v["parameters"] for v in plan["levels"]]
    ledger = table(folder, "ledger/stages")
    assert [row["flops"] for row in ledger[:-1]] == [stage["flops"] for stage in summary["ledger"]["stages"]]
    assert (ledger[-1]["stage"], ledger[-1]["flops"]) == ("all", summary["ledger"]["total"]["flops"])
    seconds = {row["purpose"]: row["seconds"] for row in table(folder, "ledger/seconds")}
    assert seconds == summary["ledger"]["seconds"]


def test_the_share_of_the_budget_is_a_series(run: tuple[Path, dict[str, Any]]) -> None:
    plan = json.loads((RECORDED / "2level-branch" / "plan.json").read_text())
    last = [row for row in run[1]["history"] if "ledger/share_of_budget" in row][-1]
    assert last["ledger/share_of_budget"] == pytest.approx(last["flops"] / plan["budget"]["flops"])
    assert layout.share({"flops": 3.0}, {"stages": []}) == {}


@pytest.mark.parametrize(
    ("folder", "name", "group"),
    [
        ("outputs/mine", "mine", None),
        ("outputs/2026-11-29_08-26-57-123456", "grow,seed=3", None),
        ("outputs/find/12-optimizer.lr=1e-3", "optimizer.lr=1e-3", "find"),
    ],
)
def test_names_and_groups(folder: str, name: str, group: str | None) -> None:
    config = {"name": "grow", "seed": 3, "cycle": {"name": "grow"}}
    assert (layout.title(Path(folder), config), layout.sweep(Path(folder))) == (name, group)


def test_a_column_has_one_type() -> None:
    columns, data = layout.cells([{"a": 1, "b": {"x": 2}}, {"a": "all", "c": None}])
    assert columns == ["a", "b", "c"] and data == [["1", '{"x": 2}', None], ["all", None, None]]
