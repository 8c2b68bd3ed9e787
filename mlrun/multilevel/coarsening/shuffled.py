"""Units merge at random: the control for whether it matters which units merge."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from mlrun.models.axes import Merge
from mlrun.multilevel.coarsening.base import Ratios
from mlrun.multilevel.coarsening.uniform import adjacent


@dataclass(frozen=True)
class Shuffled(Ratios):
    """Equal groups from a shuffle that depends on `seed`, the axis and its size; coarse units keep their order."""

    seed: int = 0

    def merge(self, axis: str, size: int, ratio: int) -> Merge:
        units = list(range(size))
        Random(f"{self.seed}/{axis}/{size}").shuffle(units)
        groups = [sorted(units[place] for place in group) for group in adjacent(size, ratio)]
        return Merge(tuple(tuple(group) for group in sorted(groups)))
