"""Each growing method has the property that defines it, costs what it says, and refuses what it cannot do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from kills import die
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mlrun.config.settings import Cycle, Row
from mlrun.errors import UserError
from mlrun.log.console import Lines
from mlrun.models.base import Model
from mlrun.models.bert import BERT
from mlrun.models.deit import DeiT
from mlrun.models.gpt import GPT
from mlrun.models.network import build
from mlrun.multilevel import receipt, transfer
from mlrun.multilevel.coarsening.fpi import FPI
from mlrun.multilevel.coarsening.kept import InTurn, Kept
from mlrun.multilevel.coarsening.shallow import Shallow
from mlrun.multilevel.coarsening.uniform import Uniform
from mlrun.multilevel.growth import frozen, ligo_mapping, stage_losses
from mlrun.multilevel.growth.aki import AKI
from mlrun.multilevel.growth.base import Context
from mlrun.multilevel.growth.decoalesce import Decoalesce
from mlrun.multilevel.growth.expand import Expand
from mlrun.multilevel.growth.fresh import Fresh
from mlrun.multilevel.growth.inherit import Inherit
from mlrun.multilevel.growth.ligo import LiGO
from mlrun.multilevel.growth.mslt import MSLT
from mlrun.multilevel.growth.staged import Staged
from mlrun.plan.make import make_plan
from mlrun.plan.stages import Level, Samples
from mlrun.train.optimizers.adamw import AdamW
from mlrun.train.optimizers.muon import Muon
from mlrun.train.optimizers.stepping import Stepping
from mlrun.train.parallel.processes import Ranks
from mlrun.train.snapshot import Snapshot

DIMS = {"embed": 16, "head": 2, "head_dim": 8, "ffn": 32, "layer": 2}
TINY: dict[str, Model] = {
    "gpt": GPT(vocab=toy.WORDS, position=toy.SEQUENCE, **DIMS),
    "bert": BERT(vocab=toy.WORDS, position=toy.SEQUENCE, token_type=2, **DIMS),
    "deit": DeiT(image=8, channel=3, patch=4, classes=5, **DIMS),
}


def a_batch(model: Model) -> dict[str, torch.Tensor]:
    if isinstance(model, DeiT):
        return {"images": torch.randn(3, 3, 8, 8), "labels": torch.arange(3)}
    return next(toy.Source(0, toy.SEQUENCE).batches(0, 3))


GROW = (Row(2, "30%"), Row(1, "40%"), Row(1, "20%"))
STACK, WIDTH = Uniform(depth=2, layers="strided"), Uniform(width=2, ffn=2, head=2)
BOTH = Uniform(width=2, ffn=2, head=2, depth=2, layers="strided")
ONE = Ranks(0, 1, torch.device("cpu"))


def config(growth: Any, coarsening: Any, layers: int = 4, **changes: Any) -> Any:
    cycle = Cycle(name="grow", stages=list(GROW), optimizer_policy=changes.pop("policy", "reset"))
    model = replace(toy.model(), layer=layers)
    return toy.make(coarsening, model, growth, **({"cycle": cycle} | changes))


def context(settings: Any, carry: bool = False) -> Context:
    source = toy.Source(0, toy.SEQUENCE)
    return Context(
        0, AdamW.state if carry else {}, ONE, settings.settings, lambda: source.batches(0, settings.settings.batch)
    )


def levels(settings: Any) -> tuple[Level, Level]:
    made = make_plan(settings)
    return made.level(1), made.level(2)


def trained(model: Model, steps: int = 3) -> tuple[Any, Stepping]:
    """Return a network and its AdamW after a few steps."""
    net = build(model, 0)
    optimizer = Stepping(AdamW(lr=1e-2, eps=1e-30), net)
    batches = toy.Source(0, toy.SEQUENCE).batches(0, 8)
    for _ in range(steps):
        net(next(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net, optimizer


def at_rest(net: Any, optimizer: Stepping) -> Snapshot:
    state, taken = optimizer.state()
    return Snapshot({"weights": {n: t.detach().clone() for n, t in net.state_dict().items()}, **state}, taken)


def logits(model: Model, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    batch = next(toy.Source(0, toy.SEQUENCE).batches(0, 4))
    return receipt.loss_and_logits(Level(1, model, 0, model.flops(1, 1)), weights, batch, torch.device("cpu"))[1]


# StackBERT, G_stack


def test_stacking_repeats_the_layers_and_keeps_embeddings() -> None:
    settings = config(None, Uniform(depth=4, layers="strided"), layers=8)
    fine, coarse = levels(settings)
    small = at_rest(*trained(coarse.model, 1))
    grown = settings.growth.grow(small, fine, context(settings)).weights
    for name in (n for n in small.weights if n.startswith("blocks.")):
        _, layer, rest = name.split(".", 2)
        for copy in range(4):
            assert torch.equal(grown[f"blocks.{int(layer) + copy * 2}.{rest}"], small.weights[name])
    assert torch.equal(grown["token.weight"], small.weights["token.weight"])


# bert2BERT


def test_fpi_draws_new_units_and_splits_inputs_by_their_copies() -> None:
    settings = config(None, FPI(width=2, ffn=2, head=2))
    fine, coarse = levels(settings)
    small = at_rest(*trained(coarse.model, 1)).weights
    grown = settings.growth.grow(Snapshot({"weights": small}), fine, context(settings)).weights
    merges = fine.resize.merges
    assert [g[0] for g in merges["ffn"].groups] == list(range(32)) and not merges["ffn"].equal_groups
    g_in, g_out = merges["embed"].coarse_of, merges["ffn"].coarse_of
    name, counts = "blocks.0.mlp.up.weight", torch.tensor([len(merges["embed"].groups[c]) for c in g_in])
    assert torch.allclose(grown[name], small[name][list(g_out)][:, list(g_in)] / counts)


def test_aki_takes_new_units_from_the_layer_above() -> None:
    settings = config(AKI(), WIDTH)
    fine, coarse = levels(settings)
    small = at_rest(*trained(coarse.model, 1))
    plain = transfer.decoalesce(small, fine, {}).weights
    grown = settings.growth.grow(small, fine, context(settings)).weights
    for kind in ("mlp.up.weight", "mlp.up.bias", "mlp.down.weight", "attention.query.weight"):
        name, half = "blocks.{}." + kind, len(plain[f"blocks.1.{kind}"]) // 2
        assert torch.equal(grown[name.format(1)][:half], plain[name.format(1)][:half])
        assert torch.equal(grown[name.format(1)][half:], plain[name.format(2)][half:])
        assert torch.equal(grown[name.format(3)], plain[name.format(3)]), "the top layer has none above"
    assert torch.equal(grown["blocks.1.mlp_norm.weight"], plain["blocks.1.mlp_norm.weight"])
    assert torch.equal(grown["token.weight"], plain["token.weight"])


def test_substructures_learn_their_top_layers_and_the_head_in_turn(tmp_path: Path) -> None:
    model = replace(toy.model(), layer=4)
    net = build(model, 0)
    stage_loss = stage_losses.Substructures(net, first=10, size=2)
    batch = next(toy.Source(0, toy.SEQUENCE).batches(0, 2))
    stage_loss.at_step(11)
    stage_loss(batch).backward()
    learned = {n for n, p in net.named_parameters() if p.grad is not None}
    assert learned == {n for n, _ in net.named_parameters() if n.startswith(("blocks.2", "blocks.3", "norm"))}
    stage_loss.at_step(12)
    expected = build(model.resize({"layer": 2}), None)
    expected.load_state_dict({n: t for n, t in net.state_dict().items() if not n.startswith(("blocks.2", "blocks.3"))})
    assert torch.equal(stage_loss(batch), expected(batch))
    toy.run(tmp_path, config(AKI(substructures=2), BOTH))


# LiGO


def test_ligo_starts_at_stacking_and_its_loss_falls() -> None:
    settings = config(LiGO(steps=1), BOTH)
    fine, coarse = levels(settings)
    small = at_rest(*trained(coarse.model))
    start = ligo_mapping.LearnedMap(fine, small.weights, 0.0, 0)()
    stacked = transfer.decoalesce(small, fine, {}).weights
    assert set(start) == set(stacked)
    assert all(torch.allclose(start[name], stacked[name], atol=1e-6) for name in stacked)
    learned = ligo_mapping.LearnedMap(fine, small.weights, 0.01, 0)
    batch, net = next(toy.Source(0, toy.SEQUENCE).batches(10**4, 64)), build(fine.model, None)
    before = float(functional_call(net, learned(), (batch,)).detach())
    ligo_mapping.learn(learned, fine, context(settings), 25, 1e-2)
    assert float(functional_call(net, learned(), (batch,)).detach()) < before - 0.01
    assert all(torch.equal(learned.source[n], t) for n, t in small.weights.items())


@pytest.mark.parametrize("coarsening", [STACK, WIDTH, BOTH])
def test_ligo_is_charged_what_torch_counts(coarsening: Any) -> None:
    settings = config(LiGO(steps=2), coarsening)
    fine, coarse = levels(settings)
    small = at_rest(*trained(coarse.model, 1))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        settings.growth.grow(small, fine, context(settings))
    entry = settings.growth.entry_flops(fine.model, fine.resize, Samples(toy.SEQUENCE, toy.SEQUENCE, 8, toy.SEQUENCE))
    assert counter.get_total_flops() == entry.total


def test_what_growing_costs_is_in_the_ledger_and_in_every_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, told = config(LiGO(steps=3), BOTH), []
    monkeypatch.setattr(Lines, "doing", lambda self, *how: told.append(how))
    summary, planned = toy.run(tmp_path, settings), make_plan(settings)
    entry = planned.stages[1].entry_flops.total
    first = next(r for r in toy.records(tmp_path) if r["stage"] == 1 and r["kind"] == "val")
    assert entry > 0 and first["flops"] == planned.stage_cost(planned.stages[0]).flops + entry
    assert sum(s["flops"] for s in summary["ledger"]["stages"]) == planned.total.flops
    assert toy.records(tmp_path)[-1]["flops"] == planned.total.flops
    learning = [("learning the mapping", step, 3) for step in range(3)]
    assert [how for how in told if "evaluating" not in how[0]] == [("decoalesce to level 1", 0, None), *learning]
    seconds = summary["ledger"]["seconds"]["training"]
    assert sum(s["seconds"] for s in summary["ledger"]["stages"]) == pytest.approx(seconds)
    cycle = Cycle(name="grow", stages=[Row(2, "30%"), Row(1, "rest")])
    rest = make_plan(config(LiGO(), BOTH, budget="400 steps", cycle=cycle))
    assert rest.total.flops <= rest.budget_flops


# Network Expansion


def test_expansion_inserts_the_average_above_each_layer(tmp_path: Path) -> None:
    settings = config(Expand(), Uniform(depth=2), optimizer=AdamW(lr=1e-2, ema=0.9))
    fine, coarse = levels(settings)
    small = at_rest(*trained(coarse.model, 1))
    small.tensors["ema"] = {n: t + 1 for n, t in small.weights.items()}
    grown = settings.growth.grow(small, fine, context(settings)).weights
    for layer in range(2):
        name = "blocks.{}.mlp.up.weight"
        assert torch.equal(grown[name.format(2 * layer)], small.weights[name.format(layer)])
        assert torch.equal(grown[name.format(2 * layer + 1)], small.weights[name.format(layer)] + 1)
    toy.run(tmp_path, settings)


# Staged training


@pytest.mark.parametrize("model", ["gpt", "bert"])
def test_staged_growth_keeps_the_function(model: str) -> None:
    big = TINY[model]
    resize = WIDTH.resize(big.sizes())
    small = big.resize(resize.coarse)
    level = Level(1, big, 0, big.flops(4, 4), resize)
    batch = a_batch(small)
    coarse = Snapshot({"weights": dict(build(small, 1).state_dict())})
    grown = Staged().grow(coarse, level, context(config(None, STACK)))
    before = receipt.loss_and_logits(
        Level(1, small, 0, small.flops(4, 4)), build(small, 1).state_dict(), batch, ONE.device
    )
    after = receipt.loss_and_logits(level, grown.weights, batch, ONE.device)
    assert receipt.relative_change(before[1], after[1]) < 1e-5


def test_staged_growth_keeps_the_next_step() -> None:
    """Every copied weight makes the step that the small model would have made."""
    settings = config(Staged(), WIDTH, policy="carry")
    fine, coarse = levels(settings)
    net, optimizer = trained(coarse.model)
    grown = settings.growth.grow(at_rest(net, optimizer), fine, context(settings, carry=True))
    big = build(fine.model, None)
    big.load_state_dict(grown.weights)
    big_optimizer = Stepping(AdamW(lr=1e-2, eps=1e-30), big)
    big_optimizer.load(grown.tensors, grown.optimizer_steps)
    batch = next(toy.Source(5, toy.SEQUENCE).batches(0, 8))
    for model, adam in ((net, optimizer), (big, big_optimizer)):
        adam.set_rate(1e-3)
        model(batch).backward()
        adam.step()
    small, large = at_rest(net, optimizer).weights, at_rest(big, big_optimizer).weights
    for name in ("blocks.1.mlp.up.weight", "blocks.2.attention.output.weight", "token.weight", "blocks.0.mlp.up.bias"):
        block = tuple(slice(0, size) for size in small[name].shape)
        assert torch.allclose(large[name][block], small[name], atol=2e-5), name
        assert not torch.allclose(grown.weights[name][block], small[name], atol=2e-4), f"{name} must have moved"


def test_staged_growth_says_where_the_next_step_is_another() -> None:
    def told(coarsening: Any = WIDTH, growth: Any = None, parametrization: str = "standard", **changes: Any) -> Any:
        settings = config(growth or Staged(), coarsening, policy="carry", **changes)
        model = replace(settings.model, parametrization=parametrization)
        return [line for line in make_plan(replace(settings, model=model)).notes if "next step" in line]

    muon = {"optimizer": Muon(lr=1e-2)}
    assert told() == told(STACK, **muon) == told(growth=Decoalesce(), **muon) == []
    assert told(**muon) == [
        "staged keeps the function, but not the next step: "
        "Muon moves a matrix as a whole, not each copied block as before"
    ]
    assert "completep has other rates" in told(parametrization="completep")[0]


# MSLT


def test_frozen_layers_do_not_move_and_thaw_in_the_next_row(tmp_path: Path) -> None:
    cycle = Cycle(name="mslt", stages=[Row(2, "6 steps"), Row(1, "6 steps")])
    settings = config(MSLT(), STACK, cycle=cycle, checkpoint=toy.Checkpoint(every="100%"))
    toy.run(tmp_path / "a", settings)
    weights = toy.weights(tmp_path / "a")
    fixed = frozen.names(settings.model, 2)
    cut = config(MSLT(), STACK, cycle=Cycle(name="mslt", stages=[Row(2, "6 steps"), Row(1, "0 steps")]))
    toy.run(tmp_path / "b", cut)
    before = toy.weights(tmp_path / "b")
    assert {n for n in weights if torch.equal(weights[n], before[n])} == fixed
    thawed = Cycle(name="mslt", stages=[Row(2, "6 steps"), Row(1, "0 steps"), Row(1, "1 steps")])
    toy.run(tmp_path / "c", config(MSLT(), STACK, cycle=thawed))
    moved = toy.weights(tmp_path / "c")
    assert not any(torch.equal(moved[n], before[n]) for n in fixed)


@pytest.mark.parametrize("name", ["gpt", "bert", "deit"])
def test_frozen_flops_are_what_torch_counts(name: str) -> None:
    model = TINY[name]
    batch = a_batch(model)
    sequence = batch["tokens"].shape[1] if "tokens" in batch else 0
    targets = batch["labels"].shape[1] if "tokens" in batch else 1
    net = build(model, 0)
    stage_losses.freeze(net, 1)
    rows = len(batch["labels"])
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        net(batch).backward()
    assert counter.get_total_flops() == rows * frozen.flops(model, sequence, targets, 1).total
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        net(batch)
    assert counter.get_total_flops() == rows * frozen.forward(model, sequence, targets).total


# Knowledge inheritance


def test_the_teacher_is_learned_from_charged_and_fades(tmp_path: Path) -> None:
    settings = config(Inherit(weight=1.0), BOTH)
    fine, coarse = levels(settings)
    teacher, student = build(coarse.model, 1), build(fine.model, 2)
    stage_loss = stage_losses.Distilled(student, teacher, 1.0, 2.0, range(10, 14))
    batch = next(toy.Source(0, toy.SEQUENCE).batches(0, 2))
    shares = [stage_loss.at_step(step) or float(stage_loss.share) for step in range(10, 14)]
    assert shares == [1.0, 0.75, 0.5, 0.25]
    stage_loss.at_step(14)
    assert torch.allclose(stage_loss(batch), student(batch))
    stage_loss.at_step(10)
    same = stage_losses.Distilled(student, student, 1.0, 2.0, range(10, 14))
    assert float(same(batch)) == pytest.approx(0, abs=1e-6)
    made = make_plan(settings)
    own, taught = fine.flops.total, coarse.flops.total // 3
    assert made.stages[1].step_flops[0].total == own + taught and made.stages[2].step_flops[0].total == own
    toy.run(tmp_path, settings)


def test_a_distilled_run_resumes_with_its_teacher(tmp_path: Path) -> None:
    settings = config(Inherit(), BOTH, checkpoint=toy.Checkpoint(every="1 step"))
    toy.run(tmp_path / "whole", settings)
    die(tmp_path / "killed", settings, 10)
    toy.run(tmp_path / "killed", settings)
    assert toy.records(tmp_path / "killed") == toy.records(tmp_path / "whole")


@pytest.mark.parametrize("growth", [MSLT(), AKI(substructures=1)])
def test_a_run_that_learns_in_parts_resumes(tmp_path: Path, growth: Any) -> None:
    settings = config(growth, STACK, checkpoint=toy.Checkpoint(every="1 step"))
    toy.run(tmp_path / "whole", settings)
    die(tmp_path / "killed", settings, 11)
    toy.run(tmp_path / "killed", settings)
    assert toy.records(tmp_path / "killed") == toy.records(tmp_path / "whole")


# Progressive training


@pytest.mark.parametrize("layers", [0, 1])
def test_progressive_training_keeps_what_it_has_and_starts_the_rest_fresh(tmp_path: Path, layers: int) -> None:
    settings = config(Fresh(), Shallow(layers=layers))
    fine, coarse = levels(settings)
    assert coarse.sizes["layer"] == layers and coarse.flops.head == fine.flops.head
    small = at_rest(*trained(coarse.model))
    grown = settings.growth.grow(small, fine, context(settings)).weights
    fresh = build(fine.model, 0).state_dict()
    assert all(torch.equal(grown[n], small.weights[n]) for n in small.weights)
    assert all(torch.equal(grown[n], fresh[n]) for n in grown if n not in small.weights)
    toy.run(tmp_path, settings)


# What cannot be


@pytest.mark.parametrize(
    ("growth", "coarsening", "changes", "line"),
    [
        (None, Shallow(), {}, "growth=decoalesce: allowed: fresh"),
        (AKI(), Shallow(), {}, "growth=aki: allowed: fresh"),
        (Expand(), Kept(layers=[]), {"optimizer": AdamW(lr=1, ema=0.9)}, "growth=expand: allowed: fresh"),
        (LiGO(steps=0), Shallow(), {}, "growth=ligo: allowed: fresh"),
        (MSLT(), Kept(layers=[]), {}, "growth=mslt: allowed: fresh"),
        (Staged(), Shallow(), {}, "growth=staged: allowed: fresh"),
        (AKI(), STACK, {}, "growth=aki: allowed: decoalesce; no unit of the width is new"),
        (AKI(), Uniform(width=2, ffn=2, head=2, depth=4), {}, "aki: allowed: decoalesce; no layer has one above it"),
        (Expand(), Uniform(depth=2), {}, "optimizer.ema"),
        (Expand(), STACK, {"optimizer": AdamW(lr=1, ema=0.9)}, "adjacent"),
        (MSLT(), Uniform(depth=2), {}, "stack"),
        (MSLT(), STACK, {"policy": "carry"}, "carry"),
        (Staged(), Uniform(width=2), {}, "one ratio"),
        (AKI(substructures=3), STACK, {}, "growth.substructures"),
        (LiGO(lr=0.0), STACK, {}, "growth.lr"),
        (LiGO(steps=10**6), STACK, {}, "at most 100%"),
        (Inherit(weight=2.0), STACK, {}, "growth.weight"),
        (Fresh(), WIDTH, {}, "merges too"),
        (None, Shallow(layers=4), {}, "coarsening.layers"),
    ],
)
def test_what_cannot_be_is_one_line_of_the_plan(growth: Any, coarsening: Any, changes: Any, line: str) -> None:
    with pytest.raises(UserError) as error:
        make_plan(config(growth, coarsening, **changes))
    assert any(line in problem for problem in error.value.problems), error.value.problems
    assert all("\n" not in problem for problem in error.value.problems)


@pytest.mark.parametrize(("growth", "layers", "line"), [(Expand(), 4, "adjacent"), (MSLT(), 2, "stack")])
def test_every_turn_must_suit_the_growth(growth: Any, layers: int, line: str) -> None:
    """The first layer of a group leads at the first coming down, and the second one at the next."""
    optimizer = AdamW(lr=1e-2, ema=0.9)
    make_plan(config(growth, InTurn(), layers, optimizer=optimizer))
    twice = [Row(1, "5%"), Row(2, "10%"), Row(1, "5%"), Row(2, "10%"), Row(1, "rest")]
    cycle = Cycle(name="w", stages=twice)
    with pytest.raises(UserError) as refused:
        make_plan(config(growth, InTurn(), layers, optimizer=optimizer, cycle=cycle))
    assert line in str(refused.value) and len(refused.value.problems) == 1


def test_noise_needs_equal_copies() -> None:
    cycle = Cycle(name="grow", stages=list(GROW), noise=0.1)
    with pytest.raises(UserError, match="equal copies"):
        make_plan(config(LiGO(), BOTH, cycle=cycle))


def test_nothing_coalesces_into_a_level_without_layers() -> None:
    cycle = Cycle(name="v", stages=list(toy.V_CYCLE))
    with pytest.raises(UserError, match="no layers"):
        make_plan(config(Fresh(), Shallow(), cycle=cycle))
