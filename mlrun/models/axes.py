"""Named axes: what a parameter's dims mean, and how the units of one axis merge. No torch here.

A parameter declares its dims as strings:

    embed.out             this dim produces the axis `embed`
    embed.in              this dim consumes it
    head.out*head_dim     one stored dim that holds several axes, outermost first
    vocab                 a bare name is never resized

Depth is part of the parameter's name: `blocks.{layer}.mlp.up.weight` is one tensor per unit of `layer`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Literal

Sizes = Mapping[str, int]
Group = tuple[int, ...]
Keep = Literal["mean", "first"]
DepthScale = Literal["copy", "ode", "identity"]
# What a tensor is, and so how it goes through an operator: a weight, a gradient or the square of one.
Rule = Literal["weight", "gradient", "square"]
# Where a tensor acts that its axes do not tell: attention scores are linear in it (and divided by the root of head_dim
# behind it, or not), or all of the residual stream goes through it.
Place = Literal["", "scores", "unscaled scores", "stream"]

# The axes that each ratio moves. In grouped-query attention a unit of `kv_head` holds its query heads.
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "width": ("embed",),
    "ffn": ("ffn",),
    "head": ("head", "kv_head"),
    "depth": ("layer", "decoder_layer"),
}
DEPTH = FAMILIES["depth"]
RESIZED = tuple(axis for axes in FAMILIES.values() for axis in axes)

_DEPTH = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Factor:
    """One axis inside one stored dim; `role` is 'out', 'in' or '' (never resized)."""

    axis: str
    role: str


@cache
def factors(dim: str) -> tuple[Factor, ...]:
    """Split a dim such as `head.out*head_dim` into its factors, outermost first."""
    return tuple(Factor(*part.partition(".")[::2]) for part in dim.split("*"))


@dataclass(frozen=True)
class Param:
    """One learned tensor: its dims and how it starts (normal with `mean` and `std`; std 0 is a constant).

    `residual` marks the last projection of a residual branch: the ODE view scales it in depth. `rate` and `eps` are
    factors on the optimizer's own, its weight decay has 1 / rate; `orthogonal` is in place of `rate` where steps are
    orthogonal matrices (see `mlrun.models.parametrization`).
    """

    dims: tuple[str, ...]
    mean: float = 0.0
    std: float = 0.0
    residual: bool = False
    place: Place = ""
    rate: float = 1.0
    eps: float = 1.0
    orthogonal: float = 1.0

    @property
    def factors(self) -> tuple[Factor, ...]:
        """The axes of all dims, outermost first."""
        return tuple(factor for dim in self.dims for factor in factors(dim))

    def factored(self, sizes: Sizes) -> list[int]:
        """Return the shape with one dim per factor: `head.out*head_dim` becomes two."""
        return [sizes[factor.axis] for factor in self.factors]

    @property
    def hidden(self) -> bool:
        """True of a matrix from one resized axis to another: no vector, no table by index, no head."""
        return len(self.dims) == 2 and all(any(f.role for f in factors(dim)) for dim in self.dims)

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """Return the tensor's shape at these axis sizes; an unknown axis raises KeyError."""
        return tuple(math.prod(sizes[f.axis] for f in factors(dim)) for dim in self.dims)

    def count(self, sizes: Sizes) -> int:
        """Return the number of elements."""
        return math.prod(self.factored(sizes))


Params = Mapping[str, Param]


def depths(named: Sizes, sizes: Sizes) -> dict[str, int]:
    """Return what `layer` says of every depth among `sizes`, a decoder's too; nothing where it is not named."""
    return {axis: named["layer"] for axis in DEPTH if axis in sizes and "layer" in named}


def depth_axis(template: str) -> str | None:
    """Return the depth axis that a parameter's name template runs over, or None."""
    found = _DEPTH.search(template)
    return found.group(1) if found else None


def at_depth(template: str, index: int) -> str:
    """Return the tensor name of a template at one depth index."""
    return _DEPTH.sub(str(index), template, count=1)


def expand(params: Params, sizes: Sizes) -> Iterator[tuple[str, Param]]:
    """Yield (tensor name, Param) for every tensor of a model at these sizes."""
    for template, param in params.items():
        axis = depth_axis(template)
        if axis is None:
            yield template, param
        else:
            yield from ((at_depth(template, i), param) for i in range(sizes[axis]))


def parameter_count(params: Params, sizes: Sizes) -> int:
    """Return the number of parameters of a model at these sizes."""
    return sum(tensors * param.count(sizes) for param, tensors in repeated(params, sizes))


def repeated(params: Params, sizes: Sizes) -> Iterator[tuple[Param, int]]:
    """Yield (Param, number of its tensors) for every template of a model: what `expand` yields, counted."""
    for template, param in params.items():
        axis = depth_axis(template)
        yield param, 1 if axis is None else sizes[axis]


@dataclass(frozen=True)
class Merge:
    """How the units of one axis merge: `groups[c]` lists the fine units that make coarse unit `c`.

    `keep` says what a coarse unit is: the mean of its group (the paper), or its first member (skipping).
    """

    groups: tuple[Group, ...]
    keep: Keep = "mean"

    @property
    def fine(self) -> int:
        """Number of units before merging."""
        return sum(map(len, self.groups))

    @property
    def coarse(self) -> int:
        """Number of units after merging."""
        return len(self.groups)

    @cached_property
    def coarse_of(self) -> tuple[int, ...]:
        """The coarse unit of each fine unit."""
        coarse = {unit: index for index, group in enumerate(self.groups) for unit in group}
        return tuple(coarse[unit] for unit in range(self.fine))

    @property
    def equal_groups(self) -> bool:
        """True if all groups have one size; only then do norms over the axis stay exact."""
        return len({len(g) for g in self.groups}) == 1

    def problems(self) -> list[str]:
        """Return what is wrong with the groups: empty ones, units missing or used twice."""
        used = sorted(unit for group in self.groups for unit in group)
        if any(not group for group in self.groups):
            return ["a merge group is empty"]
        if used != list(range(len(used))):
            return [f"groups must use each unit 0..{len(used) - 1} once, got {used}"]
        return []


@dataclass(frozen=True)
class Resize:
    """The step between two adjacent levels: sizes on both sides, and a merge per resized axis."""

    fine: Sizes
    coarse: Sizes
    merges: Mapping[str, Merge]
    depth_scale: DepthScale = "copy"

    def width_only(self) -> Resize:
        """Return the part of the step that changes widths, at the coarse depth."""
        fine = {axis: self.coarse[axis] if axis in DEPTH else size for axis, size in self.fine.items()}
        return replace(self, fine=fine, merges={a: merge for a, merge in self.merges.items() if a not in DEPTH})

    def depth_only(self) -> Resize:
        """Return the part of the step that changes depth, at the fine width."""
        coarse = {axis: self.coarse[axis] if axis in DEPTH else size for axis, size in self.fine.items()}
        return replace(self, coarse=coarse, merges={a: merge for a, merge in self.merges.items() if a in DEPTH})

    def to_depth(self, layers: int) -> Resize:
        """Return the step to a coarse level of so many layers; of none no merge tells."""
        return replace(self, coarse={a: layers if a in DEPTH else size for a, size in self.coarse.items()})
