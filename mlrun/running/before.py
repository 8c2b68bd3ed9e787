"""What is settled before a run begins, or goes on: whether it can, what it should know of itself, what it costs.

Mistakes that only the processes, the data or the run folder show are found here; those of the settings, before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlrun import files
from mlrun.config.load import Config
from mlrun.errors import UserError, mistake
from mlrun.evaluate import words
from mlrun.evaluate.base import unfit
from mlrun.interop import initial
from mlrun.multilevel import cost
from mlrun.plan import begun
from mlrun.plan.stages import Plan
from mlrun.train import counted
from mlrun.train.checkpoint import layout
from mlrun.train.parallel.processes import Ranks
from mlrun.train.pruning import Pruned
from mlrun.train.reading import Reading


def refuse_uneven(config: Config, plan: Plan, ranks: Ranks) -> None:
    """Raise UserError for a batch that the processes cannot share out evenly."""
    keys = {s.samples.batch: "batch" if s.samples.batch == config.settings.batch else f"cycle.stages.{s.index}.batch"
            for s in plan.trunk}  # fmt: skip
    remedy = f"choose a multiple of {ranks.world}, the number of processes"
    allowed = f"a multiple of {ranks.world}"
    if found := [mistake(key, batch, allowed, remedy) for batch, key in keys.items() if batch % ranks.world]:
        raise UserError(found)


def notes(config: Config, plan: Plan, data: Reading) -> list[str]:
    """Return what is to be known of a run's data and of its costs, a line each.

    Raises:
        UserError: something costs more than it declares.
    """
    costs = counted.notes(plan.levels, data.held_out_sample)
    costs += cost.notes(config.growth, config.probes, plan, data.first)
    return [*data.source.describe().get("notes", []), *costs]


def words_of(config: Config, source: Any) -> words.Words | None:
    """Return how text becomes the ids of the run's model; None where no tokenizer tells it.

    Raises:
        UserError: an evaluation does not fit to the model.
    """
    known = words.of_source(source, config.model, config.data.sequence)
    if problems := unfit(config.evaluation.values(), config.model, known):
        raise UserError(problems)
    return known


def ended(config: Config, folder: Path) -> dict[str, Any] | None:
    """Return the summary of a run that is finished, None if it has yet to be.

    Raises:
        Pruned: it was found to be hopeless, and `find.prune` still asks for that.
        UserError: summary.json is damaged.
    """
    written = folder / files.SUMMARY
    before = files.read_json(written, "remove it, and the run goes on") if written.exists() else {}
    if before.get("status") == "pruned" and config.settings.find.prune is not None:
        raise Pruned(before["reason"])
    return before if before.get("status") == "finished" else None


def charged(config: Config, plan: Plan, folder: Path, ranks: Ranks) -> Plan:
    """Return the plan with what the start had cost; what a run learns of it only now is written where it tells it.

    Raises:
        UserError: the folder `init` is missing or no model, or `init_flops` does not fit to it.
    """
    found = initial.charged(plan, config.settings, folder)
    if ranks.first:
        initial.declare(folder, found, config.resolved)
    return found


def same_plan(config: Config, plan: Plan, folder: Path) -> None:
    """Raise UserError if a run that has begun was planned otherwise, or own code of it has changed since."""
    path = folder / files.PLAN
    begins = not layout.present(folder / files.CHECKPOINTS, layout.LAST, layout.BEFORE)
    if begins or not path.exists():
        return
    there = files.read_json(path, "restore it, or remove it: it is written anew")
    if problems := begun.problems(there, plan, config, path):
        raise UserError(problems)
