"""One result as JSON: the claim, how it was chosen, and of every run what redoing and recomputing it needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from mlrun.report import public
from mlrun.report.compare import Group, Pair, Row
from mlrun.report.curves import Point
from mlrun.report.elsewhere import better
from mlrun.report.endings import Ending
from mlrun.report.headline import NUMBERS, Headline, Headlines, headline
from mlrun.report.leaderboard.fresh import Choice
from mlrun.report.read import Run
from mlrun.report.stats import Spread, spread

FORMAT = "mlrun leaderboard 2"
# Where a run lay and who listened: no part of redoing it.
PLACE = ("run", "runs", "cache", "logger", "source", "target")


def on_fresh(row: Row, chosen: Choice) -> Row:
    """Return a row with the seeds that chose nothing, failed and unfinished ones included."""
    pairs = tuple(pair for pair in row.pairs if pair.run.seed in chosen.fresh)
    failed, unfinished = (
        tuple(run for run in runs if run.seed in chosen.fresh) for runs in (row.failed, row.unfinished)
    )
    return replace(row, pairs=pairs, failed=failed, unfinished=unfinished)


def entry(group: Group, row: Row, chosen: Choice, p_holm: float | None, compared: int) -> dict[str, Any]:
    """Return the result of a row whose seeds are fresh; `p_holm` is its p-value among so many methods compared.

    It is for everybody, so nothing in it says where on this machine anything lay (`public.named`).
    """
    first = row.pairs[0]
    found = {
        "format": FORMAT,
        "method": row.method,
        "task": {
            "model": first.run.config["model"],
            "data": {key: first.run.data.get(key) for key in ("content", "identity", "validation_samples")},
            "budget": first.run.plan["budget"],
        },
        "claim": {
            "measure": "annealed" if row.annealed else "first crossing",
            "at_least": row.headline.bound,
            **_spread(row.claim),
            "p_holm": p_holm,
            "methods_compared": compared,
        },
        "target": _spread(spread([pair.target for pair in row.pairs])),
        "chosen": asdict(chosen) | {"better_elsewhere": _better(group)},
        "failed": [run.folder.name for run in (*row.failed, *row.unfinished)],
        "seeds": [_pair(pair, group.controls.get(pair.run.seed, ())) for pair in row.pairs],
    }
    return {key: public.named(value) for key, value in found.items()}


def _better(group: Group) -> str | None:
    """Return the from-scratch run of the same model and data that ends lower than this baseline on its seed."""
    found = better(group, list(group.baselines))
    return None if found is None else f"{found.run.folder.name} ({found.how})"


def _pair(pair: Pair, controls: Sequence[Run]) -> dict[str, Any]:
    return {
        "seed": pair.run.seed,
        "target": pair.target,
        "gap": pair.gap,
        "timed": pair.untimed is None,
        "headline": asdict(pair.headline),
        "run": _run(pair.run),
        "baseline": _run(pair.baseline),
        "smaller": [_run(run) for run in controls],
    }


def _run(run: Run) -> dict[str, Any]:
    """Return all that redoing a run needs, and what the claim is recomputed from."""
    summary = run.summary or {}
    return {
        "name": run.folder.name,
        "status": run.status,
        "config": {key: value for key, value in run.config.items() if key not in PLACE},
        "plan": {key: run.plan.get(key) for key in ("budget", "levels", "stages", "totals", "lacking")},
        # The tokenizer's file lay in a cache; its digest is in `identity`.
        "data": {key: value for key, value in run.data.items() if key != "tokenizer"},
        "source": run.source,
        "starts": [_start(start) for start in run.starts],
        "machine": summary.get("machine"),
        "ledger": summary.get("ledger"),
        "receipts": summary.get("receipts"),
        "skipped_steps": summary.get("skipped_steps"),
        "val_loss": summary.get("val_loss"),
        "held_out_error": run.held_out_error,
        "endings": [{"budget": ending.budget, **ending.point._asdict()} for ending in run.annealed],
    }


def _start(start: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run ran on and the words of its command; of the host only what tells it from others."""
    kept = {key: value for key, value in start.items() if key not in Point._fields}
    return kept | {"host": public.host(start.get("host"))}


def _spread(found: Spread) -> dict[str, Any]:
    return asdict(found) | {"values": list(found.values)}


def recomputed(seed: Mapping[str, Any]) -> Headline:
    """Return the headline of one seed from the endings in a result."""
    run, baseline = _endings(seed["run"]), _endings(seed["baseline"])
    return headline(run, baseline, seed["target"], seed["run"]["source"], seed["timed"])


def claim(seeds: Sequence[Mapping[str, Any]]) -> Spread:
    """Return the FLOPs saving over the seeds of a result, as its endings say."""
    return spread([one.saved["flops"] if one.kind in NUMBERS else None for one in map(recomputed, seeds)])


def bound(seeds: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the saving over the seeds of a result is a lower bound, as its endings say."""
    return Headlines(tuple(map(recomputed, seeds))).bound


def _endings(run: Mapping[str, Any]) -> list[Ending]:
    found = []
    for one in run["endings"]:
        values: dict[str, Any] = {key: one[key] for key in Point._fields}
        loss = math.nan if one["loss"] is None else one["loss"]
        found.append(Ending(one["budget"], Point(**values | {"loss": loss})))
    return found
