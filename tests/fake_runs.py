"""Run folders as mlrun writes them, with invented curves: for tests and for timing the report."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

MODEL = {"_target_": "mlrun.models.gpt.GPT", "embed": 128, "head": 4, "layer": 6}
# FLOPs per step and FLOP/s by level: a coarse level is cheap, and uses the machine poorly.
FLOPS = {1: 4.0e12, 2: 0.9e12, 3: 0.3e12}
SPEED = {1: 2.0e12, 2: 1.2e12, 3: 0.8e12}
FLOOR = {1: 3.15, 2: 3.55, 3: 3.9}
TOKENS = 4096

SCRATCH = ((1, 1000),)
TWO = ((1, 50), (2, 420), (1, 620))
GROW = ((2, 400), (1, 640))


def config(name: str = "scratch", seed: int = 0, lr: float = 1e-3, **changes: Any) -> dict[str, Any]:
    """Return the resolved configuration of a run; `changes` replace whole sections."""
    base: dict[str, Any] = {
        "task": "train", "name": f"{name}-{seed}", "seed": seed, "budget": "4M tokens", "batch": 32, "log_every": 10,
        "model": MODEL, "coarsening": {"_target_": "mlrun.coarsening.strided.Strided", "width": 2, "depth": 2},
        "cycle": {"name": name, "alpha": 0.5}, "data": {"_target_": "mlrun.data.text.spec.Text", "sequence": 128},
        "optimizer": {"lr": lr, "weight_decay": 0.1, "schedule": {"shape": "cosine", "warmup": "5%"}},
        "eval": {"every": "5%", "batch": 32}, "hardware": {"device": "cpu"},
        "logger": {},
    }  # fmt: skip
    return base | changes


def plan(stages: Sequence[tuple[int, int]], source: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a plan of (level, steps) stages."""
    rows = [
        {"stage": i, "level": level, "steps": steps, "tokens": steps * TOKENS, "flops": steps * FLOPS[level],
         "flops_body": steps * FLOPS[level] * 0.7}
        for i, (level, steps) in enumerate(stages)
    ]  # fmt: skip
    totals = {key: sum(row[key] for row in rows) for key in ("steps", "tokens", "flops", "flops_body")}
    extra = {} if source is None else {"source": source}
    levels = [{"level": level, "parameters": 1_200_000 // level} for level in sorted({level for level, _ in stages})]
    return {"budget": {"text": "4M tokens"}, "levels": levels, "stages": rows, "totals": totals, **extra}


def records(stages: Sequence[tuple[int, int]], seed: int = 0, quality: float = 0.0, every: int = 25) -> list[dict]:
    """Return the log of an invented run: power laws, a warm start after each transfer, noise by seed.

    `quality` lowers the final loss, in nats.
    """
    rng = random.Random(f"{seed} {stages}")
    shift = rng.gauss(0, 0.006)
    at = {"step": 0, "tokens": 0, "flops": 0.0, "flops_body": 0.0, "seconds": 0.0}
    total = sum(steps * FLOPS[level] for level, steps in stages)
    out: list[dict[str, Any]] = []
    learned = 0.0  # what earlier stages are worth, in steps of level 1
    for index, (level, steps) in enumerate(stages):
        place = {"stage": index, "level": level}

        def loss(done: float, level: int = level) -> float:
            law = FLOOR[level] + 5.2 * (1 + done / 12) ** -0.62
            annealed = 0.12 * (at["flops"] / total) ** 2
            return law - annealed - quality + shift + rng.gauss(0, 0.004)

        if index > 0:
            learned *= 0.8
            operator = "coalesce" if level > stages[index - 1][0] else "decoalesce"
            before = out[-1]["loss"]
            out.append({"kind": "transfer", **place, **at, "operator": operator, "alpha": 0.5, "loss_before": before,
                        "loss_after": loss(learned) + 0.3, "relative_logit_change": 0.2, "exact": False,
                        "tolerance": None})  # fmt: skip
        jump = 0.3 if index > 0 else 0.0
        out.append({"kind": "val", **place, **at, "loss": loss(learned) + jump})
        for step in range(1, steps + 1):
            at["step"] += 1
            at["tokens"] += TOKENS
            at["flops"] += FLOPS[level]
            at["flops_body"] += FLOPS[level] * 0.7
            at["seconds"] += FLOPS[level] / SPEED[level] * rng.uniform(0.98, 1.02)
            done, extra = learned + step, jump * math.exp(-step / 15)
            out.append({"kind": "train", **place, **at, "loss": loss(done) + extra, "lr": 1e-3,
                        "tokens_per_second": TOKENS * SPEED[level] / FLOPS[level]})  # fmt: skip
            if step % every == 0 or step == steps:
                out.append({"kind": "val", **place, **at, "loss": loss(done) + extra})
        learned += steps
    return out


def write(
    folder: Path,
    settings: dict[str, Any],
    plan_: dict[str, Any],
    log: Sequence[dict[str, Any]],
    status: str | None = "finished",
    **summary: Any,
) -> Path:
    """Write a run folder; `status` None leaves the summary out, as in a run that goes on."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "plan.json").write_text(json.dumps(plan_))
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    if status is not None:
        seconds = {"startup": 2.0, "training": log[-1]["seconds"], "transfer": 3.0, "evaluation": 9.0}
        base = {"status": status, "val_loss": log[-1]["loss"], "ledger": {"stages": [], "seconds": seconds}}
        (folder / "summary.json").write_text(json.dumps(base | summary))
    return folder


def run(
    folder: Path,
    name: str,
    stages: Sequence[tuple[int, int]],
    seed: int = 0,
    lr: float = 1e-3,
    quality: float = 0.0,
    **changes: Any,
) -> Path:
    """Write one whole invented run."""
    return write(folder, config(name, seed, lr, **changes), plan(stages), records(stages, seed, quality))


def sweep(folder: Path, seeds: Sequence[int] = (0, 1, 2)) -> Path:
    """Write a small comparison: scratch at three rates, a V-cycle at two, growing at one."""
    for seed in seeds:
        for lr, worse in ((1e-3, 0.05), (2e-3, 0.0), (4e-3, 0.02)):
            run(folder / f"scratch-{lr}-{seed}", "scratch", SCRATCH, seed, lr, -worse)
        for lr, worse in ((1e-3, 0.04), (2e-3, 0.0)):
            run(folder / f"2level-{lr}-{seed}", "2level", TWO, seed, lr, 0.03 - worse)
        run(folder / f"grow-{seed}", "grow", GROW, seed, 2e-3, 0.06)
    return folder
