"""A from-scratch run of the same model and data that ends lower than a baseline, for no more FLOPs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mlrun.report import pairing
from mlrun.report.compare import Group
from mlrun.report.endings import Ending
from mlrun.report.read import Run


class Better(NamedTuple):
    """An ending of a from-scratch run, a branch's too, and the baseline that it ends below by `gap` nats."""

    gap: float
    run: Run
    own: Run
    ending: Ending

    @property
    def how(self) -> str:
        """What it sets otherwise, in words."""
        found = pairing.settings_apart(self.run, self.own)
        branch = [] if self.ending in self.run.annealed[-1:] else [f"its ending at {100 * self.ending.budget:.3g}%"]
        return ", ".join([*found, *branch]) or "other settings"


def better(group: Group, same_seed: bool = False) -> Better | None:
    """Return the ending that is furthest below this group's baseline, None if none is.

    Seeds that savings are of come first; without `same_seed`, where the other run has none of these, any counts.
    """
    return max(_below(group, same_seed), key=lambda one: one.gap, default=None)


def _below(group: Group, same_seed: bool) -> Iterator[Better]:
    if not group.baselines:
        return
    first = next(iter(group.baselines.values()))
    for other in group.elsewhere:
        common = sorted(set(other.baselines) & set(group.baselines if same_seed else group.paired))
        for seed in common or ([] if same_seed else sorted(other.baselines)):
            run, own = other.baselines[seed], group.baselines.get(seed, first)
            assert own.final is not None
            for ending in run.annealed:
                gap = own.final.loss - ending.point.loss
                if gap > 0 and pairing.no_dearer(ending.point.flops, own):
                    yield Better(gap, run, own, ending)
