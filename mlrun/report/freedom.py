"""Who had more to choose from: how many settings a method was tried at, by whatever key, and its baseline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlrun.report import pairing
from mlrun.report.read import Run

# Rates further apart than this are no neighbours in a sweep: the best may lie between them.
NEIGHBOURS = 4.0
# Rates nearer than this are one try: the better of them is better by chance.
SAME = 1.05
ROUNDING = 1e-9


@dataclass(frozen=True)
class Freedom:
    """How many settings a method was tried at, in which keys they differ, and how many the baseline was tried at."""

    method: str
    settings: int
    keys: tuple[str, ...]
    baseline: int


class Tried:
    """What was tried on one model, data and budget, whatever its optimizer and batch; looked at once for all groups."""

    def __init__(self, task: Iterable[Run]) -> None:
        self._baselines: dict[int, dict[str, list[Run]]] = {}
        self._methods: dict[str, list[Run]] = {}
        self._found: dict[str, tuple[int, tuple[str, ...]]] = {}
        for run in task:
            if run.tried and pairing.baseline(run):
                self._baselines.setdefault(run.seed, {}).setdefault(pairing.setting(run), []).append(run)
            elif run.looked and not pairing.baseline(run):
                self._methods.setdefault(_name(run), []).append(run)

    def baseline(self, seeds: Sequence[int]) -> int:
        """Return at how many settings the baseline was tried: the least over the seeds.

        Of the rates of one setting those count that are neighbours, or neighbours' neighbours, of its best.
        """
        each = [self._baselines.get(seed, {}).values() for seed in seeds]
        return min((sum(len(_swept(runs)) for runs in settings) for settings in each), default=0)

    def method(self, name: str) -> tuple[int, tuple[str, ...]]:
        """Return at how many settings the cycle of a name was tried, and in which keys they differ."""
        if name not in self._found:
            own = self._methods.get(name, [])
            settings, keys = pairing.settings_tried(own), pairing.varied(own)
            alone = len({(pairing.family(run, source=False), run.lr) for run in own})
            self._found[name] = settings, (*keys, *(["init"] if settings > alone else []))
        return self._found[name]


def freer(runs: Sequence[Run], tried: Tried, paired: Sequence[int]) -> tuple[Freedom, ...]:
    """Return the methods among `runs` that had more settings to choose from than their baseline.

    A method here is a cycle's name. The baseline's count is the least over the paired seeds.
    """
    names = dict.fromkeys(_name(run) for run in runs if run.looked and not pairing.baseline(run))
    found = [Freedom(name, *tried.method(name), tried.baseline(paired)) for name in names]
    return tuple(freedom for freedom in found if freedom.settings > freedom.baseline)


def _swept(runs: Sequence[Run]) -> list[float]:
    """Return the rates of one setting that are a sweep around its best; any one of them where all failed."""
    known = [run for run in runs if not run.failed and run.finished and run.final is not None]
    best = min(known, key=lambda run: run.final.loss if run.final is not None else math.inf, default=runs[0])
    return neighbours(sorted({run.lr for run in runs}), best.lr)


def neighbours(rates: Sequence[float], best: float) -> list[float]:
    """Return the stretch of sorted rates around the best in which no two neighbours are more than 4 times apart.

    Rates within 5% of each other stand there once, the best as itself.
    """
    stretches: list[list[float]] = []
    for rate in _apart(rates, best):
        if stretches and rate <= NEIGHBOURS * stretches[-1][-1] * (1 + ROUNDING):
            stretches[-1].append(rate)
        else:
            stretches.append([rate])
    return next((stretch for stretch in stretches if best in stretch), [])


def _apart(rates: Sequence[float], best: float) -> list[float]:
    """Return sorted rates without those that are nearly the best, or nearly the one before."""
    kept: list[float] = []
    for rate in rates:
        if rate == best or not (_same(rate, best) or (kept and _same(rate, kept[-1]))):
            kept.append(rate)
    return kept


def _same(one: float, other: float) -> bool:
    return max(one, other) < SAME * min(one, other) * (1 - ROUNDING)


def _name(run: Run) -> str:
    return str(run.config["cycle"]["name"])
