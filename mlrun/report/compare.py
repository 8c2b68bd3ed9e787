"""Every cycle against its matched baseline: what it saved at equal loss, seed by seed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from mlrun.report import endings, pairing, smaller, timing
from mlrun.report.curves import AXES, crossing, read_every, saving
from mlrun.report.endings import Budget, Match, charged
from mlrun.report.freedom import Freedom, Tried, freer, neighbours
from mlrun.report.headline import Headline, Headlines, headline
from mlrun.report.read import Run
from mlrun.report.smaller import Alone
from mlrun.report.stats import Spread, holm, spread

ALL = "seconds_all"
MEASURES = (*AXES, ALL)


@dataclass(frozen=True)
class Pair:
    """One cycle run and the baseline of its seed.

    `target` is L*, the baseline's final held-out loss; `gap` the run's final loss minus it, in nats (None if it
    diverged). `headline` is what its smallest annealed budget that reaches L* saved. The rest is of the first crossing
    of the curve, un-annealed: `cost` and `baseline_cost` are where each first stays at or below L*; `saved` is one
    minus their ratio, by measure; None is "not reached", or not comparable: seconds where `untimed` says why, all
    seconds also where the two were asked for other things beside training, and what the run's source cost where nobody
    knows it. `source_free` leaves the source out; it is None where there is none.
    `read_every` is the distance in steps at which both curves were read where theirs differ.
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
    untimed: str | None
    read_every: int | None
    endings: tuple[Match, ...]
    headline: Headline

    @property
    def tokens(self) -> float | None:
        """Tokens that the run read over those that its baseline read."""
        run, baseline = self.run.final, self.baseline.final
        return None if run is None or baseline is None else run.tokens / baseline.tokens


@dataclass(frozen=True)
class Row:
    """One method at one learning rate against its baseline; `pairs` are its finished runs, by seed.

    `unpaired` are those whose seed has no baseline; they choose among rates only where none has pairs. `failed` ended
    without a loss, and no mean is one over the others. `tried` counts the learning rates that the method was run at,
    `best` marks the one with the lowest final loss of those that no seed failed at or lacks.
    """

    group: int
    method: str
    lr: float
    best: bool
    tried: int
    pairs: tuple[Pair, ...]
    unpaired: tuple[Run, ...]
    failed: tuple[Run, ...]
    unfinished: tuple[Run, ...]

    @property
    def annealed(self) -> bool:
        """True if the method has endings beside its last, so that its headline is the annealed one."""
        return any(pair.run.branches for pair in self.pairs)

    @property
    def headline(self) -> Headlines:
        """What the smallest annealed budget that reaches L* saved, over the seeds."""
        return Headlines((*(pair.headline for pair in self.pairs), *([None] * len(self.failed))))

    @property
    def claim(self) -> Spread:
        """The FLOPs saving that the method is known by: annealed where it has endings, else at the first crossing."""
        return self.headline.saved("flops") if self.annealed else self.spread("flops")

    def spread(self, measure: str) -> Spread:
        """Return the saving on one measure at the first crossing of the curve over the seeds."""
        return self._over_all([pair.saved[measure] for pair in self.pairs])

    def source_free(self, measure: str) -> Spread | None:
        """Return the saving without the source's cost over the seeds; None where no source was declared."""
        free = [pair.source_free for pair in self.pairs]
        if not free or any(f is None for f in free):
            return None
        return self._over_all([f[measure] for f in free if f is not None])

    def _over_all(self, values: Sequence[float | None]) -> Spread:
        return spread([*values, *([None] * len(self.failed))])

    @property
    def gap(self) -> Spread:
        """Final loss minus L* over the seeds."""
        return self._over_all([pair.gap for pair in self.pairs])

    @property
    def loss(self) -> Spread:
        """Final loss over the seeds."""
        runs = [pair.run for pair in self.pairs] or self.unpaired
        return self._over_all([None if run.final is None else run.final.loss for run in runs])

    @property
    def tokens(self) -> float | None:
        """Tokens read over those that the baseline read, the mean over the seeds."""
        return spread([pair.tokens for pair in self.pairs]).mean

    @property
    def endings(self) -> tuple[Budget, ...]:
        """The annealed losses over the seeds, the smallest budget first; empty without branches."""
        return endings.by_budget([pair.endings for pair in self.pairs], len(self.failed))

    @property
    def timed(self) -> bool:
        """True if the seconds of every pair may be compared."""
        return all(pair.untimed is None for pair in self.pairs)

    def uncharged(self, axis: str) -> bool:
        """Return whether what a source cost is unknown on this axis."""
        return any(pair.run.source is not None and pair.run.source.get(axis) is None for pair in self.pairs)


@dataclass(frozen=True)
class Group:
    """Runs that agree on everything but seed, learning rate and cycle.

    `baselines` holds the best one of each seed; `freer` are the methods that had more settings to choose from, and
    `others` the groups of the same model, data and budget; `elsewhere` those of the same model and data, however and
    for how long it was trained. `controls` holds, for each seed, the from-scratch runs of a smaller model of the kind,
    on the same data; `smaller` says which size of them reaches this baseline's loss for the fewest FLOPs, if that is
    fewer than its own. `control`: runs of this group are among another's `controls`.
    """

    number: int
    runs: tuple[Run, ...]
    baselines: Mapping[int, Run]
    rows: tuple[Row, ...]
    freer: tuple[Freedom, ...] = ()
    others: tuple[Group, ...] = ()
    elsewhere: tuple[Group, ...] = ()
    smaller: Alone | None = None
    control: bool = False
    controls: Mapping[int, tuple[Run, ...]] = field(default_factory=dict)

    @property
    def annealed(self) -> bool:
        """True if a method has endings."""
        return any(row.annealed for row in self.rows)

    @property
    def of_sizes(self) -> bool:
        """True if there is no method, and what is found is that a smaller model alone reaches L*."""
        return self.smaller is not None and not self.rows and not self.control

    @property
    def smaller_on_all(self) -> Alone | None:
        """What a smaller model alone saved, if each seed of the baseline has a number for it."""
        found = self.smaller
        whole = found is not None and found.saved.mean is not None and len(found.seeds) == len(self.baselines)
        return found if whole else None

    @property
    def paired(self) -> list[int]:
        """The seeds that savings are of; without any, those of the baselines."""
        found = {pair.run.seed for row in self.rows for pair in row.pairs}
        return sorted(found or self.baselines)

    @cached_property
    def _by_seed(self) -> Mapping[int, set[float]]:
        """The learning rates that baselines ended at, by seed; tables ask for each seed again and again."""
        found: dict[int, set[float]] = {}
        for run in self.runs:
            if run.ended and pairing.baseline(run):
                found.setdefault(run.seed, set()).add(run.lr)
        return found

    @property
    def rates(self) -> tuple[float, ...]:
        """Every learning rate that a baseline ended at, for any seed."""
        return tuple(sorted(set().union(*self._by_seed.values())))

    def swept(self, seed: int) -> list[float]:
        """Return the rates tried for a seed's baseline that are neighbours, or neighbours' neighbours, of its best."""
        return neighbours(sorted(self._by_seed.get(seed, ())), self.baselines[seed].lr)

    @property
    def tried(self) -> int:
        """At how many rates the baseline was tried: the least over the paired seeds."""
        return min((len(self.swept(seed)) for seed in self.paired), default=0)

    @property
    def tuned(self) -> bool:
        """True if the baseline's rate was chosen among several, and no method had more to choose from."""
        if self.searched:
            counts = [len(t) for run in self.baselines.values() for t in (run.search or {})["tried"].values()]
            return self.settings > 1 and max(counts) <= self.settings
        return self.tried > 1 and not self.freer and all(row.tried <= self.tried for row in self.rows)

    @property
    def settings(self) -> int:
        """How many settings a search tried of the baseline, the least over its seeds; 0 without a search."""
        found = [(run.search or {"tried": {}})["tried"].get("scratch", ()) for run in self.baselines.values()]
        return min(map(len, found), default=0)

    @property
    def searched(self) -> bool:
        """True if all that is compared was chosen by a search, on other seeds."""
        runs = [*self.baselines.values(), *(pair.run for row in self.rows for pair in row.pairs)]
        return bool(self.baselines) and all(run.search is not None for run in runs)

    @property
    def edge(self) -> bool:
        """True if a better baseline may lie outside of the rates that were tried."""
        swept = {seed: self.swept(seed) for seed in self.paired}
        return self.tried > 1 and any(self.baselines[s].lr in (lrs[0], lrs[-1]) for s, lrs in swept.items())

    def aside(self, row: Row) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
        """Return the runs of seeds that stand on one side only: of the method without baseline, and of the baseline."""
        known = {pair.run.seed for pair in row.pairs} | {run.seed for run in (*row.failed, *row.unfinished)}
        return row.unpaired, tuple(run for seed, run in self.baselines.items() if seed not in known)

    @property
    def sweep(self) -> dict[float, Spread]:
        """The baseline's final loss over the seeds, by learning rate; also rates that are nobody's best."""
        ended = [run for run in self.runs if run.ended and pairing.baseline(run)]
        found = {lr: [run for run in ended if run.lr == lr] for lr in self.rates}
        return {lr: _losses(once(runs, best=True)) for lr, runs in found.items()}

    @property
    def loss(self) -> Spread:
        """L* over the seeds."""
        return spread([run.final.loss for run in self.baselines.values() if run.final is not None])

    @property
    def claims(self) -> dict[str, float]:
        """The p-value of each method's FLOPs saving, adjusted for how many methods were compared (Holm).

        Without a p-value nothing is claimed.
        """
        best = {row.method: row.claim.p for row in self.rows if row.best and row.pairs}
        return holm({method: 1.0 if p is None else p for method, p in best.items()})


def compare(runs: Sequence[Run]) -> list[Group]:
    """Return the runs in groups that may be compared, the largest first."""
    by_setting: dict[str, list[Run]] = {}
    for run in _told_data(runs):
        by_setting.setdefault(pairing.setting(run), []).append(run)
    largest_first = sorted(by_setting.values(), key=len, reverse=True)
    groups = [_group(number, members) for number, members in enumerate(largest_first, 1)]
    by_task: dict[str, list[Group]] = {}
    for group in groups:
        by_task.setdefault(pairing.task(group.runs[0]), []).append(group)
    beside = {group.number: group for alike in by_task.values() for group in _beside(alike)}
    by_goal: dict[str, list[Group]] = {}
    for group in groups:
        by_goal.setdefault(pairing.goal(group.runs[0]), []).append(group)
    same = {group.number: tuple(o for o in alike if o is not group) for alike in by_goal.values() for group in alike}
    plain = [run for group in groups for run in group.baselines.values()]
    known = [replace(beside[group.number], elsewhere=same[group.number]) for group in groups]
    return _apart([_with_smaller(group, plain) for group in known])


def _told_data(runs: Sequence[Run]) -> list[Run]:
    """Return the runs; one that ended before it said what it read has the data of those with its settings of it."""
    told: dict[str, dict[str, Run]] = {}
    for run in runs:
        if run.data:
            told.setdefault(str(run.config.get("data")), {}).setdefault(pairing.data(run), run)
    found = []
    for run in runs:
        known = list(told.get(str(run.config.get("data")), {}).values())
        alike = not run.data and len(known) == 1
        found.append(replace(run, plan={**run.plan, "data": known[0].data}) if alike else run)
    return found


def _beside(groups: Sequence[Group]) -> list[Group]:
    """Return groups of the same model and data that each know those of the same budget."""
    tried: dict[tuple[int, ...], Tried] = {}  # by the groups of a budget: all of them ask the same
    found = []
    for group in groups:
        same = [g for g in groups if g is group or pairing.same_budget(g.runs[0], group.runs[0])]
        key = tuple(g.number for g in same)
        if key not in tried:
            tried[key] = Tried(run for g in same for run in g.runs)
        free = freer(group.runs, tried[key], group.paired) if group.rows and group.baselines else ()
        found.append(replace(group, freer=free, others=tuple(g for g in same if g is not group)))
    return found


def _apart(groups: Sequence[Group]) -> list[Group]:
    """Return groups that know whether they have runs of another's as its smaller models alone."""
    tried = {run.folder for group in groups for runs in group.controls.values() for run in runs}
    return [replace(group, control=any(run.folder in tried for run in group.runs)) for group in groups]


def _with_smaller(group: Group, plain: Sequence[Run]) -> Group:
    """Return a group that knows the smaller models that ran alone, and which of them do what its baselines do."""
    tried = smaller.controls(group.baselines, plain)
    return replace(group, controls=tried, smaller=smaller.alone(tried, smaller.levels(group.baselines)))


def _group(number: int, runs: Sequence[Run]) -> Group:
    candidates = [run for run in runs if run.finished and run.final is not None and pairing.baseline(run)]
    best = {run.seed: run for run in once(candidates, best=True)}
    return Group(number, tuple(runs), best, _rows(number, runs, best))


def _rows(number: int, runs: Sequence[Run], baselines: Mapping[int, Run]) -> tuple[Row, ...]:
    families: dict[str, list[Run]] = {}
    for run in runs:
        if not pairing.baseline(run):
            families.setdefault(pairing.family(run), []).append(run)
    names = pairing.labels(families, list(baselines.values()))
    rows = [row for key, members in families.items() for row in _family(number, names[key], members, baselines)]
    return tuple(rows)


def _family(number: int, method: str, runs: Sequence[Run], baselines: Mapping[int, Run]) -> list[Row]:
    """Return one row per learning rate of a method."""
    rates = sorted({run.lr for run in runs})
    by_rate = {lr: once([run for run in runs if run.lr == lr]) for lr in rates}
    done = {lr: [run for run in members if run.finished] for lr, members in by_rate.items()}
    paired = any(run.seed in baselines for members in done.values() for run in members)
    best = _best(by_rate, [run.seed for run in runs if run.ended and (run.seed in baselines or not paired)])
    tried = sum(any(run.looked for run in members) for members in by_rate.values())
    return [
        Row(
            number,
            method,
            lr,
            lr == best,
            tried,
            tuple(pair(run, baselines[run.seed]) for run in done[lr] if run.seed in baselines),
            tuple(run for run in done[lr] if run.seed not in baselines),
            tuple(run for run in by_rate[lr] if run.failed and not run.finished),
            tuple(run for run in by_rate[lr] if not run.ended),
        )
        for lr in rates
    ]


def _best(by_rate: Mapping[float, Sequence[Run]], seeds: Sequence[int]) -> float | None:
    """Return the rate with the lowest mean loss over these seeds; one that failed at or lacks any of them is out.

    Where all rates lack some, those that failed at none are compared over the seeds that they have in common; where
    no run has ended, the first rate stands for all.
    """
    ended = {lr: {run.seed: run for run in runs if run.ended} for lr, runs in by_rate.items()}
    whole = {lr: runs for lr, runs in ended.items() if runs and not any(run.failed for run in runs.values())}
    complete = {lr: runs for lr, runs in whole.items() if set(seeds) <= set(runs)}
    common = set(seeds) if complete else set.intersection(set(seeds), *map(set, whole.values()))
    means = {lr: _losses([runs[s] for s in sorted(common)]).mean for lr, runs in (complete or whole).items()}
    known = {lr: mean for lr, mean in means.items() if mean is not None}
    return min(known, key=lambda lr: known[lr], default=None if any(ended.values()) else next(iter(by_rate)))


def _losses(runs: Sequence[Run]) -> Spread:
    """Return the final losses over the seeds; a run that failed has none."""
    return spread([None if run.failed or run.final is None else run.final.loss for run in runs])


def once(runs: Sequence[Run], best: bool = False) -> list[Run]:
    """Return one run per seed, by seed: the same settings run twice are no second seed.

    Of those that ended one that failed stays, then that with the highest loss; with `best` that with the lowest: no
    repeat may flatter a method. Of equal ones that with most branches, then the slowest (the fastest).
    """

    def rank(run: Run) -> tuple[object, ...]:
        loss = float("inf") if run.final is None else run.final.loss
        seconds = float(run.last.get("seconds", 0.0))
        sign = -1 if best else 1
        ended = (run.finished, not run.failed) if best else (run.ended, run.failed)
        return *ended, sign * loss, len(run.branches), sign * seconds, str(run.folder)

    kept = {run.seed: run for run in sorted(runs, key=rank)}
    return [kept[seed] for seed in sorted(kept)]


def pair(run: Run, baseline: Run) -> Pair:
    """Return what a run saved against a baseline that has a final loss; the same rule gives the cost of both.

    Where one was evaluated less often than the other, both curves are read as often as that one.
    """
    assert baseline.final is not None
    target, untimed = baseline.final.loss, timing.incomparable(run, baseline)
    every = _wider(run, baseline)
    curve, base_curve = (r.evaluations if every is None else read_every(r.evaluations, every) for r in (run, baseline))
    without = {axis: crossing(curve, target, axis) for axis in AXES}
    cost = _costs(run, {axis: charged(value, run.source, axis) for axis, value in without.items()})
    base = _costs(baseline, {axis: crossing(base_curve, target, axis) for axis in AXES})
    told = _comparable(run, baseline, untimed is None)
    saved = {m: saving(cost[m], base[m]) if m in told else None for m in MEASURES}
    free = None
    if run.source is not None:
        own = _costs(run, {axis: None if cost[axis] is None else without[axis] for axis in AXES})
        free = {m: saving(own[m], base[m]) if m in told else None for m in MEASURES}
    gap = None if run.final is None else run.final.loss - target
    matched = endings.match(run.endings, baseline.endings, run.source, untimed is None)
    first = headline(run.annealed, baseline.annealed, target, run.source, untimed is None, base["flops"])
    return Pair(run, baseline, target, gap, cost, base, saved, free, untimed, every, matched, first)


def _wider(run: Run, baseline: Run) -> int | None:
    """Return the wider of two distances between evaluations, None if they are the same or not known."""
    one, other = run.cadence, baseline.cadence
    return None if one is None or other is None or one == other else max(one, other)


def _costs(run: Run, costs: Mapping[str, float | None]) -> dict[str, float | None]:
    """Add the whole wall-clock cost: the whole run's transfers, evaluations and start-up are charged."""
    trained, overhead = costs["seconds"], run.overhead
    return {**costs, ALL: None if trained is None or overhead is None else trained + overhead}


def _comparable(run: Run, baseline: Run, timed: bool) -> Collection[str]:
    """Return the measures on which two runs may be compared: seconds not always, all seconds where both do the same."""
    aside = {ALL} if timed and not timing.same_beside(run, baseline) else set() if timed else {"seconds", ALL}
    return set(MEASURES) - aside
