"""Which seeds chose nothing, and what was tried on those that did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlrun.report import pairing
from mlrun.report.compare import Group, Row, once
from mlrun.report.read import Run
from mlrun.report.stats import spread

Setting = tuple[str, str, str, float]


@dataclass(frozen=True)
class Choice:
    """How a method and its baseline were chosen: on which seeds, among how many settings, and what reports them.

    `fresh` are the seeds on which neither had a choice. `best` is the baseline's rate with the lowest mean loss on the
    others, `edge` says that it is the lowest or highest of them; both are None after a search.
    """

    seeds: tuple[int, ...]
    fresh: tuple[int, ...]
    method: int
    baseline: int
    best: float | None
    edge: bool | None


def choice(group: Group, row: Row) -> Choice:
    """Return how the row's method and its baseline were chosen."""
    if group.searched:
        return _searched(row)
    everyone = [run for one in (group, *group.others) for run in one.runs]
    name = str(row.pairs[0].run.config["cycle"]["name"])
    plain = [run for run in everyone if pairing.baseline(run)]
    own = [run for run in everyone if not pairing.baseline(run) and str(run.config["cycle"]["name"]) == name]
    paired = sorted({run.seed for run in (*_of(row), *plain)})
    fresh = tuple(seed for seed in paired if len(_settings(own, seed)) == 1 and len(_settings(plain, seed)) == 1)
    chose = tuple(seed for seed in paired if seed not in fresh and _settings(plain, seed))
    swept = [group.swept(seed) for seed in chose if seed in group.baselines]
    best = _best(group, chose)
    edge = None if best is None or not swept else any(best in (rates[0], rates[-1]) for rates in swept if rates)
    return Choice(chose, fresh, pairing.settings_tried(own), min(map(len, swept), default=0), best, edge)


def _of(row: Row) -> tuple[Run, ...]:
    return (*(pair.run for pair in row.pairs), *row.unpaired, *row.failed, *row.unfinished)


def _settings(runs: Sequence[Run], seed: int) -> set[Setting]:
    """Return what was tried on a seed, whatever became of it; other weights to start from are another setting."""
    mine = [run for run in runs if run.seed == seed]
    return {(pairing.setting(r), pairing.family(r, source=False), str(pairing.origin(r)), r.lr) for r in mine}


def _best(group: Group, seeds: Sequence[int]) -> float | None:
    """Return the baseline's rate with the lowest mean loss on seeds; one that lacks or failed on any is out."""
    means = {}
    for lr in group.rates:
        runs = once([run for run in group.runs if pairing.baseline(run) and run.lr == lr and run.seed in seeds], True)
        losses = [None if run.failed or run.final is None else run.final.loss for run in runs]
        if len(runs) == len(seeds) and (mean := spread(losses).mean) is not None:
            means[lr] = mean
    return min(means, key=lambda lr: means[lr], default=None)


def _searched(row: Row) -> Choice:
    """Return the same of a search: its runs are of one seed, and those that report it of others."""
    run = row.pairs[0].run
    said = run.search or {}
    tried = {method: len(runs) for method, runs in said["tried"].items()}
    fresh = tuple(sorted({pair.run.seed for pair in row.pairs} - {said["run_seed"]}))
    method = tried.get(said["fresh"][run.folder.name], 0)
    return Choice((said["run_seed"],), fresh, method, tried.get("scratch", 0), None, None)
