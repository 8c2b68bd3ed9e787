"""A calibration on a machine whose seconds are known predicts a run on it; memory is that of a real run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import toy

from mlrun.config.load import Config
from mlrun.config.settings import Hardware
from mlrun.errors import UserError
from mlrun.evaluate.calibrate import calibrate, short
from mlrun.models.network import Network
from mlrun.plan.calibration import Calibration, Habits, evaluated, predict
from mlrun.plan.make import make_plan
from mlrun.train import clock, probe
from mlrun.train.checkpoint.store import Checkpoints
from mlrun.train.optimizers.stepping import Stepping

# Seconds of a token, a forward pass and a step at 1,000 parameters, of a read token, and of a checkpoint.
TOKEN, PASS, STEP, READ, SAVE = 1e-3, 0.25, 0.5, 3e-4, 2.0
MACHINE = {"gpu": None, "processor": "known", "host": "here"}


class Machine:
    """A clock that goes on with the work alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: self.now))

        def after(owner: type, name: str, seconds: Any) -> None:
            real = getattr(owner, name)

            def work(this: Any, *args: Any) -> Any:
                self.now += seconds(this, *args)
                return real(this, *args)

            monkeypatch.setattr(owner, name, work)

        def size(net: Network) -> float:
            return sum(p.numel() for p in net.parameters()) / 1000

        after(Network, "forward", lambda net, batch: (PASS + TOKEN * batch["tokens"].numel()) * size(net))
        after(Network, "loss_and_logits", lambda net, batch: READ * size(net) * batch["tokens"].numel())
        after(Stepping, "step", lambda stepping: STEP * sum(p.numel() for p in self.of(stepping)) / 1000)
        after(Checkpoints, "save", lambda *args: SAVE)

    @staticmethod
    def of(stepping: Stepping) -> Any:
        return stepping.named.values()


def settings(**changes: Any) -> Config:
    config = toy.make(batch=4, **changes)
    groups = {"growth": {"_target_": "decoalesce"}, "data": {"_target_": "toy"}, "evaluation": {"held_out": {}}}
    return replace(config, resolved={**config.resolved, **groups})


def habits(config: Config, evaluations: dict[int, int], saves: dict[int, int]) -> Habits:
    micro = config.settings.hardware.micro_batch
    assert not isinstance(micro, str)
    return Habits(micro, evaluations, saves, evaluated(config), config.resolved["growth"], 1, True)


@pytest.mark.parametrize("micro", [None, 2])
def test_a_run_takes_what_was_predicted(micro: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Machine(monkeypatch)
    config = settings(hardware=Hardware(micro_batch=micro))
    found = calibrate(config, MACHINE, tmp_path)
    plan = make_plan(config)
    # 20% of 20 steps is 4: 4 + 8 + 10 steps, evaluated at the start and the end of each stage and in between.
    said = predict(plan, habits(config, {0: 2, 1: 3, 2: 4}, {0: 2, 1: 4, 2: 5}), found)
    took = toy.run(tmp_path / "run", config)["ledger"]["seconds"]
    assert said.total.training == pytest.approx(took["training"])
    assert said.total.evaluation == pytest.approx(took["evaluation"])


def test_the_memory_of_a_step_is_exact(tmp_path: Path) -> None:
    """Gradients and what the forward pass keeps; nothing of it depends on how busy the machine is."""
    with probe.peak(torch.device("cpu")) as found:
        kept = torch.ones(1000) + torch.ones(1000)
        del kept
        torch.ones(500)
    assert found.bytes == 3 * 4000
    config = settings(model=replace(toy.model(), embed=64, ffn=256))
    sizes = calibrate(config, MACHINE, tmp_path).sizes
    assert sizes[0].token_bytes > sizes[1].token_bytes > 0
    assert all(one.again_bytes >= 0 and one.read_bytes > 0 for one in sizes)


def test_a_single_level_is_measured_with_the_one_below(tmp_path: Path) -> None:
    scratch = toy.Cycle("scratch", {}, [toy.Row(1, "100%")])
    config = settings(cycle=scratch, hardware=Hardware(threads=1))
    assert [row.level for row in short(config).settings.cycle.stages] == [1, 2, 1]
    found = calibrate(config, MACHINE, tmp_path)
    assert [one.parameters for one in found.sizes] == [level.parameters for level in make_plan(settings()).levels]
    assert found.evaluates == 16 and set(found.transfers) == {"coalesce", "decoalesce"}
    assert isinstance(found, Calibration) and list(tmp_path.iterdir()) == []


def test_several_processes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one process without shards"):
        calibrate(settings(hardware=Hardware(sharding="fsdp")), MACHINE, tmp_path)
