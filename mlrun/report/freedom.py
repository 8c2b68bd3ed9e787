"""Who had more to choose from: how many settings a method was tried at, by whatever key, and its baseline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlrun.report import pairing
from mlrun.report.read import Run


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
        self._baselines: dict[int, set[tuple[str, float]]] = {}
        self._methods: dict[str, list[Run]] = {}
        self._found: dict[str, tuple[int, tuple[str, ...]]] = {}
        for run in task:
            if run.tried and pairing.baseline(run):
                self._baselines.setdefault(run.seed, set()).add((pairing.setting(run), run.lr))
            elif run.tried:
                self._methods.setdefault(_name(run), []).append(run)

    def baseline(self, seeds: Sequence[int]) -> int:
        """Return at how many settings the baseline was tried: the least over the seeds."""
        return min((len(self._baselines.get(seed, ())) for seed in seeds), default=0)

    def method(self, name: str) -> tuple[int, tuple[str, ...]]:
        """Return at how many settings the cycle of a name was tried, and in which keys they differ."""
        if name not in self._found:
            own = self._methods.get(name, [])
            settings = len({(pairing.family(run, source=False), run.lr) for run in own})
            self._found[name] = settings, tuple(pairing.varied(own))
        return self._found[name]


def freer(runs: Sequence[Run], tried: Tried, paired: Sequence[int]) -> tuple[Freedom, ...]:
    """Return the methods among `runs` that had more settings to choose from than their baseline.

    A method here is a cycle's name. The baseline's count is the least over the paired seeds.
    """
    names = dict.fromkeys(_name(run) for run in runs if run.tried and not pairing.baseline(run))
    found = [Freedom(name, *tried.method(name), tried.baseline(paired)) for name in names]
    return tuple(freedom for freedom in found if freedom.settings > freedom.baseline)


def _name(run: Run) -> str:
    return str(run.config["cycle"]["name"])
