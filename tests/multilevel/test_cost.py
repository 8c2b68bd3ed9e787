"""Claim: what a growing method of one's own declares to cost is compared with what torch counts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy

from mlrun.config.settings import Cycle, Row
from mlrun.errors import UserError
from mlrun.models.base import Model
from mlrun.models.layers import Flops
from mlrun.multilevel import cost
from mlrun.multilevel.coarsening.shallow import Shallow
from mlrun.multilevel.growth.aki import AKI
from mlrun.multilevel.growth.base import Context
from mlrun.multilevel.growth.decoalesce import Decoalesce
from mlrun.multilevel.growth.fresh import Fresh
from mlrun.multilevel.growth.inherit import Inherit
from mlrun.multilevel.growth.mslt import MSLT
from mlrun.plan.make import make_plan
from mlrun.plan.stages import Level
from mlrun.train.snapshot import Snapshot
from mlrun.train.stage_loss import StageLoss

SIZE = 100  # a product of two such matrices is a hundredth of the toy's budget


@dataclass(frozen=True)
class Learning(Decoalesce):
    """Growing that multiplies matrices so many times, and a stage that takes two passes; it declares shares of both."""

    told: float = 1.0
    told_steps: float = 2.0
    size: int = SIZE

    def grow(self, coarse: Snapshot, level: Level, context: Context) -> Snapshot:
        matrix = torch.ones(self.size, self.size)
        _ = matrix @ matrix
        return super().grow(coarse, level, context)

    def entry_flops(self, model: Model, resize: Any, samples: Any) -> Flops:
        return Flops(int(self.told * 2 * self.size**3), 0)

    def step_flops(self, model: Model, resize: Any, samples: Any) -> tuple[Flops, ...]:
        (plain,) = super().step_flops(model, resize, samples)
        return (Flops(int(self.told_steps * plain.body), int(self.told_steps * plain.head)),)

    def stage_loss(self, net: Any, stage: Any, coarse: Level, teacher: Snapshot | None) -> StageLoss:
        return Twice(net)


class Plain(Fresh):
    """One that says nothing of its second pass, as it says nothing of any cost."""

    def stage_loss(self, net: Any, stage: Any, coarse: Level, teacher: Snapshot | None) -> StageLoss:
        return Twice(net)


class Twice(StageLoss):
    """The network's loss, from two passes."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Any) -> torch.Tensor:
        return (self.net(batch) + self.net(batch)) / 2


@dataclass(frozen=True)
class Peeping(Learning):
    """One whose loss looks at a value."""

    def stage_loss(self, net: Any, stage: Any, coarse: Level, teacher: Snapshot | None) -> StageLoss:
        class Looks(Twice):
            def forward(self, batch: Any) -> torch.Tensor:
                return super().forward(batch) * float(batch["tokens"].sum() * 0 + 1)

        return Looks(net)


def grown(kind: type[Learning], **given: Any) -> Any:
    rising = Cycle(name="2level", stages=[Row(1, "20%"), Row(2, "40%"), Row(1, "rest")])
    return toy.make(growth=kind(**given), cycle=rising)


def cost_notes(made: Any) -> list[str]:
    source = toy.Toy().open(None, 0, "")
    return cost.notes(made.growth, made.probes, make_plan(made), lambda pieces: next(iter(source.batches(0, 1))))


def test_steps_after_growing_that_cost_more_than_they_declare_are_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    assert cost_notes(grown(Learning)) == []
    with pytest.raises(UserError) as caught:
        toy.run(tmp_path / "run", grown(Learning, told_steps=1.0))
    (line,) = caught.value.problems
    assert line.startswith("growth (into level 1)=") and "from Learning.step_flops: allowed: " in line
    assert not (tmp_path / "run").exists()


def test_so_are_those_of_a_way_to_grow_that_is_only_probed() -> None:
    """All are counted before any begins: one that is dearer than it says would be kept for it."""
    probed = {**toy.DECIDING, "probes": (toy.PROBES[0], Plain()), "model": replace(toy.model(), layer=4)}
    with pytest.raises(UserError, match=r"^growth \(into level 1\)=.* from Plain.step_flops: allowed: "):
        cost_notes(toy.make(**probed))


def test_growing_that_costs_more_than_it_declares_is_refused_as_it_is_done(tmp_path: Path) -> None:
    assert toy.run(tmp_path / "a", grown(Learning))["status"] == "finished"
    with pytest.raises(UserError, match=r"growth \(into level 1\)=.*from Learning.entry_flops: allowed: "):
        toy.run(tmp_path / "b", grown(Learning, told=0.5))


def test_what_growing_by_operators_costs_need_not_be_declared(tmp_path: Path) -> None:
    """A coarsening multiplies by small matrices, and ours declare nothing for it."""
    assert toy.run(tmp_path / "run", grown(Learning, size=1, told=0.0))["status"] == "finished"


def test_a_stage_that_looks_at_values_is_told() -> None:
    (line,) = cost_notes(grown(Peeping, told_steps=0.1))
    assert "torch cannot count Peeping" in line


OURS = (Inherit(), AKI(substructures=1), MSLT(), Fresh())


@pytest.mark.parametrize("growth", OURS, ids=lambda one: type(one).__name__)
def test_ours_declare_what_torch_counts(growth: Any) -> None:
    rising = Cycle(name="grow", stages=[Row(2, "50%"), Row(1, "50%")])
    plan = make_plan(toy.make(coarsening=Shallow(layers=1), growth=growth, cycle=rising))
    batch = next(iter(toy.Toy().open(None, 0, "").batches(0, 1)))
    for stage in (stage for stage in plan.stages if stage.transfer == "decoalesce"):
        assert cost.steps(growth, plan, stage, batch) == [step.total for step in stage.step_flops]
