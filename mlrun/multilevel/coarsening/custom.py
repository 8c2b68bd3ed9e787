"""Groups written out in YAML, equal or not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast, get_args

from mlrun.errors import mistake, nearest
from mlrun.models.axes import DEPTH, RESIZED, Keep, Merge, Sizes
from mlrun.multilevel.coarsening.base import Coarsening


@dataclass(frozen=True)
class Custom(Coarsening):
    """`groups` lists, by axis, the units that merge; a pattern shorter than the axis repeats along it.

        groups: {embed: [[0, 1]], layer: [[0], [1, 2, 3]]}

    pairs neighbours all along `embed`, and of each four layers keeps one and merges three.
    `keep` says what a merged layer is: the mean of its group, or its first.
    """

    groups: dict[str, list[list[int]]] = field(default_factory=dict)
    keep: str = "mean"

    def merges(self, sizes: Sizes) -> dict[str, Merge]:
        return {axis: self._tiled(axis, sizes[axis]) for axis in self.groups}

    def problems(self, sizes: Sizes) -> list[str]:
        found = []
        if self.keep not in get_args(Keep):
            found.append(mistake("coarsening.keep", self.keep, ", ".join(get_args(Keep)), "choose one"))
        return found + [line for axis in self.groups if (line := self._problem(axis, sizes)) is not None]

    def _pattern(self, axis: str) -> Merge:
        keep = cast(Keep, self.keep if axis in DEPTH else "mean")
        return Merge(tuple(tuple(group) for group in self.groups[axis]), keep)

    def _tiled(self, axis: str, size: int) -> Merge:
        pattern = self._pattern(axis)
        starts = range(0, size, pattern.fine)
        groups = (tuple(start + unit for unit in group) for start in starts for group in pattern.groups)
        return Merge(tuple(groups), pattern.keep)

    def _problem(self, axis: str, sizes: Sizes) -> str | None:
        """Return what is wrong with the groups of an axis, or None."""
        key, known = "coarsening.groups", [axis for axis in RESIZED if axis in sizes]
        if axis not in known:
            return mistake(key, axis, ", ".join(known), f"the model has no such axis to merge{nearest(axis, known)}")
        pattern = self._pattern(axis)
        if problems := pattern.problems():
            return mistake(f"{key}.{axis}", self.groups[axis], "each unit in one group", problems[0])
        if pattern.fine == 0 or sizes[axis] % pattern.fine:
            given, allowed = f"{pattern.fine} units", f"a number that divides {axis}={sizes[axis]}"
            return mistake(f"{key}.{axis}", given, allowed, "write more or fewer groups, or use fewer levels")
        return None
