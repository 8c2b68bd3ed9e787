"""Network Expansion: every new layer is the moving average of the layer below it (Ding et al., CVPR 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlrun.errors import mistake
from mlrun.models.axes import DEPTH, Resize, at_depth, depth_axis
from mlrun.models.base import Model
from mlrun.multilevel.growth.base import Context, Growth, layers_to_copy, only_axes

if TYPE_CHECKING:
    from mlrun.config.load import Config
    from mlrun.plan.stages import Level
    from mlrun.train.snapshot import Snapshot


@dataclass(frozen=True)
class Expand(Growth):
    """The first layer of a group is the trained one, those after it are its average (`optimizer.ema`)."""

    def grow(self, coarse: Snapshot, level: Level, context: Context) -> Snapshot:
        from mlrun.multilevel import transfer
        from mlrun.train.snapshot import Snapshot

        assert level.resize is not None
        placement = context.ranks.placement
        trained = transfer.decoalesce(coarse, level, context.carried, placement)
        average = Snapshot({"weights": coarse.tensors["ema"]})
        averaged = transfer.decoalesce(average, level, {}, placement).weights
        for template in level.model.params():
            axis = depth_axis(template)
            if axis is not None and axis in level.resize.merges:
                for first, *others in level.resize.merges[axis].groups:
                    assert first < min(others, default=first + 1)
                    names = [at_depth(template, layer) for layer in others]
                    trained.weights.update({name: averaged[name] for name in names})
        return trained

    def size_problems(self, model: Model, resize: Resize) -> list[str]:
        found = only_axes(resize, DEPTH, "expand") + layers_to_copy(resize, "expand")
        for axis in DEPTH:
            groups = resize.merges[axis].groups if axis in resize.merges else ()
            if any(list(g) != list(range(g[0], g[0] + len(g))) for g in groups):
                remedy = "a new layer is inserted above the one that it averages: coarsening.layers=adjacent"
                found.append(mistake("growth", "expand", "a coarsening of adjacent layers", remedy))
        return found

    def policy_problems(self, config: Config) -> list[str]:
        found = super().policy_problems(config)
        if config.optimizer.ema is None:
            remedy = "the new layers are the moving average; the paper has 0.99996"
            found.append(mistake("optimizer.ema", None, "a number in (0, 1)", remedy))
        return found
