"""Run folders for tests: the recorded real ones, edited. Every key and every record is one that a run wrote.

Lengths and losses are invented; costs, files and keys are those of `report/recorded` (see `report/record.py`).
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

RECORDED = Path(__file__).parent / "report" / "recorded"
AXES = ("tokens", "flops", "flops_body")
# FLOP/s by level: a coarse level uses the machine poorly.
SPEED = {1: 2.0e9, 2: 1.2e9}
FLOOR = {1: 3.15, 2: 3.55}

BUDGET = 1000
SCRATCH = ((1, BUDGET),)
TWO = ((1, 50), (2, 420), (1, 640))
GROW = ((2, 400), (1, 640))


@cache
def _recorded(name: str) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """Return the configuration, plan, log and summary of a recorded run."""
    folder = RECORDED / name
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    plan, summary = (json.loads((folder / f"{file}.json").read_text()) for file in ("plan", "summary"))
    return yaml.safe_load((folder / "config.yaml").read_text()), plan, log, summary


def recorded(name: str) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """Return copies to edit of a recorded run's configuration, plan, log and summary."""
    return deepcopy(_recorded(name))


STAGES: dict[int, dict[str, Any]] = {s["level"]: s for s in _recorded("2level")[1]["stages"]}
# What a step costs, by level.
COST = {level: {axis: s[axis] // s["steps"] for axis in AXES} for level, s in STAGES.items()}
FLOPS = {level: cost["flops"] for level, cost in COST.items()}
TOKENS = COST[1]["tokens"]
# The machine that the runs were recorded on, and the digests of their data.
MACHINE = {k: v for k, v in _recorded("scratch")[2][0].items() if k not in _recorded("scratch")[2][1]} | {
    "kind": "start"
}
IDENTITY: dict[str, str] = _recorded("scratch")[1]["data"]["identity"]
MODEL: dict[str, Any] = _recorded("scratch")[0]["model"]


def config(name: str = "scratch", seed: int = 0, lr: float = 1e-3, **changes: Any) -> dict[str, Any]:
    """Return the resolved configuration of a run; `changes` are merged into its sections."""
    kind = name if (RECORDED / name).is_dir() else "2level"
    base = recorded(kind)[0] | {"name": name, "seed": seed, "budget": f"{BUDGET} steps"}
    base["cycle"]["name"], base["optimizer"]["lr"] = name, lr
    return merged(base, changes)


def merged(base: Any, changes: Any) -> Any:
    """Return settings with others merged into their sections; what names a class replaces the section."""
    if not isinstance(base, dict) or not isinstance(changes, dict) or "_target_" in changes:
        return changes
    return base | {key: merged(base.get(key), value) for key, value in changes.items()}


def plan(stages: Sequence[tuple[int, int]], source: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a plan of (level, steps) stages."""
    found = recorded("2level" if any(level > 1 for level, _ in stages) else "scratch")[1]
    rows, first, before = [], 0, 1
    for i, (level, steps) in enumerate(stages):
        moved = None if i == 0 or level == before else ("coalesce" if level > before else "decoalesce")
        cost = {axis: steps * COST[level][axis] for axis in AXES}
        place = {"stage": i, "first_step": first, "steps": steps, "samples": steps * found["batch"]}
        row = {**STAGES[level], **place, **cost, "transfer": moved, "share": cost["flops"] / (BUDGET * FLOPS[1])}
        rows.append(row | {"alpha": {"decoalesce": 0.5}.get(moved or "")})
        first, before = first + steps, level
    found |= {"stages": rows, "data": recorded("scratch")[1]["data"]}
    found["budget"] = {"steps": BUDGET, "tokens": BUDGET * TOKENS, "flops": BUDGET * FLOPS[1]}
    found["totals"] = {key: sum(row[key] for row in rows) for key in found["totals"]}
    return found | ({} if source is None else {"source": source})


def at(plan_: dict[str, Any], stage: int, step: int) -> dict[str, Any]:
    """Return what a record of a step in a stage says of its place and its cost; training runs at `SPEED`."""
    place: dict[str, Any] = {"stage": stage, "level": plan_["stages"][stage]["level"], "step": step}
    spent, cost = 0.0, dict.fromkeys(AXES, 0)
    for row in plan_["stages"][: stage + 1]:
        steps = min(max(step - row["first_step"], 0), row["steps"])
        cost = {axis: cost[axis] + steps * COST[row["level"]][axis] for axis in AXES}
        spent += steps * FLOPS[row["level"]] / SPEED[row["level"]]
    return place | cost | {"seconds": spent}


def template(kind: str, name: str = "2level", **fields: Any) -> dict[str, Any]:
    """Return the last record of a kind that a recorded run wrote, with some fields changed."""
    found = [record for record in recorded(name)[2] if record["kind"] == kind]
    return next(r for r in reversed(found) if all(r.get(k) == v for k, v in fields.items()))


def records(stages: Sequence[tuple[int, int]], seed: int = 0, quality: float = 0.0, every: int = 25) -> list[dict]:
    """Return the log of an invented run: power laws, a warm start after each transfer, noise by seed.

    `quality` lowers the final loss, in nats.
    """
    rng = random.Random(f"{seed} {stages}")
    shift = rng.gauss(0, 0.006)
    planned = plan(stages)
    total = planned["totals"]["flops"]
    train, val, moved = template("train"), template("val", level=2), template("transfer")
    out: list[dict[str, Any]] = []
    learned, seconds = 0.0, 0.0  # the first is what earlier stages are worth, in steps of level 1
    for index, (level, steps) in enumerate(stages):
        row = planned["stages"][index]

        def loss(done: float, spent: float, level: int = level) -> float:
            law = FLOOR[level] + 5.2 * (1 + done / 12) ** -0.62
            return law - 0.12 * (spent / total) ** 2 - quality + shift + rng.gauss(0, 0.004)

        here = at(planned, index, row["first_step"]) | {"seconds": seconds}
        jump = 0.0
        if index > 0:
            learned, jump = 0.8 * learned, 0.3
            losses = {"loss_before": out[-1]["loss"], "loss_after": loss(learned, here["flops"]) + jump}
            change = {"operator": row["transfer"], "alpha": row["alpha"], "relative_logit_change": 0.2}
            out.append(moved | here | losses | change)
        out.append(val | here | {"loss": loss(learned, here["flops"]) + jump})
        for step in range(1, steps + 1):
            here["step"] += 1
            for axis in AXES:
                here[axis] += COST[level][axis]
            seconds = here["seconds"] = seconds + FLOPS[level] / SPEED[level] * rng.uniform(0.98, 1.02)
            now = loss(learned + step, here["flops"]) + jump * math.exp(-step / 15)
            out.append(train | here | {"loss": now})
            if here["step"] % every == 0 or step == steps:
                out.append(val | here | {"loss": now})
        learned += steps
    return out


def straight(plan_: dict[str, Any], losses: Sequence[float | None], slow: float = 1.0) -> list[dict[str, Any]]:
    """Return a log whose evaluations in the last stage have these losses, evenly apart.

    The budget takes 100 seconds at level 1, times `slow`.
    """
    val, log = template("val", level=2), []
    scale = slow * 100 / (BUDGET * FLOPS[1] / SPEED[1])
    for row in plan_["stages"]:
        here: Sequence[float | None] = losses if row is plan_["stages"][-1] else (losses[0], losses[0])
        apart = -(-row["steps"] // (len(here) - 1))
        for i, loss in enumerate(here):
            place = at(plan_, row["stage"], row["first_step"] + min(i * apart, row["steps"]))
            log.append(val | place | {"seconds": scale * place["seconds"], "loss": loss})
    return log


def spent(stages: Sequence[tuple[int, int]], share: float, axis: str = "flops") -> float:
    """Return what a run has spent after a share of its last stage; seconds are those of `straight`."""
    *before, (level, steps) = stages
    if axis == "seconds":
        cost = {at: 100 * FLOPS[at] / SPEED[at] / (BUDGET * FLOPS[1] / SPEED[1]) for at in FLOPS}
    else:
        cost = {at: float(COST[at][axis]) for at in FLOPS}
    return sum(n * cost[at] for at, n in before) + share * steps * cost[level]


def write(
    folder: Path,
    settings: dict[str, Any],
    plan_: dict[str, Any],
    log: Sequence[dict[str, Any]],
    status: str | None = "finished",
    starts: Sequence[dict[str, Any]] = (MACHINE,),
    **summary: Any,
) -> Path:
    """Write a run folder; `status` None leaves the summary out, as in a run that goes on.

    `starts` are the machines that it was started on, the first at the beginning and the others half way.
    """
    folder.mkdir(parents=True)
    begun = [{**start, **at(plan_, 0, 0)} for start in starts]
    half = len(log) // 2
    lines = [*begun[:1], *log[:half], *begun[1:], *log[half:]]
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "plan.json").write_text(json.dumps(plan_))
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))
    if status is not None:
        last = [record for record in log if record["kind"] == "val" and "branch" not in record][-1]
        base = recorded("scratch")[3] | {"status": status, "val_loss": last["loss"], "data": plan_["data"]}
        seconds = {"startup": 2.0, "training": log[-1]["seconds"], "transfer": 3.0, "evaluation": 9.0}
        kept = ("stage", "level", "steps", *AXES)
        base["ledger"] |= {"stages": [{key: row[key] for key in kept} | {"seconds": 1.0} for row in plan_["stages"]]}
        base["ledger"] |= {"seconds": base["ledger"]["seconds"] | seconds | {"checkpoint": 0.0}}
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
