"""Growth in depth by putting layers back: the way up of a coarsening that keeps some layers and skips the others.

The layers that the coarse model was made of return to where they came from; the skipped ones return as this level left
them, or start from the seed where it was not trained. With one kept layer and no training before it this is progressive
training from one layer (arXiv 2511.04981), which so is a V-cycle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlrun.errors import mistake
from mlrun.models.axes import DEPTH, Param, Resize
from mlrun.models.base import Model
from mlrun.multilevel.growth.base import Context, Growth, only_axes, plain_depth
from mlrun.multilevel.growth.fresh import Layer, Layout, carried, placed
from mlrun.train.snapshot import STEP, Snapshot

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mlrun.plan.stages import Level

STATES = ("restored", "reset")


@dataclass(frozen=True)
class Restore(Growth):
    """`state` of the skipped layers' optimizer: restored (as this level left it) | reset (step 0); kept layers carry.

    The blend that follows (`alpha`) then acts on the kept layers and on what is no layer: a skipped layer is blended
    with itself.
    """

    state: str = "restored"

    def grow(self, coarse: Snapshot, level: Level, context: Context) -> Snapshot:
        from mlrun.models.network import initial

        layout, before = returned(level), context.kept

        def skipped(name: str, param: Param, original: str) -> Tensor:
            if before is not None:
                return before.weights[name].clone()
            return context.ranks.placement.shard(initial(name, param, level.sizes, context.seed))

        weights = placed(coarse.weights, level, layout, skipped)
        state = {kind: placed(coarse.tensors[kind], level, layout) for kind in carried(coarse, context)}
        if before is not None and self.state == "restored" and state:
            state = _with_skipped(state, coarse, before)
        return Snapshot({"weights": weights, **state}, coarse.optimizer_steps if state else 0)

    def size_problems(self, model: Model, resize: Resize) -> list[str]:
        found = only_axes(resize, DEPTH, "restore") + plain_depth(resize, "copy: layers are put back as they were")
        if any(merge.keep != "first" for axis, merge in resize.merges.items() if axis in DEPTH):
            remedy = "only layers that were kept as they are can be put back: coarsening=kept"
            found.append(mistake("growth", "restore", "a coarsening that keeps layers", remedy))
        if self.state not in STATES:
            found.append(mistake("growth.state", self.state, ", ".join(STATES), "choose one"))
        return found


def returned(level: Level) -> Layout:
    """Return what each layer is when the coarse ones are where they came from: the first of each group."""
    assert level.resize is not None
    layout = {}
    for axis in (axis for axis in DEPTH if axis in level.sizes):
        groups = level.resize.merges[axis].groups if axis in level.resize.merges else ()
        whole = len(groups) == 0 and level.resize.coarse[axis] == level.sizes[axis]
        first = range(level.sizes[axis]) if whole else [group[0] for group in groups]
        old = {unit: layer for layer, unit in enumerate(first)}
        layout[axis] = tuple(Layer(old.get(unit, 0), unit in old) for unit in range(level.sizes[axis]))
    return layout


def _with_skipped(
    state: dict[str, dict[str, torch.Tensor]], coarse: Snapshot, before: Snapshot
) -> dict[str, dict[str, torch.Tensor]]:
    """Return the state with that of the skipped layers, and each tensor's own count of steps."""
    import torch

    counts = {name: torch.tensor(float(coarse.optimizer_steps)) for named in state.values() for name in named}
    counts |= state.pop(STEP, {})
    skipped = {name for kind in state for name in before.tensors.get(kind, {}) if name not in counts}
    whole = {
        kind: named | {n: t.clone() for n, t in before.tensors.get(kind, {}).items() if n in skipped}
        for kind, named in state.items()
    }
    theirs = before.tensors.get(STEP, {})
    counts |= {name: theirs.get(name, torch.tensor(float(before.optimizer_steps))) for name in skipped}
    return {**whole, STEP: counts}
