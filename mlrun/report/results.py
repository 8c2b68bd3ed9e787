"""What evaluations say of one run: of its end, and of each of its branches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlrun import files

# The results that say the held-out loss once more, which the report has anyway.
LOSS = ("held_out", "bits_per_byte", "perplexity")

Kind = tuple[str, str, str, int | None, str | None]


@dataclass(frozen=True)
class Measured:
    """One number about a run; `budget` is that of the branch that it is of, None for the end of the run.

    `value` is None where it is not finite. `stderr` is the number's own, `guess` what answering without looking
    scores; None where nothing tells them.
    """

    budget: float | None
    task: str
    metric: str
    n: int | None
    version: str
    value: float | None
    stderr: float | None
    guess: float | None
    settings: str | None = None

    @property
    def kind(self) -> Kind:
        """What must be equal for numbers to be compared; `settings` is a digest of those of the evaluation."""
        return self.task, self.metric, self.version, self.n, self.settings


def measured(results: Mapping[str, Any], budget: float | None = None) -> dict[str, Measured]:
    """Return results as files hold them, by task."""
    return {task: _measured(task, one, budget) for task, one in results.items() if task not in LOSS}


def _measured(task: str, one: Mapping[str, Any], budget: float | None) -> Measured:
    told = str(one["metric"]), one["n"], str(one["version"])
    value, stderr, guess = (None if one.get(k) is None else float(one[k]) for k in ("value", "stderr", "guess"))
    return Measured(budget, task, *told, value, stderr, guess, one.get("settings"))


def of_run(folder: Path, logged: Mapping[float | None, Mapping[str, Any]]) -> tuple[Measured, ...]:
    """Return what a run's log holds, the newest of each place, and what evaluate.json says of its end instead."""
    found = {budget: measured(results, budget) for budget, results in logged.items()}
    if (path := folder / files.EVALUATION).exists():
        found[None] = found.get(None, {}) | measured(files.read_json(path))
    return tuple(one for own in found.values() for one in own.values())
