"""Growth by whole layers: where old and new ones go, what the optimizer keeps of them, and what is put back."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from kills import die
from test_growth import at_rest, config, context, levels, trained
from test_operators import FAMILIES, PRE_NORM, change, logits, weights

from mlrun.config.settings import Cycle, Row
from mlrun.errors import UserError
from mlrun.models.layers import Flops
from mlrun.models.network import build
from mlrun.multilevel import operators, transfer
from mlrun.multilevel.coarsening.kept import InTurn, Kept
from mlrun.multilevel.coarsening.shallow import Shallow
from mlrun.multilevel.coarsening.uniform import Uniform
from mlrun.multilevel.growth.decoalesce import Decoalesce
from mlrun.multilevel.growth.expand import Expand
from mlrun.multilevel.growth.fresh import Fresh, layers
from mlrun.multilevel.growth.restore import Restore
from mlrun.multilevel.growth.staged import Staged
from mlrun.plan.make import make_plan
from mlrun.plan.record import as_dict
from mlrun.plan.stages import Level
from mlrun.plan.table import show
from mlrun.train.optimizers.adamw import AdamW
from mlrun.train.optimizers.muon import Muon
from mlrun.train.optimizers.stepping import Stepping
from mlrun.train.snapshot import STEP, Snapshot

V = (Row(1, "20%"), Row(2, "40%"), Row(1, "30%"))


def v_cycle(policy: str = "carry", **changes: Any) -> Cycle:
    return Cycle(name="v", stages=list(V), optimizer_policy=policy, **changes)


@pytest.mark.parametrize(
    ("place", "coarse", "fine", "expected"),
    [
        ("above", 2, 5, "0 1 (1) (1) (1)"),
        ("below", 2, 5, "(0) (0) (0) 0 1"),
        ("spread", 2, 6, "0 (0) (0) 1 (1) (1)"),
        ("spread", 2, 5, "0 (0) 1 (1) (1)"),
        ("middle", 4, 6, "0 1 2 (1) (2) 3"),
        ("middle", 2, 4, "0 1 (0) (1)"),
        ("middle", 1, 3, "0 (0) (0)"),
        ("above", 0, 2, "(0) (0)"),
    ],
)
def test_where_old_and_new_layers_go(place: str, coarse: int, fine: int, expected: str) -> None:
    """A number is an old layer; in brackets, a new one and what a copy would come from."""
    found = layers(place, coarse, fine)
    assert " ".join(f"{x.coarse}" if x.old else f"({x.coarse})" for x in found) == expected
    assert [x.coarse for x in found if x.old] == list(range(coarse))


def test_copies_equal_their_originals_but_for_noise_of_the_size_asked_for() -> None:
    settings = config(Fresh(source="copy"), Kept(layers=[0]))
    fine, coarse = levels(settings)
    small = at_rest(*trained(coarse.model))
    plain = Fresh(source="copy").grow(small, fine, context(settings)).weights
    noisy = Fresh(source="copy", noise=0.1).grow(small, fine, context(settings)).weights
    name = "blocks.{}.mlp.up.weight"
    original = small.weights[name.format(0)]
    assert all(torch.equal(plain[name.format(i)], original) for i in range(4))
    assert torch.equal(noisy[name.format(0)], original)
    moved = noisy[name.format(2)] - original
    assert moved.std() / original.std() == pytest.approx(0.1, rel=0.1)
    assert not torch.equal(noisy[name.format(1)], noisy[name.format(2)])


@pytest.mark.parametrize("place", ["above", "below", "spread", "middle"])
@pytest.mark.parametrize("source", ["random", "copy"])
def test_silent_layers_keep_the_function_and_learn_from_the_first_step(source: str, place: str) -> None:
    growth = Fresh(source=source, place=place, silent=True)
    settings = config(growth, Kept(layers=[0, 1]))
    fine, coarse = levels(settings)
    small, batch = at_rest(*trained(coarse.model)), next(toy.Source(0, toy.SEQUENCE).batches(0, 8))
    grown = growth.grow(small, fine, context(settings))
    nets = build(coarse.model, 0), build(fine.model, 0)
    for net, snapshot in zip(nets, (small, grown), strict=True):
        net.load_state_dict(snapshot.weights)
    assert torch.equal(nets[0](batch), nets[1](batch)) and make_plan(settings).levels[0].inexact == ()
    loud = replace(growth, silent=False).grow(small, fine, context(settings)).weights
    zeroed = {name for name, t in grown.weights.items() if not torch.equal(t, loud[name])}
    new = [unit for unit, layer in enumerate(growth.layout(fine)["layer"]) if not layer.old]
    weights = {f"blocks.{unit}.{part}.weight" for unit in new for part in ("attention.output", "mlp.down")}
    assert weights <= zeroed and {name.replace(".bias", ".weight") for name in zeroed} == weights
    nets[1](batch).backward()
    assert all(
        p.grad.abs().max() > 0 for name, p in nets[1].named_parameters() if name in weights and p.grad is not None
    )


@pytest.mark.parametrize("name", PRE_NORM)
def test_silent_layers_keep_the_function_of_every_pre_norm_family(name: str) -> None:
    model = FAMILIES[name]
    resize = Shallow(layers=1).resize(model.sizes())
    small, level = model.resize(resize.coarse), Level(1, model, 0, Flops(0, 0), resize)
    state = weights(small)
    grown = Fresh(silent=True).grow(Snapshot({"weights": state}), level, context(config(Fresh(), Shallow(layers=1))))
    assert change(logits(small, state), logits(model, grown.weights)) < 1e-12


@pytest.mark.parametrize("growth", [Fresh(), Fresh(place="spread"), Fresh(source="copy", place="below")])
def test_old_layers_carry_their_moments_and_new_ones_start_at_step_0(growth: Fresh) -> None:
    settings = config(growth, Kept(layers=[0, 1]), policy="carry")
    fine, coarse = levels(settings)
    small = at_rest(*trained(coarse.model, steps=3))
    grown = growth.grow(small, fine, context(settings, carry=True))
    net = build(fine.model, 0)
    net.load_state_dict(grown.weights)
    stepping = Stepping(AdamW(lr=1e-2), net)
    stepping.load(grown.tensors, grown.optimizer_steps)
    state, _ = stepping.state()
    old = {unit: layer.coarse for unit, layer in enumerate(growth.layout(fine)["layer"]) if layer.old}
    for unit in range(4):
        name = f"blocks.{unit}.mlp.up.weight"
        assert (name in state["exp_avg"]) == (unit in old)
        if unit in old:
            assert torch.equal(state["exp_avg"][name], small.tensors["exp_avg"][f"blocks.{old[unit]}.mlp.up.weight"])
    net(next(toy.Source(0, toy.SEQUENCE).batches(0, 8))).backward()
    stepping.step()
    counts = stepping.state()[0][STEP]
    assert {int(counts[f"blocks.{unit}.mlp.up.weight"]) for unit in old} == {4}
    assert {int(counts[f"blocks.{unit}.mlp.up.weight"]) for unit in range(4) if unit not in old} == {1}


@pytest.mark.parametrize("policy", ["reset", "carry"])
@pytest.mark.parametrize("kept", [1, 2])
def test_without_a_stage_before_it_restore_is_fresh_bit_by_bit(tmp_path: Path, kept: int, policy: str) -> None:
    fresh = config(Fresh(), Shallow(layers=kept), policy=policy)
    restore = config(Restore(), Kept(layers=list(range(kept))), policy=policy)
    toy.run(tmp_path / "fresh", fresh)
    toy.run(tmp_path / "restore", restore)
    assert toy.records(tmp_path / "fresh") == toy.records(tmp_path / "restore")
    mine, other = toy.weights(tmp_path / "restore"), toy.weights(tmp_path / "fresh")
    assert all(torch.equal(mine[name], other[name]) for name in other)


@pytest.mark.parametrize("state", ["restored", "reset"])
def test_layers_return_to_where_they_came_from(state: str) -> None:
    settings = config(Restore(state=state), Kept(layers=[1, 2]), policy="carry", cycle=v_cycle())
    fine, coarse = levels(settings)
    before, small = at_rest(*trained(fine.model, steps=2)), at_rest(*trained(coarse.model, steps=5))
    grown = settings.growth.grow(small, fine, replace(context(settings, carry=True), kept=before))
    back, up = {1: 0, 2: 1}, "blocks.{}.attention.query.weight"
    for kind in ("weights", "exp_avg", "exp_avg_sq"):
        for unit in range(4):
            if unit in back:
                assert torch.equal(grown.tensors[kind][up.format(unit)], small.tensors[kind][up.format(back[unit])])
            elif kind == "weights" or state == "restored":
                assert torch.equal(grown.tensors[kind][up.format(unit)], before.tensors[kind][up.format(unit)])
            else:
                assert up.format(unit) not in grown.tensors[kind]
    assert torch.equal(grown.weights["token.weight"], small.weights["token.weight"])
    if state == "restored":
        counts = grown.tensors[STEP]
        assert [int(counts[up.format(unit)]) for unit in range(4)] == [2, 5, 5, 2]


@pytest.mark.parametrize("coarsening", [Uniform(depth=2), Uniform(depth=2, layers="strided"), Kept(layers=[1, 2])])
def test_counts_of_steps_go_through_the_operators_with_their_layers(coarsening: Any) -> None:
    """Old layers have counted 8 steps, new ones 3: merged, they have their mean; kept ones and copies their own."""
    settings = config(Decoalesce(), coarsening, policy="carry")
    fine, _ = levels(settings)
    assert fine.resize is not None
    merge, start, up = fine.resize.merges["layer"], at_rest(*trained(fine.model, steps=2)), "blocks.{}.mlp.up.weight"
    own = [8, 3, 8, 3]
    counts = {n: torch.tensor(float(own[int(n.split(".")[1])] if "." in n and n.startswith("blocks") else 8))
              for n in start.tensors["exp_avg"]}  # fmt: skip
    start.tensors[STEP] = counts
    carried = settings.optimizer.state
    down = transfer.coalesce(start, fine, carried)
    expected = [own[g[0]] if merge.keep == "first" else round(sum(own[i] for i in g) / len(g)) for g in merge.groups]
    assert [int(down.tensors[STEP][up.format(unit)]) for unit in range(merge.coarse)] == expected
    assert int(down.tensors[STEP]["token.weight"]) == 8 and down.tensors[STEP].keys() == down.tensors["exp_avg"].keys()
    grown = transfer.decoalesce(down, fine, carried)
    assert [int(grown.tensors[STEP][up.format(unit)]) for unit in range(4)] == [expected[c] for c in merge.coarse_of]
    assert grown.tensors[STEP].keys() == grown.tensors["exp_avg"].keys()
    assert STEP not in transfer.coalesce(start, fine, {}).tensors, "without the optimizer's state there is no count"
    net = build(fine.model, 0)
    net.load_state_dict(grown.weights)
    stepping = Stepping(AdamW(lr=1e-2), net)
    stepping.load(grown.tensors, grown.optimizer_steps)
    assert {n: int(c) for n, c in stepping.state()[0].get(STEP, {}).items()} in (
        {}, {n: int(c) for n, c in grown.tensors[STEP].items()}
    )  # fmt: skip


@pytest.mark.parametrize("growth", [Decoalesce(), Staged(), Expand()])
def test_copies_that_begin_without_effect_begin_at_step_0(growth: Any) -> None:
    """Their averages are zeros, so their first step is as large as any optimizer's first."""
    optimizer = AdamW(lr=1e-2, beta2=0.999, weight_decay=0.0, ema=0.9)
    settings = config(growth, Uniform(depth=2, depth_scale="identity"), policy="carry", optimizer=optimizer)
    fine, coarse = levels(settings)
    small = at_rest(*trained(coarse.model, steps=5))
    small.tensors["ema"] = small.weights
    grown = growth.grow(small, fine, context(settings, carry=True))
    net, down = build(fine.model, 0), "blocks.{}.mlp.down.weight"
    net.load_state_dict(grown.weights)
    stepping = Stepping(optimizer, net)
    stepping.load(grown.tensors, grown.optimizer_steps)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    net(next(toy.Source(0, toy.SEQUENCE).batches(0, 8))).backward()
    stepping.step()
    moved = {name: float((t - before[name]).abs().median()) for name, t in net.state_dict().items()}
    assert [moved[down.format(unit)] for unit in (1, 3)] == pytest.approx([1e-2, 1e-2], rel=1e-2)
    counts = stepping.state()[0][STEP]
    assert [int(counts[down.format(unit)]) for unit in range(4)] == [6, 1, 6, 1]
    back = transfer.coalesce(grown, fine, AdamW.state)
    assert all(int(count) == 5 for count in back.tensors[STEP].values())


def test_a_new_layer_counts_its_own_steps_through_a_later_cycle(tmp_path: Path) -> None:
    """What growing by layers left behind is still there when the level is coalesced again."""
    stages = [Row(2, "20%"), Row(1, "20%"), Row(2, "20%"), Row(1, "rest")]
    cycle = Cycle(name="w", stages=stages, optimizer_policy="carry")
    seen: list[list[int]] = []
    settings = config(Fresh(), Kept(layers=[0, 1]), policy="carry", cycle=cycle)
    with pytest.MonkeyPatch.context() as patch:
        real = transfer.counts_down

        def counts_down(fine: Any, *given: Any) -> Any:
            made, counts = real(fine, *given), fine.tensors[STEP]
            seen.append([int(made[f"blocks.{unit}.mlp.up.weight"]) for unit in range(2)])
            seen.append([int(counts[f"blocks.{unit}.mlp.up.weight"]) for unit in range(4)])
            return made

        patch.setattr(transfer, "counts_down", counts_down)
        toy.run(tmp_path, settings)
    (merged, before) = seen
    assert before[0] == before[1] > before[2] == before[3] > 0 and merged == before[:2]


@pytest.mark.parametrize(("growth", "coarsening"), [
    (Fresh(), Shallow(layers=1)), (Fresh(place="below"), Kept(layers=[0, 1])), (Restore(), Kept(layers=[1])),
])  # fmt: skip
@pytest.mark.parametrize("optimizer", [AdamW(lr=1e-2), Muon(lr=1e-2)])
def test_new_layers_that_took_no_step_go_down_at_step_0(growth: Any, coarsening: Any, optimizer: Any) -> None:
    settings = config(growth, coarsening, policy="carry", optimizer=optimizer)
    fine, coarse = levels(settings)
    net = build(coarse.model, 0)
    stepping = Stepping(optimizer, net)
    net(next(toy.Source(0, toy.SEQUENCE).batches(0, 8))).backward()
    stepping.step()
    grown = growth.grow(at_rest(net, stepping), fine, replace(context(settings), carried=optimizer.state))
    down = transfer.coalesce(grown, fine, optimizer.state)
    kinds = {kind: set(down.tensors[kind]) for kind in optimizer.state}
    assert kinds == {kind: set(named) for kind, named in stepping.state()[0].items()}
    assert int(down.tensors[STEP]["token.weight"]) == 1


W = Cycle(name="w", optimizer_policy="carry", lr_policy="continue", alpha=1.0, stages=[
    Row(1, "10%"), Row(2, "20%"), Row(1, "10%"), Row(2, "20%"), Row(1, "30%"),
])  # fmt: skip


def test_layers_take_turns_and_each_goes_back_to_where_it_was() -> None:
    plan = make_plan(config(Restore(), InTurn(depth=2), cycle=W))
    assert [stage.turn for stage in plan.stages] == [0, 0, 0, 1, 1]
    before, name = at_rest(*trained(plan.level(1).model)), "blocks.{}.mlp.up.weight"
    settings = config(Restore(), InTurn(depth=2), cycle=W)
    for down, up, kept in ((1, 2, (0, 2)), (3, 4, (1, 3))):
        small = transfer.coalesce(before, plan.pair(plan.stages[down]), AdamW.state)
        for layer, unit in enumerate(kept):
            assert torch.equal(small.weights[name.format(layer)], before.weights[name.format(unit)])
        around = replace(context(settings, carry=True), kept=before)
        moved = Snapshot({kind: {n: t + 1 for n, t in named.items()} for kind, named in small.tensors.items()}, 9)
        back = settings.growth.grow(moved, plan.pair(plan.stages[up]), around)
        for unit in range(4):
            assert torch.equal(back.weights[name.format(unit)], before.weights[name.format(unit)] + (unit in kept))


def test_a_run_takes_another_turn_and_goes_on_bitwise(tmp_path: Path) -> None:
    settings = config(Restore(), InTurn(depth=2), cycle=W, checkpoint=toy.Checkpoint(every="2 steps"))
    toy.run(tmp_path / "turns", settings)
    toy.run(tmp_path / "even", config(Restore(), Kept(layers=[0, 2]), cycle=W))
    plan, turns, even = make_plan(settings), toy.records(tmp_path / "turns"), toy.records(tmp_path / "even")
    second = plan.stages[3].first
    alike = [a["loss"] == b["loss"] for a, b in zip(turns, even, strict=True) if a["kind"] == "train"]
    assert all(alike[:second]) and not any(alike[second:])
    die(tmp_path / "killed", settings, second + 1)
    toy.run(tmp_path / "killed", settings)
    mine, other = toy.weights(tmp_path / "killed"), toy.weights(tmp_path / "turns")
    assert all(torch.equal(mine[n], other[n]) for n in other)


def test_the_plan_says_whose_turn_it_is() -> None:
    plan = as_dict(make_plan(config(Restore(), InTurn(depth=2), cycle=W)))
    assert [stage.get("turn") for stage in plan["stages"]] == [None, 0, 0, 1, 1]
    said = StringIO()
    show(plan, None, said)
    assert "coalesce, turn 2" in said.getvalue() and "decoalesce, turn 1" in said.getvalue()


def test_the_blend_leaves_skipped_layers_as_they_are() -> None:
    settings = config(Restore(), Kept(layers=[0]), cycle=v_cycle())
    fine, coarse = levels(settings)
    before, small = at_rest(*trained(fine.model, steps=2)), at_rest(*trained(coarse.model, steps=6))
    grown = settings.growth.grow(small, fine, replace(context(settings, carry=True), kept=before))
    blended = transfer.interpolate(before, grown, 0.25)
    name = "blocks.{}.mlp.down.weight"
    assert all(torch.equal(blended.weights[name.format(i)], before.weights[name.format(i)]) for i in (1, 2, 3))
    expected = 0.75 * before.weights[name.format(0)] + 0.25 * small.weights[name.format(0)]
    assert torch.allclose(blended.weights[name.format(0)], expected)
    assert [int(blended.tensors[STEP][name.format(unit)]) for unit in range(4)] == [3, 2, 2, 2]


@pytest.mark.parametrize(
    "growth", [Restore(), Restore(state="reset"), Fresh(place="middle", source="copy", noise=0.01)]
)
def test_a_killed_v_cycle_of_whole_layers_ends_bitwise(tmp_path: Path, growth: Any) -> None:
    settings = config(growth, Kept(layers=[1]), cycle=v_cycle(alpha=0.5), checkpoint=toy.Checkpoint(every="2 steps"))
    toy.run(tmp_path / "whole", settings)
    for step in (3, 9, 4):
        die(tmp_path / "killed", settings, step)
    toy.run(tmp_path / "killed", settings)
    assert toy.records(tmp_path / "killed") == toy.records(tmp_path / "whole")


@pytest.mark.parametrize(
    ("growth", "coarsening", "told"),
    [
        (Restore(), Shallow(layers=1), "a coarsening that keeps layers"),
        (Restore(state="halved"), Kept(layers=[0]), "restored, reset"),
        (Restore(), InTurn(depth=1), "coarsening.depth=1: allowed: 2, 4; it must divide the number of layers"),
        (Restore(), InTurn(depth=3), "coarsening.depth=3: allowed: 2, 4; it must divide the number of layers"),
        (Fresh(source="copy"), Shallow(layers=0), "has no layer to copy"),
        (Fresh(noise=0.1), Shallow(layers=1), "0, or above it with source=copy"),
        (Fresh(place="left"), Shallow(layers=1), "above, below, spread, middle"),
        (Fresh(), Shallow(layers=1, depth_scale="identity"), "choose growth.silent=true"),
        (Restore(), Kept(layers=[0], depth_scale="ode"), "coarsening.depth_scale=ode: allowed: copy"),
    ],
)
def test_what_cannot_be_is_one_line(growth: Any, coarsening: Any, told: str) -> None:
    with pytest.raises(UserError) as refused:
        make_plan(config(growth, coarsening))
    assert told in str(refused.value) and len(refused.value.problems) == 1


def test_snapshots_are_as_they_were() -> None:
    """What a method returns shares no memory with what it was given."""
    settings = config(Restore(), Kept(layers=[0]))
    fine, coarse = levels(settings)
    small = at_rest(*trained(coarse.model))
    grown = settings.growth.grow(Snapshot({"weights": small.weights}), fine, context(settings)).weights
    assert all(grown[n].data_ptr() != small.weights[n].data_ptr() for n in small.weights if n in grown)


@pytest.mark.parametrize("depth_scale", ["copy", "ode", "identity"])
def test_a_kept_layer_goes_down_as_it_is_with_copy_and_else_with_the_last_projections_of_its_group(
    depth_scale: str,
) -> None:
    """Against a map of numpy alone: of layers 0 and 1 the first is kept, and of 2 and 3."""
    model = replace(FAMILIES["gpt"], layer=4)
    resize = Kept(layers=[0, 2], depth_scale=depth_scale).resize(model.sizes())
    state = build(model, 3).state_dict()
    plain = {name: tensor.numpy() for name, tensor in state.items()}
    found = {name: value for name, value in plain.items() if not name.startswith("blocks.")}
    for name in (name.removeprefix("blocks.0.") for name in plain if name.startswith("blocks.0.")):
        summed = depth_scale != "copy" and name.startswith(("attention.output.", "mlp.down."))
        for coarse, (kept, skipped) in enumerate(((0, 1), (2, 3))):
            value = plain[f"blocks.{kept}.{name}"]
            found[f"blocks.{coarse}.{name}"] = value + plain[f"blocks.{skipped}.{name}"] if summed else value
    down = operators.coalesce(state, model.params(), resize)
    assert down.keys() == found.keys()
    for name, value in found.items():
        np.testing.assert_allclose(down[name].numpy(), value, rtol=1e-6, err_msg=name)
