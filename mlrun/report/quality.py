"""Saving and quality: what evaluations say of each method, beside its baseline and beside the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlrun.report.compare import Group, Row
from mlrun.report.read import Run
from mlrun.report.results import Kind, Measured
from mlrun.report.stats import Spread, spread


@dataclass(frozen=True)
class Quality:
    """One number of a method at its best rate, and of its baselines, over the seeds that have it.

    Task, metric, version, n and settings are those of all of them. `budget` is that of the annealed branch, None for
    the end of the run. `seeds` counts the method's runs that have the number, of `of`, those that ended; a baseline
    that lacks it leaves no mean of theirs. `gap` is the method's value minus its baseline's, seed by seed.
    """

    method: str
    budget: float | None
    task: str
    metric: str
    version: str
    n: int | None
    guess: float | None
    seeds: int
    of: int
    loss: Spread
    baseline_loss: Spread
    value: Spread
    baseline: Spread
    own_stderr: float | None
    settings: str | None

    @property
    def gap(self) -> Spread:
        """The method's value minus its baseline's."""
        pairs = zip(self.value.values, self.baseline.values, strict=True)
        return spread([None if a is None or b is None else a - b for a, b in pairs])


def error(found: Spread) -> float | None:
    """Return the standard error of a mean over seeds; one seed has none."""
    return None if found.sd is None else found.sd / math.sqrt(found.count)


def qualities(group: Group, rows: Sequence[Row]) -> list[Quality]:
    """Return what is known of the best rows, method by method: its tasks, the end first, then branches by budget."""
    return [one for row in rows if row.best for one in _of_row(row)]


def _of_row(row: Row) -> Iterator[Quality]:
    runs: list[tuple[Run, Run | None]] = [(pair.run, pair.baseline) for pair in row.pairs]
    runs = runs or [(run, None) for run in row.unpaired]
    of = len(runs) + len(row.failed)
    kinds = dict.fromkeys((one.kind, one.budget) for run, _ in runs for one in run.results)
    for kind, budget in sorted(kinds, key=lambda found: (found[0][0], found[1] is not None, found[1] or 0.0)):
        having = [(run, base, one) for run, base in runs if (one := _find(run, kind, budget)) is not None]
        bases = [None if base is None else _find(base, kind, budget) for _, base, _ in having]
        errors = [one.stderr for _, _, one in having if one.stderr is not None]
        task, metric, version, n, settings = kind
        yield Quality(
            row.method,
            budget,
            task,
            metric,
            version,
            n,
            having[0][2].guess,
            len(having),
            of,
            spread([loss_at(run, budget) for run, _, _ in having]),
            spread([None if base is None else loss_at(base, budget) for _, base, _ in having]),
            spread([one.value for _, _, one in having]),
            spread([None if one is None else one.value for one in bases]),
            math.fsum(errors) / len(errors) if len(errors) == len(having) else None,
            settings,
        )


def _find(run: Run, kind: Kind, budget: float | None) -> Measured | None:
    return next((one for one in run.results if one.kind == kind and one.budget == budget), None)


def loss_at(run: Run, budget: float | None) -> float | None:
    """Return the held-out loss at the end of a run or of its branch; None where there is none, or not finite."""
    if budget is None:
        return None if run.final is None else run.final.loss
    found = next((ending.point.loss for ending in run.branches if ending.budget == budget), math.nan)
    return found if math.isfinite(found) else None
