"""Runs from scratch of the same model and data with other settings: which end lower, and what is saved against them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from mlrun.report import pairing, smaller
from mlrun.report.compare import Group, Pair, Row, pair
from mlrun.report.curves import crossing
from mlrun.report.endings import Ending
from mlrun.report.headline import Headline, Headlines, headline
from mlrun.report.read import Run
from mlrun.report.smaller import Alone
from mlrun.report.stats import Spread, spread

OTHERWISE = "other settings"
MOST = 3  # from-scratch runs of other settings that are spoken of


class Better(NamedTuple):
    """An ending of a from-scratch run, a branch's too, and the baseline that it ends below by `gap` nats.

    `group` is the one that it is a baseline of.
    """

    gap: float
    group: Group
    run: Run
    own: Run
    ending: Ending

    @property
    def how(self) -> str:
        """What it sets otherwise, in words."""
        found = _in_words(pairing.settings_apart(self.run, self.own))
        branch = [] if self.ending in self.run.annealed[-1:] else [f"its ending at {100 * self.ending.budget:.3g}%"]
        seed = [] if self.run.seed == self.own.seed else ["at another seed"]
        return ", ".join([*found, *branch, *seed]) or OTHERWISE


class Variant(NamedTuple):
    """The from-scratch runs of another setting beside the baselines of their seeds.

    `apart` is what they set otherwise, and the baselines' own value. Spreads and bound are those of the headline, as of
    a method. `gap` is how far they end above L* for no more FLOPs: where an optimizer's own work makes their budget
    dearer, at an ending before its end.
    """

    apart: tuple[tuple[str, str], ...]
    pairs: tuple[Pair, ...]
    gap: Spread

    @property
    def how(self) -> str:
        """What they set otherwise, in words."""
        return ", ".join(_in_words(self.apart)) or OTHERWISE

    @property
    def name(self) -> str:
        """What they set, for a legend."""
        return ", ".join(setting for setting, _ in self.apart) or OTHERWISE

    @property
    def headline(self) -> Headlines:
        """What its smallest annealed budget that reaches L* saved."""
        return Headlines(tuple(one.headline for one in self.pairs))

    @property
    def wins(self) -> bool:
        """Whether it reaches L* for fewer FLOPs, or ends below it where that cannot be told."""
        saved = self.headline.saved("flops").mean
        return (self.gap.mean or 0.0) < 0 if saved is None else saved > 0


def variants(group: Group) -> list[Variant]:
    """Return what else was tried from scratch for the budget, at seeds of this group: the three that save most."""
    found = [one for other in group.elsewhere if (one := _variant(other, group)) is not None]
    return sorted(found, key=_order)[:MOST]


def _order(one: Variant) -> tuple[bool, float]:
    """Those that reach L* come first, by what they save, then those that end lowest."""
    saved = one.headline.saved("flops").mean
    return (True, one.gap.mean or 0.0) if saved is None else (False, -saved)


def _variant(other: Group, group: Group) -> Variant | None:
    """Return other baselines beside those of their seeds; None of another budget, or without an ending within it."""
    if not pairing.as_long(other.runs[0], group.runs[0]):
        return None
    both = [(run, group.baselines[seed]) for seed, run in sorted(other.baselines.items()) if seed in group.baselines]
    gaps = [_gap(ends[-1], own) for run, own in both if (ends := _within(run, own))]
    if not gaps or len(gaps) < len(both):
        return None
    return Variant(tuple(pairing.settings_apart(*both[0])), tuple(pair(*one) for one in both), spread(gaps))


def _gap(ending: Ending, own: Run) -> float:
    assert own.final is not None, "a baseline has a final loss"
    return ending.point.loss - own.final.loss


def _in_words(apart: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{setting} instead of {theirs}" for setting, theirs in apart]


def better(group: Group, seeds: Collection[int] | None = None) -> Better | None:
    """Return the ending that is furthest below this group's baseline, None if none is.

    Given seeds are all that count. Without, those that savings are of come first: of a run elsewhere that has none of
    these, any counts.
    """
    return max(_below(group, seeds), key=lambda one: one.gap, default=None)


def beside(group: Group) -> Better | None:
    """Return the same at the seeds that savings are of alone: what is saved can be told against no other."""
    return better(group, group.paired)


def _below(group: Group, seeds: Collection[int] | None) -> Iterator[Better]:
    if not group.baselines:
        return
    first = next(iter(group.baselines.values()))
    for other in group.elsewhere:
        common = sorted(set(other.baselines) & set(group.paired if seeds is None else seeds))
        for seed in common or (sorted(other.baselines) if seeds is None else []):
            run, own = other.baselines[seed], group.baselines.get(seed, first)
            assert own.final is not None
            for ending in _within(run, own):
                gap = own.final.loss - ending.point.loss
                if gap > 0:
                    yield Better(gap, other, run, own, ending)


def against(group: Group, row: Row) -> Headlines | None:
    """Return what a method saved against the better from-scratch runs `beside` it, by the rule of its headline.

    It is over those of its seeds that both have; None without any, or where no from-scratch run is better. Each of
    theirs counts to its lowest ending that costs no more than the budget.
    """
    found = beside(group)
    if found is None:
        return None
    runs = found.group.baselines
    both = [(pair, runs[pair.run.seed]) for pair in row.pairs if pair.run.seed in runs]
    ends = [(pair.run, _lowest(other, pair.baseline), other) for pair, other in both]
    told = [_headline(run, lowest, other) for run, lowest, other in ends if lowest]
    return Headlines((*told, *([None] * len(row.failed)))) if told else None


def _within(run: Run, own: Run) -> list[Ending]:
    """Return the endings of a run that cost no more than another's budget, the cheapest first."""
    return [ending for ending in run.annealed if pairing.no_dearer(ending.point.flops, own)]


def _lowest(run: Run, own: Run) -> list[Ending]:
    """Return the same up to the lowest, as of a run that was to end there; none where no loss is finite."""
    ends = [ending for ending in _within(run, own) if math.isfinite(ending.point.loss)]
    return ends[: 1 + ends.index(min(ends, key=lambda ending: ending.point.loss))] if ends else []


def _headline(run: Run, ends: list[Ending], other: Run) -> Headline:
    target = ends[-1].point.loss
    return headline(run.annealed, ends, target, run.source, False, crossing(other.evaluations, target, "flops"))


def smaller_against(group: Group) -> Alone | None:
    """Return what the smaller model of the group alone saved against the better runs `beside`, by the same rule.

    None without such a model or such runs.
    """
    found = beside(group)
    if found is None or group.smaller is None:
        return None
    runs = found.group.baselines
    lowest = {seed: _lowest(runs[seed], group.baselines[seed]) for seed in group.controls if seed in runs}
    levels = {seed: ends[-1].point for seed, ends in lowest.items() if ends}
    size = group.smaller.parameters
    of_size = {seed: [run for run in group.controls[seed] if smaller.size(run) == size] for seed in levels}
    return smaller.alone(of_size, levels)
