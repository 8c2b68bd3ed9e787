"""Every optimizer of conf/optimizer trains, resumes bitwise, goes through a cycle and is charged what it keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import yaml
from kills import die
from torch.utils.flop_counter import FlopCounterMode

from mlrun.cli import command, points
from mlrun.config.load import Config, conf_dir, load
from mlrun.config.settings import Cycle, Hardware, Row
from mlrun.errors import UserError
from mlrun.models.axes import expand
from mlrun.models.base import Model
from mlrun.models.bert import BERT
from mlrun.models.deit import DeiT
from mlrun.models.llama import Llama
from mlrun.models.network import build
from mlrun.models.t5 import T5
from mlrun.multilevel import transfer
from mlrun.multilevel.coarsening.uniform import Uniform
from mlrun.multilevel.growth.staged import Staged
from mlrun.plan.make import make_plan
from mlrun.plan.record import as_dict
from mlrun.train.optimizers import orthogonal
from mlrun.train.optimizers.base import Optimizer
from mlrun.train.optimizers.orthogonal import Orthogonal
from mlrun.train.optimizers.stepping import Stepping
from mlrun.train.snapshot import STEP, Snapshot

NAMES = sorted(path.stem for path in (conf_dir() / "optimizer").glob("*.yaml"))
SIZES = {"embed": 16, "ffn": 32, "layer": 2}
HEADS = {"head": 2, "head_dim": 8}
MODELS: dict[str, Model] = {
    "gpt": toy.model(),
    "untied": replace(toy.model(), tied=False),
    "bert": BERT(vocab=32, position=16, token_type=2, **HEADS, **SIZES),
    "deit": DeiT(image=8, channel=3, patch=4, classes=5, **HEADS, **SIZES),
    "llama": Llama(vocab=32, position=16, kv_head=2, group=2, head_dim=8, **SIZES),
    "t5": T5(vocab=32, bucket=8, distance=16, decoder_layer=2, **HEADS, **SIZES),
}


@pytest.fixture(params=NAMES)
def optimizer(request: pytest.FixtureRequest) -> Any:
    """Each choice, with a rate and a warm-up that move the toy."""
    moving = ("optimizer.lr=1e-2", "optimizer.schedule.warmup=5%")
    return composed(f"optimizer={request.param}", *moving).optimizer


def composed(*overrides: str) -> Config:
    """Return the configuration of a command line."""
    (point,) = points.of(command.read(overrides))
    return load(point.settings)


def stepped(optimizer: Optimizer, model: Model, steps: int = 2) -> tuple[Any, Stepping]:
    """Return a network and its optimizer after some steps against invented gradients."""
    net = build(model, 0)
    stepping = Stepping(optimizer, net)
    for _ in range(steps):
        for index, p in enumerate(net.parameters()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(index))
        stepping.step()
    return net, stepping


@pytest.mark.parametrize("model", MODELS)
def test_what_is_declared_is_what_torch_keeps(optimizer: Any, model: str) -> None:
    net, stepping = stepped(optimizer, MODELS[model])
    state, _ = stepping.state()
    declared = dict(expand(net.model.params(), net.model.sizes()))
    kept = {name: {kind for kind in state if name in state[kind]} for name in declared}
    assert kept == {name: set(optimizer.kinds(param)) for name, param in declared.items()}
    moved = build(MODELS[model], 0).state_dict()
    assert not any(torch.equal(t, moved[name]) for name, t in net.state_dict().items())


@pytest.mark.parametrize("model", MODELS)
def test_the_plan_charges_the_bytes_that_are_there(optimizer: Any, model: str) -> None:
    """But for torch's counts of steps, a number each."""
    net, stepping = stepped(optimizer, MODELS[model])
    weights = sum(p.nbytes for p in net.parameters())
    state = sum(t.nbytes for tensors in stepping.state()[0].values() for t in tensors.values())
    average = weights if optimizer.ema is not None else 0
    assert optimizer.state_bytes(MODELS[model]) == 2 * weights + state + average
    config = toy.make(model=replace(toy.model(), layer=4), optimizer=optimizer)
    levels = as_dict(make_plan(config))["levels"]
    plan = make_plan(config)
    assert [at["state_bytes"] for at in levels] == [optimizer.state_bytes(at.model) for at in plan.levels]


@pytest.mark.parametrize("model", MODELS)
def test_the_matrix_products_of_an_update_are_what_it_is_said_to_cost(optimizer: Any, model: str) -> None:
    _, stepping = stepped(optimizer, MODELS[model])
    with FlopCounterMode(display=False) as counter:
        stepping.step()
    assert counter.get_total_flops() == optimizer.update_flops(MODELS[model])


def test_every_step_of_a_run_is_charged_its_update(tmp_path: Path) -> None:
    """The ledger's FLOPs are those of AdamW's run and the updates of each level; `%`, `rest` and flops know of them."""
    muon, plain = (composed(f"optimizer={name}").optimizer for name in ("muon", "adamw"))
    stages = (Row(level=2, length="50%"), Row(level=1, length="8 steps"))
    given = {"model": replace(toy.model(), layer=4), "cycle": Cycle(name="two", stages=stages)}
    mine, other = (make_plan(toy.make(optimizer=optimizer, **given)) for optimizer in (muon, plain))
    assert [stage.steps for stage in mine.stages] == [stage.steps for stage in other.stages] == [10, 8]
    updates = [mine.level(stage.level).update_flops * stage.steps for stage in mine.stages]
    assert updates[0] > 0 and muon.update_flops(mine.level(1).model) == mine.level(1).update_flops
    for number, stage in enumerate(mine.stages):
        assert mine.stage_cost(stage).flops == other.stage_cost(other.stages[number]).flops + updates[number]
        assert mine.stage_cost(stage).flops_body == other.stage_cost(other.stages[number]).flops_body + updates[number]
    assert mine.budget_flops == other.budget_flops + 20 * mine.level(1).update_flops
    assert toy.run(tmp_path, toy.make(optimizer=muon, **given))["ledger"]["total"]["flops"] == mine.total.flops
    rest = make_plan(
        toy.make(optimizer=muon, **{**given, "cycle": Cycle(name="two", stages=(stages[0], Row(1, "rest")))})
    )
    assert 0 <= rest.budget_flops - rest.total.flops < rest.level(1).step_flops(rest.batch)
    assert as_dict(mine)["levels"][0]["update_flops"] == mine.level(1).update_flops
    assert "update_flops" not in as_dict(other)["levels"][0]


def test_only_tensors_of_two_or_more_dims_decay(optimizer: Any) -> None:
    """A gradient of zero leaves decay alone."""
    model = MODELS["deit"]
    net = build(model, 0)
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(1.0)
            p.grad = torch.zeros_like(p)
    stepping = Stepping(optimizer, net)
    stepping.set_rate(0.5)
    stepping.step()
    for name, p in net.named_parameters():
        expected = 1 - 0.5 * optimizer.weight_decay if p.ndim >= 2 else 1.0
        assert torch.allclose(p, torch.full_like(p, expected)), name


def test_state_that_is_loaded_takes_the_same_next_step(optimizer: Any) -> None:
    net, stepping = stepped(optimizer, MODELS["gpt"])
    other = build(MODELS["gpt"], None)
    other.load_state_dict(net.state_dict())
    again = Stepping(optimizer, other)
    tensors, taken = stepping.state()
    again.load({kind: {n: t.clone() for n, t in named.items()} for kind, named in tensors.items()}, taken)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        q.grad = p.grad.clone()
    stepping.step()
    again.step()
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in net.state_dict().items())
    assert stepping.state()[1] == again.state()[1]


V = Cycle(name="v", stages=list(toy.V_CYCLE), optimizer_policy="carry")
GROW = Cycle(name="grow", stages=[Row(2, "30%"), Row(1, "60%")], optimizer_policy="carry")
WAYS: dict[str, dict[str, Any]] = {
    "V-cycle": {"cycle": V, "checkpoint": toy.Checkpoint(every="2 steps")},
    "staged": {"cycle": GROW, "growth": Staged(), "coarsening": Uniform(width=2, ffn=2, head=2)},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_carried_run_learns_and_resumes_bitwise(optimizer: Any, way: str, tmp_path: Path) -> None:
    config = toy.make(optimizer=replace(optimizer, ema=0.9), **WAYS[way])
    toy.run(tmp_path / "whole", config)
    losses = [r["loss"] for r in toy.records(tmp_path / "whole") if r["kind"] == "val"]
    assert losses[-1] < losses[0] - 0.1
    die(tmp_path / "killed", config, 9)
    toy.run(tmp_path / "killed", config)
    assert toy.records(tmp_path / "killed") == toy.records(tmp_path / "whole")
    for name in ("model.safetensors", "ema.safetensors"):
        assert (tmp_path / "killed/model" / name).read_bytes() == (tmp_path / "whole/model" / name).read_bytes()


def test_state_goes_up_and_down_again(optimizer: Any) -> None:
    """Down of up is the state that there was, kind by kind."""
    level = make_plan(toy.make(optimizer=optimizer)).level(1)
    assert level.resize is not None
    net, stepping = stepped(optimizer, level.model.resize(level.resize.coarse))
    tensors, taken = stepping.state()
    coarse = Snapshot({"weights": net.state_dict(), **tensors}, taken)
    fine = transfer.decoalesce(coarse, level, optimizer.state)
    back = transfer.coalesce(fine, level, optimizer.state)
    assert set(back.tensors) == set(coarse.tensors) and back.optimizer_steps == fine.optimizer_steps == taken
    for kind, named in tensors.items():
        assert set(named) == set(back.tensors[kind])
        assert all(torch.allclose(t, back.tensors[kind][name], rtol=1e-5, atol=0) for name, t in named.items()), kind


def test_state_of_the_coarse_model_alone_stays_as_it_is(optimizer: Any, tmp_path: Path) -> None:
    """A level that took no step has no state to blend with."""
    net, stepping = stepped(optimizer, toy.model())
    tensors, taken = stepping.state()
    weights = {name: t.clone() for name, t in net.state_dict().items()}
    untrained = {name: torch.zeros_like(t) for name, t in weights.items()}
    grown = Snapshot({"weights": weights, **tensors}, taken)
    blended = transfer.interpolate(Snapshot({"weights": untrained}), grown, 0.5)
    assert blended.optimizer_steps == taken and set(blended.tensors) == {"weights", *tensors}
    assert all(torch.equal(t, blended.tensors[kind][name]) for kind, ts in tensors.items() for name, t in ts.items())
    assert all(torch.equal(t / 2, blended.weights[name]) for name, t in weights.items())
    stages = [Row(1, "0 steps"), Row(2, "40%"), Row(1, "40%")]
    toy.run(tmp_path, toy.make(optimizer=optimizer, cycle=replace(V, stages=stages)))


@pytest.mark.parametrize(("alpha", "count"), [(0.0, 2), (0.25, 4), (0.5, 5), (1.0, 8)])
def test_a_blend_of_averages_has_the_mean_of_their_counts(optimizer: Any, alpha: float, count: int) -> None:
    """So the first step after the blend divides what few steps have filled by little; 0 and 1 give either side's."""
    sides = [stepped(optimizer, toy.model(), steps) for steps in (2, 8)]
    kept, grown = (Snapshot({"weights": net.state_dict(), **(s := step.state())[0]}, s[1]) for net, step in sides)
    blended = transfer.interpolate(kept, grown, alpha)
    assert blended.optimizer_steps == count and STEP not in blended.tensors
    ends = {0.0: kept, 1.0: grown}
    if alpha in ends:
        for kind, named in ends[alpha].tensors.items():
            assert all(torch.equal(t, blended.tensors[kind][name]) for name, t in named.items())


def test_nothing_names_an_optimizer_outside_its_own_file() -> None:
    """But for LiGO's mapping and fine-tuning, whose published recipes are AdamW's whatever trained the model."""
    package = conf_dir().parent / "mlrun"
    written = [yaml.safe_load(path.read_text()) for path in conf_dir().glob("optimizer/*.yaml")]
    names = {one["_target_"].rpartition(".")[2] for one in written if "_target_" in one}  # others are diffs on these
    own = package / "train" / "optimizers"
    others = [
        path
        for path in package.rglob("*.py")
        if own not in path.parents and not path.name.startswith(("ligo", "finetune"))
    ]
    words = (*names, "exp_avg", "momentum_buffer")
    found = [path.name for path in others for word in words if word in _code(path)]
    assert found == []


def _code(path: Path) -> str:
    """Return a file without its comments and docstrings."""
    import ast

    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def test_each_judges_its_own_settings(optimizer: Any) -> None:
    wrong = replace(optimizer, lr=0.0, clip=-1.0, ema=1.0, beta1=1.0, eps=0.0, weight_decay=float("nan"))
    keys = [line.partition("=")[0] for line in wrong.problems(Hardware())]
    assert keys == [f"optimizer.{k}" for k in ("lr", "clip", "ema", "beta1", "eps", "weight_decay")]
    assert optimizer.problems(Hardware()) == []


def muon(**hardware: Any) -> list[str]:
    """Return what stands against training with Muon."""
    overrides = [f"hardware.{key}={value}" for key, value in hardware.items()]
    try:
        make_plan(composed("optimizer=muon", *overrides))
    except UserError as error:
        return error.problems
    return []


def test_muon_moves_hidden_matrices_and_nothing_else() -> None:
    """No table by index, no position, no head, no vector."""
    optimizer = composed("optimizer=muon").optimizer
    for model in MODELS.values():
        params = model.params()
        matrices = ("query", "key", "value", "output", "up", "gate", "down", "dense")
        expected = {name for name in params if name.endswith(tuple(f"{m}.weight" for m in matrices))}
        assert {n for n, param in params.items() if optimizer.kinds(param) == ("momentum_buffer",)} == expected


@pytest.mark.parametrize(("batch", "share"), [(4, 41), (16, 15), (64, None)])
def test_a_plan_tells_what_an_optimizer_spends_on_its_own_work(batch: int, share: int | None) -> None:
    """gpt_tiny, by hand: 128 x 4 has 2.517 GFLOPs of it a step, and 0.906 GFLOPs a sample."""
    notes = make_plan(composed("optimizer=muon", "model=gpt_tiny", "cycle=scratch", f"batch={batch}")).notes
    told = [f"{share}% of a step's FLOPs at level 1 are the optimizer's own; at a larger batch they are less of it"]
    assert list(notes) == (told if share else [])
    assert not make_plan(composed("optimizer=adamw", "model=gpt_tiny", "cycle=scratch", f"batch={batch}")).notes


def test_muon_is_refused_on_shards() -> None:
    assert muon() == []
    (line,) = muon(sharding="fsdp")
    assert line.startswith("hardware.sharding=fsdp: allowed: none; ") and "optimizer=adamw" in line


SHAPES = ((8, 8), (24, 8), (8, 24), (8, 8), (8, 8), (24, 8))


def moved(make: Callable[[list[torch.Tensor]], torch.optim.Optimizer], steps: int = 4) -> list[torch.Tensor]:
    """Return matrices after some steps along gradients of their own; the last has none in the first step."""
    draw = torch.Generator().manual_seed(3)
    matrices = [torch.nn.Parameter(torch.randn(shape, generator=draw)) for shape in SHAPES]
    optimizer = make(list(matrices))
    for step in range(steps):
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape, generator=draw)
        if step == 0:
            matrices[-1].grad = None
        optimizer.step()
    return [matrix.detach() for matrix in matrices]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon comes with torch 2.9")
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_moves_as_torch_does(nesterov: bool) -> None:
    ours = moved(lambda tensors: Orthogonal(tensors, 0.02, 0.1, 0.9, nesterov, 5))
    theirs = moved(
        lambda tensors: torch.optim.Muon(tensors, 0.02, 0.1, 0.9, nesterov, ns_steps=5, adjust_lr_fn="match_rms_adamw")
    )
    start = moved(lambda tensors: Orthogonal(tensors, 0.0, 0.0, 0.9, nesterov, 5))
    for mine, other, before in zip(ours, theirs, start, strict=True):
        far = (other - before).norm()
        assert (mine - other).norm() < 0.01 * far, "bfloat16 rounds a product of many otherwise than one of one"


def test_muon_moves_by_orthogonal_matrices_however_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    together = moved(lambda tensors: Orthogonal(tensors, 0.02, 0.0, 0.9, True, 5))
    monkeypatch.setattr(orthogonal, "MOST_AT_A_TIME", {})
    apart = moved(lambda tensors: Orthogonal(tensors, 0.02, 0.0, 0.9, True, 5))
    for one, other in zip(together, apart, strict=True):
        assert torch.allclose(one, other, atol=0.02 * 0.2 * 5 * 0.02)
    values = torch.linalg.svdvals(orthogonal.orthogonal(torch.randn(3, 16, 40), 5).float())
    assert values.min() > 0.5 and values.max() < 1.4


def test_muon_without_hidden_matrices_is_adamw() -> None:
    optimizer = composed("optimizer=muon").optimizer
    assert len(Stepping(optimizer, build(toy.model().resize({"layer": 0}), 0)).parts) == 1
