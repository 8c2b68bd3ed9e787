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


def freer(runs: Sequence[Run], task: Iterable[Run], paired: Sequence[int]) -> tuple[Freedom, ...]:
    """Return the methods among `runs` that had more settings to choose from than their baseline.

    A method here is a cycle's name; `task` are all runs on the same model, data and budget, whatever their optimizer
    and batch. The baseline's count is the least over the paired seeds.
    """
    ended = [run for run in task if run.tried]
    plain = [run for run in ended if pairing.baseline(run)]
    others = [run for run in ended if not pairing.baseline(run)]
    counts = [len({(pairing.setting(run), run.lr) for run in plain if run.seed == seed}) for seed in paired]
    found = []
    for name in dict.fromkeys(_name(run) for run in runs if run.tried and not pairing.baseline(run)):
        own = [run for run in others if _name(run) == name]
        settings = len({(pairing.family(run, source=False), run.lr) for run in own})
        found.append(Freedom(name, settings, tuple(pairing.varied(own)), min(counts, default=0)))
    return tuple(freedom for freedom in found if freedom.settings > freedom.baseline)


def _name(run: Run) -> str:
    return str(run.config["cycle"]["name"])
