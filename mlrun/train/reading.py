"""What a process reads of a run's data: its rows of each stage's batches, and the held-out set."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mlrun.config.load import Config
from mlrun.config.settings import Settings
from mlrun.data import ahead
from mlrun.plan.stages import Plan, Stage
from mlrun.train.parallel.processes import Ranks


@dataclass(frozen=True)
class Reading:
    """The open data of a run (`source`, see `mlrun.data.source`), as one of its processes reads it."""

    source: Any
    settings: Settings
    ranks: Ranks

    def batches(self, stage: Stage, step: int) -> Generator[Mapping[str, Tensor]]:
        """Return this process's rows of a stage's global batches from that of a step on."""
        batch, pieces = stage.samples.batch, stage.samples.pieces
        found = self._cut(pieces).batches(stage.cursor(step) * pieces, batch, my_rows(batch, self.ranks))
        return ahead.beside(found, self.settings.hardware.workers, self.ranks.device)

    def held_out(self) -> Iterator[Mapping[str, Tensor]]:
        """Return the held-out batches from the first on, of the size that evaluations have."""
        return iter(self.source.validation(self.settings.eval.batch))

    def held_out_sample(self) -> Mapping[str, Tensor]:
        """Return the first held-out sample, as a batch."""
        return next(iter(self.source.validation(1)))

    def first(self, pieces: int) -> Mapping[str, Tensor]:
        """Return the first of the data's samples, cut into so many, as a batch of the first piece."""
        return next(iter(self._cut(pieces).batches(0, pieces, slice(0, 1))))

    def _cut(self, pieces: int) -> Any:
        return self.source if pieces == 1 else self.source.in_pieces(pieces)


def opened(config: Config, plan: Plan, ranks: Ranks) -> Reading:
    """Open the data of a run.

    Raises:
        UserError: it cannot be read, or does not fit to the model.
    """
    most = max(stage.samples.read for stage in plan.stages)
    source = config.data.open(config.model, config.settings.seed, config.settings.cache, most)
    return Reading(ahead.served(source, config.settings.hardware.workers, ranks.device), config.settings, ranks)


def my_rows(batch: int, ranks: Ranks) -> slice:
    """Return which rows of every global batch this process trains on."""
    rows = batch // ranks.world
    return slice(ranks.rank * rows, (ranks.rank + 1) * rows)
