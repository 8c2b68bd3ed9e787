"""Progressive training from zero or one layer: the new layers start fresh (arXiv 2511.04981)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlrun.models.axes import DEPTH, Resize, expand
from mlrun.models.base import Model
from mlrun.multilevel.growth.base import Context, Growth, only_axes

if TYPE_CHECKING:
    from torch import Tensor

    from mlrun.plan.stages import Level
    from mlrun.train.parallel.placement import Placement
    from mlrun.train.snapshot import Snapshot


@dataclass(frozen=True)
class Fresh(Growth):
    """Layers that the coarse model has stay the lowest ones; those above start from the seed; all else is kept."""

    stateless_because = "adds fresh layers, which have no optimizer state"

    def grow(self, coarse: Snapshot, level: Level, context: Context) -> Snapshot:
        from mlrun.train.snapshot import Snapshot

        return Snapshot({"weights": fresh(coarse.weights, level, context.seed, context.ranks.placement)})

    def size_problems(self, model: Model, resize: Resize) -> list[str]:
        return only_axes(resize, DEPTH, "fresh")


def fresh(coarse: dict[str, Tensor], level: Level, seed: int, placement: Placement) -> dict[str, Tensor]:
    """Return the coarse weights, as they are held, with fresh tensors for the layers that are missing."""
    from mlrun.models.network import initial

    sizes = level.sizes
    return {
        name: coarse[name].clone() if name in coarse else placement.shard(initial(name, param, sizes, seed))
        for name, param in expand(level.model.params(), sizes)
    }
