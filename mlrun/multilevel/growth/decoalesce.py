"""The paper's way up: copy what produces an axis, split what consumes it. Of a stack coarsening, StackBERT's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlrun.models.axes import Resize
from mlrun.models.base import Model
from mlrun.multilevel.coarsening.base import inexact
from mlrun.multilevel.growth.base import Context, Growth, layers_to_copy

if TYPE_CHECKING:
    from mlrun.plan.stages import Level
    from mlrun.train.snapshot import Snapshot


@dataclass(frozen=True)
class Decoalesce(Growth):
    """Optimizer state goes through the same operator when the cycle carries it."""

    makes_equal_copies = True

    def grow(self, coarse: Snapshot, level: Level, context: Context) -> Snapshot:
        from mlrun.multilevel import transfer

        return transfer.decoalesce(coarse, level, context.carried, context.ranks.placement)

    def size_problems(self, model: Model, resize: Resize) -> list[str]:
        return layers_to_copy(resize, type(self).__name__.lower())

    def inexact(self, resize: Resize, post_norm: bool) -> list[str]:
        return inexact(resize, post_norm)
