"""What is written beside a trained model: what it cost, and what an export says of its tokens or classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlrun import files
from mlrun.config.load import Config
from mlrun.interop import initial, ledger, published, tokenizers
from mlrun.plan.stages import Plan, Stage


def cost(
    run: Path, config: Config, plan: Plan, stage: Stage, described: Mapping[str, Any], seconds: float, ran_on: str
) -> None:
    """Write beside a run's model what it cost: where it started from, and this run up to the end of a stage.

    Args:
        described: what the data is (Source.describe).
        seconds: of training.
        ran_on: the machine in words.
    """
    spent = plan.spent(stage.end, stage.index)
    own = ledger.own(
        run.resolve().name,
        flops=spent.flops,
        flops_body=spent.flops_body,
        seconds=seconds,
        tokens=spent.tokens,
        machine=ran_on,
        recipe=ledger.recipe(config.resolved, described),
        data=ledger.read_of(described),
    )
    before = () if plan.source is None else ledger.of_source(plan.source)
    ledger.write(run / files.MODEL, (*before, own))


def facts(run: Path, config: Config, described: Mapping[str, Any], carried: initial.Carried | None) -> None:
    """Write what an export says of a run's model: special ids as they were published, or classes."""
    folder, model = run / files.MODEL, config.model
    if model.objective == "image":
        found = published.of_classes(described["labels"]) if "labels" in described else {}
    else:
        found = tokenizers.facts_of_run(folder, model, described.get("end"))
        if carried is not None:
            found = carried.facts or found
            for name, content in carried.files.items():
                files.write_bytes(folder / name, content)
    if found:
        published.write(folder, found)
