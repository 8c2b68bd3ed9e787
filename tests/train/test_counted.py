"""Claim: what a model of one's own declares to cost is compared with what torch counts, before a run begins."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from test_models import TINY, a_batch

from mlrun.errors import UserError
from mlrun.models.base import Model
from mlrun.models.gpt import GPT
from mlrun.models.layers import Flops
from mlrun.models.network import build
from mlrun.plan.make import make_plan
from mlrun.train import counted
from mlrun.train.optimizers.muon import Muon
from mlrun.train.optimizers.stepping import Stepping


@dataclass(frozen=True)
class Told(GPT):
    """A GPT that declares so many times its FLOPs, below a size of its width."""

    times: float = 1.0
    below: int = 10**9

    def flops(self, sequence: int, targets: int) -> Flops:
        found = super().flops(sequence, targets)
        times = self.times if self.embed < self.below else 1.0
        return Flops(int(times * found.body), int(times * found.head))


@dataclass(frozen=True)
class Looking(Told):
    """One that looks at values, which shapes alone do not have."""

    def loss(self, net: Any, batch: Any) -> torch.Tensor:
        found = super().loss(net, batch)
        return found * (float(found.detach()) != 0)


def config(kind: type[Told], **given: Any) -> Any:
    return toy.make(model=kind(**asdict(toy.model()), **given))


def notes(kind: type[Told], **given: Any) -> list[str]:
    made = config(kind, **given)
    return counted.notes(make_plan(made).levels, lambda: next(iter(toy.Toy().open(None, 0, "").validation(1))))


@pytest.mark.parametrize("model", TINY.values(), ids=TINY)
def test_shapes_alone_have_the_flops_that_are_declared(model: Model) -> None:
    batch = a_batch(model, torch.float32, rows=1)
    image = model.objective == "image"
    sequence, targets = (0, 1) if image else (batch["tokens"].shape[1], batch["labels"].shape[1])
    assert counted.count(model, batch) == model.flops(sequence, targets).total


def test_one_that_declares_too_little_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        toy.run(tmp_path / "run", config(Told, times=0.9))
    assert [line.partition(":")[0].partition("=")[0] for line in caught.value.problems] == [
        "model (level 1)",
        "model (level 2)",
    ]
    assert "which torch counts" in caught.value.problems[0] and not (tmp_path / "run").exists()


def test_so_is_one_whose_coarse_levels_alone_do(tmp_path: Path) -> None:
    """These make a cycle look cheap, and leave the baseline what it costs."""
    with pytest.raises(UserError) as caught:
        notes(Told, times=0.5, below=toy.model().embed)
    (line,) = caught.value.problems
    assert line.startswith("model (level 2)=")


def test_one_that_declares_what_torch_counts_or_is_ours_trains_without_a_word() -> None:
    assert notes(Told) == []
    assert counted.notes(make_plan(toy.make()).levels, lambda: pytest.fail("nothing of ours is counted")) == []


def test_one_that_declares_more_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first, second = notes(Told, times=1.5)
    assert first.startswith("model (level 1): ") and "are more than the" in second
    toy.run(tmp_path / "run", config(Told, times=1.5))
    assert f"mlrun: {first}" in capsys.readouterr().out


def test_one_that_cannot_be_counted_is_told() -> None:
    assert all("torch cannot count Looking" in one for one in notes(Looking, times=0.5))


def test_a_sample_is_not_changed() -> None:
    made = config(Told)
    sample = next(iter(toy.Toy().open(None, 0, "").validation(1)))
    before = {name: tensor.clone() for name, tensor in sample.items()}
    counted.notes(make_plan(made).levels, lambda: sample)
    assert all(torch.equal(sample[name], tensor) for name, tensor in before.items())


@dataclass(frozen=True, kw_only=True)
class Own(Muon):
    """Muon as somebody else's, which declares a share of its matrix products."""

    told: float = 1.0

    def update_flops(self, model: Model) -> int:
        return int(self.told * super().update_flops(model))


def stepped(optimizer: Muon) -> dict[str, torch.Tensor]:
    """Return the weights after two steps against invented gradients."""
    net = build(replace(toy.model(), layer=4), 0)
    stepping = Stepping(optimizer, net)
    for _ in range(2):
        for index, p in enumerate(net.parameters()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(index))
        stepping.step()
    return net.state_dict()


def test_an_optimizer_that_multiplies_more_matrices_than_it_declares_is_refused_at_its_first_step() -> None:
    assert Muon(lr=1e-2).update_flops(replace(toy.model(), layer=4)) > 0
    with pytest.raises(UserError, match=r"from Own.update_flops: allowed: .*which torch counts"):
        stepped(Own(lr=1e-2, told=0.9))


def test_counting_moves_nothing_otherwise() -> None:
    own, plain = stepped(Own(lr=1e-2)), stepped(Muon(lr=1e-2))
    assert own.keys() == plain.keys() and all(torch.equal(own[name], plain[name]) for name in own)
