"""What every coarsening is: from the axis sizes of a level, the merges that lead to the next coarser level."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import cast, get_args

from mlrun.errors import UserError, mistake
from mlrun.models.axes import DEPTH, FAMILIES, DepthScale, Merge, Resize, Sizes


@dataclass(frozen=True)
class Coarsening(ABC):
    """`depth_scale` says what copies of a layer do on the way up: copy | ode | identity (see operators)."""

    depth_scale: str = "copy"

    @abstractmethod
    def problems(self, sizes: Sizes) -> list[str]:
        """Return what does not fit a level of these sizes, one line each."""

    @abstractmethod
    def merges(self, sizes: Sizes) -> dict[str, Merge]:
        """Return the merge of each axis that changes; the sizes have no problems."""

    def resize(self, sizes: Sizes) -> Resize:
        """Return the step from a level of these sizes to the next coarser; raises UserError with all problems."""
        allowed = get_args(DepthScale)
        problems = self.problems(sizes)
        if self.depth_scale not in allowed:
            line = mistake("coarsening.depth_scale", self.depth_scale, ", ".join(allowed), "choose one")
            problems = [*problems, line]
        if problems:
            raise UserError(problems)
        merges = self.merges(sizes)
        if strange := [axis for axis in merges if axis not in sizes]:
            remedy = f"the model has no {strange[0]}; correct its `merges`"
            raise UserError(mistake("coarsening", f"{type(self).__name__}: {strange[0]}", ", ".join(sizes), remedy))
        if wrong := [line for axis, merge in merges.items() for line in _unlike(axis, merge, sizes[axis])]:
            raise UserError(f"coarsening={type(self).__name__}: {line}" for line in wrong)
        coarse = {axis: merges[axis].coarse if axis in merges else size for axis, size in sizes.items()}
        return Resize(dict(sizes), coarse, merges, cast(DepthScale, self.depth_scale))

    def turns(self, sizes: Sizes) -> tuple[Resize, ...]:
        """Return the ways down that are taken in turn, all to one size; none where there is only `resize`."""
        return ()


def _unlike(axis: str, merge: Merge, size: int) -> list[str]:
    """Return why a merge is none of an axis of this size; a coarsening of one's own may name any units."""
    other = [] if merge.fine == size else [f"groups of {merge.fine} units, but the axis has {size}"]
    found = merge.problems() or other
    return [f"{axis}: {line}; correct its `merge`" for line in found]


@dataclass(frozen=True)
class Ratios(Coarsening):
    """Each family of axes shrinks by an integer ratio; 1 leaves it as it is."""

    width: int = 1
    depth: int = 1
    ffn: int = 1
    head: int = 1

    @abstractmethod
    def merge(self, axis: str, size: int, ratio: int) -> Merge:
        """Return how `size` units of an axis merge, `ratio` to one; the ratio divides the size."""

    def merges(self, sizes: Sizes) -> dict[str, Merge]:
        return {
            axis: self.merge(axis, sizes[axis], getattr(self, family))
            for family, axes in FAMILIES.items()
            for axis in axes
            if axis in sizes and getattr(self, family) > 1
        }

    def problems(self, sizes: Sizes) -> list[str]:
        ratios = ((family, getattr(self, family)) for family in FAMILIES)
        found = (_ratio_problem(family, ratio, sizes) for family, ratio in ratios)
        return [line for line in found if line is not None]


def _ratio_problem(family: str, ratio: int, sizes: Sizes) -> str | None:
    """Return what is wrong with the ratio of a family of axes, or None."""
    key = f"coarsening.{family}"
    present = {axis: sizes[axis] for axis in FAMILIES[family] if axis in sizes}
    if type(ratio) is not int or ratio < 1:
        return mistake(key, ratio, "an integer of at least 1", "1 leaves the axis as it is")
    if ratio == 1:
        return None
    if not present:
        return mistake(key, ratio, "1", f"the model has no axis {' or '.join(FAMILIES[family])}")
    common = math.gcd(*present.values())
    if common % ratio == 0:
        return None
    allowed = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
    named = ", ".join(f"{axis}={size}" for axis, size in present.items())
    small = [axis for axis, size in present.items() if size < ratio]
    remedy = f"a level needs at least one {small[0]}" if small else "it must divide the axis"
    return mistake(key, ratio, f"{allowed} (of {named})", f"{remedy}; choose one of these or use fewer levels")


def inexact(resize: Resize, post_norm: bool = False) -> list[str]:
    """Return why decoalescing this step changes the function, one line each; empty: it is exact.

    `post_norm`: the blocks normalise after the residual sum, where even a branch that adds nothing acts.
    """
    reasons = []
    for axis, merge in resize.merges.items():
        if axis == "embed" and not merge.equal_groups:
            reasons.append("embed: norms over unequal groups are not kept; the nearest exact choice is equal groups")
        if axis in DEPTH and merge.coarse < merge.fine:
            if resize.depth_scale != "identity":
                remedy = "" if post_norm else "; depth_scale=identity is exact"
                reasons.append(f"{axis}: copied layers act again (depth_scale={resize.depth_scale}){remedy}")
            elif post_norm:
                reasons.append(
                    f"{axis}: the norms of added layers act again; no depth_scale is exact in a post-norm model"
                )
    return reasons
