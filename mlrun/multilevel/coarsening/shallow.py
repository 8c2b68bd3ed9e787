"""A level with few layers or none, and the width as it is: where progressive training starts (arXiv 2511.04981)."""

from __future__ import annotations

from dataclasses import dataclass

from mlrun.errors import mistake
from mlrun.models.axes import DEPTH, Merge, Resize, Sizes
from mlrun.multilevel.coarsening.base import Coarsening


@dataclass(frozen=True)
class Shallow(Coarsening):
    """`layers` of the level below; the topmost stands for all that are above it. 0 leaves embeddings and head."""

    layers: int = 0

    def problems(self, sizes: Sizes) -> list[str]:
        least = min(sizes[axis] for axis in DEPTH if axis in sizes)
        if 0 <= self.layers < least:
            return []
        return [mistake("coarsening.layers", self.layers, f"0 to {least - 1}", "a coarser level has fewer layers")]

    def merges(self, sizes: Sizes) -> dict[str, Merge]:
        if self.layers == 0:
            return {}
        kept = tuple((layer,) for layer in range(self.layers - 1))
        return {a: Merge((*kept, tuple(range(self.layers - 1, sizes[a])))) for a in DEPTH if a in sizes}

    def resize(self, sizes: Sizes) -> Resize:
        return super().resize(sizes).to_depth(self.layers)
