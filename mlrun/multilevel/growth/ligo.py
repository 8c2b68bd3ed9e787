"""LiGO: the mapping from small to large is learned (Wang et al., ICLR 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlrun.errors import mistakes
from mlrun.models.axes import DEPTH, Param, Resize, depth_axis
from mlrun.models.base import Model
from mlrun.models.layers import Flops
from mlrun.multilevel.growth.base import Context, Growth, layers_to_copy
from mlrun.plan.stages import Samples

if TYPE_CHECKING:
    from mlrun.plan.stages import Level
    from mlrun.train.snapshot import Snapshot


@dataclass(frozen=True)
class LiGO(Growth):
    """`steps` AdamW steps on the mapping alone, at `lr`; `noise` is added to the depth weights at their start.

    The batches are those that the stage's first steps see again.
    """

    steps: int = 100
    lr: float = 1e-3
    noise: float = 0.01
    stateless_because = "learns how weights map, not their optimizer state"
    unsharded_because = "learns its mapping through the large model"

    def grow(self, coarse: Snapshot, level: Level, context: Context) -> Snapshot:
        from mlrun.multilevel.growth import ligo_mapping
        from mlrun.train.snapshot import Snapshot

        learned = ligo_mapping.LearnedMap(level, coarse.weights, self.noise, context.seed).to(context.ranks.device)
        ligo_mapping.learn(learned, level, context, self.steps, self.lr)
        return Snapshot({"weights": {name: t.detach().cpu().clone() for name, t in learned().items()}})

    def size_problems(self, model: Model, resize: Resize) -> list[str]:
        checks = [
            ("growth.steps", self.steps, self.steps >= 0, "an integer of at least 0"),
            ("growth.lr", self.lr, 0 < self.lr < float("inf"), "a finite number above 0"),
            ("growth.noise", self.noise, 0 <= self.noise < float("inf"), "a finite number of at least 0"),
            ("coarsening.depth_scale", resize.depth_scale, resize.depth_scale == "copy", "copy"),
        ]
        return mistakes("", checks) + layers_to_copy(resize, "ligo")

    def entry_flops(self, model: Model, resize: Resize, samples: Samples) -> Flops:
        """Return the FLOPs of learning: forward and backward of the large model and of the mapping's products."""
        large = model.flops(samples.sequence, samples.targets)
        mapped = sum(_products(name, param, resize) for name, param in model.params().items())
        per_step = Flops(samples.batch * large.body + mapped, samples.batch * large.head)
        # The learned mapping is applied once more at the end, without a backward pass.
        last = sum(_products(name, param, resize, train=False) for name, param in model.params().items())
        return Flops(self.steps * per_step.body + last, self.steps * per_step.head)


def _products(template: str, param: Param, resize: Resize, train: bool = True) -> int:
    """Return the FLOPs of mapping all layers of one template, forward and backward.

    A product has one gradient for its learned factor, and one for its input unless that is a source weight.
    """
    depth = depth_axis(template)
    shape = param.factored(resize.coarse)
    layers = resize.coarse[depth] if depth is not None else 1
    total, learned = 0, False
    for place, factor in enumerate(param.factors):
        if factor.role and factor.axis in resize.merges:
            rest = layers
            for size in (*shape[:place], *shape[place + 1 :]):
                rest *= size
            shape[place] = resize.fine[factor.axis]
            total += 2 * shape[place] * resize.coarse[factor.axis] * rest * ((2 + learned) if train else 1)
            learned = True
    if depth in DEPTH and depth in resize.merges:
        count = param.count(resize.fine)
        total += 2 * resize.fine[depth] * layers * count * ((2 + learned) if train else 1)
    return total
