"""Growth in depth by whole layers: those of the coarse model stay as they are, the others are new.

New layers from the seed above the old ones are progressive training (arXiv 2511.04981); copies of the middle layers in
the middle are MIDAS (arXiv 2409.19044).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlrun.errors import mistake
from mlrun.models.axes import DEPTH, Param, Resize, at_depth, depth_axis
from mlrun.models.base import Model
from mlrun.multilevel.growth.base import Context, Growth, only_axes, plain_depth
from mlrun.train.snapshot import STEP, Snapshot

if TYPE_CHECKING:
    from torch import Tensor

    from mlrun.plan.stages import Level

SOURCES = ("random", "copy")
PLACES = ("above", "below", "spread", "middle")


@dataclass(frozen=True)
class Layer:
    """A layer of the fine model: the coarse layer that it is (`old`) or that a copy of it would come from."""

    coarse: int
    old: bool


# The layers of each depth axis of the fine model.
Layout = Mapping[str, Sequence[Layer]]


@dataclass(frozen=True)
class Fresh(Growth):
    """Old layers keep what the optimizer carries for them; new ones have no state and start at its step 0.

    source: what a new layer is: random (from the seed) | copy (of the old layer below it, or else of the lowest).
    place: where new layers go: above, below, spread (each old layer leads its share) or middle (copies of the middle
        layers then come in their order).
    noise: of a copy, over the standard deviation of each of its tensors, so that it parts from its original.
    silent: the last projection of each residual branch of a new layer begins at 0, so that the layer adds nothing at
        first and, in a pre-norm model, growing keeps the function (as Net2Net's, arXiv 1511.05641, and ReZero's layers
        do, arXiv 2003.04887).
    """

    source: str = "random"
    place: str = "above"
    noise: float = 0.0
    silent: bool = False

    def grow(self, coarse: Snapshot, level: Level, context: Context) -> Snapshot:
        from mlrun.models.network import initial

        layout, shard = self.layout(level), context.ranks.placement.shard

        def new(name: str, param: Param, original: str) -> Tensor:
            if self.silent and param.residual:
                return shard(initial(name, Param(param.dims), level.sizes, context.seed))
            if self.source == "random":
                return shard(initial(name, param, level.sizes, context.seed))
            copy = coarse.weights[original].clone()
            if self.noise > 0:
                drawn = Param(param.dims, std=1.0)
                scale = self.noise * context.ranks.placement.gather(copy).std(correction=0)
                copy += scale.to(copy.device) * shard(initial(f"{name} noise", drawn, level.sizes, context.seed))
            return copy

        state = {kind: placed(coarse.tensors[kind], level, layout) for kind in carried(coarse, context)}
        return Snapshot(
            {"weights": placed(coarse.weights, level, layout, new), **state}, coarse.optimizer_steps if state else 0
        )

    def inexact(self, resize: Resize, post_norm: bool) -> list[str]:
        if not self.silent:
            return ["Fresh does not keep the function; growth.silent=true does, in a pre-norm model"]
        return ["the norms of new layers act, silent or not, in a post-norm model"] if post_norm else []

    def layout(self, level: Level) -> Layout:
        """Return what each layer of the fine model is."""
        assert level.resize is not None
        sizes = level.resize.coarse
        return {axis: layers(self.place, sizes[axis], level.sizes[axis]) for axis in DEPTH if axis in sizes}

    def size_problems(self, model: Model, resize: Resize) -> list[str]:
        found = only_axes(resize, DEPTH, "fresh") + plain_depth(resize, "growth.silent=true for layers that begin at 0")
        for key, given, allowed in (("source", self.source, SOURCES), ("place", self.place, PLACES)):
            if given not in allowed:
                found.append(mistake(f"growth.{key}", given, ", ".join(allowed), "choose one"))
        if not self.noise >= 0 or (self.noise > 0 and self.source != "copy"):
            found.append(mistake("growth.noise", self.noise, "0, or above it with source=copy", "0 means none"))
        if self.source == "copy" and 0 in resize.coarse.values():
            found.append(mistake("growth.source", "copy", "random", "the coarse level has no layer to copy"))
        return found


def layers(place: str, coarse: int, fine: int) -> tuple[Layer, ...]:
    """Return what each of `fine` layers is when `coarse` of them are old; the others go to `place`."""
    added = fine - coarse
    if place == "middle":
        block = min(added, coarse)
        start = (coarse - block) // 2
        doubled = range(start, start + block)
        lower = [Layer(layer, True) for layer in range(doubled.stop)]
        copies = [Layer(doubled[i % block] if block else -1, False) for i in range(added)]
        return (*lower, *copies, *(Layer(layer, True) for layer in range(doubled.stop, coarse)))
    first = {"above": range(coarse), "below": range(added, fine), "spread": [c * fine // coarse for c in range(coarse)]}
    old = {unit: layer for layer, unit in enumerate(first[place])}
    below = [sum(unit <= i for unit in old) - 1 for i in range(fine)]
    return tuple(Layer(max(below[i], 0), i in old) for i in range(fine))


def carried(coarse: Snapshot, context: Context) -> list[str]:
    """Return the kinds of optimizer state, and of their counts, that go along."""
    return [kind for kind in (*context.carried, STEP) if context.carried and kind in coarse.tensors]


def placed(
    tensors: Mapping[str, Tensor],
    level: Level,
    layout: Layout,
    new: Callable[[str, Param, str], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return the tensors of the fine model's old layers, and of what is no layer; `new` makes those of the others.

    `new` is given a tensor's name, its declaration, and the name of what a copy would come from. A tensor that is not
    there (the optimizer has no state for it) is left out.
    """
    made: dict[str, Tensor] = {}
    for template, param in level.model.params().items():
        axis = depth_axis(template)
        for unit, layer in enumerate([Layer(0, True)] if axis is None else layout[axis]):
            name, original = at_depth(template, unit), at_depth(template, layer.coarse)
            if layer.old and original in tensors:
                made[name] = tensors[original].clone()
            elif not layer.old and new is not None:
                made[name] = new(name, param, original)
    return made
