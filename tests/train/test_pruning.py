"""Hopeless runs are stopped, saved and said to be pruned; what is not clearly worse goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import toy
import yaml

from mlrun.config.settings import Cycle, Eval, Find, Row
from mlrun.errors import UserError
from mlrun.train.pruning import Pruned, hopeless

PRUNE = Find(prune=0.1, prune_after=2)


def told(folder: Path, losses: list[float], stage: int = 0, status: str = "finished", method: str = "toy") -> None:
    """Write what pruning reads of a run: a loss every 10 FLOPs."""
    folder.mkdir()
    records = [
        {"kind": "val", "stage": stage, "level": 1, "flops": 10.0 * i, "loss": loss} for i, loss in enumerate(losses)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / "summary.json").write_text(json.dumps({"status": status}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"cycle": {"name": method}}))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two finished runs of a method, one of another, and one that is not finished, all in one sweep."""
    told(tmp_path / "a", [5.0, 4.0, 3.0, 2.0])
    told(tmp_path / "b", [5.0, 4.2, 3.2, 2.2])
    told(tmp_path / "other", [1.0, 1.0, 1.0, 1.0], method="late")
    told(tmp_path / "pruned", [1.0, 1.0, 1.0, 1.0], status="pruned")
    return tmp_path


def test_twice_above_the_median_is_hopeless(sweep: Path) -> None:
    told(sweep / "run", [5.0, 4.3, 3.3], status="running")
    reason = hopeless(sweep / "run", "toy", PRUNE)
    assert reason is not None and reason.startswith(
        "held-out loss 3.3000 at 20 FLOPs, 0.2000 nats above the median of 2"
    )


@pytest.mark.parametrize(
    ("losses", "find"),
    [
        ([5.0, 4.15, 3.3], PRUNE),  # above it once
        ([9.0, 9.0], PRUNE),  # where a stage begins counts for nothing
        ([5.0, 4.3, 3.3], Find(prune=0.3, prune_after=2)),
        ([5.0, 4.3, 3.3], Find(prune=0.1, prune_after=3)),  # the other method's run and the pruned one are no judges
        ([5.0, 9.0, 9.0, 9.0, 9.0, 9.0], PRUNE),  # beyond what the others spent
        ([5.0, 4.3, 3.3], Find()),
    ],
)
def test_what_is_not_clearly_worse_goes_on(sweep: Path, losses: list[float], find: Find) -> None:
    told(sweep / "run", losses, status="running")
    assert hopeless(sweep / "run", "toy", find) is None


def test_a_loss_that_is_not_finite_is_hopeless(sweep: Path) -> None:
    told(sweep / "run", [5.0, float("inf"), float("inf")], status="running")
    text = (sweep / "run/log.jsonl").read_text().replace("Infinity", "null")
    (sweep / "run/log.jsonl").write_text(text)
    assert hopeless(sweep / "run", "toy", PRUNE) is not None


@pytest.mark.parametrize(("name", "content"), [("log.jsonl", '{"kind": "val"\n'), ("config.yaml", "[" * 200_000)])
def test_a_damaged_run_beside_it_is_named(sweep: Path, name: str, content: str) -> None:
    told(sweep / "run", [5.0, 4.3, 3.3], status="running")
    (sweep / "b" / name).write_text(content)
    with pytest.raises(UserError, match=f"{sweep / 'b'}"):
        hopeless(sweep / "run", "toy", PRUNE)


def test_a_pruned_run_goes_on_bitwise(tmp_path: Path) -> None:
    own: dict[str, Any] = {"cycle": Cycle(name="toy", stages=[Row(1, "rest")]), "eval": Eval(every="10%", batch=8)}
    whole = toy.run(tmp_path / "alone", toy.make(**own))
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    told(sweep / "a", [0.1, 0.1])
    spread = [{"kind": "val", "stage": 0, "level": 1, "flops": f, "loss": 0.1} for f in (0.0, 1e15)]
    (sweep / "a/log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in spread))
    wanted = toy.make(**own, find=Find(prune=0.1, prune_after=1))
    for _ in range(2):  # asked again it is pruned still, and trains nothing
        with pytest.raises(Pruned, match="median of 1 finished runs of toy"):
            toy.run(sweep / "run", wanted)
        summary = json.loads((sweep / "run/summary.json").read_text())
        assert summary["status"] == "pruned" and "above the median" in summary["reason"]
        assert toy.records(sweep / "run")[-1]["step"] == 4
    assert toy.run(sweep / "run", toy.make(**own))["val_loss"] == whole["val_loss"]
    assert toy.records(sweep / "run") == toy.records(tmp_path / "alone")
