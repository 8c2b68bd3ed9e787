"""Multi-stage layerwise training: after a growing only the new layers and the head learn (Yang et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlrun.errors import mistake
from mlrun.models.axes import DEPTH, Resize
from mlrun.models.base import Model
from mlrun.models.layers import Flops
from mlrun.multilevel.growth import frozen
from mlrun.multilevel.growth.base import one_stack, only_axes
from mlrun.multilevel.growth.decoalesce import Decoalesce
from mlrun.plan.stages import Samples

if TYPE_CHECKING:
    from mlrun.models.network import Network
    from mlrun.plan.stages import Level, Stage
    from mlrun.train.snapshot import Snapshot
    from mlrun.train.stage_loss import StageLoss


@dataclass(frozen=True)
class MSLT(Decoalesce):
    """The older layers lie below and are frozen, embeddings with them; a second row of the level trains them all."""

    partial_gradients = True

    def size_problems(self, model: Model, resize: Resize) -> list[str]:
        found = super().size_problems(model, resize) + only_axes(resize, DEPTH, "mslt") + one_stack(model, "mslt")
        merge = resize.merges.get("layer")
        if merge is None or [group[0] for group in merge.groups] != list(range(merge.coarse)):
            remedy = "the older layers must be the lowest: coarsening=stack"
            found.append(mistake("growth", "mslt", "a coarsening that stacks layers", remedy))
        return found

    def step_flops(self, model: Model, resize: Resize, samples: Samples) -> tuple[Flops, ...]:
        return (frozen.flops(model, samples.sequence, samples.targets, resize.coarse["layer"]),)

    def stage_loss(self, net: Network, stage: Stage, coarse: Level, teacher: Snapshot | None) -> StageLoss | None:
        from mlrun.multilevel.growth.stage_losses import freeze

        freeze(net, coarse.sizes["layer"])
        return None
