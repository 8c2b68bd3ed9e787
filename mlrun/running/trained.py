"""The model folder that a run leaves: the model, what it cost, and what an export says of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlrun import files
from mlrun.config.load import Config
from mlrun.interop import initial, ledger, published, tokenizers
from mlrun.plan.stages import Plan, Spent
from mlrun.train import machine
from mlrun.train.model_folder import save_model
from mlrun.train.parallel.processes import Ranks
from mlrun.train.snapshot import Snapshot


@dataclass(frozen=True)
class Trained:
    """What is known of a run's model before it is trained.

    run: the run folder. source: the open data. carried: what goes on from the folder that the run starts from.
    """

    run: Path
    config: Config
    source: Any
    ranks: Ranks
    carried: initial.Carried | None

    def save(self, final: Snapshot, plan: Plan, spent: Spent, seconds: float) -> None:
        """Write the model folder; all processes call it.

        Args:
            spent: what the run has cost up to here, without what the start had cost (`plan.source`).
            seconds: of training, up to here.
        """
        folder, resolved = self.run / files.MODEL, self.config.resolved
        save_model(folder, resolved["model"], final, self.source.model_files(), self.ranks)
        if self.ranks.first:
            described = self.source.describe()
            before = () if plan.source is None else ledger.of_source(plan.source)
            ledger.write(folder, (*before, self._training(spent, seconds, described)))
            self._save_facts(folder, described)

    def _training(self, spent: Spent, seconds: float, described: dict[str, Any]) -> ledger.Training:
        return ledger.own(
            self.run.resolve().name,
            flops=spent.flops,
            flops_body=spent.flops_body,
            seconds=seconds,
            tokens=spent.tokens,
            machine=machine.words(self.ranks),
            recipe=ledger.recipe(self.config.resolved, described),
            data=ledger.read_of(described),
        )

    def _save_facts(self, folder: Path, described: dict[str, Any]) -> None:
        """Write beside the model what an export says of it: special ids as they were published, or classes."""
        model = self.config.model
        if model.objective == "image":
            facts = published.of_classes(described["labels"]) if "labels" in described else {}
        else:
            facts = tokenizers.facts_of_run(folder, model, described.get("end"))
            if self.carried is not None:
                facts = self.carried.facts or facts
                for name, content in self.carried.files.items():
                    files.write_bytes(folder / name, content)
        if facts:
            published.write(folder, facts)
