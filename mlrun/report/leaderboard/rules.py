"""The rules of the table, as public records of training speed have them; each says in a line what breaks it.

They look at the JSON alone, so that a file from elsewhere is judged as one of ours is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from statistics import fmean
from typing import Any

from mlrun.report.leaderboard import again
from mlrun.report.leaderboard.entry import bound, claim

LEAST_SEEDS = 3
LEVEL = 0.05
Entry = Mapping[str, Any]


def annealed(found: Entry) -> Iterator[str]:
    """No run is stopped by its own validation: costs are of endings that were set before."""
    if found["claim"]["measure"] != "annealed":
        yield "the saving is read where a run's own curve crosses L*, which is to stop it there; give cycle.branches"
    if pruned := [run["name"] for run in _runs(found) if (run["config"].get("find") or {}).get("prune") is not None]:
        yield f"{pruned[0]} was judged by its validation on the way (find.prune)"
    for side in ("run", "baseline"):
        forms = {_stages(seed[side]) for seed in found["seeds"]}
        if len(forms) > 1:
            yield f"the {'method' if side == 'run' else 'baseline'} has other stages or endings on other seeds"


def whole(found: Entry) -> Iterator[str]:
    """Every run of the method came to its end, on every seed."""
    if found["failed"]:
        yield f"{', '.join(found['failed'])} did not come to its end; a seed may not be left out"
    if ended := [run["name"] for run in _runs(found) if run["status"] != "finished"]:
        yield f"{ended[0]} is not finished"
    if skipped := [run["name"] for run in _runs(found) if run["skipped_steps"]]:
        yield f"{skipped[0]} skipped steps"


def fresh(found: Entry) -> Iterator[str]:
    """The seeds that are reported chose nothing."""
    seeds, chosen = [seed["seed"] for seed in found["seeds"]], found["chosen"]
    if used := sorted(set(seeds) & set(chosen["seeds"]) | (set(seeds) - set(chosen["fresh"]))):
        yield f"seed {', '.join(map(str, used))} took part in choosing the settings"
    if len(set(seeds)) < len(seeds):
        yield "a seed is there twice"
    for seed in found["seeds"]:
        if {seed[side]["config"].get("seed") for side in ("run", "baseline")} != {seed["seed"]}:
            yield f"seed {seed['seed']}: its runs have another seed"
    yield from again.copied(found)


def significant(found: Entry) -> Iterator[str]:
    """The interval over the seeds is above 0, also for all methods that were compared."""
    said, count = found["claim"], len(found["seeds"])
    if count < LEAST_SEEDS:
        yield f"{count} fresh seeds; at least {LEAST_SEEDS} are needed"
    elif said["at_least"]:
        yield "a lower bound has no interval: add an ending at a smaller budget"
    elif said["low"] is None or said["low"] <= 0:
        yield "the 95% interval of the saving is not above 0"
    elif said["p_holm"] is None or said["p_holm"] >= LEVEL:
        yield f"p {said['p_holm']} is not below {LEVEL:g} for the {said['methods_compared']} methods compared (Holm)"


def matched(found: Entry) -> Iterator[str]:
    """The baseline is swept as much as the method, is at its best rate, and nobody has a better one."""
    chosen = found["chosen"]
    if chosen["baseline"] < 2:
        yield "the baseline was not swept on the seeds that chose"
    if chosen["method"] > max(chosen["baseline"], 1):
        yield f"the method was tried at {chosen['method']} settings, the baseline at {chosen['baseline']}"
    rates = sorted({seed["baseline"]["config"]["optimizer"]["lr"] for seed in found["seeds"]})
    if chosen["best"] is not None and rates != [chosen["best"]]:
        ran = ", ".join(f"{rate:g}" for rate in rates)
        yield f"the baseline ran at rate {ran}; the best of its sweep is {chosen['best']:g}"
    if chosen["edge"]:
        yield "the baseline's best rate is at the edge of its sweep; a better one may lie outside"
    for seed in found["seeds"]:
        yield from again.unmatched(seed, searched=chosen["best"] is None)
        yield from again.other_costs(seed)
        yield from again.no_control(seed)
    yield from again.untold(found)
    if chosen["better_elsewhere"] is not None:
        yield f"a from-scratch run ends lower than this baseline: {chosen['better_elsewhere']}"


def known(found: Entry) -> Iterator[str]:
    """All that redoing it needs is told: data by content, clean commits; and every cost is charged."""
    for run in _runs(found):
        if not run["data"].get("identity"):
            yield f"{run['name']}: no digests of its data"
        commits = {start.get("commit") for start in run["starts"]}
        if not commits or None in commits or any(str(commit).endswith("+") for commit in commits):
            yield f"{run['name']}: its commit is unknown, or files differ from it"
        source = again.as_run(run).source
        if source is not None and source.get("flops") is None:
            yield f"{run['name']}: what its weights had cost before is not known"
        elif source is not None and source.get("declared"):
            yield f"{run['name']}: what its weights had cost before is declared, which nobody can work out again"
    contents = {json.dumps(run["data"].get("identity"), sort_keys=True) for run in _runs(found)}
    if len(contents) > 1:
        yield "method and baseline read other data"


def honest(found: Entry) -> Iterator[str]:
    """The claim is what the endings in the file say."""
    told, said = claim(found["seeds"]), found["claim"]
    if said["at_least"] != bound(found["seeds"]):
        yield f"at_least is {said['at_least']}; its endings say {bound(found['seeds'])}"
    elif said["measure"] == "annealed" and not said["at_least"]:
        pairs = [(said[key], getattr(told, key)) for key in ("mean", "low", "high", "p")]
        if any(not _same(a, b) for a, b in (*pairs, *zip(said["values"], told.values, strict=False))):
            yield f"the saving is {said['mean']}; its endings say {told.mean}"
    for seed in found["seeds"]:
        if not _same(seed["target"], seed["baseline"]["val_loss"]):
            yield f"seed {seed['seed']}: L* is {seed['target']}, its baseline ended at {seed['baseline']['val_loss']}"
    if not _same(found["target"]["mean"], fmean(seed["target"] for seed in found["seeds"])):
        yield f"L* is {found['target']['mean']} over the seeds; they say another"
    for run in [*_runs(found), *(run for seed in found["seeds"] for run in seed["smaller"])]:
        yield from again.unlike_its_plan(run)
        yield from again.unlike_its_records(run)
    for run in [one for seed in found["seeds"] for one in (seed["baseline"], *seed["smaller"])]:
        yield from again.unlike_its_model(run)
    if said["p"] is not None and said["p_holm"] is not None and said["p_holm"] < said["p"]:
        yield "the p-value for all methods is below that of this one"


RULES: Mapping[str, Callable[[Entry], Iterator[str]]] = {
    "no stopping on validation": annealed,
    "whole": whole,
    "fresh seeds": fresh,
    "significance": significant,
    "matched baseline": matched,
    "known": known,
    "recomputed": honest,
}


def broken(found: Entry) -> list[str]:
    """Return a line for each rule that a result breaks, with the rule's name; none if it may stand in the table."""
    return [f"rule '{name}': {line}" for name, rule in RULES.items() for line in rule(found)]


def _runs(found: Entry) -> list[Entry]:
    return [seed[side] for seed in found["seeds"] for side in ("run", "baseline")]


def _stages(run: Entry) -> str:
    keys = ("level", "steps", "branch", "fork", "batch", "sequence")
    return json.dumps([{key: stage.get(key) for key in keys} for stage in run["plan"]["stages"]])


def _same(one: float | None, other: float | None) -> bool:
    return one == other if one is None or other is None else math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
