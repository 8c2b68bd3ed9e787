"""Between two stages: the model goes to its next level, and a receipt says what that did to it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from mlrun.config.load import Config
from mlrun.models.axes import Rule
from mlrun.models.network import Network
from mlrun.multilevel import cost, operators, receipt, transfer
from mlrun.multilevel.growth.base import Context
from mlrun.plan.stages import Level, Plan, Stage
from mlrun.train.clock import Clock
from mlrun.train.loop import Batch
from mlrun.train.parallel.placement import Placement
from mlrun.train.parallel.processes import Ranks
from mlrun.train.snapshot import Snapshot


@dataclass(frozen=True)
class Transition:
    """What every transition of a run uses.

    kept: the models that wait for their decoalesced return or teach, by level; transitions add and take them.
    batches: those of a stage that come next, from this step on; what learns a mapping reads them.
    held_out: the held-out batches; a receipt looks at the first.
    pause: raises Stopped if a signal asks for it; called between two pieces of work.
    tell: is told what goes on and how far it is; for people alone.
    """

    config: Config
    plan: Plan
    ranks: Ranks
    clock: Clock
    kept: dict[int, Snapshot]
    batches: Callable[[Stage, int], Iterator[Batch]]
    held_out: Callable[[], Iterator[Batch]]
    pause: Callable[[], None]
    tell: Callable[[str, int, int | None], None] = lambda what, done, of: None

    @property
    def _carry(self) -> bool:
        return self.config.settings.cycle.optimizer_policy == "carry"

    @property
    def _carried(self) -> Mapping[str, Rule]:
        """The optimizer's state that goes along, by kind, with its rule."""
        return self.config.optimizer.state if self._carry else {}

    def enter(self, stage: Stage, before: Snapshot, step: int) -> tuple[Snapshot, dict[str, Any] | None]:
        """Return the model that a stage of the trunk or a probe starts from, and the receipt of a change of level.

        Raises:
            UserError: the function should have been kept and was not.
        """
        return (self if stage.probe is None else self._probing(stage.probe))._enter(stage, before, step)

    def _probing(self, number: int) -> Transition:
        """Return the transition into a probe, which grows in its own way; what waits for its return waits for all."""
        config = replace(self.config, growth=self.config.probes[number])
        return replace(self, config=config, kept={**self.kept})

    def _enter(self, stage: Stage, before: Snapshot, step: int) -> tuple[Snapshot, dict[str, Any] | None]:
        averaged = before.tensors.pop("ema", None)
        if stage.transfer is None:
            return (before if self._carry else Snapshot({"weights": before.weights})), None
        self.tell(f"{stage.transfer} to level {stage.level}", 0, None)
        if stage.transfer == "coalesce":
            pair = self.plan.pair(stage)
            self.kept[pair.number] = before
            grown = after = transfer.coalesce(before, pair, self._carried, self.ranks.placement)
            source, target = pair, self.plan.level(stage.level)
        else:
            grown = self._grown(stage, before, averaged, step)
            after = self._blended(stage, grown)
            source, target = self.plan.level(stage.level + 1), (pair := self.plan.pair(stage))
        measured = self._measured((source, before), (target, grown), (target, after))
        return after, receipt.receipt(stage.transfer, stage.alpha, pair, (measured[0], measured[1], measured[2][0]))

    def _measured(self, *models: tuple[Level, Snapshot]) -> list[tuple[float, Tensor]]:
        """Return (loss, logits) of each model on the first held-out batch; one that comes again is not run again."""
        batch = next(self.held_out())
        found: list[tuple[float, Tensor]] = []
        for number, (level, model) in enumerate(models):
            if number > 0 and model is models[number - 1][1]:
                found.append(found[-1])
                continue
            self.pause()
            found.append(receipt.loss_and_logits(level, model.weights, batch, self.ranks.device, self.ranks.placement))
        return found

    def _grown(self, stage: Stage, coarse: Snapshot, averaged: dict[str, Tensor] | None, step: int) -> Snapshot:
        """Return the coarse model at the stage's level; what learning a mapping takes is training time."""
        growth, settings = self.config.growth, self.config.settings
        context = Context(
            settings.seed,
            self._carried,
            self.ranks,
            settings,
            lambda: self.batches(stage, step),
            self.kept.get(stage.level),
            self.pause,
            self.tell,
        )
        if growth.keeps_teacher:
            self.kept[stage.level + 1] = Snapshot({"weights": coarse.weights})
        whole = Snapshot(coarse.tensors | ({"ema": averaged} if averaged is not None else {}), coarse.optimizer_steps)
        taken = self.clock.during("training" if stage.entry_flops.total > 0 else "transfer")
        with taken, cost.growing(growth, stage, self.plan.budget_flops):
            grown: Snapshot = growth.grow(whole, self.plan.pair(stage), context)
        transfer.whole(grown, self.plan.pair(stage).model, type(growth).__name__)
        return grown

    def _blended(self, stage: Stage, grown: Snapshot) -> Snapshot:
        """Return the decoalesced model after noise and interpolation with the model kept at this level."""
        settings, level = self.config.settings, self.plan.pair(stage)
        if settings.cycle.noise > 0:
            assert level.resize is not None
            placement, params = self.ranks.placement, level.model.params()
            weights = placement.gathering(grown.weights)
            noisy = operators.iter_noise(weights, params, level.resize, settings.cycle.noise, settings.seed)
            grown = Snapshot({**grown.tensors, "weights": placement.shard_all(noisy)}, grown.optimizer_steps)
        kept = self.kept.pop(stage.level, None)
        if kept is None:
            return grown
        assert stage.alpha is not None
        return transfer.interpolate(kept, grown, stage.alpha)


def copy_similarity(net: Network, level: Level, placement: Placement) -> dict[str, Any]:
    """Return how alike the decoalesced copies still are, 1 for equal: the mean cosine, and that of each layer."""
    assert level.resize is not None
    state = placement.gathering({name: t.detach() for name, t in net.state_dict().items()})
    cosines = operators.similarity(state, level.model.params(), level.resize)
    if not cosines:
        return {}
    layers: dict[str, list[float]] = {}
    for name, cosine in cosines.items():
        place = re.match(r"\w+\.\d+", name)
        layers.setdefault(place.group() if place else "outside", []).append(cosine)
    means = {layer: sum(values) / len(values) for layer, values in layers.items()}
    return {"copy_similarity": sum(cosines.values()) / len(cosines), "copy_similarity_by_layer": means}
