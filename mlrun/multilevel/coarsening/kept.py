"""A level made of some of the layers of the one above, each as it is (depth_scale copy); the width stays."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field, replace

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
        return super().resize(sizes).to_depth(len(self.layers))


@dataclass(frozen=True)
class InTurn(Coarsening):
    """Of each `depth` neighbouring layers one is kept, at each coming down another: with 2 the even, then the odd ones.

    That is how the second multilevel paper makes its coarse models (arXiv 2504.18590).
    """

    depth: int = 2

    def problems(self, sizes: Sizes) -> list[str]:
        common = math.gcd(*(sizes[axis] for axis in DEPTH if axis in sizes))
        allowed = [n for n in range(2, common + 1) if common % n == 0]
        if type(self.depth) is int and self.depth in allowed:
            return []
        fine = ", ".join(map(str, allowed)) or "none: the level has one layer"
        return [mistake("coarsening.depth", self.depth, fine, "it must divide the number of layers")]

    def merges(self, sizes: Sizes, turn: int = 0) -> dict[str, Merge]:
        return {axis: Merge(self._groups(sizes[axis], turn), keep="first") for axis in DEPTH if axis in sizes}

    def turns(self, sizes: Sizes) -> tuple[Resize, ...]:
        first = self.resize(sizes)
        return tuple(replace(first, merges=self.merges(sizes, turn)) for turn in range(self.depth))

    def _groups(self, depth: int, turn: int) -> tuple[Group, ...]:
        """Return the groups of neighbours, in each the layer whose turn it is first."""
        starts = range(0, depth, self.depth)
        others = [unit for unit in range(self.depth) if unit != turn]
        return tuple((start + turn, *(start + unit for unit in others)) for start in starts)
