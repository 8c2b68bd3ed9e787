"""A level made of some of the layers of the one above, each as it is; the width stays."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from mlrun.errors import mistake
from mlrun.models.axes import DEPTH, Group, Merge, Resize, Sizes
from mlrun.multilevel.coarsening.base import Coarsening


@dataclass(frozen=True)
class Kept(Coarsening):
    """`layers` are those kept, counted from 0; a skipped layer goes with the kept one below it, or else the lowest.

    An empty list leaves embeddings and head. Which layers a skipped one goes with only matters to methods that copy.
    """

    layers: list[int] = field(default_factory=lambda: [0])

    def problems(self, sizes: Sizes) -> list[str]:
        depth = min(sizes[axis] for axis in DEPTH if axis in sizes)
        fine = self.layers == sorted({*self.layers}) and all(0 <= layer < depth for layer in self.layers)
        if fine and len(self.layers) < depth:
            return []
        allowed = f"fewer than {depth} different layers from 0 to {depth - 1}, in order"
        return [mistake("coarsening.layers", self.layers, allowed, "list the layers that the coarser level keeps")]

    def merges(self, sizes: Sizes) -> dict[str, Merge]:
        if not self.layers:
            return {}
        return {axis: Merge(self._groups(sizes[axis]), keep="first") for axis in DEPTH if axis in sizes}

    def _groups(self, depth: int) -> tuple[Group, ...]:
        members: list[list[int]] = [[layer] for layer in self.layers]
        for layer in sorted({*range(depth)} - {*self.layers}):
            members[max(bisect_right(self.layers, layer) - 1, 0)].append(layer)
        return tuple(map(tuple, members))

    def resize(self, sizes: Sizes) -> Resize:
        step = super().resize(sizes)
        coarse = {axis: len(self.layers) if axis in DEPTH else size for axis, size in sizes.items()}
        return Resize(step.fine, coarse, step.merges, step.depth_scale)
