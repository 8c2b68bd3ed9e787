"""Every cycle against its matched baseline: what it saved at equal loss, seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlrun.report import endings, pairing
from mlrun.report.curves import AXES, crossing, saving
from mlrun.report.endings import Budget, Match
from mlrun.report.read import Run
from mlrun.report.stats import Spread, spread

ALL = "seconds_all"
MEASURES = (*AXES, ALL)


@dataclass(frozen=True)
class Pair:
    """One cycle run and the baseline of its seed.

    `target` is L*, the baseline's final held-out loss; `gap` the run's final loss minus it, in nats (None if it
    diverged). `cost` and `baseline_cost` are where each curve first stays at or below L*; `saved` is one minus their
    ratio, by measure; None is "not reached", or "not comparable" for seconds of different machines (`timed` is then
    False). `source_free` leaves out what the run's source cost; it is None where nothing was declared.
    `endings` are the run's annealed losses beside the baseline's; none unless both have branches.
    """

    run: Run
    baseline: Run
    target: float
    gap: float | None
    cost: Mapping[str, float | None]
    baseline_cost: Mapping[str, float | None]
    saved: Mapping[str, float | None]
    source_free: Mapping[str, float | None] | None
    timed: bool
    endings: tuple[Match, ...]


@dataclass(frozen=True)
class Row:
    """One method at one learning rate against its baseline; `pairs` are its finished runs, by seed.

    `alone` are those whose seed has no baseline; they choose among rates only where none has pairs. `tried`
    counts the learning rates that the method was run at, `best` marks the one with the lowest final loss.
    """

    group: int
    method: str
    lr: float
    best: bool
    tried: int
    pairs: tuple[Pair, ...]
    unpaired: tuple[Run, ...]
    unfinished: tuple[Run, ...]

    def spread(self, measure: str) -> Spread:
        """Return the saving on one measure over the seeds."""
        return spread([pair.saved[measure] for pair in self.pairs])

    def source_free(self, measure: str) -> Spread | None:
        """Return the saving without the source's cost over the seeds; None where no source was declared."""
        free = [pair.source_free for pair in self.pairs]
        if not free or any(f is None for f in free):
            return None
        return spread([f[measure] for f in free if f is not None])

    @property
    def gap(self) -> Spread:
        """Final loss minus L* over the seeds."""
        return spread([pair.gap for pair in self.pairs])

    @property
    def loss(self) -> Spread:
        """Final loss over the seeds."""
        return _losses([pair.run for pair in self.pairs] or self.unpaired)

    @property
    def endings(self) -> tuple[Budget, ...]:
        """The annealed losses over the seeds, the smallest budget first; empty without branches."""
        return endings.by_budget([pair.endings for pair in self.pairs])

    @property
    def timed(self) -> bool:
        """True if the seconds of every pair may be compared."""
        return all(pair.timed for pair in self.pairs)


@dataclass(frozen=True)
class Group:
    """Runs that agree on everything but seed, learning rate and cycle. `baselines` holds the best one of each seed."""

    number: int
    runs: tuple[Run, ...]
    baselines: Mapping[int, Run]
    rates: tuple[float, ...]
    rows: tuple[Row, ...]

    @property
    def tuned(self) -> bool:
        """True if the baseline's rate was chosen among several, and no method had more to choose from."""
        return len(self.rates) > 1 and all(row.tried <= len(self.rates) for row in self.rows)

    @property
    def edge(self) -> bool:
        """True if a better baseline may lie outside of the rates that were tried."""
        ends = (self.rates[0], self.rates[-1]) if self.rates else ()
        return len(self.rates) > 1 and any(run.lr in ends for run in self.baselines.values())

    @property
    def sweep(self) -> dict[float, Spread]:
        """The baseline's final loss over the seeds, by learning rate; also rates that are nobody's best."""
        found = {lr: [run for run in self.runs if run.baseline and run.finished and run.lr == lr] for lr in self.rates}
        return {lr: _losses(once(runs)) for lr, runs in found.items()}

    @property
    def loss(self) -> Spread:
        """L* over the seeds."""
        return spread([run.final.loss for run in self.baselines.values() if run.final is not None])


def compare(runs: Sequence[Run]) -> list[Group]:
    """Return the runs in groups that may be compared, the largest first."""
    by_setting: dict[str, list[Run]] = {}
    for run in runs:
        by_setting.setdefault(pairing.setting(run), []).append(run)
    largest_first = sorted(by_setting.values(), key=len, reverse=True)
    return [_group(number, members) for number, members in enumerate(largest_first, 1)]


def _group(number: int, runs: Sequence[Run]) -> Group:
    candidates = [run for run in runs if run.baseline and run.finished and run.final is not None]
    best: dict[int, Run] = {}
    for run in sorted(candidates, key=lambda run: (_final_loss(run), -len(run.branches))):
        best.setdefault(run.seed, run)
    rates = tuple(sorted({run.lr for run in candidates}))
    return Group(number, tuple(runs), dict(sorted(best.items())), rates, _rows(number, runs, best))


def _final_loss(run: Run) -> float:
    assert run.final is not None
    return run.final.loss


def _rows(number: int, runs: Sequence[Run], baselines: Mapping[int, Run]) -> tuple[Row, ...]:
    families: dict[str, list[Run]] = {}
    for run in runs:
        if not run.baseline:
            families.setdefault(pairing.family(run), []).append(run)
    names = pairing.labels({key: members[0] for key, members in families.items()})
    rows = [row for key, members in families.items() for row in _family(number, names[key], members, baselines)]
    return tuple(rows)


def _family(number: int, method: str, runs: Sequence[Run], baselines: Mapping[int, Run]) -> list[Row]:
    """Return one row per learning rate of a method; the best is that with the lowest final loss."""
    rates = sorted({run.lr for run in runs})
    by_rate = {lr: once([run for run in runs if run.lr == lr]) for lr in rates}
    pairs = {
        lr: tuple(pair(run, baselines[run.seed]) for run in members if run.finished and run.seed in baselines)
        for lr, members in by_rate.items()
    }
    alone = {lr: tuple(r for r in by_rate[lr] if r.finished and r.seed not in baselines) for lr in rates}
    paired = any(pairs.values())
    means = {lr: (spread([p.gap for p in pairs[lr]]) if paired else _losses(alone[lr])).mean for lr in rates}
    known = {lr: mean for lr, mean in means.items() if mean is not None}
    best = min(known, key=lambda lr: known[lr], default=rates[0])
    waiting = {lr: tuple(run for run in by_rate[lr] if not run.finished) for lr in rates}
    return [Row(number, method, lr, lr == best, len(known), pairs[lr], alone[lr], waiting[lr]) for lr in rates]


def _losses(runs: Sequence[Run]) -> Spread:
    """Return the final losses over the seeds."""
    return spread([None if run.final is None else run.final.loss for run in runs])


def once(runs: Sequence[Run]) -> list[Run]:
    """Return one run per seed, by seed: the same settings run twice are no second seed.

    Of finished ones that with most branches stays, then the last one.
    """
    kept = {run.seed: run for run in sorted(runs, key=lambda run: (run.finished, len(run.branches), run.folder))}
    return [kept[seed] for seed in sorted(kept)]


def pair(run: Run, baseline: Run) -> Pair:
    """Return what a run saved against a baseline that has a final loss; the same rule gives the cost of both."""
    target = _final_loss(baseline)
    timed = pairing.same_speed(run, baseline)
    without = {axis: crossing(run.evaluations, target, axis) for axis in AXES}
    own = _costs(run, without)
    cost = _costs(run, {axis: _plus(value, run.source, axis) for axis, value in without.items()})
    base = _costs(baseline, {axis: crossing(baseline.evaluations, target, axis) for axis in AXES})
    saved, free = ({m: _saved(c, base, m, timed) for m in MEASURES} for c in (cost, own))
    gap = None if run.final is None else run.final.loss - target
    matched = endings.match(run.endings, baseline.endings, run.source, timed)
    return Pair(run, baseline, target, gap, cost, base, saved, None if run.source is None else free, timed, matched)


def _costs(run: Run, costs: Mapping[str, float | None]) -> dict[str, float | None]:
    """Add the whole wall-clock cost: the whole run's transfers, evaluations and start-up are charged."""
    trained, overhead = costs["seconds"], run.overhead
    return {**costs, ALL: None if trained is None or overhead is None else trained + overhead}


def _plus(value: float | None, source: Mapping[str, float] | None, axis: str) -> float | None:
    return value if value is None or source is None else value + source[axis]


def _saved(
    cost: Mapping[str, float | None], base: Mapping[str, float | None], measure: str, timed: bool
) -> float | None:
    if measure in ("seconds", ALL) and not timed:
        return None
    return saving(cost[measure], base[measure])
