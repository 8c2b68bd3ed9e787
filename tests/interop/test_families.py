"""Every family trains through a whole V-cycle on the embedded data, from the shipped YAML files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mlrun import run
from mlrun.cli import command, points
from mlrun.config import load
from mlrun.plan.make import make_plan

FAMILIES = {
    "gpt": ["model=gpt_tiny"],
    "bert": ["model=bert_tiny"],
    "llama": ["model=llama_tiny"],
    "t5": ["model=t5_tiny"],
    "deit": ["model=deit_digits", "data=digits"],
    "vit": ["model=deit_digits", "data=digits", "model.pooling=mean"],
}
SHORT = ["budget=40 steps", "batch=16", "optimizer.lr=2e-3", "eval.every=100%", "data.validation_samples=64"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_learns_through_a_cycle(family: str, tmp_path: Path, cache: Path) -> None:
    overrides = [*FAMILIES[family], *SHORT, f"run={tmp_path}/r", f"cache={cache}"]
    (point,) = points.of(command.read(overrides))
    config = load(point.settings)
    summary = run.train(config, make_plan(config), tmp_path / "r")
    records = [json.loads(line) for line in (tmp_path / "r" / "log.jsonl").read_text().splitlines()]
    first, *later = [r["loss"] for r in records if r["kind"] == "val"]
    assert [r["operator"] for r in summary["receipts"]] == ["coalesce", "decoalesce"]
    assert math.isfinite(summary["val_loss"]) and min(later) < first - 0.03
