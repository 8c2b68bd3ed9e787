"""bert2BERT's advanced knowledge initialisation: new units come from the layer above (Chen et al., ACL 2022).

FPI is growth=decoalesce with coarsening=fpi: its maps copy outputs and split inputs by their count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlrun.errors import mistake
from mlrun.models.axes import DEPTH, Resize, depth_axis, expand, factors
from mlrun.models.base import Model
from mlrun.models.layers import Flops
from mlrun.multilevel.growth import frozen
from mlrun.multilevel.growth.base import Context, Growth, layers_to_copy, one_stack
from mlrun.plan.stages import Samples

if TYPE_CHECKING:
    from torch import Tensor

    from mlrun.models.network import Network
    from mlrun.plan.stages import Level, Stage
    from mlrun.train.snapshot import Snapshot
    from mlrun.train.stage_loss import StageLoss


@dataclass(frozen=True)
class AKI(Growth):
    """Width first, the new columns from the next layer's expanded matrix; then depth, as the coarsening says.

    Optimizer state is never carried: a unit mixed from two layers has none of its own.

    `substructures`: layers that one sub-structure adds; the stage after the growing then trains, in turn, the lowest
    k, 2k, ... layers under the one head, of each only the top k layers and the head (two-stage pre-training; the
    authors draw the sub-structure at random, here it is the next one, so that the cost is known). None: ordinary.
    """

    substructures: int | None = None
    partial_gradients = True
    stateless_because = "mixes units of two layers, which have no optimizer state of their own"

    def grow(self, coarse: Snapshot, level: Level, context: Context) -> Snapshot:
        from mlrun.multilevel import operators
        from mlrun.train.snapshot import Snapshot

        assert level.resize is not None
        wide, deep = level.resize.width_only(), level.resize.depth_only()
        params, placement = level.model.params(), context.ranks.placement
        expanded = placement.shard_all(operators.iter_decoalesce(placement.gathering(coarse.weights), params, wide))
        mixed = placement.shard_all(_from_above(placement.gathering(expanded), level.model, wide))
        return Snapshot(
            {"weights": placement.shard_all(operators.iter_decoalesce(placement.gathering(mixed), params, deep))}
        )

    def size_problems(self, model: Model, resize: Resize) -> list[str]:
        if empty := layers_to_copy(resize, "aki"):
            return empty
        if self.substructures is None:
            return _nothing_mixed(resize)
        layers = model.sizes().get("layer", 0)
        if self.substructures < 1 or layers % self.substructures:
            allowed = f"a divisor of the level's {layers} layers, or null"
            return [mistake("growth.substructures", self.substructures, allowed, "correct the value")]
        return one_stack(model, "aki with substructures")

    def step_flops(self, model: Model, resize: Resize, samples: Samples) -> tuple[Flops, ...]:
        if self.substructures is None:
            return super().step_flops(model, resize, samples)
        depths = range(self.substructures, model.sizes()["layer"] + 1, self.substructures)
        return tuple(
            frozen.flops(model.resize({"layer": d}), samples.sequence, samples.targets, d - self.substructures)
            for d in depths
        )

    def stage_loss(self, net: Network, stage: Stage, coarse: Level, teacher: Snapshot | None) -> StageLoss | None:
        from mlrun.multilevel.growth.stage_losses import Substructures

        return None if self.substructures is None else Substructures(net, stage.first, self.substructures)


def _nothing_mixed(resize: Resize) -> list[str]:
    """Return a line if no unit is new, or no layer has another above it: growing would be growth=decoalesce."""
    merged = [axis for axis, merge in resize.width_only().merges.items() if merge.coarse < merge.fine]
    deepest = max(size for axis, size in resize.coarse.items() if axis in DEPTH)
    if merged and deepest > 1:
        return []
    remedy = "no layer has one above it" if merged else "no unit of the width is new"
    return [mistake("growth", "aki", "decoalesce", f"{remedy}, so nothing comes from the layer above")]


def _from_above(expanded: Mapping[str, Tensor], model: Model, wide: Resize) -> Iterator[tuple[str, Tensor]]:
    """Yield the widened tensors, their new output units taken from the layer above; the top one has none."""
    norms = frozen.norms(model)
    for template, param in model.params().items():
        axis = depth_axis(template)
        names = [name for name, _ in expand({template: param}, wide.fine)]
        produced = [(d, f.axis) for d, dim in enumerate(param.dims) for f in factors(dim) if f.role == "out"]
        if axis is None or template in norms or not produced or produced[0][1] not in wide.merges:
            yield from ((name, expanded[name]) for name in names)
            continue
        dim, width = produced[0]
        new = [unit for group in wide.merges[width].groups for unit in group[1:]]
        for name, above in zip(names, [*names[1:], None], strict=True):
            tensor = expanded[name]
            yield name, tensor if above is None else _replaced(tensor, expanded[above], dim, new, wide.fine[width])


def _replaced(tensor: Tensor, above: Tensor, dim: int, units: list[int], count: int) -> Tensor:
    """Return a tensor with `units` of the `count` along `dim` (outermost factor) taken from another."""
    mixed = tensor.clone()
    mixed.unflatten(dim, (count, -1)).movedim(dim, 0)[units] = above.unflatten(dim, (count, -1)).movedim(dim, 0)[units]
    return mixed
