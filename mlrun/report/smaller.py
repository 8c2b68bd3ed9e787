"""A smaller model alone beside a baseline: what saves against a model too large for its budget, it saves too."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from mlrun.report import pairing
from mlrun.report.curves import Point, saving
from mlrun.report.endings import cost_at
from mlrun.report.read import Run
from mlrun.report.stats import Spread, spread

# A control that spent this share of its baseline's FLOPs was given them: whole steps are seldom exactly as many.
ALL = 0.98


class One(NamedTuple):
    """What a smaller model that was trained from scratch saved of a baseline's FLOPs at its L*, at one seed.

    None is above L*. `bound` is whether it may be more, as its cheapest ending is there already.
    """

    parameters: int
    seed: int
    saved: float | None
    bound: bool


class Alone(NamedTuple):
    """A smaller model that was trained from scratch, over its seeds; `saved` keeps the rule of a method's headline."""

    parameters: int
    seeds: tuple[int, ...]
    saved: Spread
    bound: bool


class Short(NamedTuple):
    """A size that ended above L* with fewer FLOPs than its baselines: nats above, share spent, means over the seeds."""

    parameters: int
    gap: float
    share: float


def short(controls: Mapping[int, Sequence[Run]], baselines: Mapping[int, Run]) -> list[Short]:
    """Return the sizes of smaller models that ended above L* with fewer FLOPs than the baseline, small to large."""
    found: dict[int, list[tuple[float, float]]] = {}
    for seed, runs in controls.items():
        level = baselines[seed].final
        for run in runs:
            if level is not None and run.final is not None:
                ends = run.final.loss - level.loss, run.final.flops / level.flops
                found.setdefault(size(run), []).append(ends)
    return [
        Short(size, fmean(gap for gap, _ in ends), fmean(share for _, share in ends))
        for size, ends in sorted(found.items())
        if min(ends)[0] > 0 and max(share for _, share in ends) < ALL
    ]


def lower(controls: Mapping[int, Sequence[Run]], baselines: Mapping[int, Run]) -> dict[int, Run]:
    """Return, by seed, the smaller model that ends lowest below its baseline for no more FLOPs than the budget."""
    found = {}
    for seed, runs in controls.items():
        level = baselines[seed].final
        ends = [
            (run.final.loss, run) for run in runs if run.final and pairing.no_dearer(run.final.flops, baselines[seed])
        ]
        if level is not None and (under := [end for end in ends if end[0] < level.loss]):
            found[seed] = min(under, key=lambda end: end[0])[1]
    return found


def below(run: Run, others: Iterable[Run]) -> float | None:
    """Return by how many nats a run ends below the lowest of smaller models; None unless each size had as many FLOPs.

    One size that had them says nothing of another that had fewer, and may end lowest with as many.
    """
    ends = [(size(one), one.final) for one in others if one.final is not None]
    if run.final is None or not ends:
        return None
    given = {own for own, end in ends if end.flops >= ALL * run.final.flops}
    return min(end.loss for _, end in ends) - run.final.loss if given == {own for own, _ in ends} else None


def sizes(controls: Mapping[int, Sequence[Run]]) -> set[int]:
    """Return the sizes of the smaller models that were trained alone, of which reports name the best."""
    return {size(run) for runs in controls.values() for run in runs}


def controls(baselines: Mapping[int, Run], plain: Iterable[Run]) -> dict[int, tuple[Run, ...]]:
    """Return, by seed, the from-scratch runs of a smaller model of a baseline's kind, on the same data.

    `plain` are from-scratch runs that came to their end, of any model.
    """
    found: dict[int, tuple[Run, ...]] = {}
    for run in plain:
        own = baselines.get(run.seed)
        if own is not None and run.final is not None and pairing.smaller(run, own):
            found[run.seed] = (*found.get(run.seed, ()), run)
    return found


def one(
    parameters: int, seed: int, ends: Sequence[tuple[float | None, float]], target: float | None, whole: float
) -> One:
    """Return what a run with these annealed (loss, FLOPs), the cheapest first, saved of a baseline's `whole` FLOPs."""
    cost = cost_at(ends, target)
    return One(parameters, seed, saving(cost, whole), cost == ends[0][1])


def best(found: Iterable[One]) -> Alone | None:
    """Return the size that reaches L* at the most seeds, of those the one that saves most; None if none saves anything.

    One size for all seeds: whoever trains a smaller model has to choose it. Of several runs at a seed the best counts.
    """
    sizes: dict[int, dict[int, One]] = {}
    for run in sorted(found, key=_saved):
        sizes.setdefault(run.parameters, {})[run.seed] = run
    able = [runs for runs in sizes.values() if _rank(runs)[1] > 0]
    return _alone(max(able, key=_rank)) if able else None


def _alone(runs: Mapping[int, One]) -> Alone:
    seeds = sorted(runs)
    bound = any(run.bound for run in runs.values())
    return Alone(runs[seeds[0]].parameters, tuple(seeds), spread([runs[seed].saved for seed in seeds], bound), bound)


def _rank(runs: Mapping[int, One]) -> tuple[int, float]:
    reached = [run.saved for run in runs.values() if run.saved is not None]
    return len(reached), fmean(reached) if reached else 0.0


def _saved(run: One) -> float:
    return -math.inf if run.saved is None else run.saved


def alone(controls: Mapping[int, Sequence[Run]], ended: Mapping[int, Point]) -> Alone | None:
    """Return the smaller model that alone saves most of what runs spent that ended there, by seed.

    None if none saves anything.
    """
    return best(_one(run, seed, ended[seed]) for seed, runs in controls.items() for run in runs)


def levels(baselines: Mapping[int, Run]) -> dict[int, Point]:
    """Return where baselines ended, by seed."""
    return {seed: run.final for seed, run in baselines.items() if run.final is not None}


def chosen(found: Alone, controls: Mapping[int, Sequence[Run]], baselines: Mapping[int, Run]) -> list[Run]:
    """Return runs of its size that were trained alike: those at the most seeds, of such those that save most."""
    ended, alike = levels(baselines), dict[str, dict[int, Run]]()

    def saved(run: Run) -> float:
        return _saved(_one(run, run.seed, ended[run.seed]))

    for seed in found.seeds:
        for run in sorted((run for run in controls[seed] if size(run) == found.parameters), key=saved):
            alike.setdefault(pairing.training(run), {})[seed] = run
    return list(max(alike.values(), key=lambda runs: (len(runs), fmean(map(saved, runs.values())))).values())


def _one(run: Run, seed: int, level: Point) -> One:
    found = [(ending.point.loss, ending.point.flops) for ending in run.annealed]
    return one(size(run), seed, found, level.loss, level.flops)


def coarser(run: Run) -> list[int]:
    """Return how many parameters the models of a run have at the levels below the first."""
    return [int(level["parameters"]) for level in run.plan["levels"][1:]]


def size(run: Run) -> int:
    """Return how many parameters the model of a run has at level 1."""
    return int(run.plan["levels"][0]["parameters"])
