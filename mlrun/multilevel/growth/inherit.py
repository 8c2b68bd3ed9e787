"""Knowledge inheritance: a fresh large model learns from the small one's predictions (Qin et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlrun.errors import mistake, mistakes
from mlrun.models.axes import Resize
from mlrun.models.base import Model
from mlrun.models.layers import Flops
from mlrun.multilevel.growth import frozen
from mlrun.multilevel.growth.base import Context, Growth
from mlrun.plan.stages import Samples

if TYPE_CHECKING:
    from mlrun.models.network import Network
    from mlrun.plan.stages import Level, Stage
    from mlrun.train.snapshot import Snapshot
    from mlrun.train.stage_loss import StageLoss


@dataclass(frozen=True)
class Inherit(Growth):
    """`weight` is the teacher's share of the loss at the stage's start; it falls linearly to 0 at its end."""

    weight: float = 0.5
    temperature: float = 1.0
    keeps_teacher = True
    stateless_because = "starts a fresh model, which has no optimizer state"
    unsharded_because = "learns from a teacher"

    def grow(self, coarse: Snapshot, level: Level, context: Context) -> Snapshot:
        from mlrun.models.network import build
        from mlrun.train.snapshot import Snapshot

        return Snapshot({"weights": dict(build(level.model, context.seed).state_dict())})

    def size_problems(self, model: Model, resize: Resize) -> list[str]:
        checks = [
            ("weight", self.weight, 0 < self.weight <= 1, "a number in (0, 1]"),
            ("temperature", self.temperature, 0 < self.temperature < float("inf"), "a finite number above 0"),
        ]
        found = mistakes("growth.", checks)
        if getattr(model, "distillation", False):
            remedy = "the model's own distillation head already has a teacher"
            found.append(mistake("growth", "inherit", "model.distillation=false", remedy))
        return found

    def step_flops(self, model: Model, resize: Resize, samples: Samples) -> tuple[Flops, ...]:
        own = model.flops(samples.sequence, samples.targets)
        taught = frozen.forward(model.resize(resize.coarse), samples.sequence, samples.targets)
        return (Flops(own.body + taught.body, own.head + taught.head),)

    def stage_loss(self, net: Network, stage: Stage, coarse: Level, teacher: Snapshot | None) -> StageLoss | None:
        from mlrun.models.network import build
        from mlrun.multilevel.growth.stage_losses import Distilled

        assert teacher is not None
        device = next(net.parameters()).device
        small = build(coarse.model, None)
        small.load_state_dict(teacher.weights)
        return Distilled(net, small.to(device), self.weight, self.temperature, range(stage.first, stage.end)).to(device)
