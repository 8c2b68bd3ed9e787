"""Every unit merges with its neighbours, or with the units a fixed distance away."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mlrun.errors import mistake
from mlrun.models.axes import DEPTH, Group, Merge, Sizes
from mlrun.multilevel.coarsening.base import Ratios


def strided(size: int, ratio: int) -> tuple[Group, ...]:
    """Return groups of unit i with i + n, i + 2n, ...; n = size / ratio (the paper's F_out = [I/2, I/2])."""
    coarse = size // ratio
    return tuple(tuple(range(unit, size, coarse)) for unit in range(coarse))


def adjacent(size: int, ratio: int) -> tuple[Group, ...]:
    """Return groups of neighbours: 0 with 1, 2 with 3, ..."""
    return tuple(tuple(range(first, first + ratio)) for first in range(0, size, ratio))


UNITS: Mapping[str, Callable[[int, int], tuple[Group, ...]]] = {"strided": strided, "adjacent": adjacent}
LAYERS = (*UNITS, "skip")


@dataclass(frozen=True)
class Uniform(Ratios):
    """`units` groups the width axes, `layers` the depth; "skip" keeps the first layer of each group as it is."""

    units: str = "strided"
    layers: str = "adjacent"

    def merge(self, axis: str, size: int, ratio: int) -> Merge:
        if axis not in DEPTH:
            return Merge(UNITS[self.units](size, ratio))
        if self.layers == "skip":
            return Merge(adjacent(size, ratio), keep="first")
        return Merge(UNITS[self.layers](size, ratio))

    def problems(self, sizes: Sizes) -> list[str]:
        found = super().problems(sizes)
        for key, given, allowed in (("units", self.units, tuple(UNITS)), ("layers", self.layers, LAYERS)):
            if given not in allowed:
                found.append(mistake(f"coarsening.{key}", given, ", ".join(allowed), "choose one"))
        return found
