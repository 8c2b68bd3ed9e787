"""Layer dropout that fades: what is left out is not computed, and charged as little; the draw follows from the seed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from kills import a_kill_changes_nothing
from test_models import TINY, a_batch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mlrun.config.settings import Cycle, Hardware, Row, Schedule
from mlrun.models.base import Model
from mlrun.models.deit import DeiT
from mlrun.models.layers import Flops
from mlrun.models.modules import Computed
from mlrun.models.network import Network, blocks, build
from mlrun.plan.fade import Fade, fading
from mlrun.plan.make import make_plan
from mlrun.plan.stages import Samples, Stage
from mlrun.train import loop
from mlrun.train.layer_dropout import LayerDropout
from mlrun.train.optimizers.adamw import AdamW

ROWS = 8
EVERY = pytest.mark.parametrize("model", TINY.values(), ids=TINY)


def stage_of(model: Model, batch: dict[str, Tensor], rate: float = 0.9, steps: int = 2) -> Stage:
    """Return a stage of so many steps with this layer dropout."""
    image = isinstance(model, DeiT)
    sequence, targets = (1, 1) if image else (batch["tokens"].shape[1], batch["labels"].shape[1])
    fade = fading(model, rate, sequence, targets, ROWS, 0, 0).over(0, steps)
    samples = Samples(sequence, targets, ROWS, model.tokens(sequence))
    return Stage(0, 1, samples, (model.flops(sequence, targets),), Flops(0, 0), 1.0, fade=fade, steps=steps)


# What it costs


@EVERY
def test_flops_are_charged_by_what_is_drawn_as_torch_counts_them(model: Model) -> None:
    batch = a_batch(model, torch.float32, rows=ROWS)
    stage, net = stage_of(model, batch), build(model, 0).train()
    layers, spent = LayerDropout(net, stage, 0), []
    for step in range(stage.steps):
        layers.at_step(step)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            for first, size in ((0, 3), (3, 5)):
                layers.take(first, size, torch.device("cpu"))
                net({key: value[first : first + size] for key, value in batch.items()}).backward()
        spent.append(counter.get_total_flops())
        assert sum(spent) == stage.flops(step + 1).total
    full = ROWS * stage.step_flops[0].total
    assert spent[0] < 0.9 * full and spent == sorted(spent)


@pytest.mark.parametrize("policy", ["restart", "continue"])
def test_plan_log_and_ledger_charge_what_a_run_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    real, counted = loop._gradients, [0]

    def gradients(*args: Any) -> Tensor:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            found = real(*args)
        counted[0] += counter.get_total_flops()
        return found

    monkeypatch.setattr(loop, "_gradients", gradients)
    made = dropped(policy=policy, branches=["55%"])
    summary, plan = toy.run(tmp_path, made), make_plan(made)
    logged = [record["flops"] for record in toy.records(tmp_path)]
    assert counted[0] == plan.total.flops == summary["ledger"]["total"]["flops"] == logged[-1]
    assert plan.total.flops < sum(s.samples.batch * s.steps * s.step_flops[0].total for s in plan.stages)


@pytest.mark.parametrize("policy", ["restart", "continue", "rewarm"])
@pytest.mark.parametrize("rest", [0, 1, 2])
def test_rest_takes_the_steps_that_the_spared_flops_pay_for(policy: str, rest: int) -> None:
    lengths = ["20%", "40%", "30%"]
    lengths[rest] = "rest"
    rows = [Row(level, length) for level, length in zip((1, 2, 1), lengths, strict=True)]
    made = dropped(rows, policy=policy, budget="500 steps")
    plain = make_plan(
        replace(made, settings=replace(made.settings, cycle=Cycle(name="c", stages=rows, lr_policy=policy)))
    )
    plan = make_plan(made)
    step = plan.stages[rest].samples.batch * plan.stages[rest].step_flops[0].total
    assert 0 <= plan.budget_flops - plan.total.flops < step
    assert plan.stages[rest].steps > plain.stages[rest].steps
    assert "spares" in plan.notes[-1]


@pytest.mark.parametrize("policy", ["restart", "continue", "rewarm"])
@pytest.mark.parametrize("rows", [[Row(1, "rest")], [Row(2, "30%"), Row(1, "rest")]])
def test_an_ending_costs_its_share_of_the_budget(policy: str, rows: list[Row]) -> None:
    plan = make_plan(dropped(rows, policy=policy, branches=["60%", "80%"], budget="500 steps"))
    for branch in plan.stages[len(rows) :]:
        assert branch.ending is not None and branch.fade is not None
        left = branch.ending * plan.budget_flops - plan.own(branch, branch.end).flops
        assert 0 <= left < plan.batch * plan.level(1).flops.total
        assert sum(branch.fade.counts(branch.place(branch.end - 1))) <= 1, "it ends where nearly nothing is left out"


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 0.99), st.integers(1, 64), st.integers(1, 60), st.floats(0, 1, exclude_max=True))
def test_the_number_left_out_is_the_sum_of_the_shares_to_within_one(
    rate: float, batch: int, span: int, phase: float
) -> None:
    fade = Fade((rate,), (1,), (phase,), batch, first=5, span=span)
    counts = [fade.counts(step)[0] for step in range(5, 5 + span)]
    shares = [fade.rate(0, step) for step in range(5, 5 + span)]
    assert shares[0] == rate and shares[-1] == pytest.approx(rate / span)
    for done in range(span + 1):
        assert abs(sum(counts[:done]) - batch * sum(shares[:done])) <= 1 + 1e-6
    assert sum(counts) == fade.spares(5, 5 + span) and all(0 <= count <= batch for count in counts)


@pytest.mark.parametrize("name", ["gpt", "t5"])
def test_rates_rise_with_relative_depth_in_each_stack(name: str) -> None:
    deep = TINY[name].resize({axis: 5 for axis in ("layer", "decoder_layer") if axis in TINY[name].sizes()})
    stacks = 2 if name == "t5" else 1
    assert fading(deep, 0.4, 8, 8, 4, 0).rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4] * stacks)


# What it computes


def outputs(net: Network, x: Tensor, computed: Computed | None) -> Tensor:
    block = blocks(net)[1]
    block.computed = computed
    out: Tensor = block(x)
    return out


@pytest.mark.parametrize("name", ["gpt", "bert", "deit", "llama"])
def test_rows_left_out_pass_as_they_are_and_the_others_are_scaled(name: str) -> None:
    model = TINY[name]
    net, x = build(model, 0).train(), torch.randn(5, 4, model.sizes()["embed"])
    if name == "llama":
        blocks(net)[1].through = lambda x, mask, rotary, *memory: type(blocks(net)[1]).through(
            blocks(net)[1], x, mask, net.rotary(4), *memory
        )  # type: ignore[method-assign]
    plain, rows = outputs(net, x, None), torch.tensor([0, 3])
    found = outputs(net, x, Computed(rows, 1.0))
    assert torch.equal(found[[1, 2, 4]], x[[1, 2, 4]])
    assert torch.allclose(found[rows], plain[rows], atol=1e-6)
    scaled = outputs(net, x, Computed(None, 2.0))
    assert not torch.allclose(scaled, plain)
    assert torch.equal(outputs(net.eval(), x, Computed(rows, 2.0)), plain), "evaluations leave nothing out"


def test_a_branch_is_scaled_by_one_over_its_share() -> None:
    net = build(TINY["gpt"], 0).train()
    block, x = blocks(net)[1], torch.randn(2, 4, 16)
    nn.init.zeros_(block.mlp.down.weight)  # one branch alone
    once, thrice = outputs(net, x, None) - x, outputs(net, x, Computed(None, 3.0)) - x
    assert torch.allclose(thrice, 3 * once, atol=1e-6)


def test_a_block_that_all_leave_out_still_owes_a_gradient() -> None:
    net, x = build(TINY["bert"], 0).train(), torch.randn(2, 4, 16, requires_grad=True)
    found = outputs(net, x, Computed(torch.tensor([], dtype=torch.long), 9.0))
    found.sum().backward()
    assert torch.equal(found, x) and x.grad is not None and torch.equal(x.grad, torch.ones_like(x))
    assert all(p.grad is not None and not p.grad.any() for p in blocks(net)[1].parameters())


# Which are drawn


def test_each_sample_is_left_out_as_often_as_the_others() -> None:
    model = TINY["gpt"]
    stage = stage_of(model, a_batch(model, torch.float32, rows=ROWS), rate=0.5, steps=2000)
    layers = LayerDropout(build(model, 0), stage, 0)
    left_out = torch.zeros(ROWS)
    for step in range(stage.steps):
        layers.at_step(step)
        left_out += ~layers.kept_LB[-1]
    assert (left_out / stage.steps).numpy() == pytest.approx([0.25] * ROWS, abs=0.05)


def dropped(rows: Any = toy.V_CYCLE, policy: str = "restart", branches: Any = (), **changes: Any) -> Any:
    """Return the toy run with layer dropout."""
    cycle = Cycle(name="c", stages=list(rows), lr_policy=policy, layer_dropout=0.6, branches=list(branches))
    optimizer = AdamW(lr=1e-2, schedule=Schedule(shape="wsd", warmup="2 steps", decay="3 steps"))
    model = replace(toy.model(), layer=4)
    return toy.make(model=model, cycle=cycle, optimizer=optimizer, **changes)


@pytest.mark.parametrize("at", [2, 13, 23])
def test_a_killed_run_leaves_out_what_it_would_have_left_out(tmp_path: Path, at: int) -> None:
    changes = {"checkpoint": toy.Checkpoint(every="3 steps"), "branches": ["55%"]}
    a_kill_changes_nothing(tmp_path, at, lambda: dropped(**changes))


def test_hardware_changes_neither_the_draw_nor_the_loss(tmp_path: Path) -> None:
    parts = {"plain": {}, "micro": {"micro_batch": 2}, "again": {"activation_checkpointing": True}}
    losses = {}
    for name, hardware in parts.items():
        toy.run(tmp_path / name, dropped(hardware=Hardware(**hardware)))
        losses[name] = [r["loss"] for r in toy.records(tmp_path / name) if r["kind"] in ("train", "val")]
    assert losses["again"] == losses["plain"]
    assert losses["micro"] == pytest.approx(losses["plain"], rel=1e-4)


def test_it_changes_training_and_the_seed_changes_it(tmp_path: Path) -> None:
    ends = {}
    plain = dropped()
    plain.settings.cycle = replace(plain.settings.cycle, layer_dropout=0.0)
    for name, made in {"plain": plain, "dropped": dropped()}.items():
        toy.run(tmp_path / name, made)
        ends[name] = json.loads((tmp_path / name / "summary.json").read_text())["val_loss"]
    assert ends["plain"] != ends["dropped"]
    model = TINY["gpt"]
    stage = stage_of(model, a_batch(model, torch.float32, rows=ROWS), rate=0.5)
    draws = [LayerDropout(build(model, 0), stage, seed) for seed in (0, 1)]
    for layers in draws:
        layers.at_step(0)
    assert not torch.equal(draws[0].kept_LB, draws[1].kept_LB)
