"""bert2BERT's function-preserving initialisation as a coarsening: which small unit each large one copies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlrun.models.axes import DEPTH, Merge
from mlrun.multilevel.coarsening.base import Ratios
from mlrun.multilevel.coarsening.uniform import strided


@dataclass(frozen=True)
class FPI(Ratios):
    """Unit i of the first n copies unit i, each further one a unit drawn uniformly (Chen et al. 2022, section 3.2).

    Decoalescing copies outputs and splits inputs by the number of copies: their equations for U. Depth is stacked.
    """

    seed: int = 0

    def merge(self, axis: str, size: int, ratio: int) -> Merge:
        if axis in DEPTH:
            return Merge(strided(size, ratio))
        coarse = size // ratio
        drawn = np.random.default_rng([self.seed, *axis.encode()]).integers(0, coarse, size - coarse)
        groups: list[list[int]] = [[unit] for unit in range(coarse)]
        for unit, source in enumerate(drawn, start=coarse):
            groups[int(source)].append(unit)
        return Merge(tuple(map(tuple, groups)))
