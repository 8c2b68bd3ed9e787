"""Dropout and stochastic depth: what is dropped, when, how often, and that masks follow from seed and step alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from kills import a_kill_changes_nothing
from test_growth import BOTH, ONE, at_rest, config, context, levels, trained
from test_models import CONF, TINY, a_batch, read
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from mlrun.cli import command, points
from mlrun.config.load import load
from mlrun.config.settings import Hardware
from mlrun.evaluate.base import Context
from mlrun.evaluate.held_out import HeldOut
from mlrun.models import layers
from mlrun.models.base import RATES, Model
from mlrun.models.dropout import Dropout, DropPath, seed_masks
from mlrun.models.gpt import GPT
from mlrun.models.network import build
from mlrun.multilevel.growth import ligo_mapping, stage_losses
from mlrun.multilevel.growth.ligo import LiGO
from mlrun.plan.make import make_plan

ALL = dict.fromkeys(RATES, 0.3)
EVERY = pytest.mark.parametrize("model", TINY.values(), ids=TINY)


def loss(net: nn.Module, batch: dict[str, Tensor], *key: int) -> float:
    """Return the training loss with the masks of (seed, step, rank, first row)."""
    seed_masks(*key)
    with torch.no_grad():
        return float(net.train()(batch))


# What is dropped


@settings(max_examples=25, deadline=None)
@given(rate=st.floats(0, 0.95), kind=st.sampled_from([(layers.Dropout, Dropout), (layers.DropPath, DropPath)]))
def test_the_expectation_is_kept_and_evaluation_changes_nothing(rate: float, kind: tuple[Any, Any]) -> None:
    declared, computed = kind
    module, x = computed(declared(rate), {}), torch.ones(4000, 1, 1)
    assert torch.equal(module.eval()(x), x)
    seed_masks(0, 0, 0, 0)
    y = module.train()(x)
    values = torch.tensor([0.0, 1 / (1 - rate)])
    assert torch.isclose(y.flatten()[:, None], values, rtol=1e-6).any(dim=1).all()
    assert y.mean() == pytest.approx(1, abs=5 * math.sqrt(rate / (1 - rate) / len(x)) + 1e-6)


def test_paths_are_dropped_for_whole_samples() -> None:
    seed_masks(0, 0, 0, 0)
    y = DropPath(layers.DropPath(0.5), {}).train()(torch.ones(64, 5, 7))
    assert all(sample.unique().numel() == 1 for sample in y)
    assert {0.0, 2.0} == set(y.unique().tolist())


@pytest.mark.parametrize("name", ["gpt", "bert", "deit", "llama", "t5"])
def test_the_rate_of_a_path_rises_linearly_with_relative_depth(name: str) -> None:
    def rates(model: Model, stack: str) -> list[float]:
        net = build(replace(model, drop_path=0.4), 0)
        return [1 - float(b.drop_path.kept) if b.drop_path.drops else 0.0 for b in getattr(net, stack)]

    for stack in ("encoder", "decoder") if name == "t5" else ("blocks",):
        axis = "decoder_layer" if stack == "decoder" else "layer"
        assert rates(TINY[name].resize({axis: 5}), stack) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
        assert rates(TINY[name].resize({axis: 2}), stack) == pytest.approx([0, 0.4])
        assert rates(TINY[name].resize({axis: 1}), stack) == [0]


@EVERY
@pytest.mark.parametrize("rate", RATES)
def test_each_rate_acts_in_training_alone(model: Model, rate: str) -> None:
    batch, plain = a_batch(model, torch.float32, rows=8), build(model, 0)
    net = build(replace(model, **{rate: 0.5}), 0)
    assert torch.equal(net.eval()(batch), plain.eval()(batch))
    assert torch.equal(net.eval().logits(batch), net.logits(batch))
    assert loss(net, batch, 0, 0, 0, 0) != loss(plain, batch, 0, 0, 0, 0)


def test_dropout_hits_each_place_that_the_published_recipes_name() -> None:
    def places(name: str) -> set[str]:
        net = build(replace(TINY[name], dropout=0.3, attention_dropout=0.2), 0)
        return {n.replace("blocks.0.", "").replace("coder.0.", "coder.") for n, m in net.named_modules()
                if isinstance(m, Dropout) and m.rate == 0.3 and ".1." not in n and ".2." not in n}  # fmt: skip

    assert places("bert") == places("gpt") == places("deit") == places("llama") == {"dropout"}
    stacks = {f"{stack}.{place}" for stack in ("encoder", "decoder") for place in ("dropout", "mlp.dropout")}
    assert places("t5") == {"dropout"} | stacks


def test_the_published_sizes_have_the_published_rates_and_ours_have_none() -> None:
    published = {"bert_base": (0.1, 0.1, 0), "bert_large": (0.1, 0.1, 0), "roberta_base": (0.1, 0.1, 0),
                 "t5_small": (0.1, 0.1, 0), "t5_base": (0.1, 0.1, 0),
                 "deit_tiny": (0, 0, 0.1), "deit_s": (0, 0, 0.1), "deit_b": (0, 0, 0.1)}  # fmt: skip
    for path in CONF.glob("*.yaml"):
        model = read(path.stem)
        assert tuple(getattr(model, rate) for rate in RATES) == published.get(path.stem, (0, 0, 0))


# Masks


def test_masks_are_a_function_of_seed_step_process_and_micro_batch() -> None:
    model = replace(TINY["gpt"], **ALL)
    net, batch, key = build(model, 0), a_batch(model, torch.float32), (3, 5, 0, 0)
    first = loss(net, batch, *key)
    torch.rand(7)  # whatever else takes random numbers
    assert loss(net, batch, *key) == first
    others = [tuple(v + (place == at) for place, v in enumerate(key)) for at in range(4)]
    assert len({first, *(loss(net, batch, *other) for other in others)}) == 5


def dropped(**changes: Any) -> Any:
    """Return the toy run with everything dropped, in two micro-batches."""
    return toy.make(model=replace(toy.model(), **ALL), hardware=Hardware(micro_batch=4), **changes)


@pytest.mark.parametrize("at", [2, 6, 13, 22])
def test_a_killed_run_draws_the_masks_that_it_would_have_drawn(tmp_path: Path, at: int) -> None:
    changes = {"checkpoint": toy.Checkpoint(every="3 steps")}
    a_kill_changes_nothing(tmp_path, at, lambda: dropped(**changes))


def test_it_changes_training_and_the_seed_changes_it(tmp_path: Path) -> None:
    ends = {}
    for name, made in {"plain": toy.make(), "dropped": dropped(), "seed": dropped(seed=1)}.items():
        toy.run(tmp_path / name, made)
        ends[name] = [r["loss"] for r in toy.records(tmp_path / name) if r["kind"] == "train"]
    assert ends["plain"][0] != ends["dropped"][0] != ends["seed"][0]


def test_receipts_and_held_out_losses_know_no_dropout(tmp_path: Path) -> None:
    width = toy.Uniform(width=2, ffn=2, head=2)
    summary = toy.run(tmp_path, toy.make(model=replace(toy.model(), **ALL), coarsening=width))
    assert summary["receipts"][1]["exact"]
    net = build(replace(toy.model(), **ALL), None)
    net.load_state_dict(toy.weights(tmp_path))
    made = dropped()
    source = made.data.open(made.model, 0, "")
    found = HeldOut().measure(net.train(), Context(source, 8, made.settings.hardware, ONE))
    assert found["held_out"].value == summary["val_loss"]


# Growing


def test_a_teacher_drops_nothing() -> None:
    model = replace(toy.model(), **ALL)
    stage_loss = stage_losses.Distilled(build(replace(model, dropout=0.0), 0), build(model, 1), 1.0, 1.0, range(4))
    stage_loss.train()
    assert stage_loss.net.training and not any(module.training for module in stage_loss.teacher.modules())


def test_ligo_learns_as_evaluated() -> None:
    losses = {}
    for name, rates in {"plain": {}, "dropped": ALL}.items():
        made = config(LiGO(steps=2), BOTH)
        made = replace(made, model=replace(made.model, **rates))
        fine, coarse = levels(made)
        small = at_rest(*trained(coarse.model.as_evaluated()))
        losses[name] = ligo_mapping.learn(
            ligo_mapping.LearnedMap(fine, small.weights, 0.01, 0), fine, context(made), 2, 1e-2
        )
    assert losses["plain"] == losses["dropped"]


# With the rest


@pytest.mark.parametrize("name", ["bert", "deit", "t5"])
def test_it_compiles_without_a_graph_break_and_draws_anew_each_time(name: str) -> None:
    torch.compiler.reset()
    model = replace(TINY[name], **ALL)
    batch = a_batch(model, torch.float32, rows=8)
    compiled = torch.compile(build(model, 0), backend="aot_eager", fullgraph=True)
    first = loss(compiled, batch, 0, 0, 0, 0)
    assert loss(compiled, batch, 0, 0, 0, 0) == first
    assert loss(compiled, batch, 0, 1, 0, 0) != first
    plain = build(model.as_evaluated(), 0)
    assert compiled.eval()(batch).item() == pytest.approx(plain(batch).item(), rel=1e-5)


def test_blocks_of_different_rates_share_compiled_graphs() -> None:
    torch.compiler.reset()
    from torch._dynamo.testing import CompileCounter

    model = replace(TINY["deit"].resize({"layer": 6}), drop_path=0.5)
    net, graphs = build(model, 0), CompileCounter()
    for block in net.blocks:
        block.forward = torch.compile(block.forward, backend=graphs)  # type: ignore[method-assign]
    loss(net, a_batch(model, torch.float32), 0, 0, 0, 0)
    assert graphs.frame_count == 2, "one for the first block, which drops nothing, and one for all others"


def test_recomputed_activations_draw_the_same_masks() -> None:
    model = replace(TINY["gpt"], **ALL)
    batch = a_batch(model, torch.float32, rows=8)

    def gradients(wrap: Callable[[nn.Module], None]) -> dict[str, Tensor]:
        net = build(model, 0)
        for block in net.blocks:
            wrap(block)
        seed_masks(0, 0, 0, 0)
        net.train()(batch).backward()
        return {name: p.grad for name, p in net.named_parameters()}

    def recompute(block: nn.Module) -> None:
        plain = block.forward
        block.forward = lambda *given: recomputed(plain, *given, use_reentrant=False)  # type: ignore[method-assign]

    kept, again = gradients(lambda block: None), gradients(recompute)
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_the_command_line_sets_a_rate_and_the_plan_costs_the_same() -> None:
    def plan(*overrides: str) -> Any:
        (point,) = points.of(command.read(["model=gpt_tiny", *overrides]))
        return make_plan(load(point.settings))

    dropping = plan("model.dropout=0.1", "model.drop_path=0.2")
    assert dropping.spent(dropping.steps) == plan().spent(plan().steps)
    assert [level.model.dropout for level in dropping.levels] == [0.1, 0.1]
    assert [level.model.drop_path for level in dropping.levels] == [0.2, 0.2]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("value", [1.0, -0.1, math.nan])
def test_a_rate_is_at_least_0_and_under_1(rate: str, value: float) -> None:
    (line,) = replace(TINY["gpt"], **{rate: value}).problems()
    assert line.startswith(f"model.{rate}={value}: allowed: a number of at least 0 and under 1")


def test_weights_are_taken_over_whatever_was_dropped(tmp_path: Path) -> None:
    from test_interop import ours_at

    ours_at(tmp_path / "start", replace(toy.model(), dropout=0.1), torch.float32)
    summary = toy.run(tmp_path / "run", toy.make(init=str(tmp_path / "start")))
    assert summary["status"] == "finished"
    assert json.loads((tmp_path / "start/model/config.json").read_text())["dropout"] == 0.1
    assert isinstance(toy.model(), GPT)
